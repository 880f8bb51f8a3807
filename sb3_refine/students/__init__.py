"""Students: policies of another architecture that learn an agent's actions."""
