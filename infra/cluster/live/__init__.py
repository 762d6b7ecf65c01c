"""The cluster as it is, through its API server and its gateway: what neither configs nor Pulumi's state can say."""
