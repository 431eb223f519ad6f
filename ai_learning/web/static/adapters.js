// Adapters: one prompt, five ways to carry the same update, or none.

import { ask } from "./api.js";
import { asked, samplingSliders } from "./next.js";
import { Watch, busy, showRun } from "./run.js";
import { set, state } from "./state.js";
import { control, numeric, sourceFields, values } from "./training.js";
import { $, careful, el, later, number, options } from "./ui.js";

const VARIANTS = [
  ["base", "Base", "the frozen model", false],
  ["lora", "LoRA", "the update beside the weights", true],
  ["merged", "Merged", "the update inside the weights", true],
  ["nf4", "NF4", "frozen weights in 4 bits", false],
  ["qlora", "NF4 + LoRA", "the update beside 4-bit weights", true],
];
let sliders, known = { adapters: [], runs: [] }, baseBytes = 0;
const watch = new Watch(show);

export function start() {
  sliders = samplingSliders($("adapter-sampling"), "adapter-");
  $("adapter-prompt").value = state.prompt;
  $("adapter-prompt").addEventListener("input", later(250, () => set({ prompt: $("adapter-prompt").value })));
  $("adapter").addEventListener("change", () => set({ adapter: $("adapter").value }));
  $("adapter-write").onclick = () => careful(writeAll);
  $("adapter-prompt").addEventListener("keydown", event => { if (event.key === "Enter") careful(writeAll); });
  $("variants").replaceChildren(...VARIANTS.map(([name, title, what]) => el("article", { class: "card variant", id: `variant-${name}` },
    el("h3", {}, title), el("p", { class: "muted small" }, what), el("pre", {}, ""), el("dl", {}))));
  $("adapter-fields").append(
    ...sourceFields("builtin:reference"),
    el("div", { class: "pair" }, control("Rank r", "rank", numeric(8, 1, 256)), control("α", "alpha", numeric(16, 1, 1024, "any"))),
    el("div", { class: "pair" }, control("Steps", "steps", numeric(150, 10, 10000)), control("Learning rate", "lr", numeric(0.003, 0.00001, 1, "any"))),
  );
  $("adapter-form").addEventListener("submit", event => {
    event.preventDefault();
    careful(async () => {
      const body = { ...values($("adapter-form"), ["rank", "alpha", "steps", "lr"]), model: state.model };
      const { name } = await ask("adapters/train", body);
      await watch.follow(name);
    });
  });
  $("adapter-stop").onclick = () => careful(async () => { await ask("training/stop", {}); await watch.look(); });
  $("adapter-resume").onclick = () => careful(async () => { await ask("training/resume", { name: watch.name }); await watch.follow(watch.name); });
}

export function leave() { watch.stop(); }

export function update(changed) {
  sliders();
  if (document.activeElement !== $("adapter-prompt")) $("adapter-prompt").value = state.prompt;
  if (changed.includes("panel") || changed.includes("adapter")) {
    careful(async () => {
      await overview();
      const run = known.runs.includes(known.running) ? known.running : known.runs[0];
      if (run && watch.name !== run) await watch.follow(run); else if (run && !watch.timer) await watch.look();
    });
  }
}

async function overview() {
  known = await ask("adapters");
  options($("adapter"), known.adapters.length ? known.adapters : [["", "none yet"]], state.adapter);
  $("adapter-note").textContent = known.adapters.length ? "" :
    "No adapter yet: train one below, or start with --adapters FOLDER. Base and NF4 can be compared already.";
}

async function writeAll() {
  const adapter = $("adapter").value, prompt = $("adapter-prompt").value;  // the state follows the typing later
  $("adapter-write").disabled = true;
  try {
    for (const [name, , , needs] of VARIANTS) {
      const card = $(`variant-${name}`), text = card.querySelector("pre");
      if (needs && !adapter) { text.textContent = "needs an adapter"; continue; }
      card.classList.add("waiting");
      const body = { text: prompt, model: state.model, variant: name, adapter, seed: 1, max_new_tokens: 160, ...asked() };
      const answer = await ask("adapters/write", body).finally(() => card.classList.remove("waiting"));
      text.replaceChildren(el("span", { class: "muted" }, prompt), answer.text);
      if (name === "base") baseBytes = answer.bytes;
      card.querySelector("dl").replaceChildren(...[
        ["weights", `${number(Math.round(answer.bytes / 1024))} KiB · ${(100 * answer.bytes / baseBytes).toFixed(1)} %`],
        ["loss of the prompt", answer.loss === null ? "–" : answer.loss.toFixed(3)],
        ["KL from base", answer.kl.toExponential(1)],
        ["largest logit change", answer.difference.toExponential(1)],
      ].flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]));
    }
  } finally { $("adapter-write").disabled = false; }
}

function show(run) {
  showRun(run, { title: $("adapter-title"), figures: $("adapter-figures"), chart: $("adapter-chart") });
  if (run.message) $("adapter-figures").append(el("p", { class: "bad" }, run.message));
  $("adapter-train").disabled = busy(run);
  $("adapter-stop").disabled = !["starting", "running"].includes(run.state);
  $("adapter-resume").disabled = run.state !== "stopped";
  if (run.state === "done" && !known.adapters.includes(run.name)) careful(async () => { await overview(); set({ adapter: run.name }); });
}
