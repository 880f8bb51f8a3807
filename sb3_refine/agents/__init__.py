"""Agents: loaded from folders, zips, the Hub and memory, and saved."""
