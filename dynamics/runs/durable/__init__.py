"""The durable core: journal, checkpoints, locks, and loops that commit as they go."""
