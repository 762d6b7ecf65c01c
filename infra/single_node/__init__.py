"""Mode `single-node`: versions as processes or containers of one machine, behind one Envoy."""
