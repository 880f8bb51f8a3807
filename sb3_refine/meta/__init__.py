"""Meta-learning: a distribution of actors and critics from which a few episodes suffice to adapt to a new task."""
