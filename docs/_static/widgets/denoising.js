// The denoising of one image: x_t and x0_hat at each of 25 steps. The frames are those of denoising.png, which
// docs/course/denoising_frames.py makes: a column a step, and for each of IMAGES a row of x_t and one of x0_hat.
"use strict";
{
  const { make, line, disc, fixed } = minidiff;
  const { logSNR } = minidiff.diffusion;
  const SPRITE = new URL("denoising.png", document.currentScript.src).href;
  const SIZE = 32; // pixels of a frame
  const IMAGES = [["4", "cat"], ["4", "dog"], ["9", "cat"], ["9", "dog"]]; // seed of the noise, class
  const STEPS = 25, LOW = -6, HIGH = 6; // steps, and the log-SNR of the first and of the last

  /** Of each step: the timestep with the nearest log-SNR, and its coefficients of signal and noise. */
  function levels() {
    const alphaBar = minidiff.diffusion.alphasCumprod("cosine"), logSNRs = alphaBar.map(logSNR);
    return Array.from({ length: STEPS }, (_, k) => {
      const wanted = LOW + (k * (HIGH - LOW)) / (STEPS - 1);
      const distance = logSNRs.map((value) => Math.abs(value - wanted));
      const t = distance.indexOf(Math.min(...distance));
      return { t, logSNR: logSNRs[t], signal: Math.sqrt(alphaBar[t]), noise: Math.sqrt(1 - alphaBar[t]) };
    });
  }

  /** Left and top of a frame in the sprite; kind: 0 is x_t, 1 x0_hat. */
  const frame = (seed, animal, kind, step) => {
    const image = IMAGES.findIndex((of) => of[0] === seed && of[1] === animal);
    return [SIZE * step, SIZE * (2 * image + kind)];
  };

  minidiff.denoising = { levels, frame };

  minidiff.widget("denoising", (body, figure) => {
    const settings = { animal: "cat", seed: "4", step: 12 };
    const at = levels(), sprite = new Image();

    const controls = make("div", { class: "settings" });
    body.append(controls);
    minidiff.choice(controls, {
      label: "class", value: settings.animal, options: [["cat", "cat"], ["dog", "dog"]],
      oninput: (animal) => change({ animal }),
    });
    minidiff.choice(controls, {
      label: "noise", value: settings.seed, options: [["4", "seed 4"], ["9", "seed 9"]],
      oninput: (seed) => change({ seed }),
    });

    const views = make("div", { class: "views" });
    body.append(views);
    const view = (title, canvas) => minidiff.canvas(minidiff.pane(views, title), canvas);
    const canvases = [
      view("<math><msub><mi>x</mi><mi>t</mi></msub></math>",
        { aspect: "1", label: () => `A ${settings.animal} with noise, at step ${settings.step} of ${STEPS - 1}`,
          draw: (context, width) => draw(context, width, 0) }),
      view("<math><msub><mover><mi>x</mi><mo>^</mo></mover><mn>0</mn></msub></math>",
        { aspect: "1", label: () => `The estimate of the clean ${settings.animal} at this step`,
          draw: (context, width) => draw(context, width, 1) }),
      view("coefficients over the log-SNR",
        { aspect: "1.35", label: () => "The signal coefficient rises over the log-SNR, the noise coefficient falls",
          draw: drawCurves }),
    ];
    const numbers = make("table", { class: "numbers" });
    minidiff.player(body, {
      label: "step", steps: STEPS - 1, start: settings.step, seconds: () => 5,
      show: (step) => `${step} of ${STEPS - 1}, t = ${at[step].t}`,
      onmove: (step) => change({ step }),
    });
    body.append(numbers);

    sprite.onload = () => change({});
    new IntersectionObserver((entries, observer) => {
      if (!entries.at(-1).isIntersecting) return;
      sprite.src = SPRITE;
      observer.disconnect();
    }, { rootMargin: "600px" }).observe(figure);
    change({});

    function change(changes) {
      Object.assign(settings, changes);
      const { t, logSNR, signal, noise } = at[settings.step];
      minidiff.fillTable(numbers,
        ["t", "log-SNR", "signal coefficient", "noise coefficient"],
        [t, fixed(logSNR, 1), fixed(signal, 3), fixed(noise, 3)]);
      for (const canvas of canvases) canvas.redraw();
    }

    function draw(context, width, kind) {
      if (!sprite.complete || !sprite.naturalWidth) return;
      context.imageSmoothingEnabled = false;
      const [left, top] = frame(settings.seed, settings.animal, kind, settings.step);
      context.drawImage(sprite, left, top, SIZE, SIZE, 0, 0, width, width);
    }

    function drawCurves(context, width, height, colours) {
      const bottom = height - 18;
      const place = (k, value) => [4 + (k / (STEPS - 1)) * (width - 8), bottom - 4 - value * (bottom - 10)];
      context.strokeStyle = colours.muted;
      const [here] = place(settings.step, 0);
      line(context, [[here, 0], [here, bottom]]);
      for (const name of ["signal", "noise"]) {
        Object.assign(context, { strokeStyle: colours[name], lineWidth: 1.8 });
        line(context, at.map((level, k) => place(k, level[name])));
        disc(context, ...place(settings.step, at[settings.step][name]), 4, colours[name]);
      }
      context.fillStyle = colours.noise;
      context.fillText("noise", 4, place(0, 1)[1] + 18);
      context.fillStyle = colours.signal;
      context.textAlign = "right";
      context.fillText("signal", width - 4, place(0, 1)[1] + 18);
      context.fillStyle = colours.muted;
      for (const level of [-6, -3, 0, 3, 6]) {
        const k = ((level - LOW) / (HIGH - LOW)) * (STEPS - 1);
        context.textAlign = k === 0 ? "left" : k === STEPS - 1 ? "right" : "center";
        context.fillText(fixed(level, 0), place(k, 0)[0], height - 4);
      }
    }
  });
}
