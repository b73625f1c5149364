// Sampling of the two clusters of chapter 4 with their exact model: sampler, steps and eta.
//
// The functions of the first part are those of minidiff/diffusion: `timesteps` of noise_levels.py, and the loops of
// solvers/. x is a Float64Array (2 N) of points x, y, x, y, ...
"use strict";
{
  const { make, line, circle, disc, clip, fixed } = minidiff;
  const { T, MEANS, STD, logSNR, alphaBarOf, x0FromEps, ddimStep, variance, predict, along, density } =
    minidiff.diffusion;
  const alphasCumprod = minidiff.diffusion.alphasCumprod("linear");

  /** Every (T / steps)-th timestep, counted down from T - 1 ("trailing"). */
  function timesteps(steps) {
    const delta = T + -T / steps - T; // as numpy.arange rounds it
    return Array.from({ length: steps }, (_, i) => roundHalfToEven(T + i * delta) - 1);
  }

  function roundHalfToEven(value) {
    const below = Math.floor(value);
    return value - below === 0.5 ? below + (below % 2) : Math.round(value);
  }

  function epsFromX0(x0, x, alphaBar) {
    const signal = Math.sqrt(alphaBar), noise = Math.sqrt(1 - alphaBar);
    return x.map((value, j) => (value - signal * x0[j]) / noise);
  }

  // ---- Samplers: a loop gets x_T, the steps from alpha_bar a to alpha_bar b, eta and noise(i), and yields every x_t

  const SAMPLERS = {
    /** DDPM algorithm 2, with the variance beta tilde. */
    *ddpm(x, steps, eta, noise) {
      for (const { i, a, b } of steps) {
        const x0 = x0FromEps(predict(x, a), x, a);
        const beta = 1 - a / b;
        const ofX0 = (Math.sqrt(b) * beta) / (1 - a), ofX = (Math.sqrt(1 - beta) * (1 - b)) / (1 - a); // eq. 7
        const std = Math.sqrt(((1 - b) / (1 - a)) * beta);
        const z = b < 1 && noise(i);
        x = x.map((value, j) => ofX0 * x0[j] + ofX * value + (z ? std * z[j] : 0));
        yield x;
      }
    },

    *ddim(x, steps, eta, noise) {
      for (const { i, a, b } of steps) {
        const eps = predict(x, a);
        x = ddimStep(eps, x, a, b, eta, eta > 0 && b < 1 ? noise(i) : null);
        yield x;
      }
    },

    /** Euler's step, repeated with the mean slope of its ends; the last step is Euler's. */
    *heun(x, steps) {
      for (const { a, b } of steps) {
        const eps = predict(x, a), next = ddimStep(eps, x, a, b);
        const end = b < 1 ? predict(next, b) : eps;
        x = ddimStep(eps.map((value, j) => (value + end[j]) / 2), x, a, b);
        yield x;
      }
    },

    /** DPM-Solver++ 2M: x0_hat extrapolated from the last two, linearly in the log-SNR; the last step is not. */
    *dpmpp_2m(x, steps) {
      let last = null, lastH = 0;
      for (const { a, b } of steps) {
        const x0 = x0FromEps(predict(x, a), x, a);
        const h = (logSNR(b) - logSNR(a)) / 2;
        const ratio = h / lastH / 2;
        const extrapolated = last && b < 1 ? x0.map((value, j) => value + ratio * (value - last[j])) : x0;
        x = ddimStep(epsFromX0(extrapolated, x, a), x, a, b);
        [last, lastH] = [x0, h];
        yield x;
      }
    },
  };

  /** Model evaluations of so many steps. */
  const evaluations = (name, steps) => (name === "heun" ? 2 * steps - 1 : steps);

  /** ts, alpha_bar and x_t of x_T and after every step; ts ends with -1, alpha_bar with 1. noise(i) is z of step i. */
  function sample({ name, steps, eta }, x_T, noise) {
    const ts = [...timesteps(steps), -1];
    const alphaBar = ts.map((t) => (t < 0 ? 1 : alphasCumprod[t]));
    const pairs = ts.slice(1).map((_, i) => ({ i, a: alphaBar[i], b: alphaBar[i + 1] }));
    return { ts, alphaBar, states: [x_T, ...SAMPLERS[name](x_T, pairs, eta, noise)] };
  }

  // ---- Statistics

  const pointOf = (x, k) => x.subarray(2 * k, 2 * k + 2);
  const alongLine = (x) => Float64Array.from({ length: x.length / 2 }, (_, k) => along(pointOf(x, k)));

  // Nearer to the middle is more than two standard deviations inside of both means.
  const BETWEEN = along(MEANS[1]) - 2 * STD;

  /** Standard deviation of the coordinates around the nearer mean, and the fractions of dogs and of points between. */
  function statistics(x) {
    const u = alongLine(x);
    const offsets = x.map((value, j) => value - MEANS[u[j >> 1] > 0 ? 1 : 0][j % 2]);
    const mean = offsets.reduce((sum, value) => sum + value, 0) / x.length;
    const within = Math.sqrt(offsets.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length);
    const fraction = (test) => u.filter(test).length / u.length;
    return { within, between: fraction((value) => Math.abs(value) < BETWEEN), dogs: fraction((value) => value > 0) };
  }

  minidiff.sampler = { timesteps, sample, evaluations, statistics };

  // ---- The figure

  const N = 1000, IN_PLANE = 3, ON_LINE = 8; // trajectories shown
  const STEPS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200];
  const EXTENT = 2.4; // of the plane and of the line, to either side
  const BINS = 48;
  const LOW = -10, HIGH = 8; // log-SNR; clean points stand at HIGH

  const percent = (fraction) => `${fixed(100 * fraction, 1)} %`;
  const shown = (alphaBar) => Math.min(HIGH, logSNR(alphaBar));

  /** x_t, alpha_bar and log-SNR at a position between two steps: on the straight line between their ends. */
  function interpolated({ states, alphaBar }, position) {
    const k = Math.floor(position), f = position - k;
    if (!f) return { x: states[k], alphaBar: alphaBar[k], level: shown(alphaBar[k]) };
    const level = (1 - f) * shown(alphaBar[k]) + f * shown(alphaBar[k + 1]);
    const x = states[k].map((value, j) => (1 - f) * value + f * states[k + 1][j]);
    return { x, alphaBar: alphaBarOf(level), level };
  }

  /** The density along the line, over the log-SNR from LOW to HIGH, as the opacity of a colour. */
  function densityImage(colour, columns = 91, rows = 105) {
    const alphaBar = (column) => alphaBarOf(LOW + ((column + 0.5) / columns) * (HIGH - LOW));
    return minidiff.heat(columns, rows, colour, (column, row) =>
      0.45 * Math.min(1, density(EXTENT * (1 - (2 * row + 1) / rows), alphaBar(column))) ** 0.8);
  }

  function polyline(context, points, colour, width) {
    Object.assign(context, { strokeStyle: colour, lineWidth: width, lineJoin: "round" });
    line(context, points);
  }

  minidiff.widget("sampler", (body) => {
    const settings = { name: "ddim", steps: 10, eta: 0, seed: 0 };
    const colours = minidiff.colours(), background = densityImage(colours.gold);
    let run, now, position = settings.steps;

    // Controls
    const controls = make("div", { class: "settings" });
    body.append(controls);
    minidiff.choice(controls, {
      label: "sampler", value: settings.name, options: Object.keys(SAMPLERS).map((name) => [name, name]),
      oninput: (name) => change({ name }),
    });
    minidiff.slider(controls, {
      label: "steps", min: 0, max: STEPS.length - 1, step: 1, value: STEPS.indexOf(settings.steps),
      show: (i) => String(STEPS[i]), oninput: (i) => change({ steps: STEPS[i] }),
    });
    const eta = minidiff.slider(controls, {
      label: "eta", min: 0, max: 1, step: 0.05, value: settings.eta, show: (value) => value.toFixed(2),
      oninput: (value) => change({ eta: value }),
    });
    minidiff.slider(controls, {
      label: "seed", min: 0, max: 9, step: 1, value: settings.seed, oninput: (seed) => change({ seed }),
    });

    // Canvases
    const views = make("div", { class: "views" });
    body.append(views);
    const plane = view("in the plane", () =>
      `${N} points in the plane at log-SNR ${fixed(now.level, 1)}, in the colours of the clusters where they end, and `
      + "circles of the exact density", drawPlane);
    const overLevels = view("along the line, over the log-SNR", () =>
      `${ON_LINE} trajectories along the line through both clusters, over the log-SNR up to ${fixed(now.level, 1)}, `
      + "and a histogram of all points with the exact density", drawLine);
    const player = minidiff.player(body, {
      label: "step", steps: settings.steps, smooth: true, seconds: (n) => Math.min(8, 2 + 0.25 * n),
      show: (step) =>
        `${step} of ${settings.steps}, ${step < settings.steps ? `t = ${timesteps(settings.steps)[step]}` : "clean"}`,
      onmove: (to) => { position = to; redraw(); },
    });

    const key = make("div", { class: "marks" });
    minidiff.fillLegend(key, [
      ["dot", colours.signal, "becomes a cat"], ["dot", colours.noise, "becomes a dog"],
      ["dot", colours.muted, "start of a trajectory"],
      ["dot", colours.gold, "exact density at this noise level; circles at 1 and 2 standard deviations"],
    ]);
    const table = make("table", { class: "numbers", "aria-live": "polite" });
    body.append(key, table);

    change({});

    function view(title, label, draw) {
      return minidiff.canvas(minidiff.pane(views, title), { aspect: "1", label, draw });
    }

    function change(changes) {
      Object.assign(settings, changes);
      const noise = (i) => minidiff.normal(1000 * settings.seed + i + 1, 2 * N); // 0 is that of x_T
      run = sample(settings, noise(-1), noise);
      eta.disabled = settings.name !== "ddim";
      fill();
      player.setSteps(settings.steps);
    }

    function fill() {
      const { within, between, dogs } = statistics(run.states.at(-1));
      minidiff.fillTable(table,
        ["", "NFE", "standard deviation within clusters", "between clusters", "dogs"],
        ["samples", evaluations(settings.name, settings.steps), fixed(within, 3), percent(between), percent(dogs)],
        ["data", "", fixed(STD, 3), "2.3 %", "50.0 %"]);
    }

    function redraw() {
      now = interpolated(run, position);
      plane.redraw();
      overLevels.redraw();
    }

    /** The colour of each point: by where its sample lies. */
    function colourOf(colours) {
      const end = run.states.at(-1);
      return (k) => (end[2 * k] + end[2 * k + 1] > 0 ? colours.noise : colours.signal);
    }

    /** The points of trajectory k up to now, as place(x, level) sets them. */
    function trail(k, place) {
      const passed = run.states.slice(0, Math.floor(position) + 1);
      const points = passed.map((x, i) => place(pointOf(x, k), shown(run.alphaBar[i])));
      return [...points, place(pointOf(now.x, k), now.level)];
    }

    function drawPlane(context, width, height, colours) {
      const colour = colourOf(colours), scale = width / 2 / EXTENT;
      const place = ([x, y]) => [width / 2 + scale * x, height / 2 - scale * y];
      const std = Math.sqrt(variance(now.alphaBar)), signal = Math.sqrt(now.alphaBar);
      const trails = Array.from({ length: IN_PLANE }, (_, k) => trail(k, place));
      context.globalAlpha = 0.6;
      trails.forEach((points, k) => polyline(context, points, colour(k), 1));
      for (let k = 0; k < N; k++) disc(context, ...place(pointOf(now.x, k)), 1.5, colour(k));
      context.globalAlpha = 1;
      Object.assign(context, { strokeStyle: colours.gold, lineWidth: 1.2 });
      for (const mean of MEANS) {
        for (const n of [1, 2]) {
          circle(context, ...place([signal * mean[0], signal * mean[1]]), scale * n * std);
          context.stroke();
        }
      }
      trails.forEach((points, k) => {
        disc(context, ...points[0], 3, colours.muted);
        disc(context, ...points.at(-1), 4.5, colours.page);
        disc(context, ...points.at(-1), 3.5, colour(k));
      });
    }

    function drawLine(context, width, height, colours) {
      const colour = colourOf(colours), bottom = height - 20, split = width * 0.7;
      const xOf = (level) => 1 + ((level - LOW) / (HIGH - LOW)) * (split - 10);
      const yOf = (u) => bottom / 2 - (u / EXTENT) * (bottom / 2);
      context.drawImage(background, xOf(LOW), 0, xOf(HIGH) - xOf(LOW), bottom);
      const place = ([x, y], level) => [xOf(Math.max(LOW, level)), yOf(along([x, y]))];
      context.save();
      clip(context, { left: 0, top: 0, right: split, bottom });
      for (let k = 0; k < ON_LINE; k++) {
        const points = trail(k, place);
        polyline(context, points, colour(k), 1.2);
        if (run.states.length < 32) for (const point of points) disc(context, ...point, 1.8, colour(k));
      }
      context.restore();
      const here = xOf(Math.max(LOW, now.level));
      polyline(context, [[here, 0], [here, bottom]], colours.muted, 1);
      drawHistogram(context, split, width, bottom, yOf, colours, colour);
      context.fillStyle = colours.muted;
      context.textAlign = "center";
      for (const level of [-8, -4, 0, 4]) {
        context.fillText(fixed(level, 0), xOf(level), bottom + 14);
      }
      context.fillText("clean", xOf(HIGH), bottom + 14);
      context.fillText("all points", (split + width) / 2 + 4, bottom + 14);
    }

    function drawHistogram(context, left, right, bottom, yOf, colours, colour) {
      if (now.alphaBar === 1) {
        context.fillStyle = colours.muted;
        context.globalAlpha = 0.15;
        context.fillRect(left + 8, yOf(BETWEEN), right - left - 8, yOf(-BETWEEN) - yOf(BETWEEN));
        context.globalAlpha = 1;
      }
      const bars = { [colours.signal]: new Float64Array(BINS), [colours.noise]: new Float64Array(BINS) };
      alongLine(now.x).forEach((u, k) => {
        const bin = Math.floor(((u + EXTENT) / (2 * EXTENT)) * BINS);
        if (bars[colour(k)][bin] !== undefined) bars[colour(k)][bin]++;
      });
      const perUnit = (right - left - 12) / 1.6, high = 2 * EXTENT / BINS;
      for (let bin = 0; bin < BINS; bin++) {
        let x = left + 8;
        for (const [fill, counts] of Object.entries(bars)) {
          const length = (counts[bin] / N / high) * perUnit;
          context.fillStyle = fill;
          context.fillRect(x, yOf(-EXTENT + (bin + 1) * high) + 0.5, length, (high / 2 / EXTENT) * bottom - 1);
          x += length;
        }
      }
      const curve = Array.from({ length: 261 }, (_, i) => {
        const u = EXTENT * (i / 130 - 1);
        return [left + 8 + density(u, now.alphaBar) * perUnit, yOf(u)];
      });
      polyline(context, curve, colours.gold, 1.8);
    }
  });
}
