"""Changes stacks in the right order and makes sure of what came of it. Knows no mode."""
