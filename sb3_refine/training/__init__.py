"""Training on with plain Stable-Baselines3."""
