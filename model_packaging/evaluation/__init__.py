"""Judges model versions on a held-out data set, each through the server that serves it in production."""
