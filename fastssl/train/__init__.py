"""Training: optimisers, schedules, the loop and its checkpoints."""
