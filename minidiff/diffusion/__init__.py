"""The mathematics of diffusion: plain functions over arrays and any callable model.

`schedule` says how much noise each of the T steps carries, `forward` adds it, `loss` asks a model to tell it,
`steps` take some of it away, `reverse` all of it, by a `sampler` that visits some `levels`. `guidance` makes a model
insist on a class, `editing` changes pictures with one, `bound` counts the bits that pictures cost it, `torch_generator`
draws the noise that torch would.
Every t is 0-based: t = 0 has almost no noise, t = T - 1 is all but pure noise, and the papers' t is ours + 1.
Equation numbers refer to

- DDPM: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020 (arXiv 2006.11239)
- DDIM: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2020 (arXiv 2010.02502)
- Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021 (arXiv 2102.09672)
- Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022 (arXiv 2202.00512)
- PNDM: Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022 (arXiv 2202.09778)
- Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022
  (arXiv 2206.00364)
- DPM-Solver++: Lu, Zhou, Bao, Chen, Li, Zhu, "Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022
  (arXiv 2211.01095)
- Lin, Liu, Li, Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023 (arXiv 2305.08891)
"""
