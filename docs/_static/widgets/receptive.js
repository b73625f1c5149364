// The receptive field of one output position, layer by layer (chapter 5).
"use strict";
{
  const { make, clamp } = minidiff;
  const SIZE = 64; // of the image
  const DEPTHS = [1, 2, 3, 4];
  const MOST_LAYERS = 16; // of the reader's own stack
  const HEADER = 18, LABELS = 100, NUMBERS = 62; // of the diagram, in CSS pixels

  // Layers: a kernel k, a stride s, and zeros `pad` on every side; upsampling repeats each position (s = 1/2).
  const conv = (name) => ({ name, k: 3, s: 1, pad: 1 });
  const downsample = { name: "downsample", k: 3, s: 2, pad: 1 };
  const upsample = { name: "upsample", k: 1, s: 0.5, pad: 0 };
  const attention = { name: "attention", k: 1, s: 1, pad: 0, all: true };

  /**
   * The layers of the chapter's U-Net (`default_config`) on the path to its output: through the mid block, or through
   * the skip connections of one level (0 is full resolution). Attention is at the lowest level.
   */
  function unetLayers(depth, level = null, attends = false) {
    const lowest = level ?? depth - 1;
    const attend = (i) => (attends && i === depth - 1 ? [attention] : []);
    const resnet = (stage) => [conv(`${stage} conv1`), conv(`${stage} conv2`)];
    const layers = [conv("conv_in")];
    for (let i = 0; i <= lowest; i++) {
      layers.push(...resnet(`down ${i}`), ...attend(i), ...(i < lowest ? [downsample] : []));
    }
    if (level === null) layers.push(...resnet("mid"), ...(attends ? [attention] : []), ...resnet("mid"));
    for (let i = lowest; i >= 0; i--) {
      const stage = `up ${depth - 1 - i}`;
      layers.push(...resnet(stage), ...attend(i), ...resnet(stage), ...attend(i));
      if (i > 0) layers.push(upsample, conv(`${stage} conv`));
    }
    return [...layers, conv("conv_out")];
  }

  /** Side r of the receptive field and distance j after every layer, the first entry before any: [{r, j}]. */
  function recurrence(layers) {
    const fields = [{ r: 1, j: 1 }];
    for (const { k, s, all } of layers) {
      const { r, j } = fields.at(-1);
      fields.push({ r: all ? Infinity : r + (k - 1) * j, j: s * j });
    }
    return fields;
  }

  /** Number of positions along one side after every layer, for images of n pixels. */
  function sizes(layers, n) {
    const found = [n];
    for (const { k, s, pad } of layers) {
      const before = found.at(-1);
      found.push(s < 1 ? before / s : Math.floor((before + 2 * pad - k) / s) + 1);
    }
    return found;
  }

  /**
   * Along one side: the first and last position that the last layer's position `at` depends on, in the output of every
   * layer; entry 0 is the image's. Positions beyond the border do not exist.
   */
  function dependencies(layers, n, at) {
    const counts = sizes(layers, n);
    const ranges = [[at, at]];
    for (let l = layers.length - 1; l >= 0; l--) {
      const { k, s, pad, all } = layers[l], last = counts[l] - 1;
      const [a, b] = ranges[0];
      if (all) ranges.unshift([0, last]);
      else ranges.unshift([Math.max(0, Math.floor(s * a) - pad), Math.min(last, Math.floor(s * b) - pad + k - 1)]);
    }
    return ranges;
  }

  const layerKinds = { conv: conv("conv 3 × 3"), downsample, upsample, attention };
  minidiff.receptive = { layerKinds, unetLayers, recurrence, sizes, dependencies };

  /** A cat of 64 x 64 pixels on a canvas. */
  function cat() {
    const canvas = make("canvas", { width: SIZE, height: SIZE });
    const context = canvas.getContext("2d");
    const fill = (colour, ...shapes) => {
      context.fillStyle = colour;
      for (const shape of shapes) {
        context.beginPath();
        if (shape.length === 4) context.ellipse(...shape, 0, 0, 2 * Math.PI);
        else for (let i = 0; i < shape.length; i += 2) context.lineTo(shape[i], shape[i + 1]);
        context.fill();
      }
    };
    fill("#c9d8ef", [0, 0, 64, 0, 64, 64, 0, 64]);
    fill("#dfe8f6", [32, 36, 29, 29]);
    fill("#3f8f83", [32, 66, 19, 13]);
    fill("#e0924a", [12, 32, 13, 7, 32, 20], [52, 32, 51, 7, 32, 20], [32, 35, 21, 18]);
    fill("#f0b9a8", [16, 24, 16, 12, 24, 19], [48, 24, 48, 12, 40, 19]);
    fill("#c2712f", [29, 18, 35, 18, 32, 26], [22, 20, 26, 18, 26, 25], [42, 20, 38, 18, 38, 25]);
    fill("#fbf3e4", [27, 45, 7, 6], [37, 45, 7, 6]);
    fill("#33302e", [22, 35, 4.2, 5], [42, 35, 4.2, 5]);
    fill("#6d8f5b", [22, 35.5, 3, 3.8], [42, 35.5, 3, 3.8]);
    fill("#1d1b1a", [22, 35.5, 1.3, 3.4], [42, 35.5, 1.3, 3.4]);
    fill("#ffffff", [23.4, 33.4, 1, 1], [43.4, 33.4, 1, 1]);
    fill("#b5482f", [29.5, 40.5, 34.5, 40.5, 32, 43.5]);
    context.strokeStyle = "#33302e";
    context.beginPath();
    context.arc(29.5, 44, 2.6, 0.2, Math.PI - 0.4);
    context.moveTo(37.1, 44.5);
    context.arc(34.5, 44, 2.6, 0.2, Math.PI - 0.2);
    for (const side of [-1, 1]) {
      for (const dy of [-2, 2]) {
        context.moveTo(32 + 13 * side, 44 + dy / 2);
        context.lineTo(32 + 25 * side, 43 + 1.6 * dy);
      }
    }
    context.stroke();
    return canvas;
  }

  const number = (value) => (Number.isFinite(value) ? value.toLocaleString("en-US") : "∞");

  minidiff.widget("receptive", (body) => {
    const state = { own: ["conv", "conv", "downsample", "conv", "conv"], row: 35, column: 22 };
    const picture = cat();
    let layers = [], shown = 0;

    const controls = make("div", { class: "controls" });
    const unets = DEPTHS.map((depth) => [depth, `U-Net, ${depth} level${depth > 1 ? "s" : ""}`]);
    const options = [["own", "your own layers"], ...unets];
    const network = minidiff.choice(controls, { label: "network", options, value: "own", oninput: choose });
    const unetControls = make("span", { class: "controls" });
    const path = minidiff.choice(unetControls, { label: "path", options: [], value: "", oninput: build });
    const attends = minidiff.checkbox(unetControls, { label: "attention", checked: false, oninput: build });
    const ownControls = make("div", { class: "controls" });
    const adding = Object.entries(layerKinds).map(([kind, { name }]) =>
      [kind, minidiff.button(ownControls, `+ ${name}`, () => add(kind))]);
    const remove = minidiff.button(ownControls, "Remove last", () => { state.own.pop(); build(); });
    controls.append(unetControls);
    body.append(controls, ownControls);
    const sliderRow = make("div", { class: "controls" });
    const slider = minidiff.slider(sliderRow, {
      label: "after layer", min: 0, max: 1, step: 1, value: 0, show: (l) => `${l} of ${layers.length}`,
      oninput: (l) => { shown = l; update(); },
    });
    body.append(sliderRow);

    const panes = make("div", { class: "panes stacked" });
    body.append(panes);
    const [image, diagram] = [
      { aspect: "1", label: () => `A cat, with the receptive field of the output position at row ${state.row}, column `
        + `${state.column}; arrow keys move it`, draw: drawImage },
      { aspect: "auto", label: () => `Along one side, the positions of the image and of ${layers.length} layers that `
        + "the output position depends on", draw: drawLayers },
    ].map((options) => {
      const pane = make("div");
      panes.append(pane);
      return minidiff.canvas(pane, options);
    });
    image.canvas.style.cursor = "crosshair";
    diagram.canvas.style.cursor = "pointer";
    minidiff.onArrows(image.canvas, move);
    for (const kind of ["pointermove", "pointerdown"]) {
      image.canvas.addEventListener(kind, (event) => event.buttons && point(event));
    }
    diagram.canvas.addEventListener("pointerdown", (event) => {
      const row = Math.floor((event.offsetY - HEADER) / rowHeight());
      minidiff.set(slider, clamp(row, 0, layers.length));
    });
    const readout = make("p", { class: "readout", "aria-live": "polite" });
    body.append(readout);

    const rowHeight = () => clamp(330 / (layers.length + 1), 12, 26);

    function choose(name) {
      path.replaceChildren();
      if (name !== "own") {
        const depth = Number(name);
        const levels = Array.from({ length: depth }, (_, level) => {
          const n = SIZE / 2 ** level;
          return make("option", { value: level, text: `skip connections at ${n} × ${n}` });
        });
        path.append(make("option", { value: "mid", text: "through the mid block" }), ...levels);
      }
      build();
    }

    function add(kind) {
      state.own.push(kind);
      build();
    }

    /** The layers of the controls' network, all of them shown. */
    function build() {
      const own = network.value === "own";
      const level = path.value === "mid" ? null : Number(path.value);
      const unet = () => unetLayers(Number(network.value), level, attends.checked);
      layers = own ? state.own.map((kind) => layerKinds[kind]) : unet();
      ownControls.hidden = !own;
      unetControls.hidden = own;
      const n = sizes(layers, SIZE).at(-1);
      for (const [kind, button] of adding) {
        const possible = { downsample: n > 4, upsample: n < SIZE }[kind] ?? true;
        button.disabled = state.own.length >= MOST_LAYERS || !possible;
      }
      remove.disabled = !state.own.length;
      diagram.canvas.style.height = `${HEADER + (layers.length + 1) * rowHeight()}px`;
      slider.max = layers.length;
      minidiff.set(slider, layers.length);
    }

    function move(right, down) {
      const { j } = recurrence(layers.slice(0, shown)).at(-1);
      moveTo(state.row + j * down, state.column + j * right);
    }

    function point(event) {
      const side = image.canvas.clientWidth / SIZE;
      moveTo(Math.floor(event.offsetY / side), Math.floor(event.offsetX / side));
    }

    function moveTo(row, column) {
      [state.row, state.column] = [row, column].map((at) => clamp(at, 0, SIZE - 1));
      update();
    }

    /** The fields of a pixel's row and column after the layers that are shown. */
    function fields() {
      const part = layers.slice(0, shown), { j } = recurrence(part).at(-1);
      return [state.row, state.column].map((at) => dependencies(part, SIZE, Math.floor(at / j)));
    }

    function drawImage(context, width, height, colours) {
      const side = width / SIZE, { j } = recurrence(layers.slice(0, shown)).at(-1);
      const [[top, bottom], [left, right]] = fields().map((ranges) => ranges[0]);
      context.imageSmoothingEnabled = false;
      context.drawImage(picture, 0, 0, width, height);
      context.fillStyle = colours.page;
      context.globalAlpha = 0.72;
      context.beginPath();
      context.rect(0, 0, width, height);
      context.rect(left * side, top * side, (right - left + 1) * side, (bottom - top + 1) * side);
      context.fill("evenodd");
      context.globalAlpha = 1;
      context.lineWidth = 2;
      context.strokeStyle = colours.noise;
      context.strokeRect(left * side, top * side, (right - left + 1) * side, (bottom - top + 1) * side);
      context.strokeStyle = colours.signal;
      const [row, column] = [state.row, state.column].map((at) => j * Math.floor(at / j));
      context.strokeRect(column * side, row * side, j * side, j * side);
    }

    function drawLayers(context, width, _, colours) {
      const part = layers.slice(0, shown), tall = rowHeight();
      const ranges = fields()[1], steps = recurrence(layers);
      const side = (width - LABELS - NUMBERS) / SIZE, font = Math.min(12, tall - 1);
      context.textBaseline = "middle";
      const family = getComputedStyle(diagram.canvas).fontFamily;
      const text = (words, x, y, align) => {
        context.textAlign = align;
        context.fillText(words, x, y);
      };
      context.font = `11px ${family}`;
      context.fillStyle = colours.muted;
      text("layer", 0, HEADER / 2, "left");
      text("j", width - 36, HEADER / 2, "right");
      text("r", width, HEADER / 2, "right");
      for (let l = 0; l <= layers.length; l++) {
        const y = HEADER + l * tall, step = steps[l].j * side;
        context.globalAlpha = l > part.length ? 0.3 : 1;
        context.font = `${font}px ${family}`;
        context.fillStyle = l === part.length ? colours.signal : colours.muted;
        text(l ? layers[l - 1].name : "image", 0, y + tall / 2, "left");
        text(number(steps[l].j), width - 36, y + tall / 2, "right");
        text(number(steps[l].r), width, y + tall / 2, "right");
        for (let at = 0; at < SIZE / steps[l].j; at++) {
          const inside = ranges[l] && ranges[l][0] <= at && at <= ranges[l][1];
          context.fillStyle = !inside ? colours.muted : l === part.length ? colours.signal : colours.noise;
          context.globalAlpha = inside ? 1 : l > part.length ? 0.1 : 0.2;
          context.fillRect(LABELS + at * step, y + 1, step - Math.min(1, step / 4), tall - 2);
        }
      }
      context.globalAlpha = 1;
    }

    /** The sides of the field as if the image had no border. */
    function unbounded(part, j) {
      const far = 1024; // pixels to every side, and a multiple of every j
      return [state.row, state.column].map((at) => {
        const [first, last] = dependencies(part, SIZE + 2 * far, Math.floor((at + far) / j))[0];
        return last - first + 1;
      });
    }

    function explain() {
      const part = layers.slice(0, shown), steps = recurrence(part), { r, j } = steps.at(-1);
      const [rows, columns] = fields().map((ranges) => ranges[0][1] - ranges[0][0] + 1);
      const count = `${rows} × ${columns} = ${number(rows * columns)} pixels`;
      if (!part.length) return "Before the first layer a position is one pixel of the image.";
      if (r === Infinity) return `Through attention the position depends on the whole image: ${count}.`;
      const { k } = part.at(-1), before = steps.at(-2), [height, width] = unbounded(part, j);
      const cut = rows < height || columns < width;
      const field = cut ? `${height} × ${width} pixels, of which ${count} lie within the image` : count;
      const mean = height === r && width === r ? "" : " (r is the mean over positions.)";
      const onPath = ["mid", ""].includes(path.value) ? "The position" : "On this path the position";
      const derived = `r after layer ${part.length}: ${before.r} + (${k} − 1) · ${before.j} = ${r}.`;
      return `${derived} ${onPath} depends on ${field}.${mean}`;
    }

    function update() {
      readout.textContent = explain();
      image.redraw();
      diagram.redraw();
    }

    choose("own");
  });
}
