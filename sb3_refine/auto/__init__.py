"""Training, then search, in one budget."""
