// Chapter 2: the score field of two clusters, a noisy point x_t in it, and the trajectories from there to clean points.
// Noise levels are the chapter's 171, from noise (log-SNR -10) to clean (7), known by their index.
"use strict";
{
  const LOG_SNRS = Array.from({ length: 171 }, (_, i) => (i - 100) / 10), LAST = 170;
  const LIMIT = 2.4, MANY = 40, NEAR = 0.15, SECONDS = 7; // the plane; other trajectories, from how near; a release
  const { make, axes, line, circle, disc, clip, heat, fixed, pair } = minidiff;
  const { MEANS, STD, alphaBarOf, x0FromEps, ddimStep, variance, dogProbability, predict, along, density } =
    minidiff.diffusion;

  /** What is known at x = [x, y]: density, score, posterior weights [cat, dog], E[x0 | x_t] and E[eps | x_t]. */
  function exact(x, alphaBar) {
    const signal = Math.sqrt(alphaBar), S = variance(alphaBar), eps = predict(x, alphaBar);
    const hills = MEANS.map((m) => Math.exp(-((x[0] - signal * m[0]) ** 2 + (x[1] - signal * m[1]) ** 2) / (2 * S)));
    const dog = dogProbability(x[0] + x[1], alphaBar);
    return {
      density: (hills[0] + hills[1]) / (4 * Math.PI * S), weights: [1 - dog, dog], x0: x0FromEps(eps, x, alphaBar), eps,
      score: eps.map((value) => -value / Math.sqrt(1 - alphaBar)),
    };
  }

  const step = (x, alphaBar, next, eta, z) => ddimStep(predict(x, alphaBar), x, alphaBar, next, eta, z);

  /** All states from x at level i to the last level. z holds two numbers for each of the 171 levels. */
  function trajectory(x, i, eta, z) {
    const states = [x];
    for (; i < LAST; i++) {
      const [now, next] = [alphaBarOf(LOG_SNRS[i]), alphaBarOf(LOG_SNRS[i + 1])];
      states.push(step(states.at(-1), now, next, eta, z.slice(2 * i, 2 * i + 2)));
    }
    return states;
  }

  /** The log-SNR of the fork: there sigma^2 + STD^2 is the squared distance of a cluster from the middle. */
  const FORK = -Math.log(MEANS[1][0] ** 2 + MEANS[1][1] ** 2 - STD ** 2);

  /** Where a trajectory ends: -1 at a cat, 1 at a dog, 0 on the line between them. */
  const endOf = (path) => Math.sign(along(path.at(-1)));

  minidiff.score = { LOG_SNRS, FORK, exact, step, trajectory, endOf };

  /** Text with a rim in the page's colour, to be read over lines. */
  function label(context, colours, text, x, y) {
    Object.assign(context, { strokeStyle: colours.page, lineWidth: 3, lineJoin: "round" });
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  }

  /** The symbol x with an index, hatted or not. */
  function symbol(context, colours, x, y, index, hat) {
    const font = (size) => `italic ${size}px "STIX Two Text", Cambria, "Times New Roman", serif`;
    Object.assign(context, { textAlign: "left", textBaseline: "alphabetic", fillStyle: colours.text, font: font(17) });
    label(context, colours, "x", x, y);
    const width = context.measureText("x").width;
    context.font = font(12);
    label(context, colours, index, x + width + 1, y + 4);
    Object.assign(context, { strokeStyle: colours.text, lineWidth: 1.2 });
    if (hat) line(context, [[-3, 0], [0, -4], [3, 0]].map(([dx, dy]) => [x + 0.6 * width + dx, y - 10 + dy]));
  }

  function dot(context, x, y, radius, fill, rim) {
    Object.assign(context, { strokeStyle: rim, lineWidth: 1.5 });
    disc(context, x, y, radius, fill);
    context.stroke();
  }

  /** An arrow of (dx, dy) pixels, its middle at (x, y). */
  function arrow(context, x, y, dx, dy) {
    const length = Math.hypot(dx, dy), head = Math.min(4, length / 2) / length, tip = [x + dx / 2, y + dy / 2];
    const barb = (side) => [tip[0] - head * (dx - 0.6 * side * dy), tip[1] - head * (dy + 0.6 * side * dx)];
    line(context, [[x - dx / 2, y - dy / 2], tip]);
    line(context, [barb(1), tip, barb(-1)]);
  }

  /** The density of noisy points, and arrows of their score, to scale among themselves. */
  function drawField(context, colours, box, px, py, alphaBar) {
    const cells = 64, spacing = 0.36, centre = (cell) => ((cell + 0.5) / cells) * 2 * LIMIT - LIMIT;
    const density = Array.from({ length: cells ** 2 }, (_, n) =>
      exact([centre(n % cells), -centre(Math.floor(n / cells))], alphaBar).density);
    const largest = Math.max(...density);
    const image = heat(cells, cells, colours.gold, (column, row) => (0.55 * density[row * cells + column]) / largest);
    context.drawImage(image, box.left, box.top, box.right - box.left, box.bottom - box.top);
    const grid = Array.from({ length: 13 }, (_, n) => (n - 6) * spacing);
    const points = grid.flatMap((x) => grid.map((y) => [x, y])), scores = points.map((x) => exact(x, alphaBar).score);
    const scale = (1.1 * (px(spacing) - px(0))) / Math.max(...scores.map((score) => Math.hypot(...score)));
    Object.assign(context, { strokeStyle: colours.noise, lineWidth: 1.2, globalAlpha: 0.8 });
    points.forEach(([x, y], n) => arrow(context, px(x), py(y), scale * scores[n][0], -scale * scores[n][1]));
    context.globalAlpha = 1;
  }

  /** All trajectories, the first one last and thick; place(state, n) is the pixel of their n-th state. */
  function drawTrajectories(context, colours, paths, place) {
    for (const path of [...paths.slice(1), paths[0]]) {
      context.strokeStyle = [colours.signal, colours.muted, colours.noise][endOf(path) + 1];
      [context.lineWidth, context.globalAlpha] = path === paths[0] ? [2.2, 1] : [0.7, 0.45];
      line(context, path.map(place));
    }
    context.globalAlpha = 1;
  }

  const COORDINATE = { range: [-LIMIT, LIMIT], ticks: [-2, -1, 0, 1, 2] };
  const planeBox = (width, height) => ({ left: 42, top: 8, right: width - 8, bottom: height - 42 });

  function drawPlane(context, width, height, colours, { paths, x_t, level }) {
    const box = planeBox(width, height);
    const [px, py] = axes(context, colours, box,
      { ...COORDINATE, label: "first coordinate" }, { ...COORDINATE, label: "second coordinate" });
    const place = ([x, y]) => [px(x), py(y)], alphaBar = alphaBarOf(LOG_SNRS[level]), { x0 } = exact(x_t, alphaBar);
    clip(context, box);
    drawField(context, colours, box, px, py, alphaBar);
    drawTrajectories(context, colours, paths, place);
    ["cat", "dog"].forEach((name, kind) => {
      const [x, y] = place(MEANS[kind]), radius = px(STD) - px(0);
      Object.assign(context, { strokeStyle: [colours.signal, colours.noise][kind], lineWidth: 1.5 });
      circle(context, x, y, radius);
      context.stroke();
      Object.assign(context, { textAlign: ["right", "left"][kind], textBaseline: "middle", fillStyle: colours.text });
      label(context, colours, name, x + [-1, 1][kind] * (radius + 5), y);
    });
    Object.assign(context, { strokeStyle: colours.text, lineWidth: 1.5 });
    context.setLineDash([4, 3]);
    line(context, [place(x_t), place(x0)]);
    context.setLineDash([]);
    symbol(context, colours, px(x0[0]) + 8, py(x0[1]) + 17, "0", true);
    symbol(context, colours, px(x_t[0]) + 10, py(x_t[1]) - 8, "t", false);
    dot(context, ...place(x0), 4.5, colours.page, colours.text);
    dot(context, ...place(x_t), 7, colours.text, colours.page);
  }

  let background; // of drawFork: the density along the diagonal at every level, the same whatever is shown
  function drawFork(context, width, height, colours, { paths, start, x_t, level }) {
    const box = { left: 42, top: 8, right: width - 16, bottom: height - 42 };
    const [px, py] = axes(context, colours, box,
      { range: [-10, 7], ticks: [-10, -5, 0, 5], label: "log-SNR" }, { ...COORDINATE, label: "along the diagonal" });
    background ??= heat(LOG_SNRS.length, 96, colours.gold, (column, row) =>
      0.8 * density(LIMIT - ((row + 0.5) / 96) * 2 * LIMIT, alphaBarOf(LOG_SNRS[column])));
    clip(context, { ...box, left: box.left - 6, right: box.right + 6 });
    context.drawImage(background, box.left, box.top, box.right - box.left, box.bottom - box.top);
    Object.assign(context, { strokeStyle: colours.muted, lineWidth: 1.2 });
    context.setLineDash([2, 3]);
    line(context, [[px(FORK), box.top], [px(FORK), box.bottom]]);
    context.setLineDash([]);
    drawTrajectories(context, colours, paths, (x, n) => [px(LOG_SNRS[start + n]), py(along(x))]);
    dot(context, px(LOG_SNRS[level]), py(along(x_t)), 5, colours.text, colours.page);
    Object.assign(context, { textAlign: "left", textBaseline: "top", fillStyle: colours.muted });
    label(context, colours, "fork", px(FORK) + 5, box.top + 3);
  }

  const nameOfEnd = (path) => ["a cat", "neither", "a dog"][endOf(path) + 1];

  /** The readouts, as HTML. */
  function readouts({ paths, x_t, level, fresh }) {
    const { x0, score } = exact(x_t, alphaBarOf(LOG_SNRS[level]));
    const cats = paths.slice(1).filter((path) => endOf(path) < 0).length;
    const math = (inner) => `<math>${inner}</math>`, symbol = "<msub><mi>x</mi><mi>t</mi></msub>";
    const hat = "<msub><mover><mi>x</mi><mo>^</mo></mover><mn>0</mn></msub>";
    return [
      [`noisy point ${math(symbol)}`, pair(x_t)],
      [`expected clean point ${math(hat)}`, pair(x0)],
      [`score ${math(`<mo>∇</mo><mi>log</mi><mi>p</mi><mo>(</mo>${symbol}<mo>)</mo>`)}`, pair(score)],
      ["its trajectory ends at", nameOfEnd(paths[0])],
      [fresh ? `${MANY} with other noise` : `${MANY} from near ${math(symbol)}`, `${cats} cats, ${MANY - cats} dogs`],
    ].map(([name, value]) => `<div><span>${name}</span><output aria-live="off">${value}</output></div>`).join("");
  }

  function legend() {
    const { gold, signal, noise } = minidiff.colours();
    return [
      ["block", gold, "density of noisy points"], ["arrow", noise, "score"],
      ["line", signal, "trajectories to a cat"], ["line", noise, "to a dog"],
    ];
  }

  /** A bar of the posterior weights; returns the function that sets it. */
  function addWeights(parent) {
    const names = [0, 1].map(() => make("output", { "aria-live": "off" })), parts = [make("i"), make("i")];
    parent.append(make("div", { class: "weights" }, names[0], make("div", { class: "bar" }, ...parts), names[1]));
    return (weights) => weights.forEach((weight, kind) => {
      names[kind].textContent = `${["cat", "dog"][kind]} ${weight.toFixed(2)}`;
      parts[kind].style.flexGrow = weight;
    });
  }

  /** Arrow keys, a mouse, and a finger that starts near x_t move it: move([x, y]). A finger elsewhere scrolls. */
  function makeMovable(canvas, x_t, move) {
    let dragging = false;
    const at = ({ clientX, clientY }) => {
      const { left, top, width, height } = canvas.getBoundingClientRect(), box = planeBox(width, height);
      const unit = (box.right - box.left) / (2 * LIMIT);
      return [(clientX - left - box.left) / unit - LIMIT, LIMIT - (clientY - top - box.top) / unit];
    };
    const isNear = ([x, y]) => Math.hypot(x - x_t()[0], y - x_t()[1]) < 0.4;
    canvas.style.cursor = "grab";
    minidiff.onArrows(canvas, (right, down, { shiftKey }) => {
      const [x, y] = x_t(), size = shiftKey ? 0.01 : 0.05;
      move([x + size * right, y - size * down]);
    });
    canvas.addEventListener("pointerdown", (event) => {
      dragging = event.pointerType === "mouse" || isNear(at(event));
      if (!dragging) return;
      canvas.setPointerCapture(event.pointerId);
      move(at(event));
    });
    canvas.addEventListener("pointermove", (event) => { if (dragging) move(at(event)); });
    canvas.addEventListener("pointerup", (event) => {
      if (!dragging) move(at(event)); // a tap
      dragging = false;
    });
    canvas.addEventListener("pointercancel", () => { dragging = false; });
    const keepPage = (event) => { if (isNear(at(event.touches[0]))) event.preventDefault(); };
    canvas.addEventListener("touchstart", keepPage, { passive: false });
  }

  minidiff.widget("score", (body) => {
    let start, k, paths, z; // x_t is paths[0][k], k levels after its release at level `start`
    let fresh = false, seed = 1, starts = 0;
    const state = () => ({ paths, start, fresh, x_t: paths[0][k], level: start + k });
    const atEnd = () => k === paths[0].length - 1;

    function drawNoise() {
      z = Array.from({ length: MANY + 1 }, (_, n) => minidiff.normal(1000 * seed + n, 2 * LOG_SNRS.length));
    }
    function release(x, level) {
      [start, k] = [level, 0];
      paths = z.map((noise, n) => {
        const from = fresh || n === 0 ? x : x.map((value, axis) => value + NEAR * noise[axis]);
        return trajectory(from, start, Number(fresh), noise);
      });
    }
    function move(x, level = start + k) {
      release(x.map((value) => minidiff.clamp(value, -LIMIT, LIMIT)), level);
      player.pause();
      show();
    }

    const left = make("div"), right = make("div"), key = make("div", { class: "marks" });
    const noiseLevel = make("div", { class: "controls" }), buttons = make("div", { class: "controls" });
    const values = make("div", { class: "values" });
    minidiff.fillLegend(key, legend());
    body.append(make("div", { class: "plots" }, left, right), key);
    const showWeights = addWeights(body);
    body.append(noiseLevel, buttons, values);

    drawNoise();
    release([-0.8, 1], 60);

    const slider = minidiff.slider(noiseLevel, {
      label: "log-SNR", min: -10, max: 7, step: 0.1, value: LOG_SNRS[start],
      show: (value) => fixed(value, 1), oninput: (value) => move(paths[0][k], Math.round(10 * value) + 100),
    });
    slider.parentElement.classList.add("wide");

    const player = minidiff.play(buttons, {
      name: () => (atEnd() ? "Again" : "Release"),
      start: () => {
        if (atEnd()) k = 0;
        show();
      },
      frame: (seconds) => {
        k = Math.min(k + Math.max(1, Math.round((seconds * LOG_SNRS.length) / SECONDS)), paths[0].length - 1);
        show();
        return !atEnd();
      },
    });
    minidiff.button(buttons, "New start", () => move([...minidiff.normal(100 + starts++, 2)], 0));
    const newNoise = minidiff.button(buttons, "New noise", () => { seed++; drawNoise(); move(paths[0][k]); });
    newNoise.disabled = true;
    minidiff.choice(buttons, {
      label: "steps", options: [["ode", "deterministic (ODE)"], ["sde", "with fresh noise (SDE)"]], value: "ode",
      oninput: (value) => { fresh = value === "sde"; newNoise.disabled = !fresh; move(paths[0][k]); },
    });

    const panel = (parent, label, draw) => minidiff.canvas(parent, {
      aspect: "1", label, draw: (...canvas) => draw(...canvas, state()),
    });
    const plane = panel(left, () =>
      `The plane at log-SNR ${fixed(LOG_SNRS[start + k], 1)}: density and score of noisy points, trajectories, and x_t `
      + `at ${pair(paths[0][k])}. Arrow keys move x_t.`, drawPlane);
    const fork = panel(right, () =>
      `Trajectories along the diagonal over the log-SNR; they part at the fork. That of x_t ends at ${
        nameOfEnd(paths[0])}.`, drawFork);
    makeMovable(plane.canvas, () => paths[0][k], move);

    function show() {
      const shown = state();
      minidiff.place(slider, LOG_SNRS[shown.level]);
      player.button.disabled = paths[0].length === 1;
      showWeights(exact(shown.x_t, alphaBarOf(LOG_SNRS[shown.level])).weights);
      values.innerHTML = readouts(shown);
      plane.redraw();
      fork.redraw();
    }
    show();
  });
}
