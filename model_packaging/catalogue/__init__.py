"""The catalogue: a database in which model versions are found again. The stores are the truth; it can be rebuilt."""
