// A register tile of the matrix product: registers, loads, and the bound on its speed (chapter 15).
"use strict";
{
  const { make } = minidiff;
  const LATENCY = 4; // cycles of a fused multiply-add
  const MOST_ROWS = 16, MOST_VECTORS = 8;

  // registers; vector FMAs and vector loads that start in a cycle
  const processors = {
    zen4: { name: "AVX-512, one FMA (Zen 4)", registers: 32, fmas: 1, loads: 1 },
    avx512: { name: "AVX-512, two FMAs (Zen 5)", registers: 32, fmas: 2, loads: 2 },
    avx: { name: "AVX2, two FMAs", registers: 16, fmas: 2, loads: 2 },
  };

  /**
   * What one term of the sum costs a tile of R rows by V vectors. A sum that has no register is loaded and stored with
   * each term; one store starts in a cycle. `share` is the bound on the share of peak.
   */
  function cost({ registers, fmas, loads }, R, V) {
    const needed = R * V + V + 1, spilled = Math.max(0, needed - registers);
    const cycles = { units: (R * V) / fmas, latency: LATENCY, loads: (R + V + spilled) / loads, stores: spilled };
    const most = Math.max(...Object.values(cycles));
    return { needed, spilled, cycles, most, loadsPerFma: (R + V) / (R * V), share: cycles.units / most };
  }

  /** What every register holds: "noise" a vector of B, "gold" the element of A, "signal" a sum, "muted" nothing. */
  function contents(processor, R, V) {
    const sums = R * V - cost(processor, R, V).spilled;
    const kinds = [...Array(V).fill("noise"), "gold", ...Array(sums).fill("signal")];
    return [...kinds, ...Array(processor.registers - kinds.length).fill("muted")];
  }

  minidiff.tile = { processors, cost, contents, LATENCY };

  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const BOUNDS = { units: "the FMA units", latency: "latency", loads: "loads", stores: "stores of spilled sums" };

  minidiff.widget("tile", (body) => {
    const state = { processor: "zen4", R: 6, V: 3 };
    const controls = make("div", { class: "controls" });
    body.append(controls);
    const options = Object.entries(processors).map(([key, { name }]) => [key, name]);
    const change = (name) => (value) => { state[name] = value; update(); };
    minidiff.choice(controls, { label: "processor", options, value: state.processor, oninput: change("processor") });
    const sliders = make("div", { class: "controls" });
    body.append(sliders);
    minidiff.slider(sliders, { label: "rows R", min: 1, max: MOST_ROWS, step: 1, value: state.R, oninput: change("R") });
    minidiff.slider(sliders, {
      label: "vectors V", min: 1, max: MOST_VECTORS, step: 1, value: state.V, oninput: change("V"),
    });

    const panes = make("div", { class: "panes" });
    body.append(panes);
    const places = ["tile of C", "registers"].map((title) => minidiff.pane(panes, title));
    const tile = minidiff.canvas(places[0], {
      aspect: "4 / 3", draw: drawTile,
      label: () => `The tile of C, ${state.R} by ${state.V} vectors, with the elements of A beside it and B above it`,
    });
    const file = minidiff.canvas(places[1], {
      aspect: "4 / 3", draw: drawRegisters,
      label: () => `${processors[state.processor].registers} registers, of which the tile needs ${now().needed}`,
    });
    const legend = make("div", { class: "marks" });
    body.append(legend);
    const { signal, noise, gold, muted } = minidiff.colours();
    minidiff.fillLegend(legend, [
      ["block", signal, "sums of C"], ["block", noise, "vectors of B"], ["block", gold, "element of A"],
      ["block", muted, "free"],
    ]);
    const readout = make("p", { class: "readout", "aria-live": "polite" });
    body.append(readout);

    const now = () => cost(processors[state.processor], state.R, state.V);

    function box(context, colour, x, y, width, height, alpha = 1) {
      context.globalAlpha = alpha;
      context.fillStyle = colour;
      context.fillRect(x + 1, y + 1, width - 2, height - 2);
      context.globalAlpha = 1;
    }

    function drawTile(context, width, height, colours) {
      const { R, V } = state, kept = R * V - now().spilled, left = 24, top = 24;
      const tall = (height - top) / MOST_ROWS, wide = (width - left) / MOST_VECTORS;
      for (let v = 0; v < V; v++) box(context, colours.noise, left + v * wide, 4, wide, top - 10);
      for (let m = 0; m < R; m++) {
        box(context, colours.gold, 4, top + m * tall, left - 10, tall, m ? 0.35 : 1);
        for (let v = 0; v < V; v++) {
          box(context, colours.signal, left + v * wide, top + m * tall, wide, tall, m * V + v < kept ? 1 : 0.3);
        }
      }
      context.strokeStyle = colours.muted;
      context.globalAlpha = 0.4;
      context.strokeRect(left, top, width - left - 1, height - top - 1);
      context.globalAlpha = 1;
    }

    function drawRegisters(context, width, height, colours) {
      const kinds = contents(processors[state.processor], state.R, state.V), { spilled } = now(), columns = 8;
      const tall = height / 5, wide = width / columns;
      kinds.forEach((kind, i) => {
        const alpha = kind === "muted" ? 0.2 : 1;
        box(context, colours[kind], (i % columns) * wide, Math.floor(i / columns) * tall, wide, tall, alpha);
      });
      if (!spilled) return;
      context.fillStyle = colours.text;
      context.textBaseline = "top";
      context.fillText(`and ${plural(spilled, "sum")} in memory`, 2, (kinds.length / columns) * tall + 8);
    }

    function update() {
      const { R, V } = state, { registers } = processors[state.processor];
      const { needed, spilled, cycles, most, loadsPerFma, share } = now();
      const bound = Object.keys(cycles).find((name) => cycles[name] === most);
      const spills = spilled ? ` ${plural(spilled, "sum")} spilled.` : " Nothing is spilled.";
      readout.textContent = `${R * V} + ${V} + 1 = ${needed} of ${registers} registers.${spills} Loads per FMA: `
        + `(${R} + ${V}) / ${R * V} = ${loadsPerFma.toFixed(2)}. Cycles a term: units ${cycles.units}, latency `
        + `${LATENCY}, loads ${cycles.loads}${spilled ? `, stores ${cycles.stores}` : ""}. Bound by ${BOUNDS[bound]}: `
        + `at most ${Math.round(100 * share)} % of peak.`;
      tile.redraw();
      file.redraw();
    }

    update();
  });
}
