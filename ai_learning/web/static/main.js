// The frame: tabs, the shared text, the model, the colours. Each panel is a module with `start()` and `update(changed)`.

import { ask } from "./api.js";
import * as adapters from "./adapters.js";
import * as agents from "./agents.js";
import * as attention from "./attention.js";
import * as next from "./next.js";
import { listen, read, set, state } from "./state.js";
import * as tokens from "./tokens.js";
import * as training from "./training.js";
import { $, careful, el, later, number, options } from "./ui.js";

const PANELS = [
  ["tokens", "Tokens", tokens], ["attention", "Attention", attention], ["next", "Next token", next],
  ["training", "Training", training], ["adapters", "Adapters", adapters], ["agents", "Agents", agents],
];
const SHARE_TEXT = ["tokens", "attention", "next"];
const started = new Set();

function tabs() {
  const bar = document.querySelector(".tabs");
  for (const [name, label] of PANELS) {
    bar.append(el("button", {
      type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => set({ panel: name }),
    }, label));
  }
  bar.addEventListener("keydown", event => {
    const here = PANELS.findIndex(([name]) => name === state.panel), n = PANELS.length;
    const to = { ArrowRight: (here + 1) % n, ArrowLeft: (here + n - 1) % n, Home: 0, End: n - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    set({ panel: PANELS[to][0] });
    $(`tab-${PANELS[to][0]}`).focus();
  });
}

function show(changed) {
  if (!PANELS.some(([name]) => name === state.panel)) state.panel = "tokens";
  for (const [name, , module] of PANELS) {
    const here = name === state.panel;
    $(`panel-${name}`).hidden = !here;
    $(`tab-${name}`).setAttribute("aria-selected", String(here));
    $(`tab-${name}`).tabIndex = here ? 0 : -1;
    if (here) {
      const first = !started.has(name);
      if (first) { started.add(name); module.start(); }
      module.update(first || changed.includes("panel") ? Object.keys(state) : changed);
    } else module.leave?.();
  }
  $("shared").hidden = !SHARE_TEXT.includes(state.panel);
  if ($("text").value !== state.text) $("text").value = state.text;
  $("text-note").hidden = state.text.length <= 3000;
  if ([...$("model").options].some(o => o.value === state.model)) $("model").value = state.model;
  document.title = `${PANELS.find(([name]) => name === state.panel)[1]} · AI Learning`;
}

function theme() {
  const names = { "": "as the system", light: "light", dark: "dark" }, marks = { "": "◐", light: "☀", dark: "☾" };
  const apply = name => {
    if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
    $("theme").textContent = marks[name];
    $("theme").setAttribute("aria-label", `Colours: ${names[name]}`);
    $("theme").title = `Colours: ${names[name]}`;
    document.dispatchEvent(new Event("colours"));
  };
  let name = "";
  try { name = localStorage.getItem("theme") ?? ""; } catch { /* forbidden: as the system */ }
  if (!(name in names)) name = "";
  apply(name);
  $("theme").onclick = () => {
    const order = Object.keys(names);
    name = order[(order.indexOf(name) + 1) % order.length];
    try { localStorage.setItem("theme", name); } catch { /* not kept */ }
    apply(name);
  };
}

/** Models may appear while the page is open: a training ended. */
export async function refreshModels() {
  const about = await ask("about");
  const short = about.name.split("/").slice(-2).join("/");
  $("about").textContent = `${short} · ${number(about.parameters)} parameters · ${about.config.n_layer} layers × ${about.config.n_head} heads`;
  options($("model"), about.models.map(name => [name, name === about.served ? short : name]), state.model);
  tokens.offer(about.tokenizers);
  return about;
}

tabs();
theme();
$("text").addEventListener("input", later(250, () => set({ text: $("text").value })));
$("model").addEventListener("change", () => set({ model: $("model").value }));
await careful(refreshModels);
read();
listen(show);
show(Object.keys(state));
document.addEventListener("models", () => careful(refreshModels));
document.documentElement.dataset.ready = "yes";
