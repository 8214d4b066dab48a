"""What TRL and a night need."""
