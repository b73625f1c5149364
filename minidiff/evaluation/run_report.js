// The page of a report. The facts (run_facts.py) are in #facts; `log` of a run is its metrics.csv, whose numbers are
// shown as they stand there.
"use strict";

const runs = JSON.parse(document.getElementById("facts").textContent);
const COLOURS = 6; // --run-0, ...
const QUARTERS = ["least noise", "2nd quarter", "3rd quarter", "most noise"];

/** A new element: make("p", {class: "note"}, "text", child, ...). Attributes "onclick" and the like are listeners. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** The value of a colour of the style sheet in the present theme, for a canvas, which reads no variables. */
function toColour(name) {
  document.body.style.setProperty("accent-color", `var(${name})`);
  return getComputedStyle(document.body).accentColor;
}

/** A section with a heading, listed in the contents. */
function section(title, ...children) {
  const id = title.toLowerCase().replaceAll(" ", "-");
  document.getElementById("contents").append(make("a", { href: `#${id}` }, title));
  document.getElementById("report").append(make("section", { id }, make("h2", {}, title), ...children));
}

/** The columns of a log: name -> array of its texts, and the same as numbers (NaN where empty). */
function columnsOf(log) {
  const [header, ...lines] = log.trim().split("\n").map((line) => line.split(","));
  const texts = Object.fromEntries(header.map((name, k) => [name, lines.map((cells) => cells[k])]));
  const numbers = {};
  for (const name of header) numbers[name] = texts[name].map((text) => (text === "" ? NaN : Number(text)));
  return { texts, numbers };
}

/** Means of every n / 25 values in a row, each at the middle of them, so that the curve does not lag: [x, y]. */
function movingAverage(x, y) {
  const kept = y.map((value, i) => [x[i], value]).filter(([, value]) => Number.isFinite(value));
  const window = Math.max(1, Math.floor(kept.length / 25));
  const means = [[], []];
  let sum = 0;
  kept.forEach(([, value], i) => {
    sum += value - (i >= window ? kept[i - window][1] : 0);
    if (i >= window - 1) {
      means[0].push(kept[i - Math.ceil((window - 1) / 2)][0]);
      means[1].push(sum / window);
    }
  });
  return means;
}

/** Ticks of an axis from a to b: powers of ten and, if there are few, 2 and 5 times these; or round steps. */
function ticks(a, b, log) {
  if (log) {
    const found = [];
    const decades = Math.log10(b / a);
    for (let power = Math.floor(Math.log10(a)); power <= Math.log10(b); power++)
      for (const digit of decades > 3 ? [1] : decades > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9])
        found.push(digit * 10 ** power);
    return found.filter((value) => value >= a * 0.999999 && value <= b * 1.000001);
  }
  const rough = (b - a) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(a / step - 1e-9); k * step <= b * (1 + 1e-9); k++) found.push(k * step);
  return found;
}

const tidy = (value) => String(Number(value.toPrecision(6)));

/**
 * Curves over training steps, with zoom and logarithmic axes. Each has {name, colour, x, y, texts}: y at the steps x,
 * as in the log `texts`; drawn faint, its moving average bold.
 */
