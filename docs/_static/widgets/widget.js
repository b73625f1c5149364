// What every widget uses; diffusion.js has the mathematics. A widget is a file beside them that calls
//
//   minidiff.widget("ink", (body, figure) => { ... })
//
// `body` is the element to be filled, inside <figure class="widget" data-widget="ink">. Numbers come from pure
// functions that the file also puts into minidiff.ink = {...}, so that tests can compare them with NumPy's.
"use strict";

const minidiff = (window.minidiff = {
  /** Fill every figure of this name on the page. */
  widget(name, mount) {
    for (const figure of document.querySelectorAll(`figure.widget[data-widget="${name}"]`)) {
      const body = figure.querySelector(".widget-body");
      body.replaceChildren();
      mount(body, figure);
    }
  },

  /** A new element: make("div", {class: "row", text: "..."}, child, ...). */
  make: (tag, attributes, ...children) => minidiff.fill(document.createElement(tag), attributes, children),

  /** The same for SVG: svg("line", {x1: 0, ...}). */
  svg: (tag, attributes, ...children) =>
    minidiff.fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children),

  fill(element, attributes = {}, children = []) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  },

  control: (parent, ...parts) => parent.append(minidiff.make("label", { class: "control" }, ...parts)),

  /** A labelled slider; show(value) is the text beside it. Returns the <input>, for minidiff.set and minidiff.place. */
  slider(parent, { label, min, max, step, value, show = String, oninput }) {
    const output = minidiff.make("output", { "aria-hidden": "true" }); // a screen reader has aria-valuetext
    const input = minidiff.make("input", { type: "range", min, max, step });
    const changed = () => {
      output.textContent = show(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
    };
    for (const kind of ["input", "change"]) input.addEventListener(kind, changed);
    input.addEventListener("input", () => oninput(Number(input.value)));
    minidiff.place(input, value);
    minidiff.control(parent, minidiff.make("span", { text: label }), input, output);
    return input;
  },

  /** A labelled choice; options are [value, text] pairs. Returns the <select>. */
  choice(parent, { label, options, value, oninput }) {
    const select = minidiff.make("select");
    for (const [key, text] of options) select.append(minidiff.make("option", { value: key, text }));
    select.value = value;
    select.addEventListener("input", () => oninput(select.value));
    minidiff.control(parent, minidiff.make("span", { text: label }), select);
    return select;
  },

  checkbox(parent, { label, checked, oninput }) {
    const input = minidiff.make("input", { type: "checkbox" });
    input.checked = checked;
    input.addEventListener("input", () => oninput(input.checked));
    minidiff.control(parent, input, minidiff.make("span", { text: label }));
    return input;
  },

  button(parent, text, onclick) {
    const button = minidiff.make("button", { type: "button", text, onclick });
    parent.append(button);
    return button;
  },

  /** Move a control as the reader would. */
  set(input, value) {
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  },

  /** Move a slider to where its figure is: the text beside it follows, its oninput is not called. */
  place(input, value) {
    input.value = value;
    input.dispatchEvent(new Event("change"));
  },

  /** Let an element take the focus and the arrow keys: move(right, down, event), each -1, 0 or 1. */
  onArrows(element, move) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    element.tabIndex = 0;
    element.setAttribute("role", "application"); // so that screen readers leave the arrow keys to it
    element.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      move(...steps[event.key], event);
    });
  },

  /** A new place in `parent` under a title, which may be MathML. */
  pane(parent, title = "") {
    const place = minidiff.make("div", {}, minidiff.make("div", { class: "pane-title" }));
    place.firstChild.innerHTML = title;
    parent.append(place);
    return place;
  },

  /** Fill a table with texts: a row of headings, and the others. */
  fillTable(table, headings, ...rows) {
    const row = (tag, texts) => minidiff.make("tr", {}, ...texts.map((text) => minidiff.make(tag, { text })));
    table.replaceChildren(row("th", headings), ...rows.map((texts) => row("td", texts)));
  },

  /** Fill a legend: marks are [shape, colour, label]; a shape is a dot, a block, a line or an arrow. */
  fillLegend(parent, marks) {
    parent.replaceChildren(...marks.map(([shape, colour, label]) => minidiff.make("span", {},
      minidiff.make("i", { class: shape, style: `color: ${colour}`, text: shape === "arrow" ? "→" : "" }), label)));
  },

  clamp: (value, low, high) => Math.min(high, Math.max(low, value)),

  /** A number with so many decimals, and a minus sign that is as wide as a plus. */
  fixed(value, digits) {
    const text = Math.abs(value).toFixed(digits);
    return value < 0 && Number(text) ? `−${text}` : text;
  },

  /** A point [x, y], with two decimals. */
  pair: (point) => `(${point.map((value) => minidiff.fixed(value, 2)).join(", ")})`,

  /**
   * A canvas as wide as its place, at the screen's resolution. draw(context, width, height, colours) is called at
   * first, when the width or the theme changes, and by redraw(), which is returned; label() then says in words what is
   * seen. Units are CSS pixels.
   */
  canvas(parent, { aspect, label, draw }) {
    const canvas = minidiff.make("canvas", { role: "img" });
    canvas.style.aspectRatio = aspect;
    parent.append(canvas);
    const redraw = () => {
      const width = canvas.clientWidth, height = canvas.clientHeight, scale = window.devicePixelRatio || 1;
      if (!width) return;
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      context.font = "13px system-ui, sans-serif";
      draw(context, width, height, minidiff.colours());
      canvas.setAttribute("aria-label", label());
    };
    new ResizeObserver(redraw).observe(canvas);
    minidiff.onTheme(redraw);
    return { canvas, redraw };
  },

  /** The colours of the course's figures, and of the page as it is now (light or dark). */
  colours() {
    const style = getComputedStyle(document.body);
    const of = (name) => style.getPropertyValue(name).trim();
    return {
      signal: "#b5482f", noise: "#5b6f8f", gold: "#c28426", green: "#6d8f5b", muted: "#767676",
      text: of("--color-foreground-primary") || "#000000", page: of("--color-background-primary") || "#ffffff",
    };
  },

  /** Call after the reader or the system switched between light and dark. */
  onTheme(callback) {
    new MutationObserver(callback).observe(document.body, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", callback);
  },

  /** Whether the reader asked for less motion: then nothing moves unless a control is moved. */
  reducedMotion: () => matchMedia("(prefers-reduced-motion: reduce)").matches,

  /**
   * A button that plays and pauses: frame(seconds since the last one) is called until it returns false, the reader
   * pauses, or the figure leaves the screen; start() is called before. name() is the button's text while it pauses.
   * Returns { button, pause }.
   */
  play(parent, { name = () => "Play", start, frame }) {
    let request = 0, before = 0;
    const figure = parent.closest("figure");
    const button = minidiff.button(parent, name(), () => (request ? pause() : run()));
    button.classList.add("play");

    function show() {
      button.textContent = request ? "Pause" : name();
      for (const readout of figure.querySelectorAll('[aria-live="polite"]')) {
        readout.setAttribute("aria-busy", request > 0); // announced when it pauses
      }
    }
    function pause() {
      cancelAnimationFrame(request);
      request = 0;
      show();
    }
    function run() {
      start();
      before = performance.now();
      request = requestAnimationFrame(next);
      show();
    }
    function next(now) {
      const seconds = minidiff.clamp((now - before) / 1000, 0, 0.1); // a frame that came late does not jump
      request = requestAnimationFrame(next);
      before = now;
      if (!frame(seconds)) pause();
    }
    new IntersectionObserver((entries) => entries.at(-1).isIntersecting || pause()).observe(figure);
    return { button, pause };
  },

  /**
   * Play, Back, Forward, and a slider over the steps 0 ... n. onmove(position) gets whole numbers; while playing a
   * `smooth` player also gives those between, unless the reader asked for less motion. show(step) is the text beside
   * the slider, seconds(n) how long playing takes. Returns { setSteps }: setSteps(n, to) changes n and goes to a step.
   */
  player(parent, { label, steps, start = steps, show, seconds, smooth = false, onmove }) {
    let position = start;
    const row = minidiff.make("div", { class: "controls player" });
    parent.append(row);
    const player = minidiff.play(row, {
      start: () => { if (position >= steps) place(0); },
      frame: (elapsed) => {
        const to = Math.min(steps, position + (elapsed / seconds(steps)) * steps);
        if (between() || Math.floor(to) > position) place(to);
        else position = to;
        return position < steps;
      },
    });
    const back = minidiff.button(row, "Back", () => go(Math.ceil(position) - 1));
    const forward = minidiff.button(row, "Forward", () => go(Math.floor(position) + 1));
    const slider = minidiff.slider(row, { label, min: 0, max: steps, step: 1, value: start, show, oninput: go });
    enable();

    function between() { return smooth && !minidiff.reducedMotion(); }
    function enable() {
      back.disabled = position <= 0;
      forward.disabled = position >= steps;
    }
    function place(to) {
      position = to;
      minidiff.place(slider, Math.floor(to));
      enable();
      onmove(between() ? to : Math.floor(to));
    }
    function go(to) {
      player.pause();
      place(to);
    }
    return {
      setSteps(n, to = Math.round((position / steps) * n)) {
        steps = slider.max = n;
        go(to);
      },
    };
  },

  // ---- Drawing

  /** Axes as the course's figures have them: x and y are {range, ticks, label}. Returns the functions to pixels. */
  axes(context, colours, { left, top, right, bottom }, x, y) {
    const scale = ([low, high], from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);
    const px = scale(x.range, left, right), py = scale(y.range, bottom, top);
    const text = (label, x, y, align, baseline) => {
      Object.assign(context, { textAlign: align, textBaseline: baseline });
      context.fillText(typeof label === "number" ? minidiff.fixed(label, 0) : label, x, y);
    };
    Object.assign(context, { strokeStyle: colours.muted, fillStyle: colours.muted, lineWidth: 1 });
    minidiff.line(context, [[left, top], [left, bottom], [right, bottom]]);
    for (const tick of x.ticks) {
      minidiff.line(context, [[px(tick), bottom], [px(tick), bottom + 4]]);
      text(tick, px(tick), bottom + 7, "center", "top");
    }
    for (const tick of y.ticks) {
      minidiff.line(context, [[left - 4, py(tick)], [left, py(tick)]]);
      text(tick, left - 7, py(tick), "right", "middle");
    }
    text(x.label, (left + right) / 2, bottom + 24, "center", "top");
    context.save();
    context.translate(9, (top + bottom) / 2);
    context.rotate(-Math.PI / 2);
    text(y.label, 0, 0, "center", "middle");
    context.restore();
    return [px, py];
  },

  /** A stroke through points [x, y] in pixels. */
  line(context, points) {
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x, y);
    context.stroke();
  },

  /** The path of a circle. */
  circle(context, x, y, radius) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
  },

  disc(context, x, y, radius, colour) {
    context.fillStyle = colour;
    minidiff.circle(context, x, y, radius);
    context.fill();
  },

  /** Draw inside a box only. */
  clip(context, { left, top, right, bottom }) {
    context.beginPath();
    context.rect(left, top, right - left, bottom - top);
    context.clip();
  },

  /** An image of opacity(column, row), from 0 to 1, in a colour "#rrggbb" over transparency. */
  heat(columns, rows, colour, opacity) {
    const canvas = minidiff.make("canvas", { width: columns, height: rows }), context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    const rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    for (let i = 0; i < columns * rows; i++) {
      image.data.set([...rgb, 255 * opacity(i % columns, Math.floor(i / columns))], 4 * i);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  },

  // ---- Random numbers

  /** Uniform numbers in [0, 1), the same for the same seed (mulberry32). */
  uniform(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let x = Math.imul(state ^ (state >>> 15), state | 1);
      x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
      return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
    };
  },

  /** n standard normal numbers of a seed, by Box and Muller. */
  normal(seed, n) {
    const uniform = minidiff.uniform(seed);
    return Float64Array.from({ length: n }, () =>
      Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
  },
});
