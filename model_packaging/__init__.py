"""Model versions as immutable artifacts: what one is made of, how it is built, where it is kept, how it is checked."""
