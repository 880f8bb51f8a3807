"""Evaluation, comparison, selection and acceptance of agents."""
