"""What a model's folder holds, found by reading its files: nothing in them is loaded, and none of their code runs."""
