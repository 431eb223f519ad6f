// The next token: probabilities after temperature and filters, the logit lens, and writing on.

import { floats, newest, request } from "./api.js";
import { distribution, entropy, softmax } from "./sampling.js";
import { set, state } from "./state.js";
import { $, careful, el, number, percent, slider, tokenList } from "./ui.js";

const SHOWN = 16;
const askNext = newest();
let data = null, sliders = {}, writing = null;

export const SLIDERS = [
  ["temperature", { min: 0, max: 2, step: 0.05, off: "greedy", offAt: 0 }],
  ["top_k", { min: 0, max: 100, step: 1, off: "off", offAt: 0 }],
  ["top_p", { min: 0.01, max: 1, step: 0.01, off: "off", offAt: 1 }],
  ["min_p", { min: 0, max: 1, step: 0.01, off: "off", offAt: 0 }],
];

export const settings = () => ({ temperature: +state.temperature, top_k: +state.top_k, top_p: +state.top_p, min_p: +state.min_p });
export const asked = () => ({ ...settings(), top_k: +state.top_k || null });

/** The four sliders in `box`; they are the same everywhere on the page. */
export function samplingSliders(box, prefix) {
  const made = {};
  for (const [name, how] of SLIDERS) {
    made[name] = slider(name.replace("_", "-"), { ...how, id: prefix + name, value: state[name] }, value => set({ [name]: value }));
    box.append(made[name]);
  }
  return () => { for (const [name] of SLIDERS) made[name].set(state[name]); };
}

export function start() {
  sliders = samplingSliders($("sampling"), "");
  $("write").onclick = write;
  $("write-stop").onclick = () => writing?.abort();
}

export function leave() { writing?.abort(); }

export function update(changed) {
  sliders();
  if (changed.some(key => ["text", "model", "at"].includes(key)) && !writing) careful(load);
  else if (data) draw();
}

async function load() {
  const at = state.at === "" ? null : +state.at;
  const answer = await askNext("next", { text: state.text, model: state.model, at });
  data = { ...answer, logits: floats(answer.logits) };
  data.plain = softmax(data.logits);
  tokenList($("next-text"), data.tokens, data.at, n => set({ at: n === data.tokens.length - 1 ? "" : n }), { colour: n => `t${n % 6}` });
  lens();
  draw();
}

function draw() {
  const { p, kept } = distribution(data.logits, settings());
  let mass = 0;
  for (let n = 0; n < kept; n++) mass += data.plain[n];
  $("next-figures").textContent = `${number(kept)} of ${number(data.logits.length)} tokens can be drawn; the model gave them ` +
    `${percent(mass)} · ${entropy(data.plain).toFixed(2)} → ${entropy(p).toFixed(2)} bits of surprise on average`;
  $("bars").replaceChildren(...data.names.slice(0, SHOWN).map((token, n) => {
    const share = n < kept ? p[n] : 0, fill = el("div", { class: "fill" }), before = el("div", { class: "before" });
    fill.style.width = `${100 * share}%`;
    before.style.width = `${100 * data.plain[n]}%`;
    return el("div", { class: n < kept ? "bar" : "bar cut", title: `id ${token.id} · logit ${data.logits[n].toFixed(2)} · the model's own ${percent(data.plain[n])}` },
      el("span", { class: "name" }, token.text), el("div", { class: "track" }, fill, before), el("span", { class: "share" }, percent(share)));
  }));
}

function lens() {
  const best = data.names[0].text, last = data.lens.length - 1;
  const rows = data.lens.map((row, n) => el("tr", {},
    el("th", { scope: "row", title: `the final answer “${best}” has rank ${row.rank_best} here` }, n === 0 ? "embedding" : n === last ? "answer" : `layer ${n - 1}`),
    ...row.top.map(cell => {
      const td = el("td", { title: `${cell.text}: ${percent(cell.p)}` }, cell.text, " ", el("small", {}, percent(cell.p)));
      td.style.background = `color-mix(in srgb, var(${cell.text === best ? "--accent" : "--muted"}) ${(60 * Math.sqrt(cell.p)).toFixed(0)}%, transparent)`;
      return td;
    })));
  $("lens").replaceChildren(el("table", { class: "lens" }, el("tbody", {}, ...rows)));
}

async function write() {
  writing = new AbortController();
  $("write").disabled = true;
  $("write-stop").disabled = false;
  await careful(async () => {
    const body = { text: state.text, model: state.model, max_new_tokens: +$("write-n").value || 200, ...asked() };
    const reader = (await request("generate", body, writing.signal)).body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      $("text").value = (state.text + value).slice(-20000);
      set({ text: $("text").value, at: "" });
      $("text").scrollTop = $("text").scrollHeight;
    }
  });
  writing = null;
  $("write").disabled = false;
  $("write-stop").disabled = true;
  if (state.panel === "next") careful(load);
}
