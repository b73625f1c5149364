"""The mathematics of diffusion: plain functions over arrays and any callable model.

`schedule` holds the beta schedules, `continuous` EDM and rectified flow, `forward` adds noise and converts between
prediction targets, `loss` trains a model, `steps` are single reverse steps, `reverse` the sampling loops, by a
`sampler` over `noise_levels`. `guidance` is guidance by labels, by a classifier and by a weaker model, `editing`
image-to-image and inpainting, `bound` the variational bound in bits per dimension, and `model` what a model is. `sde`
is diffusion in continuous time, `likelihood` that of its ODE, and `exact` the model of data of known distribution.
Every t is 0-based: x_0 is almost the image, x_{T-1} almost pure noise, and the papers' t is ours + 1.
Equation numbers refer to

- DDPM: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020 (arXiv 2006.11239)
- DDIM: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021 (arXiv 2010.02502)
- Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021 (arXiv 2102.09672)
- Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022 (arXiv 2202.00512)
- PNDM: Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022 (arXiv 2202.09778)
- EDM: Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022
  (arXiv 2206.00364)
- Rectified flow: Liu, Gong, Liu, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
  2022 (arXiv 2209.03003)
- DPM-Solver++: Lu, Zhou, Bao, Chen, Li, Zhu, "Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022
  (arXiv 2211.01095)
- Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-Based Generative Modeling through Stochastic Differential
  Equations", 2021 (arXiv 2011.13456)
- Lin, Liu, Li, Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024 (arXiv 2305.08891)
"""
