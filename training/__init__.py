"""Around the step of train.py, what TRL and a night need: settled flags, memory, checkpoints, logs, ends."""
