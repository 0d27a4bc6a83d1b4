"""Joint training of all widths."""
