"""Memory and time, before anything loads."""
