// Chapter 1: particles of ink under drift and random motion. Particles are [x, y, x, y, ...]; of what runs over time,
// entry 0 is the clean start and entry t + 1 is after step t. Always x_t = a x0 + sqrt(v) eps.
"use strict";
{
  const N = 400, SECONDS = 9; // a film of T steps takes SECONDS
  const { make, axes, line, circle, disc, clip, fixed, pair } = minidiff;
  const { T, MEANS, STD, betas } = minidiff.diffusion;

  /**
   * The signal coefficients a and the noise variances v, (T + 1,) each. With drift and noise they are sqrt(alpha_bar)
   * and 1 - alpha_bar; without drift v is the sum of the betas.
   */
  function coefficients(betas, drift, noise) {
    const a = [1], v = [0];
    betas.forEach((beta, t) => {
      a.push(a[t] * (drift ? Math.sqrt(1 - beta) : 1));
      v.push(v[t] * (drift ? 1 - beta : 1) + (noise ? beta : 0));
    });
    return { a, v };
  }

  /** DDPM eq. 2, step by step: the particles at all T + 1 times. z is the noise of all steps, (T * x0.length,). */
  function chain(x0, betas, z, drift, noise) {
    const states = [x0];
    betas.forEach((beta, t) => {
      const keep = drift ? Math.sqrt(1 - beta) : 1, add = noise ? Math.sqrt(beta) : 0;
      states.push(states[t].map((value, i) => keep * value + add * z[t * x0.length + i]));
    });
    return states;
  }

  /** The mean, [x, y], and the standard deviation of a coordinate: the root of the mean of both variances. */
  function moments(x) {
    const mean = [0, 0];
    x.forEach((value, i) => { mean[i % 2] += (2 * value) / x.length; });
    return { mean, std: Math.sqrt(x.reduce((sum, value, i) => sum + (value - mean[i % 2]) ** 2, 0) / x.length) };
  }

  /** What a start with these moments has at (a, v): mean, standard deviation, log-SNR. */
  function theory({ mean, std }, a, v) {
    return { mean: mean.map((m) => a * m), std: Math.sqrt((a * std) ** 2 + v), logSNR: Math.log((a * a) / v) };
  }

  /** The log-SNR of particles: a^2 over the mean square of their noise, x_t - a x0. */
  function logSNR(x, x0, a) {
    return Math.log((a * a * x.length) / x.reduce((sum, value, i) => sum + (value - a * x0[i]) ** 2, 0));
  }

  /** The start: the "drop" of the chapter's first figure, or points of two_clusters, first the cats, then the dogs. */
  function particles(start) {
    const uniform = minidiff.uniform(1), z = minidiff.normal(2, 2 * N), x = new Float64Array(2 * N);
    for (let i = 0; i < N; i++) {
      const angle = 2 * Math.PI * uniform(), radius = 0.35 * Math.sqrt(uniform());
      if (start === "drop") x.set([1.7 + radius * Math.cos(angle), 1.2 + radius * Math.sin(angle)], 2 * i);
      else x.set(MEANS[i < N / 2 ? 0 : 1].map((mean, axis) => mean + STD * z[2 * i + axis]), 2 * i);
    }
    return x;
  }

  /** All times of the chosen process: particles, what they measure, and what theory expects. */
  function film({ start, schedule, drift, noise }, z) {
    const x0 = particles(start), table = betas(schedule), { a, v } = coefficients(table, drift, noise);
    const states = chain(x0, table, z, drift, noise), atStart = moments(x0);
    const measure = (i) => ({ ...moments(states[i]), logSNR: noise ? logSNR(states[i], x0, a[i]) : Infinity });
    return { states, measure, expected: a.map((_, i) => theory(atStart, a[i], v[i])) };
  }

  minidiff.ink = { coefficients, chain, moments, theory, logSNR, particles };

  const COORDINATE = { range: [-4, 4], ticks: [-4, -2, 0, 2, 4] };
  const kindOf = (i, { start }) => (start === "clusters" && i >= N / 2 ? "noise" : "signal"); // named as the colours

  /** The particles at entry i; the circle is theory's standard deviation around its mean, the cross the origin. */
  function drawPlane(context, width, height, colours, { states, expected, measure }, i, settings) {
    const box = { left: 42, top: 8, right: width - 8, bottom: height - 42 };
    const [px, py] = axes(context, colours, box,
      { ...COORDINATE, label: "first coordinate" }, { ...COORDINATE, label: "second coordinate" });
    const x = states[i], { mean, std } = expected[i], [meanX, meanY] = measure(i).mean;
    clip(context, box);
    context.globalAlpha = 0.7;
    for (let n = 0; n < N; n++) {
      disc(context, px(x[2 * n]), py(x[2 * n + 1]), 1.6, colours[kindOf(n, settings)]);
    }
    Object.assign(context, { globalAlpha: 1, strokeStyle: colours.muted, lineWidth: 1.5 });
    line(context, [[px(0) - 6, py(0)], [px(0) + 6, py(0)]]);
    line(context, [[px(0), py(0) - 6], [px(0), py(0) + 6]]);
    Object.assign(context, { strokeStyle: colours.gold, lineWidth: 2, fillStyle: colours.text });
    circle(context, px(mean[0]), py(mean[1]), Math.max(px(std) - px(0), 1));
    context.stroke();
    context.fillRect(px(meanX) - 3, py(meanY) - 3, 6, 6);
  }

  /** The second coordinate of eight particles up to entry i, on theory's mean and standard deviation. */
  function drawPaths(context, width, height, colours, { states, expected }, i, settings) {
    const box = { left: 42, top: 8, right: width - 16, bottom: height - 42 };
    const [px, py] = axes(context, colours, box,
      { range: [-1, T - 1], ticks: [0, 250, 500, 750, 999], label: "t" },
      { ...COORDINATE, label: "second coordinate" });
    clip(context, { ...box, right: box.right + 6 });
    const edge = (side) => expected.map(({ mean, std }, n) => [px(n - 1), py(mean[1] + side * std)]);
    Object.assign(context, { fillStyle: colours.gold, strokeStyle: colours.muted, globalAlpha: 0.22 });
    context.beginPath();
    for (const [x, y] of [...edge(1), ...edge(-1).reverse()]) context.lineTo(x, y);
    context.fill();
    context.globalAlpha = 1;
    line(context, [[px(i - 1), box.top], [px(i - 1), box.bottom]]);
    for (let n = 0; n < N; n += N / 8) {
      const path = states.slice(0, i + 1).map((x, t) => [px(t - 1), py(x[2 * n + 1])]);
      Object.assign(context, { strokeStyle: colours[kindOf(n, settings)], lineWidth: 0.7 });
      line(context, path);
      disc(context, ...path[i], 2.2, context.strokeStyle);
    }
    Object.assign(context, { strokeStyle: colours.gold, lineWidth: 2 });
    line(context, edge(0));
  }

  const number = (x) => (x === Infinity ? "∞" : fixed(x, 2));

  /** Theory's formulas in MathML; m and s are mean and standard deviation of the start. */
  function formulas({ drift, noise }) {
    const math = (inner) => `<math>${inner}</math>`;
    const alphaBar = drift ? "<msub><mover><mi>α</mi><mo>¯</mo></mover><mi>t</mi></msub>" : "";
    const scaled = (letter) => `${drift ? `<msqrt>${alphaBar}</msqrt>` : ""}<mi>${letter}</mi>`;
    const v = drift ? `<mrow><mn>1</mn><mo>−</mo>${alphaBar}</mrow>` : "<mrow><mo>∑</mo><mi>β</mi></mrow>";
    return {
      mean: math(scaled("m")),
      std: math(noise ? `<msqrt>${alphaBar}<msup><mi>s</mi><mn>2</mn></msup><mo>+</mo>${v}</msqrt>` : scaled("s")),
      logSNR: noise ? math(`<mi>log</mi><mfrac>${alphaBar || "<mn>1</mn>"}${v}</mfrac>`) : "no noise",
    };
  }

  /** The table of readouts, as HTML. */
  function readouts(measured, expected, formulas) {
    const row = (label, name, show) => `<tr><th>${label}</th><td>${show(measured[name])}</td>`
      + `<td><span class="value">${show(expected[name])}</span>${formulas[name]}</td></tr>`;
    return `<tr><th></th><th>particles</th><th>theory</th></tr>${row("mean", "mean", pair)}`
      + row("standard deviation", "std", number) + row("log-SNR", "logSNR", number);
  }

  function legend({ start }) {
    const { signal, noise, gold } = minidiff.colours(), text = "var(--color-foreground-primary)";
    const inks = start === "drop" ? [["dot", signal, "particles"]] : [["dot", signal, "cats"], ["dot", noise, "dogs"]];
    return [...inks, ["block", text, "their mean"], ["line", gold, "theory: mean and one standard deviation"]];
  }

  /** Checkboxes and choices that change `settings` and then call changed(). */
  function addSettings(parent, settings, changed) {
    const set = (name) => (value) => { settings[name] = value; changed(); };
    for (const [name, label] of [["drift", "drift"], ["noise", "random motion"]]) {
      minidiff.checkbox(parent, { label, checked: settings[name], oninput: set(name) });
    }
    const starts = [["drop", "a drop"], ["clusters", "two clusters"]];
    const schedules = [["cosine", "cosine"], ["linear", "linear"]];
    for (const [name, options] of [["start", starts], ["schedule", schedules]]) {
      minidiff.choice(parent, { label: name, options, value: settings[name], oninput: set(name) });
    }
  }

  minidiff.widget("ink", (body) => {
    const settings = { start: "drop", schedule: "cosine", drift: true, noise: true };
    const z = minidiff.normal(3, T * 2 * N); // the same for all settings, so that only what is changed differs
    let shown = film(settings, z), t = -1;

    const left = make("div", { style: "flex-grow: 3" }), right = make("div", { style: "flex-grow: 4" });
    const time = make("div", { class: "controls" }), choices = make("div", { class: "controls" });
    const key = make("div", { class: "marks" }), table = make("table");
    body.append(make("div", { class: "plots" }, left, right), key, time, choices, table);

    const player = minidiff.play(time, {
      start: () => { if (t === T - 1) place(-1); },
      frame: (seconds) => {
        place(Math.min(t + Math.max(1, Math.round((seconds * T) / SECONDS)), T - 1));
        return t < T - 1;
      },
    });
    const name = (t) => (t < 0 ? "clean" : String(t));
    const slider = minidiff.slider(time, {
      label: "t", min: -1, max: T - 1, step: 1, value: t, show: name,
      oninput: (value) => { player.pause(); place(value); },
    });
    slider.parentElement.classList.add("wide");
    const place = (to) => {
      t = to;
      minidiff.place(slider, t);
      show();
    };
    addSettings(choices, settings, () => { shown = film(settings, z); show(); });

    const panel = (parent, aspect, label, draw) => minidiff.canvas(parent, {
      aspect, label, draw: (...canvas) => draw(...canvas, shown, t + 1, settings),
    });
    const plane = panel(left, "1", () => {
      const { mean, std } = shown.measure(t + 1);
      return `${N} particles in the plane, t: ${name(t)}; their mean is ${pair(mean)}, their standard deviation `
        + `${fixed(std, 2)}. A circle shows theory's.`;
    }, drawPlane);
    const paths = panel(right, "4 / 3", () =>
      `The second coordinate of eight particles over t, up to ${name(t)}, on theory's band`, drawPaths);
    const show = () => {
      minidiff.fillLegend(key, legend(settings));
      table.innerHTML = readouts(shown.measure(t + 1), shown.expected[t + 1], formulas(settings));
      plane.redraw();
      paths.redraw();
    };
    show();
  });
}
