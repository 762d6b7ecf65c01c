"""What is measured, in every mode: the catalogue of metrics, and the rules that make them."""
