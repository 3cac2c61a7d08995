"""What is on disk: a run's folder, its checkpoints, weights to start from, copies in a bucket."""
