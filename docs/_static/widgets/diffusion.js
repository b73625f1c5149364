// The mathematics that several widgets use, under the names of minidiff/diffusion. Points are x, y, x, y, ...; a noise
// level is known by its alpha_bar.
"use strict";
{
  const T = 1000; // timesteps of a schedule
  const MEANS = [[-0.45, -0.45], [0.45, 0.45]], STD = 0.2; // cats and dogs of the dataset two_clusters

  /** The betas of a schedule, (T,): minidiff's cosine_schedule() or linear_schedule(). */
  function betas(name) {
    const linear = (t) => (t < T - 1 ? t * ((0.02 - 1e-4) / (T - 1)) + 1e-4 : 0.02);
    const f = (t) => Math.cos(((t / T + 0.008) / 1.008) * (Math.PI / 2)) ** 2; // Nichol & Dhariwal 2021, eq. 17
    const cosine = (t) => Math.min(1 - f(t + 1) / f(t), 0.999);
    return Float64Array.from({ length: T }, (_, t) => (name === "linear" ? linear(t) : cosine(t)));
  }

  function alphasCumprod(name) {
    let product = 1;
    return betas(name).map((beta) => (product *= 1 - beta));
  }

  const logSNR = (alphaBar) => Math.log(alphaBar / (1 - alphaBar));
  const alphaBarOf = (logSNR) => 1 / (1 + Math.exp(-logSNR));

  function x0FromEps(eps, x, alphaBar) {
    const signal = Math.sqrt(alphaBar), noise = Math.sqrt(1 - alphaBar);
    return x.map((value, j) => (value - noise * eps[j]) / signal);
  }

  /** A step from alpha_bar a to b: DDIM eq. 12 and 16. eta = 0 solves the ODE, 1 adds as much noise z as DDPM. */
  function ddimStep(eps, x, a, b, eta = 0, z = null) {
    const sigma = eta * Math.sqrt(Math.max(0, ((1 - b) / (1 - a)) * (1 - a / b)));
    const signal = Math.sqrt(b), rest = Math.sqrt(Math.max(0, 1 - b - sigma ** 2));
    return x0FromEps(eps, x, a).map((value, j) => signal * value + rest * eps[j] + (z ? sigma * z[j] : 0));
  }

  // ---- The exact model of the two clusters

  /** The variance of a coordinate of x_t within a cluster. */
  const variance = (alphaBar) => alphaBar * STD ** 2 + 1 - alphaBar;

  /** p(dog | x_t) of a point with the sum x + y. */
  const dogProbability = (sum, alphaBar) =>
    1 / (1 + Math.exp((-2 * Math.sqrt(alphaBar) * MEANS[1][0] * sum) / variance(alphaBar)));

  /** eps_hat = E[eps | x_t] of points, by Tweedie's formula from the score of the mixture. */
  function predict(x, alphaBar) {
    const signal = Math.sqrt(alphaBar), noise = Math.sqrt(1 - alphaBar), S = variance(alphaBar);
    const eps = x.slice();
    for (let j = 0; j < x.length; j += 2) {
      const mean = MEANS[1][0] * (2 * dogProbability(x[j] + x[j + 1], alphaBar) - 1); // of both coordinates
      eps[j] = (noise * (x[j] - signal * mean)) / S;
      eps[j + 1] = (noise * (x[j + 1] - signal * mean)) / S;
    }
    return eps;
  }

  /** The coordinate along the line through both means, and the density of noisy points along it. */
  const along = ([x, y]) => (x + y) * Math.SQRT1_2;
  function density(u, alphaBar) {
    const S = variance(alphaBar), mean = Math.sqrt(alphaBar) * along(MEANS[1]);
    const hill = (offset) => Math.exp(-(offset ** 2) / (2 * S)) / Math.sqrt(2 * Math.PI * S);
    return (hill(u - mean) + hill(u + mean)) / 2;
  }

  minidiff.diffusion = {
    T, MEANS, STD, betas, alphasCumprod, logSNR, alphaBarOf, x0FromEps, ddimStep,
    variance, dogProbability, predict, along, density,
  };
}
