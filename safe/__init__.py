"""What keeps a night's run: memory, numbers, disks, locks and signals. To be skipped at first reading."""
