"""What a training run is, on disk and in time."""
