// A 3 x 3 convolution of a small image, one output pixel at a time (chapter 5). One channel, no bias.
"use strict";
{
  const { make, clamp } = minidiff;

  // 12 x 12 pixels in [-1, 1], as images are inside the library.
  const LEVELS = { "#": -1, ".": -0.6, "-": 0, "+": 0.3, o: 0.6, w: 1 };
  const image = [
    "............",
    ".o........o.",
    ".oo......oo.",
    ".o+oo-oo+oo.",
    ".oo+-o-oo+o.",
    ".oooooooooo.",
    ".oo#oooo#oo.",
    ".o##oooo##o.",
    ".ooowwwwooo.",
    ".-oww##wwo-.",
    "..+ww--ww+..",
    "....++++....",
  ].map((row) => [...row].map((character) => LEVELS[character]));

  const kernels = {
    identity: [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    blur: [[0.1, 0.1, 0.1], [0.1, 0.2, 0.1], [0.1, 0.1, 0.1]],
    sharpen: [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    edges: [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
    "edges, left to right": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "edges, top to bottom": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
  };

  const outputSize = (n, k, stride, pad) => Math.floor((n + 2 * pad - k) / stride) + 1;

  /** x (H, W) with pad zeros on every side, (H + 2 pad, W + 2 pad). */
  function zeroPadded(x, pad) {
    const row = () => new Array(x[0].length + 2 * pad).fill(0);
    const zeros = new Array(pad).fill(0);
    const above = Array.from({ length: pad }, row), below = Array.from({ length: pad }, row);
    return [...above, ...x.map((values) => [...zeros, ...values, ...zeros]), ...below];
  }

  /** The pixels of the padded x that output pixel (p, q) is made of, (KH, KW). */
  const windowAt = (xp, w, stride, p, q) =>
    w.map((row, i) => row.map((_, j) => xp[stride * p + i][stride * q + j]));

  /** w x, elementwise, (KH, KW): their sum is y[p][q]. */
  const products = (xp, w, stride, p, q) =>
    windowAt(xp, w, stride, p, q).map((row, i) => row.map((value, j) => w[i][j] * value));

  const sum = (values) => values.flat().reduce((a, b) => a + b, 0);

  /** y (P, Q) of x (H, W) and w (KH, KW): y[p][q] = sum over i, j of w[i][j] xp[stride p + i][stride q + j]. */
  function conv2d(x, w, stride, pad) {
    const xp = zeroPadded(x, pad);
    const P = outputSize(x.length, w.length, stride, pad), Q = outputSize(x[0].length, w[0].length, stride, pad);
    return Array.from({ length: P }, (_, p) =>
      Array.from({ length: Q }, (_, q) => sum(products(xp, w, stride, p, q))));
  }

  minidiff.convolution = { image, kernels, zeroPadded, products, conv2d };

  const DARK = [36, 41, 52], BRIGHT = [252, 248, 240];

  /** The largest absolute value, and at least 1: what is drawn brightest. */
  const largest = (values) => Math.max(1, ...values.flat().map(Math.abs));

  /** 0 for -scale, 1 for +scale. */
  const brightness = (value, scale) => clamp((value / scale + 1) / 2, 0, 1);
  const shade = (b) => `rgb(${DARK.map((dark, i) => Math.round(dark + b * (BRIGHT[i] - dark)))})`;
  const ink = (b) => (b > 0.45 ? shade(0) : shade(1));

  /** At most two decimals, with a minus sign that is as wide as a plus. */
  const show = (value) => String(Math.round(value * 100) / 100).replace("-", "−");

  /** A 3 x 3 table with a title; returns its cells in rows. */
  function table(parent, title, fill) {
    const grid = make("div", { class: "cells" });
    minidiff.pane(parent, title).append(grid);
    return [0, 1, 2].map((i) => [0, 1, 2].map((j) => {
      const cell = fill(i, j);
      grid.append(cell);
      return cell;
    }));
  }

  function drawPixels(context, values, left, top, side, scale) {
    values.forEach((row, i) => row.forEach((value, j) => {
      context.fillStyle = shade(brightness(value, scale));
      context.fillRect(left + j * side, top + i * side, side - 0.5, side - 0.5);
    }));
  }

  /** The shades of numbers from -scale to scale. */
  const showScale = (place, scale) =>
    place.replaceChildren(...[-scale, 0, scale].map((value) => make("span", { text: show(value) })));

  function frame(context, left, top, side, colour) {
    context.strokeStyle = colour;
    context.lineWidth = 2.5;
    context.strokeRect(left - 0.5, top - 0.5, side, side);
  }

  minidiff.widget("convolution", (body) => {
    const state = { w: kernels.edges.map((row) => [...row]), stride: 1, pad: 1, p: 6, q: 3 };
    let xp, y;

    const controls = make("div", { class: "controls" });
    body.append(controls);
    const options = [...Object.keys(kernels).map((name) => [name, name]), ["own", "your own"]];
    const preset = minidiff.choice(controls, { label: "kernel", options, value: "edges", oninput: take });
    const numbers = (...values) => values.map((value) => [value, String(value)]);
    minidiff.choice(controls, { label: "stride", options: numbers(1, 2), value: 1, oninput: (value) => {
      state.stride = Number(value);
      update();
    } });
    minidiff.choice(controls, { label: "padding", options: numbers(0, 1), value: 1, oninput: (value) => {
      state.pad = Number(value);
      update();
    } });

    const panes = make("div", { class: "panes" });
    body.append(panes);
    const scales = [make("div", { class: "scale" }), make("div", { class: "scale" })];
    const [input, output] = [drawInput, drawOutput].map((draw, k) => {
      const pane = minidiff.pane(panes);
      const label = () => (k
        ? `The output image of ${y.length} × ${y[0].length} pixels, [${state.p}, ${state.q}] marked`
        : "The input image, a cat's face, and the window of this output pixel") + "; arrow keys move the window";
      const made = minidiff.canvas(pane, { aspect: "1", label, draw });
      pane.append(scales[k]);
      minidiff.onArrows(made.canvas, move);
      for (const kind of ["pointermove", "pointerdown"]) made.canvas.addEventListener(kind, (event) => point(event, k));
      return made;
    });

    const sumRow = make("div", { class: "sum" });
    body.append(sumRow);
    const pixel = (i, j) => make("div", { "data-tap": `${i},${j}` });
    const windowCells = table(sumRow, "window of x", pixel);
    sumRow.append(make("span", { text: "×" }));
    const weights = table(sumRow, "kernel w", (i, j) =>
      make("input", { type: "number", step: 0.1, "aria-label": `w, row ${i}, column ${j}`, oninput: edit }));
    sumRow.append(make("span", { text: "=" }));
    const productCells = table(sumRow, "products", pixel);
    const readout = make("p", { class: "readout", "aria-live": "polite" });
    body.append(readout);

    function take(name) {
      if (name !== "own") state.w = kernels[name].map((row) => [...row]);
      showWeights();
      update();
    }

    function showWeights() {
      weights.forEach((row, i) => row.forEach((entry, j) => { entry.value = state.w[i][j]; }));
    }

    function edit() {
      weights.forEach((row, i) => row.forEach((entry, j) => {
        if (entry.value !== "") state.w[i][j] = Number(entry.value); // empty while a number is being typed
      }));
      preset.value = "own";
      update();
    }

    function move(right, down) {
      state.p += down;
      state.q += right;
      update();
    }

    function point(event, k) {
      const side = event.currentTarget.clientWidth / 14;
      const first = k ? (14 - y.length) / 2 : 1 - state.pad; // the canvas's cell where the array begins
      const [row, column] = [event.offsetY, event.offsetX].map((at) => Math.floor(at / side - first));
      const centre = (at) => (k ? at : Math.round((at - 1) / state.stride));
      [state.p, state.q] = [centre(row), centre(column)];
      update();
    }

    function drawInput(context, width, height, colours) {
      const side = width / 14, first = 1 - state.pad;
      context.globalAlpha = 0.55;
      drawPixels(context, xp, first * side, first * side, side, 1);
      context.globalAlpha = 1;
      drawPixels(context, image, side, side, side, 1);
      const [row, column] = [state.p, state.q].map((at) => first + state.stride * at);
      frame(context, column * side, row * side, 3 * side, colours.signal);
    }

    function drawOutput(context, width, height, colours) {
      const side = width / 14, first = (14 - y.length) / 2;
      drawPixels(context, y, first * side, first * side, side, largest(y));
      frame(context, (first + state.q) * side, (first + state.p) * side, side, colours.signal);
    }

    function update() {
      xp = zeroPadded(image, state.pad);
      y = conv2d(image, state.w, state.stride, state.pad);
      state.p = clamp(state.p, 0, y.length - 1);
      state.q = clamp(state.q, 0, y[0].length - 1);
      const titles = panes.querySelectorAll(".pane-title");
      titles[0].textContent = `x, ${image.length} × ${image.length}${state.pad ? ", padded" : ""}`;
      titles[1].textContent = `y, ${y.length} × ${y[0].length}`;
      showScale(scales[0], 1);
      showScale(scales[1], largest(y));
      const tables = [
        [windowCells, windowAt(xp, state.w, state.stride, state.p, state.q), 1],
        [productCells, products(xp, state.w, state.stride, state.p, state.q), largest(state.w)],
      ];
      for (const [cells, values, scale] of tables) {
        cells.forEach((row, i) => row.forEach((cell, j) => {
          const b = brightness(values[i][j], scale);
          cell.textContent = show(values[i][j]);
          cell.style.background = shade(b);
          cell.style.color = ink(b);
        }));
      }
      readout.textContent = `The sum of the products is y[${state.p}, ${state.q}] = ${show(y[state.p][state.q])}`;
      input.redraw();
      output.redraw();
    }

    take("edges");
  });
}
