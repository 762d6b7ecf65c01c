"""What a rollout would be: its target, its steps, what they take and for how long, and what gates will ask for."""
