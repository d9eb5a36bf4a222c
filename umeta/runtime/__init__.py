"""What surrounds long work: loops, checkpoints, progress, files, locks, processes and devices."""
