"""The command `lepton`: a thin layer over the packages beside it."""
