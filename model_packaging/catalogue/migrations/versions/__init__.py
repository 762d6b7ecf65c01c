"""The migrations, one file each, in the order that they name each other."""
