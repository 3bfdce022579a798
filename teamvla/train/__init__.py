"""Training: optimisers, schedules, the loop, runs and their checkpoints."""
