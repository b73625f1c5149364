"""Files: weights, folders of diffusers, schedulers, tokenizers, and the state of a run."""
