"""What a rollout leaves: its looks and events, a summary in JSON, and a page that shows them."""
