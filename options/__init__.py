"""Off by default."""
