"""Where the versions of one evaluation run: on this machine, or on a Ray cluster."""
