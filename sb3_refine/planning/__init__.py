"""Tree search with an agent's policy and value, as a teacher of the agent."""
