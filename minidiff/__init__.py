"""minidiff: diffusion models from scratch, to be read."""
