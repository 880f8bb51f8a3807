"""Files of unknown origin read as data: nothing in them is imported, called or set."""
