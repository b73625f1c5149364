// Playgrounds: editors whose Python runs in this page, in a worker (worker.js). Nothing is loaded before the first run.
"use strict";

{
  const FOLDER = new URL(".", document.currentScript.src);
  const INDENT = "    ";
  const playgrounds = [];
  let worker = null, loaded = false; // one Python for all playgrounds of a page

  /** A new element: make("p", {class: "status"}, "text"). */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  /** Send a job to the worker, which is started if there is none. */
  function send(job) {
    if (location.protocol === "file:") {
      const reason = "this page was opened as a file; serve its folder with `python -m http.server`.";
      playgrounds[job.id].receive({ unreachable: reason });
      return;
    }
    if (!worker) {
      worker = new Worker(new URL("worker.js", FOLDER));
      worker.onmessage = ({ data }) => playgrounds[data.id].receive(data);
      worker.onerror = (event) => {
        event.preventDefault();
        const unreachable = event.message ?? "worker.js cannot be read.";
        for (const playground of playgrounds) if (playground.running) playground.receive({ unreachable });
      };
    }
    worker.postMessage(job);
  }

  /** End Python at once, whatever it does, and with it all runs of the page. */
  function stop(text) {
    worker?.terminate();
    worker = null;
    for (const playground of playgrounds) if (playground.running) playground.finish(text);
  }

  class Playground {
    constructor(figure, id) {
      this.id = id;
      this.name = figure.dataset.name;
      this.number = Number(figure.dataset.number);
      this.images = figure.querySelector(".images");
      this.running = false;
      this.#build(figure);
    }

    /** The editor in the place of the source, with its buttons, and the places of what a run says. */
    #build(figure) {
      const source = figure.querySelector("pre.source"), label = figure.querySelector("p.label");
      this.source = source.textContent;
      const rows = Math.min(this.source.split("\n").length, 20);
      this.editor = make("textarea", {
        id: `playground-${this.id}`, rows, spellcheck: "false", autocapitalize: "off", autocomplete: "off", wrap: "off",
        "aria-describedby": `playground-${this.id}-keys`, onkeydown: (event) => this.#key(event),
      });
      source.replaceWith(this.editor);
      this.#showSource();
      label.replaceWith(make("label", { for: this.editor.id, class: "label" }, label.textContent));

      this.runButton = make("button", { type: "button", class: "run", onclick: () => this.run() });
      this.stopButton = make("button", { type: "button", onclick: () => this.running && stop("Stopped. The next run loads Python again.") }, "Stop");
      const reset = make("button", { type: "button", onclick: () => this.#reset() }, "Reset");
      this.status = make("p", { class: "status", role: "status" });
      this.output = make("pre", { class: "output", tabindex: "0", "aria-label": "Output", hidden: "" });
      const keys = "Tab indents; Escape, then Tab leaves the editor; Ctrl+Enter runs.";
      this.editor.after(
        make("div", { class: "buttons" }, this.runButton, reset, this.stopButton, this.status),
        this.output,
        make("p", { class: "keys", id: `playground-${this.id}-keys` }, keys),
      );
      this.finish("Loads Python and NumPy from cdn.jsdelivr.net, and 0.6 MB of this library from here.");
    }

    run() {
      if (this.running) return;
      this.#setRunning(true);
      this.output.hidden = true;
      this.output.textContent = "";
      this.output.classList.remove("error");
      this.images?.classList.add("old"); // until the run draws others
      this.status.textContent = worker ? "Running …" : "Loading Python …";
      send({ id: this.id, name: this.name, number: this.number, text: this.editor.value });
    }

    /** Show what the worker says. */
    receive({ status, printed, pixels, shape, caption, error, verdict, done, crashed, unreachable, seconds }) {
      if (status) {
        if (status.startsWith("Running")) this.#loaded();
        this.status.textContent = status;
      } else if (printed) {
        this.#print(printed);
      } else if (pixels) {
        this.#draw(pixels, shape);
        this.status.textContent = caption;
      } else if (unreachable) {
        this.images?.classList.remove("old");
        stop(`Python cannot be loaded: ${unreachable}` + (this.images ? " The images stay as they are." : ""));
      } else if (crashed) {
        stop(`Python has crashed, and the next run starts it again: ${crashed}`);
      } else if (error) {
        const lines = error.trim().split("\n");
        if (lines.length > 1) this.#print(error);
        this.output.classList.add("error");
        this.finish(lines.at(-1));
      } else if (verdict) {
        this.finish(verdict.right ? "Right." : `Not right yet. ${verdict.hint}`);
      } else if (done) {
        this.finish(`Done in ${seconds.toFixed(1)} s.`);
      }
    }

    finish(text) {
      this.#setRunning(false);
      const verb = this.number ? "Check" : "Run";
      this.runButton.textContent = loaded ? verb : `${verb} this in your browser, 9 MB`;
      this.status.textContent = text;
    }

    /** Buttons that have no effect now stay where they are, and keep the focus. */
    #setRunning(running) {
      this.running = running;
      this.runButton.setAttribute("aria-disabled", running);
      this.stopButton.setAttribute("aria-disabled", !running);
    }

    /** Python is there: the buttons of the other playgrounds no longer say what it takes to load it. */
    #loaded() {
      if (loaded) return;
      loaded = true;
      for (const other of playgrounds) if (!other.running) other.finish("");
    }

    #reset() {
      this.#showSource();
      if (!this.running) this.finish("");
    }

    #showSource() {
      this.editor.value = this.source;
      this.editor.scrollTop = this.editor.scrollHeight; // what computes stands below the docstrings
    }

    #print(text) {
      this.output.hidden = false;
      this.output.textContent = (this.output.textContent + text).slice(0, 20_000);
    }

    /** Draw images (N, H, W, 3) side by side. */
    #draw(pixels, [n, height, width]) {
      const canvases = Array.from({ length: n }, (_, k) => {
        const canvas = make("canvas", { width, height });
        const context = canvas.getContext("2d"), image = context.createImageData(width, height);
        for (let i = 0; i < height * width; i++) {
          for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[3 * (k * height * width + i) + c];
          image.data[4 * i + 3] = 255;
        }
        context.putImageData(image, 0, 0);
        return canvas;
      });
      this.images.replaceChildren(...canvases);
      this.images.classList.remove("old");
    }

    /** Tab and Shift+Tab indent, unless Escape came before; Enter keeps the indentation; Ctrl+Enter runs. */
    #key(event) {
      const leaving = this.leaving;
      this.leaving = event.key === "Escape" || (leaving && event.key === "Shift");
      if (event.key === "Tab" && !leaving && !event.ctrlKey && !event.altKey && !event.metaKey) {
        event.preventDefault();
        this.#indent(event.shiftKey);
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.run();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#insert("\n" + this.#line().match(/^ */)[0]);
      }
    }

    /** The text from the beginning of the line to the cursor. */
    #line() {
      const before = this.editor.value.slice(0, this.editor.selectionStart);
      return before.slice(before.lastIndexOf("\n") + 1);
    }

    /** Indent the lines of the selection, or take an indentation away; without a selection, at the cursor. */
    #indent(back) {
      const { value, selectionStart, selectionEnd } = this.editor;
      if (!back && selectionStart === selectionEnd) {
        this.#insert(INDENT);
        return;
      }
      const start = value.lastIndexOf("\n", selectionStart - 1) + 1;
      const lines = value.slice(start, selectionEnd).split("\n");
      const text = lines.map((line) => (back ? line.replace(/^ {1,4}/, "") : INDENT + line)).join("\n");
      this.editor.setSelectionRange(start, selectionEnd);
      this.#insert(text);
      this.editor.setSelectionRange(start, start + text.length);
    }

    /** Type text in the place of the selection, so that the browser's undo knows of it. */
    #insert(text) {
      document.execCommand(text ? "insertText" : "delete", false, text);
    }
  }

  for (const figure of document.querySelectorAll("figure.playground")) {
    playgrounds.push(new Playground(figure, playgrounds.length));
  }
}
