// Training: a small model on a text of one's own, watched.

import { ask } from "./api.js";
import { Watch, busy, showRun } from "./run.js";
import { set, state } from "./state.js";
import { $, careful, el, options } from "./ui.js";

export const SOURCES = [
  ["own", "text of your own"], ["builtin:reference", "Python's language reference (prose)"],
  ["builtin:docstrings", "docstrings of the standard library"], ["builtin:stdlib", "source of the standard library"],
];
const SIZES = [["small", "small: 2 layers, 64 wide"], ["tiny", "tiny: 4 layers, 128 wide"], ["medium", "medium: 6 layers, 192 wide"]];
let latest = "";
const watch = new Watch(show);

/** A labelled control of a form. */
export function control(label, name, made) { made.name = name; return el("label", {}, label, made); }

export function choice(values, value) {
  const select = el("select");
  options(select, values, value);
  return select;
}

export const numeric = (value, min, max, step = 1) => el("input", { type: "number", value, min, max, step, required: true });

/** Where the text comes from: built-in, pasted, or read from a file that the browser opens. */
export function sourceFields(value) {
  const source = choice(SOURCES, value);
  const text = el("textarea", { name: "text", rows: 5, spellcheck: "false", maxlength: 1000000, placeholder: "Paste 2,000 characters or more." });
  const file = el("input", { type: "file", accept: ".txt,.md,.py,text/*" });
  file.addEventListener("change", async () => { if (file.files[0]) text.value = (await file.files[0].text()).slice(0, 1000000); });
  const own = el("div", {}, el("label", {}, "Your text", text), el("label", {}, "or a text file", file));
  const toggle = () => { own.hidden = source.value !== "own"; };
  source.addEventListener("change", toggle);
  toggle();
  return [control("Text", "source", source), own];
}

export function values(form, numbers) {
  const found = Object.fromEntries([...new FormData(form)].filter(([, v]) => typeof v === "string"));
  for (const name of numbers) found[name] = +found[name];
  if (found.source !== "own") delete found.text;
  return found;
}

export function start() {
  $("training-fields").append(
    ...sourceFields("builtin:reference"),
    control("Model", "size", choice(SIZES, "small")),
    control("Tokens", "tokens", choice([["bytes", "bytes"], ["bpe", "512 learned from the text (BPE)"]], "bytes")),
    el("div", { class: "pair" }, control("Steps", "steps", numeric(600, 10, 20000)), control("Learning rate", "lr", numeric(0.003, 0.00001, 1, "any"))),
    el("div", { class: "pair" }, control("Batch size", "batch_size", numeric(12, 1, 64)), control("Seed", "seed", numeric(1337, 0, 2147483647))),
  );
  $("training-form").addEventListener("submit", event => {
    event.preventDefault();
    careful(async () => {
      const { name } = await ask("training/start", values($("training-form"), ["steps", "lr", "batch_size", "seed"]));
      set({ run: name });
      await overview();
    });
  });
  $("training-stop").onclick = () => careful(async () => { await ask("training/stop", {}); await watch.look(); });
  $("training-resume").onclick = () => careful(async () => {
    await ask("training/resume", { name: watch.name });
    await watch.follow(watch.name);
  });
  $("training-look").onclick = () => set({ model: watch.name, panel: "next" });
  $("training-run").addEventListener("change", () => set({ run: $("training-run").value }));
}

export function leave() { watch.stop(); }

export function update(changed) { if (changed.includes("run")) careful(overview); }

async function overview() {
  const { runs, running } = await ask("training");
  const name = runs.includes(state.run) ? state.run : runs.includes(running) ? running : runs[0] ?? "";
  options($("training-run"), runs.length ? runs : [["", "none"]], name);
  await watch.follow(name);
}

function show(run) {
  showRun(run, { title: $("training-title"), figures: $("training-figures"), chart: $("training-chart") });
  if (run.message) $("training-figures").append(el("p", { class: "bad" }, run.message));
  $("training-start").disabled = busy(run);
  $("training-stop").disabled = !["starting", "running"].includes(run.state);
  $("training-resume").disabled = run.state !== "stopped";
  const usable = run.rows.some(row => row.val_loss !== undefined) && run.state !== "failed";
  $("training-look").disabled = !usable;
  $("training-command").textContent = run.command;
  const samples = run.rows.filter(row => row.sample !== undefined).reverse();
  const key = `${run.name} ${samples.length}`;
  if (key !== latest) {
    latest = key;
    $("training-samples").replaceChildren(...samples.map(row => el("div", { class: "sample" }, el("span", { class: "muted small" }, `after ${row.step} steps`), el("pre", {}, row.sample))));
    if (!samples.length) $("training-samples").append(el("p", { class: "muted" }, "A sample is written ten times on the way."));
    document.dispatchEvent(new Event("models"));
  }
}
