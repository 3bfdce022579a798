"""Temporal: what was seen earlier in the episode, for the head of this moment."""
