"""Episodes: running, recording and measuring them, and whether they can be repeated."""