function chart(label, curves) {
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const legend = make("div", { class: "legend", "aria-live": "off" });
  const axis = { xLog: false, yLog: true, from: null, to: null };
  const last = Math.max(1, ...curves.map((curve) => curve.x.at(-1) ?? 1));
  for (const curve of curves) curve.mean = movingAverage(curve.x, curve.y);
  const first = 1;

  const from = make("input", { type: "number", min: first, max: last, value: first, onchange: () => zoom(+from.value, +to.value) });
  const to = make("input", { type: "number", min: first, max: last, value: last, onchange: () => zoom(+from.value, +to.value) });
  const box = (text, name) =>
    make("label", {}, make("input", { type: "checkbox", checked: axis[name], onchange: (event) => { axis[name] = event.target.checked; draw(); } }), text);
  const all = make("button", { type: "button", onclick: () => zoom(first, last) }, "All steps");
  const controls = make("div", { class: "controls" }, box("log steps", "xLog"), box("log values", "yLog"),
    make("label", {}, "steps", from), make("label", {}, "to", to), all);

  function zoom(a, b) {
    [a, b] = [Math.min(a, b), Math.max(a, b)].map((step) => Math.min(last, Math.max(first, Math.round(step) || first)));
    if (b === a) [a, b] = [first, last];
    [axis.from, axis.to] = [a, b];
    [from.value, to.value] = [a, b];
    draw();
  }

  /** The range of the values to be seen, a little widened; positive ones only on a logarithmic axis. */
  function valueRange() {
    let low = Infinity, high = -Infinity;
    for (const { x, y } of curves)
      for (let i = 0; i < x.length; i++) {
        const value = y[i];
        if (x[i] < axis.from || x[i] > axis.to || !Number.isFinite(value) || (axis.yLog && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    if (low > high) return axis.yLog ? [0.1, 1] : [0, 1];
    if (axis.yLog) return [low / 1.1, high * 1.1];
    const room = (high - low || Math.abs(high) || 1) * 0.05;
    return [low - room, high + room];
  }

  let scaleX, unscaleX;
  function draw() {
    const { width, height } = canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const at = canvas.getContext("2d");
    at.scale(ratio, ratio);
    const [left, right, top, bottom] = [58, width - 20, 10, height - 26];
    const [low, high] = valueRange();
    const by = (log) => (log ? Math.log : (value) => value);
    const [fx, fy] = [by(axis.xLog), by(axis.yLog)];
    const [x0, x1, y0, y1] = [fx(axis.from), fx(axis.to), fy(low), fy(high)];
    scaleX = (x) => left + ((fx(x) - x0) / (x1 - x0 || 1)) * (right - left);
    unscaleX = (place) => {
      const value = x0 + ((place - left) / (right - left)) * (x1 - x0);
      return axis.xLog ? Math.exp(value) : value;
    };
    const scaleY = (y) => bottom - ((fy(y) - y0) / (y1 - y0)) * (bottom - top);

    const [lineColour, textColour] = [toColour("--line"), toColour("--faint")];
    at.font = "12px system-ui, sans-serif";
    at.lineWidth = 1;
    at.textBaseline = "middle";
    at.textAlign = "right";
    for (const value of ticks(low, high, axis.yLog)) {
      at.strokeStyle = lineColour;
      at.fillStyle = textColour;
      at.beginPath();
      at.moveTo(left, scaleY(value));
      at.lineTo(right, scaleY(value));
      at.stroke();
      at.fillText(tidy(value), left - 6, scaleY(value));
    }
    at.textAlign = "center";
    for (const value of ticks(axis.from, axis.to, axis.xLog)) at.fillText(tidy(value), scaleX(value), bottom + 14);

    at.save();
    at.beginPath();
    at.rect(left, top, right - left, bottom - top);
    at.clip();
    for (const [alpha, thickness, part] of [[0.3, 1, (c) => [c.x, c.y]], [1, 2, (c) => c.mean]])
      for (const curve of curves) {
        const [x, y] = part(curve);
        at.globalAlpha = alpha;
        at.lineWidth = thickness;
        at.strokeStyle = toColour(curve.colour);
        at.beginPath();
        let pen = false;
        for (let i = 0; i < x.length; i++) {
          const shown = Number.isFinite(y[i]) && !(axis.yLog && y[i] <= 0);
          if (shown) pen ? at.lineTo(scaleX(x[i]), scaleY(y[i])) : at.moveTo(scaleX(x[i]), scaleY(y[i]));
          pen = shown || (pen && part(curve) === curve.mean);
        }
        at.stroke();
      }
    at.restore();
  }

  /** The names of the curves, with their values in the log at a step, if one is given. */
  function showLegend(step = null) {
    const entries = curves.map((curve) => {
      const i = step === null ? -1 : curve.x.indexOf(step);
      const value = i >= 0 ? [" ", make("b", {}, curve.texts[i] || "none")] : [];
      return make("span", {}, make("i", { style: `background: var(${curve.colour})` }), curve.name, ...value);
    });
    legend.replaceChildren(...(step === null ? [] : [make("span", {}, "step ", make("b", {}, String(step)))]), ...entries);
  }

  const stepAt = (event) =>
    Math.min(axis.to, Math.max(axis.from, Math.round(unscaleX(event.clientX - canvas.getBoundingClientRect().left))));
  let pressed = null;
  canvas.addEventListener("pointerdown", (event) => { pressed = stepAt(event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", (event) => {
    const released = stepAt(event);
    if (pressed !== null && Math.abs(scaleX(released) - scaleX(pressed)) > 8) zoom(pressed, released);
    pressed = null;
  });
  canvas.addEventListener("pointercancel", () => { pressed = null; });
  canvas.addEventListener("pointermove", (event) => {
    const step = stepAt(event);
    draw();
    const at = canvas.getContext("2d");
    at.fillStyle = toColour("--faint");
    if (pressed !== null) {
      at.globalAlpha = 0.2;
      at.fillRect(scaleX(pressed), 10, scaleX(step) - scaleX(pressed), canvas.getBoundingClientRect().height - 36);
    } else at.fillRect(scaleX(step), 10, 1, canvas.getBoundingClientRect().height - 36);
    showLegend(step);
  });
  canvas.addEventListener("pointerleave", () => { pressed = null; draw(); showLegend(); });
  canvas.addEventListener("dblclick", () => zoom(first, last));
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  [axis.from, axis.to] = [first, last];
  showLegend();
  const note = make("p", { class: "note" }, "Drag over the steps to zoom, double-click for all. Bold: the mean of a 25th of the steps.");
  return make("div", { class: "chart" }, controls, canvas, legend, note);
}

/** One image of several, over a slider that begins at the last or at `begin`; `text` says which. */
function slider(label, images, text, begin = images.length - 1) {
  const image = make("img", { alt: "" });
  const output = make("output");
  const input = make("input", { type: "range", min: 0, max: images.length - 1, value: begin, "aria-label": label });
  const show = () => {
    const [key, source] = images[input.value];
    image.src = source;
    image.alt = output.textContent = text(key);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", show);
  show();
  const row = make("label", { class: "slider" }, input, output);
  return make("div", { class: "images" }, make("div", { class: "controls" }, row), image);
}

const tableOf = (head, rows) =>
  make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows)));

/** Settings: a column for each run; rows in which the runs differ are marked. */
function settingsTable() {
  const values = runs.map((run) => new Map(run.settings));
  const names = [...new Set(values.flatMap((some) => [...some.keys()]))];
  const rows = names.map((name) => {
    const cells = values.map((some) => some.get(name) ?? "");
    const row = make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text)));
    row.classList.toggle("differs", new Set(cells).size > 1);
    return row;
  });
  const only = make("input", { type: "checkbox", onchange: () => rows.forEach((row) => { row.hidden = only.checked && !row.classList.contains("differs"); }) });
  const choice = runs.length > 1 ? [make("div", { class: "controls" }, make("label", {}, only, "differences only"))] : [];
  return [...choice, tableOf(["", ...runs.map((run) => run.name)], rows)];
}

