"""A run folder and its page."""
