// Winograd's minimal filtering in one dimension: F(2, 3), F(4, 3) and F(6, 3), and their rounding error (chapter 16).
// The matrices are those of kernels/minidiff_kernels/reference/winograd.py.
"use strict";
{
  const { make } = minidiff;
  const TAPS = 3;

  /** For each choice the number of outputs m and the m + 1 finite points; infinity is one more. */
  const ALGORITHMS = {
    "F(2, 3)": { m: 2, points: [0, 1, -1] },
    "F(4, 3), points ±1 and ±2": { m: 4, points: [0, 1, -1, 2, -2] },
    "F(4, 3), points ±5/8 and ±3/2": { m: 4, points: [0, 5 / 8, -5 / 8, 3 / 2, -3 / 2] },
    "F(6, 3), points ±1, ±2 and ±1/2": { m: 6, points: [0, 1, -1, 2, -2, 1 / 2, -1 / 2] },
  };
  const INPUTS = {
    steps: [0, 0, 1, 1, 1, 0, 0, 0],
    ramp: [1, 2, 3, 4, 5, 6, 7, 8],
    noise: [0.4, -1.3, 0.7, 2.1, -0.6, 0.2, -1.8, 0.9],
  };
  const FILTERS = { blur: [0.25, 0.5, 0.25], "difference": [-1, 0, 1], "second difference": [1, -2, 1] };

  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

  /** matrix @ vector. */
  const apply = (matrix, vector) => matrix.map((row) => dot(row, vector));

  /** Coefficients, from t^0 on, of the product of (t - root). */
  const polynomial = (roots) =>
    roots.reduce((p, root) => [...p, 0].map((_, k) => (p[k - 1] ?? 0) - root * (p[k] ?? 0)), [1]);

  /** A^T (m, n), G (n, 3) and B^T (n, n) for n - 1 points and infinity. */
  function matrices({ m, points }) {
    const n = m + TAPS - 1;
    const powers = (count) => [...points.map((t) => Array.from({ length: count }, (_, k) => t ** k)),
      Array.from({ length: count }, (_, k) => Number(k === count - 1))];
    const A = powers(m), others = points.map((t) => points.filter((other) => other !== t));
    const at = points.map((t, i) => others[i].reduce((product, other) => product * (t - other), 1));
    return {
      At: Array.from({ length: m }, (_, k) => A.map((row) => row[k])),
      G: powers(TAPS).map((row, i) => row.map((value) => value / (at[i] ?? 1))),
      Bt: [...others.map((roots) => [...polynomial(roots), 0]), polynomial(points)].map((row) => row.slice(0, n)),
    };
  }

  /** U = G g, V = B^T d, M = U * V and y = A^T M. */
  function winograd({ At, G, Bt }, d, g) {
    const U = apply(G, g), V = apply(Bt, d), M = U.map((u, i) => u * V[i]);
    return { U, V, M, y: apply(At, M) };
  }

  /** y[i] = d[i] g[0] + d[i + 1] g[1] + d[i + 2] g[2]. */
  const direct = (d, g) => d.slice(0, 1 - TAPS).map((_, i) => dot(g, d.slice(i, i + TAPS)));

  const f = Math.fround;
  /** matrix @ vector in float32: every product and every sum is rounded. */
  const apply32 = (matrix, vector) => matrix.map((row) =>
    row.reduce((sum, value, i) => f(sum + f(f(value) * f(vector[i]))), 0));

  /** y in float32 by Winograd, and direct. */
  function winograd32({ At, G, Bt }, d, g) {
    const U = apply32(G, g), V = apply32(Bt, d);
    return apply32(At, U.map((u, i) => f(u * V[i])));
  }
  const direct32 = (d, g) => d.slice(0, 1 - TAPS).map((_, i) => apply32([g], d.slice(i, i + TAPS))[0]);

  /** Relative rms errors in float32, by Winograd and direct, over normal inputs. */
  function errors(algorithm, count = 1000) {
    const of = matrices(algorithm), n = algorithm.m + TAPS - 1, squares = [0, 0, 0];
    const normal = minidiff.normal(1, count * (n + TAPS)).map(f);
    for (let i = 0; i < count; i++) {
      const d = [...normal.subarray(i * (n + TAPS), i * (n + TAPS) + n)];
      const g = [...normal.subarray(i * (n + TAPS) + n, (i + 1) * (n + TAPS))];
      const y = direct(d, g), all = [winograd32(of, d, g), direct32(d, g)];
      y.forEach((value, k) => {
        squares[0] += (all[0][k] - value) ** 2;
        squares[1] += (all[1][k] - value) ** 2;
        squares[2] += value ** 2;
      });
    }
    return { winograd: Math.sqrt(squares[0] / squares[2]), direct: Math.sqrt(squares[1] / squares[2]) };
  }

  minidiff.winograd = { algorithms: ALGORITHMS, matrices, winograd, direct, winograd32, direct32, errors };

  const MINUS = (text) => String(text).replace("-", "−");
  /** At most that many decimals, fewer for large numbers. */
  const show = (value, decimals = Math.abs(value) < 10 ? 2 : 1) =>
    MINUS(Math.abs(value) < 1000 ? Number(value.toFixed(decimals)) : value.toPrecision(3));
  const scientific = (value) => (value ? MINUS(value.toExponential(1)) : "0");
  const list = (values) => `(${values.map((value) => show(value, 3)).join(", ")})`;

  /** A line for each element of a matrix that is not zero, from its column above to its row below, and the result. */
  function drawMap(context, width, height, colours, matrix, result, above) {
    const place = (i, count) => ((i + 0.5) * width) / count, columns = matrix[0].length;
    const top = above ? 22 : 4, bottom = height - 22, largest = Math.max(...matrix.flat().map(Math.abs));
    matrix.forEach((row, i) => row.forEach((value, j) => {
      if (!value) return;
      context.strokeStyle = value > 0 ? colours.signal : colours.noise;
      context.lineWidth = 0.6 + (4 * Math.abs(value)) / largest;
      minidiff.line(context, [[place(j, columns), top], [place(i, matrix.length), bottom]]);
    }));
    Object.assign(context, { fillStyle: colours.text, textAlign: "center", font: "12px system-ui, sans-serif" });
    const write = (values, y, baseline) => values.forEach((value, i) => {
      context.textBaseline = baseline;
      context.fillText(show(value), place(i, values.length), y);
    });
    if (above) write(above, top - 6, "bottom");
    write(result, bottom + 6, "top");
  }

  minidiff.widget("winograd", (body) => {
    const state = { name: "F(2, 3)", d: [...INPUTS.noise], g: [...FILTERS.blur] };
    let of, found;

    const controls = make("div", { class: "controls" });
    body.append(controls);
    const options = (choices) => [...Object.keys(choices), "your own"].map((name) => [name, name]);
    minidiff.choice(controls, {
      label: "algorithm", value: state.name, options: Object.keys(ALGORITHMS).map((name) => [name, name]),
      oninput: (name) => { state.name = name; fill(); },
    });
    const presets = Object.entries({ d: ["input", INPUTS, "noise"], g: ["filter", FILTERS, "blur"] }).map(
      ([key, [label, choices, value]]) => minidiff.choice(controls, {
        label, value, options: options(choices),
        oninput: (name) => { state[key] = [...(choices[name] ?? state[key])]; fill(); },
      }));

    const panes = make("div", { class: "panes stacked" });
    body.append(panes);
    const entries = {}, maps = [];
    const map = (title, label, draw) => {
      const pane = minidiff.pane(panes, title);
      maps.push(minidiff.canvas(pane, { aspect: "2.2", label, draw }));
      return pane;
    };
    const math = (content) => `<math><mrow>${content}</mrow></math>`;
    const T = (letter) => `<msup><mi>${letter}</mi><mi>T</mi></msup>`;
    const U = "<mi>U</mi><mo>=</mo><mi>G</mi><mi>g</mi>", V = `<mi>V</mi><mo>=</mo>${T("B")}<mi>d</mi>`;
    const inputPane = map(`input above, transformed below: ${math(V)}`,
      () => `The input ${list(shown("d"))} and its transform ${list(found.V)}`,
      (...canvas) => drawMap(...canvas, of.Bt, found.V));
    const filterPane = map(`filter above, transformed below: ${math(U)}`,
      () => `The filter ${list(state.g)} and its transform ${list(found.U)}`,
      (...canvas) => drawMap(...canvas, of.G, found.U));
    for (const [key, pane] of [["d", inputPane], ["g", filterPane]]) {
      entries[key] = make("div", { class: "entries" });
      pane.firstChild.after(entries[key]);
    }
    const products = make("table", { class: "numbers" });
    const M = "<mi>M</mi><mo>=</mo><mi>U</mi><mo>⊙</mo><mi>V</mi>";
    minidiff.pane(panes, `one product for each point: ${math(M)}`).append(products);
    map(`products above, outputs below: ${math(`<mi>y</mi><mo>=</mo>${T("A")}<mi>M</mi>`)}`,
      () => `The products ${list(found.M)} and the outputs ${list(found.y)}`,
      (...canvas) => drawMap(...canvas, of.At, found.y, found.M));
    const readout = make("p", { class: "readout", "aria-live": "polite" });
    const rounding = make("p", { class: "readout" });
    body.append(readout, rounding);

    function shown(key) { return key === "d" ? state.d.slice(0, of.Bt.length) : state.g; }

    function edit(key, i, text) {
      if (text === "") return; // while a number is being typed
      state[key][i] = Number(text);
      presets[Number(key === "g")].value = "your own";
      update();
    }

    /** Entries for as many numbers as the algorithm takes. */
    function fill() {
      of = matrices(ALGORITHMS[state.name]);
      for (const key of ["d", "g"]) {
        entries[key].replaceChildren(...shown(key).map((value, i) => make("input", {
          type: "number", step: 0.5, value, "aria-label": `${key}, element ${i}`,
          oninput: (event) => edit(key, i, event.target.value),
        })));
      }
      const rms = errors(ALGORITHMS[state.name]);
      rounding.textContent = "Relative rms error in float32, 1,000 tiles of normal numbers: "
        + `${scientific(rms.winograd)}; of the direct sum ${scientific(rms.direct)}`;
      update();
    }

    function update() {
      const { points, m } = ALGORITHMS[state.name], d = shown("d");
      found = winograd(of, d, state.g);
      minidiff.fillTable(products, ["t", ...points.map(MINUS), "∞"],
        ...["U", "V", "M"].map((name) => [name, ...found[name].map((value) => show(value))]));
      const y = direct(d, state.g), y32 = winograd32(of, d, state.g);
      const difference = Math.max(...y.map((value, k) => Math.abs(y32[k] - value)));
      readout.textContent = `${found.M.length} multiplications instead of ${TAPS * m}. y = ${list(found.y)}; `
        + `direct: ${list(y)}. In float32 the largest error here is ${scientific(difference)}`;
      for (const { redraw } of maps) redraw();
    }

    fill();
  });
}
