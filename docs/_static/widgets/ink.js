// Chapter 1: particles of ink under drift and random motion. Particles are [x, y, x, y, ...]; of what runs over time,
// entry 0 is the clean start and entry t + 1 is after step t. Always x_t = a x0 + sqrt(v) eps.
"use strict";
{
  const T = 1000, N = 400, SECONDS = 9; // a film of T steps takes SECONDS
  const { make } = minidiff;

  /** The betas of a schedule, (T,): minidiff's cosine_schedule() or linear_schedule(). */
  function betas(name) {
    if (name === "linear") return Float64Array.from({ length: T }, (_, t) => 1e-4 + (t * (0.02 - 1e-4)) / (T - 1));
    const f = (i) => Math.cos(((i / T + 0.008) / 1.008) * (Math.PI / 2)) ** 2;
    return Float64Array.from({ length: T }, (_, t) => Math.min(1 - f(t + 1) / f(t), 0.999));
  }

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
      const angle = 2 * Math.PI * uniform(), radius = 0.35 * Math.sqrt(uniform()), m = i < N / 2 ? -0.45 : 0.45;
      if (start === "drop") x.set([1.7 + radius * Math.cos(angle), 1.2 + radius * Math.sin(angle)], 2 * i);
      else x.set([m + 0.2 * z[2 * i], m + 0.2 * z[2 * i + 1]], 2 * i);
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

  minidiff.ink = { betas, coefficients, chain, moments, theory, logSNR, particles };

  /** Axes as the course's figures have them: x and y are {range, ticks, label}. Returns the functions to pixels. */
  function axes(context, colours, { left, top, right, bottom }, x, y) {
    const scale = ([low, high], from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);
    const px = scale(x.range, left, right), py = scale(y.range, bottom, top);
    const text = (label, x, y, align, baseline) => {
      Object.assign(context, { textAlign: align, textBaseline: baseline });
      context.fillText(typeof label === "number" ? String(label).replace("-", "−") : label, x, y);
    };
    Object.assign(context, { strokeStyle: colours.muted, fillStyle: colours.muted, lineWidth: 1 });
    line(context, [[left, top], [left, bottom], [right, bottom]]);
    for (const tick of x.ticks) {
      line(context, [[px(tick), bottom], [px(tick), bottom + 4]]);
      text(tick, px(tick), bottom + 7, "center", "top");
    }
    for (const tick of y.ticks) {
      line(context, [[left - 4, py(tick)], [left, py(tick)]]);
      text(tick, left - 7, py(tick), "right", "middle");
    }
    text(x.label, (left + right) / 2, bottom + 24, "center", "top");
    context.save();
    context.translate(9, (top + bottom) / 2);
    context.rotate(-Math.PI / 2);
    text(y.label, 0, 0, "center", "middle");
    context.restore();
    return [px, py];
  }

  /** A stroke through points [x, y] in pixels. */
  function line(context, points) {
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x, y);
    context.stroke();
  }

  function disc(context, x, y, radius) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
  }

  /** Draw inside a box only. */
  function clip(context, { left, top, right, bottom }) {
    context.beginPath();
    context.rect(left, top, right - left, bottom - top);
    context.clip();
  }

  /** Calls step(seconds since the last call) in every frame, while it is running and the element is in sight. */
  function animation(element, step) {
    let running = false, inSight = false, request = 0, before = 0;
    const frame = (now) => {
      request = requestAnimationFrame(frame);
      step(Math.min(Math.max(now - before, 0), 100) / 1000);
      before = now;
    };
    const update = () => {
      cancelAnimationFrame(request);
      before = performance.now();
      if (running && inSight) request = requestAnimationFrame(frame);
    };
    new IntersectionObserver(([entry]) => { inSight = entry.isIntersecting; update(); }).observe(element);
    return { running: () => running, run(value) { running = value; update(); } };
  }

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
      context.fillStyle = colours[kindOf(n, settings)];
      disc(context, px(x[2 * n]), py(x[2 * n + 1]), 1.6);
      context.fill();
    }
    Object.assign(context, { globalAlpha: 1, strokeStyle: colours.muted, lineWidth: 1.5 });
    line(context, [[px(0) - 6, py(0)], [px(0) + 6, py(0)]]);
    line(context, [[px(0), py(0) - 6], [px(0), py(0) + 6]]);
    Object.assign(context, { strokeStyle: colours.gold, lineWidth: 2, fillStyle: colours.text });
    disc(context, px(mean[0]), py(mean[1]), Math.max(px(std) - px(0), 1));
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
      context.strokeStyle = context.fillStyle = colours[kindOf(n, settings)];
      context.lineWidth = 0.7;
      line(context, path);
      disc(context, ...path[i], 2.2);
      context.fill();
    }
    Object.assign(context, { strokeStyle: colours.gold, lineWidth: 2 });
    line(context, edge(0));
  }

  const number = (x) => (x === Infinity ? "∞" : (Math.abs(x) < 0.005 ? 0 : x).toFixed(2).replace("-", "−"));
  const pair = ([x, y]) => `(${number(x)}, ${number(y)})`;

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
    const marks = [...inks, ["block", text, "their mean"], ["line", gold, "theory: mean and one standard deviation"]];
    return marks.map(([shape, color, label]) =>
      make("span", {}, make("i", { class: shape, style: `color: ${color}` }), label));
  }

  /** Checkboxes and choices that change `settings` and then call changed(). */
  function addSettings(parent, settings, changed) {
    const set = (name) => (value) => { settings[name] = value; changed(); };
    for (const [name, label] of [["drift", "drift"], ["noise", "random motion"]]) {
      const box = make("input", { type: "checkbox", checked: "", oninput: () => set(name)(box.checked) });
      parent.append(make("label", { class: "control" }, box, make("span", { text: label })));
    }
    const starts = [["drop", "a drop"], ["clusters", "two clusters"]];
    const schedules = [["cosine", "cosine"], ["linear", "linear"]];
    for (const [name, options] of [["start", starts], ["schedule", schedules]]) {
      minidiff.choice(parent, { label: name, options, value: settings[name], oninput: set(name) });
    }
  }

  minidiff.widget("ink", (body, figure) => {
    const settings = { start: "drop", schedule: "cosine", drift: true, noise: true };
    const z = minidiff.normal(3, T * 2 * N); // the same for all settings, so that only what is changed differs
    let shown = film(settings, z), t = -1;

    const left = make("div", { style: "flex-grow: 3" }), right = make("div", { style: "flex-grow: 4" });
    const time = make("div", { class: "controls" }), choices = make("div", { class: "controls" });
    const key = make("div", { class: "marks" }), table = make("table");
    body.append(make("div", { class: "plots" }, left, right), key, time, choices, table);

    const player = animation(figure, (seconds) => {
      minidiff.set(slider, Math.min(t + Math.max(1, Math.round((seconds * T) / SECONDS)), T - 1));
      if (t === T - 1) play(false);
    });
    const play = (value) => {
      if (value && t === T - 1) minidiff.set(slider, -1);
      player.run(value);
      button.textContent = value ? "Pause" : "Play";
    };
    const button = minidiff.button(time, "Play", () => play(!player.running()));
    button.style.minWidth = "4.6em";
    const slider = minidiff.slider(time, {
      label: "t", min: -1, max: T - 1, step: 1, value: t, show: (value) => (value < 0 ? "clean" : String(value)),
      oninput: (value) => { t = value; show(); },
    });
    slider.parentElement.classList.add("wide");
    addSettings(choices, settings, () => { shown = film(settings, z); show(); });

    const panel = (parent, aspect, label, draw) => minidiff.canvas(parent, {
      aspect, label, draw: (...canvas) => draw(...canvas, shown, t + 1, settings),
    });
    const plane = panel(left, "1", "Particles in the plane; a circle is the standard deviation in theory", drawPlane);
    const paths = panel(right, "4 / 3", "The second coordinate of eight particles over t, on theory's band", drawPaths);
    const show = () => {
      key.replaceChildren(...legend(settings));
      table.innerHTML = readouts(shown.measure(t + 1), shown.expected[t + 1], formulas(settings));
      plane.redraw();
      paths.redraw();
    };
    show();
  });
}
