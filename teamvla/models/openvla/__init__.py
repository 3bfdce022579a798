"""OpenVLA, and the parts of published models that it shares with SmolVLA."""
