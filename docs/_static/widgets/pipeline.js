// The text-to-image pipeline: an overview of its stages, each of which can be zoomed into. All images and numbers are
// of the model in docs/models/emoji: docs/course/pipeline_images.py writes them into the folder pipeline/ here.
"use strict";
{
  const { make, svg } = minidiff;
  const FOLDER = new URL("pipeline/", document.currentScript.src);
  const SITE = new URL("../../", document.currentScript.src);

  // ---- Shapes and arithmetic

  // What the shapes of Stable Diffusion 1.x follow from; data.js has the same of the emoji model.
  const SD1 = {
    tokens: 77, vocabulary: 49408, text: 768, textLayers: 12, image: 512, latent: 4, unet: [320, 640, 1280, 1280],
    vae: [128, 256, 512, 512], scaling: 0.18215, prediction: "epsilon",
  };

  const factor = (sizes) => 2 ** (sizes.vae.length - 1); // of the autoencoder, along each side
  const latentSide = (sizes) => sizes.image / factor(sizes);

  /** The shapes of the arrays of one prompt. The U-Net's batch has the empty prompt too, unless the scale is 1. */
  function shapes(sizes, scale) {
    const latents = (n) => [n, latentSide(sizes), latentSide(sizes), sizes.latent];
    return {
      ids: [1, sizes.tokens], text: [1, sizes.tokens, sizes.text], latents: latents(1),
      batch: latents(scale === 1 ? 1 : 2), image: [1, sizes.image, sizes.image, 3],
    };
  }

  /** (height, width, channels) of the U-Net's levels on the way down; up they are the same in reverse. */
  function unetLevels(sizes) {
    return sizes.unet.map((channels, i) => [latentSide(sizes) / 2 ** i, latentSide(sizes) / 2 ** i, channels]);
  }

  /** (height, width, channels) of the decoder's levels. */
  function decoderLevels(sizes) {
    const widths = [...sizes.vae].reverse();
    return widths.map((channels, i) => [latentSide(sizes) * 2 ** i, latentSide(sizes) * 2 ** i, channels]);
  }

  /** Classifier-free guidance, of numbers. */
  const guided = (pNull, pCond, scale) => pNull + scale * (pCond - pNull);

  /** A DDIM step (eta 0) of a number x_t with the prediction v, between noise levels alpha_bar. */
  function ddimStep(x, v, alphaBar, alphaBarPrev) {
    const x0 = Math.sqrt(alphaBar) * x - Math.sqrt(1 - alphaBar) * v;
    const eps = Math.sqrt(1 - alphaBar) * x + Math.sqrt(alphaBar) * v;
    return { x0, eps, next: Math.sqrt(alphaBarPrev) * x0 + Math.sqrt(1 - alphaBarPrev) * eps };
  }

  // ---- Text, formulas, SVG

  const times = (shape) => shape.join("×");
  const signed = (x) => minidiff.fixed(x, 3);
  const operand = (x) => (x < 0 ? `(${signed(x)})` : signed(x));

  /** MathML of letters, numbers and signs between spaces: x_t has an index, ^x a hat, ¯x a bar, √[ ... ] is a root. */
  function math(source) {
    const word = (text) => {
      const [base, index] = text.split("_");
      const letter = "^¯".includes(base[0]) ? `<mover><mi>${base.slice(1)}</mi><mo>${base[0]}</mo></mover>`
        : /^[\d.]+$/.test(base) ? `<mn>${base}</mn>` : /^\p{L}/u.test(base) ? `<mi>${base}</mi>` : `<mo>${base}</mo>`;
      const indices = index?.length === 2 ? [...index] : [index]; // i and j, but one word "null"
      return index ? `<msub>${letter}<mrow>${indices.map((i) => `<mi>${i}</mi>`).join("")}</mrow></msub>` : letter;
    };
    const row = (text) => text.trim().split(/\s+/).filter(Boolean).map(word).join("");
    const parts = source.split(/√\[|\]/).map((part, i) => (i % 2 ? `<msqrt>${row(part)}</msqrt>` : row(part)));
    return `<math display="block">${parts.join("")}</math>`;
  }

  const NARROW_BELOW = 560; // CSS pixels, as in minidiff.css

  // The boxes (x, y, width, height) of the overview, and its arrows, on a wide and on a narrow screen.
  const WIDE = {
    size: [700, 400], loop: [112, 166, 450, 232], beside: false, // the thumbnails are below the names
    tokenizer: [1, 1, 384, 144], encoder: [407, 1, 292, 144], noise: [1, 194, 92, 168], unet: [124, 194, 204, 168],
    guidance: [346, 194, 88, 168], step: [452, 194, 98, 168], decoder: [582, 194, 117, 168],
    arrows: ["M385 73H404", "M553 145V156H226V191", "M93 278H121", "M328 278H343", "M434 278H449", "M550 278H579",
      "M501 362V378H226V365"],
    stepLabel: [550, 184, "end"], backLabel: [363, 392, "middle"],
  };
  const NARROW = {
    size: [300, 807], loop: [1, 335, 298, 347], beside: true,
    tokenizer: [1, 1, 298, 126], encoder: [1, 147, 298, 72], noise: [1, 239, 250, 76], unet: [10, 364, 264, 84],
    guidance: [10, 468, 264, 84], step: [10, 572, 264, 84], decoder: [1, 702, 298, 104],
    arrows: ["M150 127V144", "M264 219V361", "M210 315V361", "M70 448V465", "M70 552V569", "M70 656V699",
      "M274 614H286V406H277"],
    stepLabel: [11, 352, "start"], backLabel: [286, 674, "end"],
  };

  // ---- The arrays that are shown: parts of sheets of images

  const GUIDED = 0, COND = 1, NULL = 2; // rows of a scale in the sheet of estimates

  /**
   * Functions that return where the state's arrays are: [file, the sheet's width and height, x, y, width, height].
   * step and scale count from 0.
   */
  function sheets(data, state) {
    const { image, tokens, text } = data.sizes, side = latentSide(data.sizes);
    const steps = data.ts.length - 1, scales = data.scales.length, runs = data.prompts.length * scales;
    const words = Math.max(...data.prompts.map((prompt) => prompt.words.length));
    const run = () => state.prompt * scales + state.scale;
    return {
      estimate: (kind, step = state.step, scale = state.scale) => [`images-${state.prompt}.png`,
        image * steps, image * 3 * scales, image * step, image * (3 * scale + kind), image, image],
      latents: (step) => ["latents.png",
        4 * side * (steps + 1), 3 * side * runs, 4 * side * step, 3 * side * run(), 4 * side, 3 * side],
      attention: (word) => ["attention.png",
        side * steps, side * runs * words, side * state.step, side * (run() * words + word), side, side],
      embeddings: (prompt) => ["embeddings.png",
        text, tokens * (data.prompts.length + 1), 0, tokens * prompt, text, tokens],
    };
  }

  /** The arrays by name: a part; `grey`, the part that it lies over; `maps` if channels lie side by side; `unused`. */
  function shown(data, state) {
    const { estimate, latents, attention, embeddings } = sheets(data, state), steps = data.ts.length - 1;
    const unused = () => data.scales[state.scale] === 1;
    return {
      text: { part: () => embeddings(state.prompt) },
      empty: { part: () => embeddings(data.prompts.length), unused },
      noise: { part: () => latents(0), maps: true },
      before: { part: () => latents(state.step), maps: true },
      after: { part: () => latents(state.step + 1), maps: true },
      last: { part: () => latents(steps), maps: true },
      cond: { part: () => estimate(COND) },
      null: { part: () => estimate(NULL), unused },
      guided: { part: () => estimate(GUIDED) },
      image: { part: () => estimate(GUIDED, steps - 1) },
      chosenWord: { part: () => attention(state.word), grey: () => estimate(GUIDED) },
      word: (i) => ({ part: () => attention(i), grey: () => estimate(GUIDED) }),
      afterStep: (i) => ({ part: () => estimate(GUIDED, i) }),
      ofScale: (i) => ({ part: () => estimate(GUIDED, steps - 1, i) }),
    };
  }

  /** Elements that show arrays and follow the state: live(f) calls f now, and again when the state changes. */
  function drawing(live, shape) {
    function tile(part, x, y, width, attributes = {}) {
      const image = svg("image"), [, , , , , w, h] = part();
      const element = svg("svg", { x, y, width, height: (width * h) / w, ...attributes }, image);
      live(() => {
        const [file, W, H, left, top] = part(), href = new URL(file, FOLDER).href;
        if (image.getAttribute("href") !== href) image.setAttribute("href", href);
        image.setAttribute("width", W);
        image.setAttribute("height", H);
        element.setAttribute("viewBox", `${left} ${top} ${w} ${h}`);
      });
      return element;
    }

    function thumbnail({ part, grey, maps, unused }, x, y, width) {
      const group = svg("g"), side = width / 4; // of a channel's map
      if (grey) group.append(tile(grey, x, y, width, { class: "grey" }));
      group.append(tile(part, x, y, width, { opacity: grey ? 0.65 : 1 }));
      if (maps) {
        const vertical = [1, 2, 3].map((i) => `M${x + i * side} ${y}v${3 * side}`);
        const horizontal = [1, 2].map((i) => `M${x} ${y + i * side}h${width}`);
        const d = [...vertical, ...horizontal].join("");
        group.append(svg("path", { class: "lines", "stroke-width": width / 64, d }));
      }
      if (unused) live(() => group.setAttribute("opacity", unused() ? 0.25 : 1));
      return group;
    }

    function svgText(attributes, text) {
      const element = svg("text", attributes);
      live(() => { element.textContent = text(); });
      return element;
    }

    function array(which, width, name, shapeName) {
      const [, , , , , w, h] = which.part();
      const viewBox = `0 0 ${width} ${(width * h) / w}`;
      const image = svg("svg", { viewBox, width, "aria-hidden": true }, thumbnail(which, 0, 0, width));
      return make("div", { class: "pipeline-array" }, image, value(() => name, shapeName));
    }

    function value(text, shapeName) {
      const element = make("span"), size = make("small");
      live(() => {
        element.textContent = text();
        size.textContent = shapeName ? shape(shapeName) : "";
      });
      return make("div", { class: "pipeline-array" }, element, size);
    }

    /** An array that can be chosen. */
    function option(which, width, name, chosen, onclick) {
      const children = [...array(which, width, name).children];
      const button = make("button", { class: "pipeline-array", type: "button", onclick }, ...children);
      live(() => button.setAttribute("aria-pressed", chosen()));
      return button;
    }

    return { thumbnail, svgText, array, value, option };
  }

  const row = (...parts) => make("div", { class: "pipeline-row" }, ...parts);
  const to = () => make("span", { class: "to", text: "→" });
  const paragraph = (...texts) => make("p", { text: texts.join(" ") });
  function formula(...sources) {
    const element = make("div");
    element.innerHTML = sources.map(math).join("");
    return element;
  }

  // ---- The stages

  /** Token and id, for start, text, end and padding. */
  function tokens(data, prompt) {
    const [start, end] = data.special, padding = data.sizes.tokens - prompt.ids.length - 2;
    const text = prompt.tokens.map((token, i) => [token, prompt.ids[i]]);
    return [["start", start], ...text, ["end", end], ["padding", `${padding} × ${end}`]];
  }

  const api = (name) => [name.split(".").slice(3).join("."), `api.html#${name}`];
  const chapter = (file) => [`chapter ${Number(file.slice(0, 2))}`, `course/${file}.html`];

  /**
   * In their order. array, shape: what comes out; thumbs: what the overview shows, with captions; zoom(): what the zoom
   * shows; links: its code and its chapter.
   */
  function stages({ data, state, arrays, live, draw, choose }) {
    const { array, value, option } = draw, steps = data.ts.length - 1;
    const prompt = () => data.prompts[state.prompt], scale = () => data.scales[state.scale];
    const sizes = () => (state.sizes === "sd1" ? SD1 : data.sizes);
    const target = () => (sizes().prediction === "epsilon" ? "ε" : "v");
    const levels = (list) => list.map(times).join(" → ");

    /** The arithmetic of this step at one element of the latents; only of the emoji model. */
    function numbers(text) {
      const element = make("div", { class: "pipeline-numbers" }), [i, j, channel] = data.element;
      live(() => {
        const [x, cond, none] = prompt().arithmetic[state.scale].map((column) => column[state.step]);
        const [a, b] = data.alphaBar.slice(state.step, state.step + 2), v = guided(none, cond, scale());
        const of = { x, cond, none, v, alphaBar: a, alphaBarPrev: b, ...ddimStep(x, v, a, b) };
        element.textContent = `In row ${i}, column ${j}, channel ${channel}:\n${text(of)}`;
      });
      return state.sizes === "sd1" ? "" : element;
    }

    const tokenizer = {
      key: "tokenizer", name: "Tokenizer", array: "token ids", shape: "ids", thumbs: [],
      links: [api("minidiff.models.tokenizer.Tokenizer"), chapter("09_tokenizer")],
      zoom: () => [
        paragraph("The text is split into tokens by byte-pair encoding, and each token has an id, its row in a",
          `vocabulary of ${sizes().vocabulary.toLocaleString("en")}. Start, end and padding fill the row of`,
          `${sizes().tokens}.`),
        row(value(() => `“${prompt().text}”`), to(), row(...tokens(data, prompt()).map(([token, id]) =>
          make("span", { class: "pipeline-array pipeline-token", text: token }, make("small", { text: id }))))),
        formula("ids = ( start , id_1 , … , id_n , end , … )"),
      ],
    };

    const encoder = {
      key: "encoder", name: "Text encoder", array: "embeddings", shape: "text",
      thumbs: [[arrays.text, () => "rows: tokens, columns: channels"]],
      links: [api("minidiff.models.text_encoder.TextEncoder"), chapter("10_text_encoder")],
      zoom: () => [
        paragraph(`A transformer of ${sizes().textLayers} layers makes a vector of each token, from that token and`,
          `those before it. Rows are tokens, columns are the ${sizes().text} channels. Guidance takes the embeddings`,
          "of the empty prompt too."),
        row(value(() => "token ids", "ids"), to(), array(arrays.text, 256, "embeddings of the prompt", "text"),
          array(arrays.empty, 256, "embeddings of the empty prompt", "text")),
        formula("h ← h + attention ( norm ( h ) )", "h ← h + MLP ( norm ( h ) )"),
      ],
    };

    const noise = {
      key: "noise", name: "Noise", array: "latents", shape: "latents",
      thumbs: [[arrays.noise, () => `t = ${data.ts[0]}`]],
      links: [api("minidiff.models.vae.VAE.latent_shape"), api("minidiff.sampling.text_to_image.text_to_image"),
        chapter("08_autoencoder")],
      zoom: () => [
        paragraph("Sampling starts from noise of the latents' shape: each side of the image is divided by",
          `${factor(sizes())}, ${sizes().image} / ${factor(sizes())} = ${latentSide(sizes())}, and there are`,
          `${sizes().latent} channels.`,
          "All prompts and guidance scales of this figure start from the same noise."),
        row(value(() => `seed ${data.seed}`), to(), array(arrays.noise, 256, "noise", "latents")),
        formula("x_T ∼ 𝒩 ( 0 , I )"),
      ],
    };

    const unet = {
      key: "unet", name: "U-Net", array: "predictions", shape: "batch",
      thumbs: [[arrays.chosenWord, () => prompt().words[state.word]], [arrays.null, () => "no prompt"],
        [arrays.cond, () => "prompt"]],
      links: [api("minidiff.models.text_unet.TextUNet"), api("minidiff.sampling.text_sheets.attention_maps"),
        chapter("05_unet"), chapter("11_guidance")],
      zoom: () => [
        paragraph(`The U-Net predicts ${target()} from the noisy latents, the timestep and the text embeddings, in one`,
          "batch with the prompt and, unless the guidance scale is 1, without it. Its predictions are shown as",
          "estimates of the clean latents, decoded."),
        row(array(arrays.before, 112, "latents", "latents"), value(() => `t = ${data.ts[state.step]}`),
          array(arrays.text, 136, "embeddings", "text"), to(), array(arrays.null, 84, "without prompt", "latents"),
          array(arrays.cond, 84, "with prompt", "latents")),
        formula(`^${target()} = U-Net ( x_t , t , c )`),
        paragraph(`Its levels: ${levels(unetLevels(sizes()))}, and up again. In cross-attention layers each position`,
          "attends to the tokens. The weights of the words in this step, averaged over layers and heads, from 0",
          `(black) to ${prompt().attention} (yellow):`),
        row(...prompt().words.map((word, i) =>
          option(arrays.word(i), 72, word, () => state.word === i, () => choose.word(i)))),
        formula("p_ij = softmax_j ( q_i · k_j / √[ D ] )"),
      ],
    };

    const guidance = {
      key: "guidance", name: "Guidance", array: "prediction", shape: "latents",
      thumbs: [[arrays.guided, () => `w = ${scale()}`]],
      links: [api("minidiff.diffusion.guidance.guided"), chapter("11_guidance")],
      zoom: () => [
        paragraph("Guidance moves the prediction without the prompt to the one with it, and beyond it if the scale w",
          "is above 1."),
        row(array(arrays.null, 84, "without prompt", "latents"), array(arrays.cond, 84, "with prompt", "latents"), to(),
          array(arrays.guided, 84, "guided", "latents")),
        formula(`^${target()}_w = ^${target()}_null + w ( ^${target()}_cond − ^${target()}_null )`),
        numbers(({ cond, none, v }) =>
          `${signed(none)} + ${scale()} × (${signed(cond)} − ${operand(none)}) = ${signed(v)}`),
        paragraph("The final image at each scale:"),
        row(...data.scales.map((w, i) =>
          option(arrays.ofScale(i), 72, `w = ${w}`, () => state.scale === i, () => choose.scale(i)))),
      ],
    };

    const step = {
      key: "step", name: "Scheduler", array: "latents", shape: "latents",
      thumbs: [[arrays.after, () => (state.step + 1 < steps ? `t = ${data.ts[state.step + 1]}` : "clean")]],
      links: [api("minidiff.diffusion.steps.ddim_step"), api("minidiff.diffusion.forward.x0_and_eps"),
        chapter("04_reverse_diffusion")],
      zoom: () => [
        paragraph("The prediction gives an estimate of the clean latents and one of the noise. A DDIM step mixes the",
          "two anew for the next, lower noise level."),
        row(array(arrays.before, 112, "latents", "latents"), to(),
          array(arrays.guided, 84, "estimate, decoded", "latents"), to(),
          array(arrays.after, 112, "latents of the next step", "latents")),
        target() === "v"
          ? formula("^x_0 = √[ ¯α_t ] x_t − √[ 1 − ¯α_t ] ^v", "^ε = √[ 1 − ¯α_t ] x_t + √[ ¯α_t ] ^v")
          : formula("^x_0 = ( x_t − √[ 1 − ¯α_t ] ^ε ) / √[ ¯α_t ]"),
        formula("x_prev = √[ ¯α_prev ] ^x_0 + √[ 1 − ¯α_prev ] ^ε"),
        numbers(({ x, v, x0, eps, next, alphaBar, alphaBarPrev }) => {
          const squares = [alphaBar, 1 - alphaBar, alphaBarPrev, 1 - alphaBarPrev];
          const [a, b, c, d] = squares.map((square) => signed(Math.sqrt(square)));
          return `x̂₀ = ${a} × ${operand(x)} − ${b} × ${operand(v)} = ${signed(x0)}\n` +
            `ε̂ = ${b} × ${operand(x)} + ${a} × ${operand(v)} = ${signed(eps)}\n` +
            `next = ${c} × ${operand(x0)} + ${d} × ${operand(eps)} = ${signed(next)}`;
        }),
      ],
    };

    const decoder = {
      key: "decoder", name: "VAE decoder", array: "image", shape: "image",
      thumbs: [[arrays.image, () => "after all steps"]],
      links: [api("minidiff.models.vae.VAE.decode"), chapter("08_autoencoder")],
      zoom: () => [
        paragraph(`The clean latents, divided by ${Number(sizes().scaling.toPrecision(5))}, become an image:`,
          `${levels([...decoderLevels(sizes()), [sizes().image, sizes().image, 3]])}.`),
        row(array(arrays.last, 168, "latents after the last step", "latents"), to(),
          array(arrays.image, 168, "image", "image")),
        formula("image = decoder ( x_0 / s )"),
        paragraph("The estimate of any step can be decoded, step by step:"),
        row(...data.ts.slice(1).map((_, i) =>
          option(arrays.afterStep(i), 40, `${i + 1}`, () => state.step === i, () => choose.step(i)))),
      ],
    };

    return [tokenizer, encoder, noise, unet, guidance, step, decoder];
  }

  // ---- The overview

  /** The tokens and their ids as an SVG in rows. */
  function chips(list, x, y, width) {
    let left = x, top = y;
    return list.map(([token, id]) => {
      const w = 6.3 * Math.max(token.length, String(id).length) + 9;
      if (left + w > x + width) [left, top] = [x, top + 34];
      const middle = left + w / 2;
      left += w + 4;
      return svg("g", {}, svg("rect", { class: "chip", x: middle - w / 2, y: top, width: w, height: 30, rx: 4 }),
        svg("text", { class: "small middle", x: middle, y: top + 13 }, token),
        svg("text", { class: "small middle", x: middle, y: top + 25 }, id));
    });
  }

  /** A stage's box with its name, what comes out, and thumbnails beside or below. */
  function card({ live, draw, shape, tokens, zoomIn }, stage, [x, y, w, h], beside) {
    const box = svg("rect", { x, y, width: w, height: h, rx: 7, role: "button", tabindex: 0, "data-stage": stage.key });
    live(() => box.setAttribute("aria-label", `${stage.name}: ${stage.array} ${shape(stage.shape)}. Zoom in`));
    box.addEventListener("click", () => zoomIn(stage));
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      zoomIn(stage);
    });
    const group = svg("g", {}, box, svg("text", { class: "name", x: x + 10, y: y + 20 }, stage.name),
      svg("text", { class: "small", x: x + 10, y: y + 36 }, stage.array),
      draw.svgText({ class: "small", x: x + 10, y: y + 51 }, () => shape(stage.shape)));
    if (stage.key === "tokenizer") {
      const row = svg("g");
      live(() => row.replaceChildren(...chips(tokens(), x + 10, y + 58, w - 20)));
      group.append(row);
    }
    const n = stage.thumbs.length, [, , , , , partWidth, partHeight] = n ? stage.thumbs[0][0].part() : [];
    const aspect = partHeight / partWidth, above = beside ? 8 : 60;
    const width = Math.min((w - (beside ? 112 : 20) - 10 * (n - 1)) / n, (h - above - (beside ? 22 : 18)) / aspect);
    const left = beside ? x + w - n * (width + 10) : x + 10;
    stage.thumbs.forEach(([array, caption], i) => {
      const at = left + i * (width + 10), bottom = y + above + width * aspect;
      const text = draw.svgText({ class: "caption middle", x: at + width / 2, y: bottom + 13 }, caption);
      group.append(draw.thumbnail(array, at, y + above, width), text);
    });
    return group;
  }

  function overview(context, list, layout, stepText) {
    const [W, H] = layout.size, [x, y, width, height] = layout.loop;
    const label = ([x, y, anchor], text) =>
      context.draw.svgText({ class: "small", x, y, "text-anchor": anchor }, text);
    const attributes = { id: "pipeline-arrow", viewBox: "0 0 6 6", refX: 3, refY: 3, markerWidth: 5, markerHeight: 5 };
    const head = svg("marker", { ...attributes, orient: "auto" }, svg("path", { class: "head", d: "M0 0L6 3L0 6z" }));
    return svg("svg", { viewBox: `0 0 ${W} ${H}`, style: `max-width: ${1.15 * W}px`, role: "group",
      "aria-label": "The stages of text-to-image sampling" },
      svg("defs", {}, head), svg("rect", { class: "loop", x, y, width, height, rx: 10 }),
      ...layout.arrows.map((d) => svg("path", { class: "arrow", d, "marker-end": "url(#pipeline-arrow)" })),
      label(layout.stepLabel, stepText), label(layout.backLabel, () => "latents of the next step"),
      ...list.map((stage) => card(context, stage, layout[stage.key], layout.beside)));
  }

  /** Let the overview grow until the stage fills it, or the reverse. */
  function animate(root, stage, reverse) {
    if (minidiff.reducedMotion()) return Promise.resolve();
    const all = root.getBoundingClientRect();
    const box = root.querySelector(`[data-stage="${stage.key}"]`).getBoundingClientRect();
    const scale = Math.min(all.width / box.width, all.height / box.height);
    const x = all.left - box.left + (all.width / scale - box.width) / 2;
    const y = all.top - box.top + (all.height / scale - box.height) / 2;
    const zoomed = { transform: `scale(${scale}) translate(${x}px, ${y}px)`, opacity: 0 };
    const frames = [{ transform: "none", opacity: 1 }, zoomed];
    root.style.transformOrigin = "0 0";
    return root.animate(reverse ? frames.reverse() : frames, { duration: 300, easing: "ease-in-out" }).finished;
  }

  // ---- The figure

  function mount(body) {
    const { data } = minidiff.pipeline, steps = data.ts.length - 1;
    const state = { prompt: 0, scale: 1, step: 1, word: 1, sizes: "emoji", stage: null };
    let updates = []; // what follows the state while the layout stays
    const live = (update) => {
      updates.push(update);
      update();
    };
    const shape = (name) => times(shapes(state.sizes === "sd1" ? SD1 : data.sizes, data.scales[state.scale])[name]);
    const draw = drawing(live, shape), choose = {};
    const list = stages({ data, state, arrays: shown(data, state), live, draw, choose });
    const context = { live, draw, shape, tokens: () => tokens(data, data.prompts[state.prompt]), zoomIn };
    const controls = make("div", { class: "controls" }), view = make("div", { class: "pipeline-view" });
    body.append(controls, view);

    const isNarrow = () => view.clientWidth < NARROW_BELOW;
    const stepText = () => `step ${state.step + 1} of ${steps}: t = ${data.ts[state.step]}`;

    function layOut() {
      updates = [];
      view.replaceChildren(
        state.stage ? zoom(state.stage) : overview(context, list, isNarrow() ? NARROW : WIDE, stepText));
    }

    function zoom(stage) {
      const next = list[list.indexOf(stage) + 1], head = row();
      minidiff.button(head, "‹ Back", zoomOut);
      head.append(make("h4", { text: stage.name }));
      if (next) minidiff.button(head, "Next ›", () => show(next));
      const note = "The shapes are Stable Diffusion 1.x's, images and token ids the emoji model's.";
      const links = stage.links.map(([text, path]) => make("a", { href: new URL(path, SITE).href, text }));
      return make("div", { class: "pipeline-zoom" }, head, ...stage.zoom(),
        ...(state.sizes === "sd1" ? [paragraph(note)] : []),
        make("p", { text: "More: " }, ...links.flatMap((link, i) => (i ? [" · ", link] : [link]))));
    }

    function show(stage) {
      state.stage = stage;
      layOut();
      view.querySelector("button").focus();
    }

    async function zoomIn(stage) {
      await animate(view.firstChild, stage, false);
      show(stage);
    }

    function zoomOut() {
      const { stage } = state;
      state.stage = null;
      layOut();
      view.querySelector(`[data-stage="${stage.key}"]`).focus();
      animate(view.firstChild, stage, true);
    }

    const numbered = (texts) => texts.map((text, i) => [i, text]);
    function chooser(name, label, options, oninput = () => updates.forEach((update) => update())) {
      const changed = (value) => {
        state[name] = Number(value);
        oninput();
      };
      const select = minidiff.choice(controls, { label, options, value: state[name], oninput: changed });
      choose[name] = (value) => minidiff.set(select, value);
      return select;
    }

    chooser("prompt", "prompt", numbered(data.prompts.map((prompt) => prompt.text)), () => {
      const { words } = data.prompts[state.prompt];
      state.word = Math.min(state.word, words.length - 1);
      word.replaceChildren(...words.map((text, value) => make("option", { value, text })));
      word.value = state.word;
      layOut();
    });
    chooser("scale", "guidance scale w", numbered(data.scales));
    const slider = minidiff.slider(controls, {
      label: "step", min: 1, max: steps, step: 1, value: state.step + 1, show: (step) => `${step} of ${steps}`,
      oninput: (step) => {
        state.step = step - 1;
        updates.forEach((update) => update());
      },
    });
    choose.step = (step) => minidiff.set(slider, step + 1);
    const word = chooser("word", "attention to", numbered(data.prompts[0].words));
    minidiff.choice(controls, {
      label: "shapes of", options: [["emoji", "the emoji model"], ["sd1", "Stable Diffusion 1.x"]], value: state.sizes,
      oninput: (sizes) => {
        state.sizes = sizes;
        layOut();
      },
    });

    layOut();
    let narrow = isNarrow();
    new ResizeObserver(() => {
      if (narrow === isNarrow()) return;
      narrow = isNarrow();
      if (!state.stage) layOut();
    }).observe(view);
    document.addEventListener("keydown", (event) => {
      const here = body.contains(event.target) || event.target === document.body;
      if (event.key === "Escape" && state.stage && here) zoomOut();
    });
  }

  minidiff.pipeline = { SD1, shapes, unetLevels, decoderLevels, guided, ddimStep };
  document.head.append(
    make("script", { src: new URL("data.js", FOLDER), onload: () => minidiff.widget("pipeline", mount) }));
}
