// What every widget uses. A widget is a file beside this one that calls
//
//   minidiff.widget("ink", (body, figure) => { ... })
//
// `body` is the element to be filled, inside <figure class="widget" data-widget="ink">. Numbers come from pure functions
// that the file also puts into minidiff.ink = {...}, so that tests can compare them with NumPy's.
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
  make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  },

  /** A labelled slider; show(value) is the text beside it. Returns the <input>; setting: minidiff.set(input, value). */
  slider(parent, { label, min, max, step, value, show = String, oninput }) {
    const output = minidiff.make("output");
    const input = minidiff.make("input", { type: "range", min, max, step });
    input.value = value;
    const changed = () => {
      output.textContent = show(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => { changed(); oninput(Number(input.value)); });
    changed();
    parent.append(minidiff.make("label", { class: "control" }, minidiff.make("span", { text: label }), input, output));
    return input;
  },

  /** A labelled choice; options are [value, text] pairs. Returns the <select>. */
  choice(parent, { label, options, value, oninput }) {
    const select = minidiff.make("select");
    for (const [key, text] of options) select.append(minidiff.make("option", { value: key, text }));
    select.value = value;
    select.addEventListener("input", () => oninput(select.value));
    parent.append(minidiff.make("label", { class: "control" }, minidiff.make("span", { text: label }), select));
    return select;
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

  /**
   * A canvas as wide as its place, at the screen's resolution. draw(context, width, height, colours) is called at first,
   * when the width or the theme changes, and by redraw(), which is returned. Units are CSS pixels.
   */
  canvas(parent, { aspect, label, draw }) {
    const canvas = minidiff.make("canvas", { role: "img", "aria-label": label });
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
   * Play, step back, step forward, and a slider over the steps 0 ... n. onmove(position) gets whole numbers, while
   * playing also those between, unless the reader asked for less motion. show(step) is the text beside the slider,
   * seconds(n) how long playing takes; it pauses when the figure leaves the screen. Returns { setSteps }: setSteps(n)
   * changes n, and goes to the same fraction of it.
   */
  player(parent, { label, steps, start = steps, show, seconds, onmove }) {
    let position = start, playing = false, last = 0;
    const row = minidiff.make("div", { class: "controls player" });
    parent.append(row);
    const play = minidiff.button(row, "Play", () => (playing ? pause() : run()));
    const back = minidiff.button(row, "Back", () => go(Math.ceil(position) - 1));
    const forward = minidiff.button(row, "Forward", () => go(Math.floor(position) + 1));
    const slider = minidiff.slider(row, {
      label, min: 0, max: steps, step: 1, value: start, show,
      oninput: (value) => {
        if (value !== Math.floor(position)) { // moved by the reader
          pause();
          position = value;
        }
        back.disabled = position <= 0;
        forward.disabled = position >= steps;
        onmove(minidiff.reducedMotion() ? value : position);
      },
    });
    back.disabled = start <= 0;
    forward.disabled = start >= steps;

    function go(to) {
      pause();
      position = to;
      minidiff.set(slider, to);
    }
    function pause() {
      playing = false;
      play.textContent = "Play";
    }
    function run() {
      if (position >= steps) go(0);
      playing = true;
      play.textContent = "Pause";
      last = performance.now();
      requestAnimationFrame(frame);
    }
    function frame(now) {
      if (!playing) return;
      const elapsed = Math.min(0.1, Math.max(0, (now - last) / 1000)); // a frame that came late does not jump
      last = now;
      position = Math.min(steps, position + (elapsed / seconds(steps)) * steps);
      minidiff.set(slider, Math.floor(position));
      if (position >= steps) pause();
      else requestAnimationFrame(frame);
    }
    new IntersectionObserver((entries) => entries.at(-1).isIntersecting || pause()).observe(row.closest("figure"));
    return {
      setSteps(n) {
        const to = Math.round((position / steps) * n);
        steps = slider.max = n;
        go(to);
      },
    };
  },

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
