"""Saved reports as rows of tables: one function for each benchmark."""
