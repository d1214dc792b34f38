"""What pruning lost is won back: training against a teacher, or on text alone."""
