"""Tools for those who develop the library; nothing here is installed."""
