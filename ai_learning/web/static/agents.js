// Agents: a Toolformer text with its calls, and a Reflexion run trial by trial.

import { ask, newest } from "./api.js";
import { set, state } from "./state.js";
import { $, careful, el, options, slider } from "./ui.js";

const open_ = newest();
const NODES = { write_tests: "tests it wrote for itself", begin: "begins", act: "acts", observe: "observes", evaluate: "is judged", reflect: "reflects", error: "error" };
let files = [], data = null;

export function start() {
  $("agent-file").addEventListener("change", () => set({ file: $("agent-file").value, item: 0 }));
  $("agent-item").addEventListener("change", () => set({ item: $("agent-item").value }));
}

export function update(changed) {
  if (changed.includes("panel")) careful(async () => { files = (await ask("agents")).files; await show(); });
  else if (changed.some(key => ["file", "item"].includes(key))) careful(show);
}

async function show() {
  const name = options($("agent-file"), files.length ? files.map(f => [f.name, `${f.kind}: ${f.name.split("/").slice(-2).join("/")}`]) : [["", "none yet"]], state.file);
  $("agent-item-label").hidden = !files.length;
  if (!files.length) { none(); return; }
  data = await open_("agents/open", { file: name, item: +state.item || 0 });
  $("agent-item-label").firstChild.textContent = data.kind === "toolformer" ? "Text " : "Task ";
  options($("agent-item"), data.items.map((label, n) => [String(n), label]), state.item);
  $("agents").replaceChildren(...(data.kind === "toolformer" ? toolformer() : reflexion()));
}

function none() {
  $("agents").replaceChildren(el("div", { class: "card" },
    el("h2", {}, "Nothing to show yet"),
    el("p", {}, "This panel opens what these commands leave below runs/ (or what --agents names). Run one of them, then come back:"),
    el("pre", { class: "wrap" }, "ai-learning toolformer demo\nai-learning reflexion demo"),
    el("p", { class: "muted" }, "Or, with your own texts, tasks and models: ai-learning toolformer annotate, ai-learning reflexion run.")));
}

// --- Toolformer --------------------------------------------------------------------------------------------

function toolformer() {
  const calls = [...data.candidates].sort((a, b) => a.offset - b.offset);
  const text = el("div", { class: "agent-text" }), table = el("div", { class: "scroll" }), sum = el("p", { class: "muted small", role: "status" });
  const gains = calls.map(c => c.gain).filter(g => g !== null), most = Math.max(0.1, ...gains.map(Math.abs));
  const draw = () => {
    const tau = state.tau === "" ? null : +state.tau;
    const keeps = calls.map(c => tau === null ? c.kept : c.gain !== null && c.gain >= tau);
    const parts = [];
    let place = 0;
    calls.forEach((c, n) => {
      parts.push([...data.text].slice(place, c.offset).join(""));
      place = c.offset;
      const mark = el("button", { type: "button", class: `call ${keeps[n] ? "kept" : "dropped"}`, title: words(c), onclick: () => $(`call-${n}`).scrollIntoView({ block: "nearest" }) },
        keeps[n] ? `${c.call} → ${c.result}` : c.call);
      parts.push(mark);
    });
    parts.push([...data.text].slice(place).join(""));
    text.replaceChildren(...parts);
    table.replaceChildren(el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, ...["call", "result", "L⁻", "L⁺", "L⁻ − L⁺", ""].map(h => el("th", { scope: "col" }, h)))),
      el("tbody", {}, ...calls.map((c, n) => row(c, n, keeps[n], most)))));
    sum.textContent = `${keeps.filter(Boolean).length} of ${calls.length} calls kept` + (tau === null ? ", as the run judged them" : ` at τ = ${tau}`);
  };
  const tauSlider = slider("τ", { id: "tau", min: -1, max: Math.max(2, Math.ceil(most)), step: 0.05, value: state.tau || 1 }, v => { set({ tau: v }); draw(); });
  draw();
  return [el("div", { class: "card" }, el("h2", {}, "The text with its calls"), text),
    el("div", { class: "card" }, el("h2", {}, "Every call that was tried"),
      el("p", { class: "muted small" }, "L⁺: the weighted loss of the words that follow, given the call and its result. L⁻: the smaller one without the result. Kept when L⁻ − L⁺ reaches τ."),
      el("div", { class: "sliders" }, tauSlider), sum, table)];
}

const figure = value => value === null ? "–" : value.toFixed(3);

function words(c) {
  return c.error ? c.error : `L⁺ ${figure(c.loss_plus)} · without anything ${figure(c.loss_nothing)} · with the call alone ${figure(c.loss_call)}`;
}

function row(c, n, kept, most) {
  const bar = el("i", { class: "gain" });
  bar.style.width = `${(4 * Math.abs(c.gain ?? 0) / most).toFixed(2)}rem`;
  bar.style.background = `var(${(c.gain ?? 0) > 0 ? "--good" : "--bad"})`;
  return el("tr", { id: `call-${n}`, title: words(c) }, el("td", { class: "mono" }, c.call), el("td", {}, c.result ?? el("span", { class: "muted" }, c.error ?? "no result")),
    el("td", { class: "number" }, figure(c.loss_minus)), el("td", { class: "number" }, figure(c.loss_plus)),
    el("td", { class: "number" }, figure(c.gain), " ", bar), el("td", { class: kept ? "good" : "muted" }, kept ? "kept" : "dropped"));
}

// --- Reflexion ---------------------------------------------------------------------------------------------

function reflexion() {
  return [el("div", { class: "card" }, el("h2", {}, data.task), ...data.trials.map(trial))];
}

function trial(one) {
  const word = one.solved === null ? "" : one.solved ? "solved" : "failed";
  const title = one.trial === 0 ? "Before the first trial" : `Trial ${one.trial}`;
  return el("section", { class: `trial ${word}` },
    el("h2", {}, title, " ", el("span", { class: one.solved ? "good" : "bad" }, word)), ...one.steps.map(step));
}

function step(one) {
  const box = el("div", { class: one.node === "reflect" ? "reflection" : "step" });
  const spent = one.tokens ? ` · ${one.tokens} tokens` + (one.seconds ? `, ${one.seconds.toFixed(1)} s` : "") : "";
  box.append(el("p", { class: "muted small" }, (NODES[one.node] ?? one.node) + spent));
  const said = new Set();
  for (const [name, text] of Object.entries(one.texts)) {
    if (said.has(text)) continue;
    said.add(text);
    box.append(el("pre", { class: name === "error" ? "bad" : "" }, text));
  }
  if (one.prompt) box.append(el("details", {}, el("summary", { class: "muted small" }, "what it was asked"), el("pre", {}, one.prompt)));
  return box;
}
