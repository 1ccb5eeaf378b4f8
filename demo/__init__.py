"""The demo: one model, many algorithms, one report. ``make demo`` runs it."""
