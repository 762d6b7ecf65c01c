"""A rollout under way: its state, the one process that drives it, and all that this acts through."""