const colourOf = (k) => `--run-${k % COLOURS}`;
const perRun = (content) => runs.flatMap((run, k) => {
  const made = content(run, k);
  return made ? [...(runs.length > 1 ? [make("h3", {}, run.name)] : []), ...[made].flat()] : [];
});

section("Settings", ...settingsTable());

const logs = runs.map((run) => columnsOf(run.log));
const curve = (k, name, column, colour) => ({ name, colour, x: logs[k].numbers.step, y: logs[k].numbers[column], texts: logs[k].texts[column] });
const validation = runs.map(({ name, checkpoints }, k) => {
  const texts = checkpoints.map(([, loss]) => loss);
  return { name, colour: colourOf(k), x: checkpoints.map(([step]) => step), y: texts.map(Number), texts };
});
const targets = new Set(runs.map((run) => new Map(run.settings).get("prediction type")));
const incomparable = "The runs have different prediction types: their losses are not to be compared.";
section("Training loss", ...(targets.size > 1 ? [make("p", { class: "note" }, incomparable)] : []),
  chart("Training loss over the steps", runs.map((run, k) => curve(k, run.name, "loss", colourOf(k)))));
section("Loss by noise level", ...perRun((run, k) =>
  logs[k].numbers.loss_q1.some(Number.isFinite) &&
  chart(`Loss by noise level of ${run.name}`, QUARTERS.map((name, q) => curve(k, name, `loss_q${q + 1}`, colourOf(q))))));
section("Validation loss", ...(validation.some(({ x }) => x.length)
  ? [chart("Validation loss of the checkpoints", validation)]
  : [make("p", { class: "note" }, "No checkpoint yet.")]));
section("Gradient norm and learning rate",
  chart("Gradient norm over the steps", runs.map((run, k) => curve(k, `${run.name}, gradient norm`, "grad_norm", colourOf(k)))),
  chart("Learning rate over the steps", runs.map((run, k) => curve(k, `${run.name}, learning rate`, "lr", colourOf(k)))));
section("Samples of the checkpoints", ...perRun((run) => run.sheets.length > 0 &&
  slider(`Checkpoint of ${run.name}`, run.sheets, (step) => `step ${step}`)));
section("Denoising", ...perRun((run) => run.trajectory && [
  make("p", { class: "note" }, run.trajectory.note),
  ...(run.trajectory.frames.length
    ? [slider(`Timestep of ${run.name}`, run.trajectory.frames, (t) => (t < 0 ? "the samples" : `t = ${t}`), 8)]
    : []),
  make("div", { class: "prompts" }, ...run.trajectory.prompts.map((text) => make("span", {}, text)))]));
section("Evaluations", ...perRun((run) => run.evaluations.length
  ? run.evaluations.flatMap((one) => [make("p", { class: "note" }, one.name),
      tableOf(["", ...one.columns], one.rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text)))))])
  : make("p", { class: "note" }, `None in the run's folder: minidiff evaluate ${run.name} --against DATA --out ${run.name}/evaluation`)));
section("Command", ...perRun((run) => run.command ? make("pre", {}, run.command) : make("p", { class: "note" }, "No single command starts such a run.")));
