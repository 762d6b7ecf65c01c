"""Looks after endpoints between rollouts."""
