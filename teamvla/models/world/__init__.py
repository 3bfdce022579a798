"""A model of the world: what commands lead to, learned from episodes, and planning in it."""
