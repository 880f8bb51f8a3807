"""Search and training in competition for one budget."""
