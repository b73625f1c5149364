"""Single-file checkpoints: Stable Diffusion 1.x and 2.x in one safetensors file, with the names of CompVis' code."""
