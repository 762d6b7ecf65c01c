"""What a resource has to be like to be let into an environment: rules, and the pack that checks them in a preview."""
