"""Environments: how to build them, what is known of their families, wrappers and accelerators."""
