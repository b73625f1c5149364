"""Array backends, automatic differentiation, layers and the optimiser. Nothing here is specific to diffusion."""
