"""What to train, one file each; nothing in here knows about devices, ranks or parallelism."""
