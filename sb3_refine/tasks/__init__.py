"""Families of tasks: environments that differ in gravity, masses, goals and the like from episode to episode."""
