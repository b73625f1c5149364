// A worker that runs Python. A message {id, name, number, text} is answered by messages with the same id: {status},
// {printed}, {caption, pixels, shape} after each step, and at the end one of {done}, {error}, {verdict}, {crashed} and
// {unreachable}.
"use strict";

const CDN = "https://cdn.jsdelivr.net/pyodide/v0.27.7/full/";
let python, id; // id: of the message that is being answered
let queue = Promise.resolve();
const answer = (message, transfer = []) => postMessage({ id, ...message }, transfer);

async function start() {
  importScripts(CDN + "pyodide.js");
  const source = fetch("source.zip", { cache: "no-cache" });
  const print = (line) => answer({ printed: line + "\n" });
  const python = await loadPyodide({ indexURL: CDN, packages: ["numpy"], stdout: print, stderr: print });
  answer({ status: "Starting minidiff …" });
  const archive = await source;
  if (!archive.ok) throw new Error(`source.zip: ${archive.status}`);
  python.FS.writeFile("source.zip", new Uint8Array(await archive.arrayBuffer()));
  python.runPython(`
import sys, zipfile
zipfile.ZipFile("source.zip").extractall("source")
sys.path.insert(0, "source")
sys.dont_write_bytecode = True
import in_page
`);
  return python;
}

onmessage = ({ data }) => {
  queue = queue.then(() => respond(data));
};

async function respond(data) {
  id = data.id;
  try {
    python ??= await start();
  } catch (error) {
    answer({ unreachable: String(error.message ?? error).trim().split("\n").at(-1) });
    return;
  }
  answer({ status: "Running …" });
  const began = performance.now(), page = python.pyimport("in_page");
  try {
    const result = data.number ? check(page, data) : run(page, data);
    answer({ ...result, seconds: (performance.now() - began) / 1000 });
  } catch (error) {
    answer({ crashed: error.message }); // not an error of the reader's code, which Python catches
  }
}

/** Run a playground's text; its images are sent after every step. */
function run(page, { name, text }) {
  const error = page.show(name, text, (caption, images) => {
    const buffer = images.getBuffer("u8"), pixels = buffer.data.slice();
    answer({ caption, pixels, shape: buffer.shape }, [pixels.buffer]);
    buffer.release();
  });
  return error ? { error } : { done: true };
}

/** The verdict on an answer to an exercise. */
function check(page, { number, text }) {
  const report = page.check(number, text), { error, ...verdict } = report.toJs({ dict_converter: Object.fromEntries });
  report.destroy();
  return error ? { error } : { verdict };
}
