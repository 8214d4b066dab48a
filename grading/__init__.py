"""What is correct."""
