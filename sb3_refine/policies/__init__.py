"""Policies for rollouts, and the parameter vector behind their actions."""
