"""One file an op: its shapes and its rivals, nothing else."""
