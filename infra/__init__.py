"""Everything that becomes resources: settings, contracts, and one folder for each mode."""
