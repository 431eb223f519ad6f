// Tokens: the same text by several tokenizers, and merges replayed.

import { newest } from "./api.js";
import { set, state } from "./state.js";
import { $, careful, el, later, number, options, segments, slider } from "./ui.js";

const LEARNED = "this text";
const LABELS = { model: "the model's", bytes: "bytes", "reference-1000": "BPE 1,000", [LEARNED]: "learned from this text" };
const label = name => LABELS[name] ?? name.split("/").slice(-2).join("/");
const askTokens = newest(), askMerges = newest();
let names = ["model"], showView, merges, words = [], timer = 0;

const chosen = () => state.tokenizers.split(",").filter(name => names.includes(name));

/** The tokenizers that the server knows. */
export function offer(known) {
  names = [...known, LEARNED];
  const boxes = names.map(name => {
    const input = el("input", { type: "checkbox", value: name, onchange: () => toggle(name) });
    return el("label", {}, input, label(name));
  });
  const set_ = $("tokenizers");
  set_.replaceChildren(set_.querySelector("legend"), ...boxes);
  tick();
}

function toggle(name) {
  const now = chosen();
  const next = now.includes(name) ? now.filter(n => n !== name) : [...now, name].slice(-6);
  set({ tokenizers: (next.length ? next : [name]).join(",") });
  tick();
}

function tick() {
  for (const input of $("tokenizers").querySelectorAll("input")) input.checked = chosen().includes(input.value);
}

export function start() {
  showView = segments($("token-view"), "view", [["text", "text"], ["ids", "ids"], ["bytes", "bytes"]], state.view, v => set({ view: v }));
  merges = slider("merges", { id: "n-merges", min: 0, max: 400, step: 1, value: state.merges }, later(120, () => set({ merges: $("n-merges").value })));
  merges.classList.add("grow");
  $("learn-merges").append(merges, el("span", { class: "muted small" }, "how many the tokenizer learns from this text"));
  $("replay-text").addEventListener("input", later(250, () => set({ words: $("replay-text").value })));
  $("replay-tokenizer").addEventListener("change", () => set({ by: $("replay-tokenizer").value }));
  $("replay-back").onclick = () => step(-1);
  $("replay-next").onclick = () => step(1);
  $("replay-play").onclick = play;
  $("replay-step").addEventListener("input", draw);
}

export function leave() { pause(); }

export function update(changed) {
  tick();
  showView(state.view);
  merges.set(state.merges);
  $("learn-merges").hidden = !chosen().includes(LEARNED);
  if (changed.some(key => ["text", "model", "tokenizers", "merges", "view"].includes(key))) careful(cards);
  if (changed.some(key => ["text", "model", "tokenizers", "merges", "words", "by"].includes(key))) careful(replay);
}

async function cards() {
  const answer = await askTokens("tokens", {
    text: state.text, model: state.model, tokenizers: chosen().length ? chosen() : ["model"], merges: +state.merges,
  });
  $("token-cards").replaceChildren(...answer.by.map(one => card(one, answer.n_bytes)));
}

function card(one, nBytes) {
  const detail = el("p", { class: "muted small", role: "status" }, "Hover, or focus and use the arrow keys: id, bytes, rank of the merge.");
  const flow = el("div", { class: "flow", tabindex: 0, role: "img", "aria-label": `${label(one.name)}: ${one.n_tokens} tokens` });
  const nodes = [];
  let here = -1;
  const tell = n => {
    nodes[here]?.classList.remove("chosen");
    here = n;
    nodes[n].classList.add("chosen");
    const piece = one.pieces[one.ids[n]];
    const rank = piece.rank === null ? "" : ` · merge ${number(piece.rank)}`;
    detail.textContent = `token ${n + 1} of ${number(one.n_tokens)} · id ${one.ids[n]} · bytes ${piece.hex || "–"}${rank}`;
  };
  one.ids.forEach((id, n) => {
    const piece = one.pieces[id];
    const text = state.view === "ids" ? id : state.view === "bytes" ? piece.hex || "–" : piece.text;
    const node = el("span", { class: `token t${n % 6}${state.view === "text" ? "" : " id"}`, onmouseenter: () => tell(n) }, String(text));
    nodes.push(node);
    flow.append(node);
    if (piece.line && state.view === "text") flow.append(el("br"));
    else flow.append(document.createElement("wbr"));
  });
  if (one.n_tokens > one.ids.length) flow.append(el("span", { class: "muted" }, ` … and ${number(one.n_tokens - one.ids.length)} more`));
  flow.addEventListener("keydown", event => {
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (to === undefined || !nodes.length) return;
    event.preventDefault();
    tell(Math.max(0, Math.min(nodes.length - 1, to)));
    nodes[here].scrollIntoView({ block: "nearest" });
  });
  const perToken = one.n_tokens ? (nBytes / one.n_tokens).toFixed(2) : "0";
  return el("article", { class: "card token-card" },
    el("h3", {}, label(one.name)),
    el("p", { class: "muted small" }, `${number(one.n_tokens)} tokens · ${perToken} bytes a token · vocabulary ${number(one.vocab_size)}`),
    flow, detail);
}

// --- the replay --------------------------------------------------------------------------------------------

function firstWords() { return state.text.trim().split(/\s+/).slice(0, 4).join(" ").slice(0, 60); }

async function replay() {
  pause();
  const text = state.words || firstWords();
  if (document.activeElement !== $("replay-text")) $("replay-text").value = text;
  const can = names.filter(name => name !== "bytes" && (chosen().includes(name) || name === "reference-1000"));
  const by = options($("replay-tokenizer"), can.map(name => [name, label(name)]), can.includes(state.by) ? state.by : "reference-1000");
  try {
    const answer = await askMerges("merges", { text, model: state.model, tokenizer: by, merges: +state.merges, corpus: state.text });
    words = answer.words;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    words = [];
    $("replay-words").replaceChildren();
    $("replay-caption").textContent = error.message;
    $("replay-step").max = 0;
    return;
  }
  $("replay-step").max = total();
  $("replay-step").value = total();
  draw();
}

const total = () => words.reduce((sum, steps) => sum + steps.length - 1, 0);

function step(by) { pause(); $("replay-step").value = +$("replay-step").value + by; draw(); }

function play() {
  if (timer) { pause(); return; }
  if (+$("replay-step").value >= total()) $("replay-step").value = 0;
  draw();
  $("replay-play").textContent = "Pause";
  timer = setInterval(() => {
    if (+$("replay-step").value >= total()) { pause(); return; }
    $("replay-step").value = +$("replay-step").value + 1;
    draw();
  }, 600);
}

function pause() { clearInterval(timer); timer = 0; if ($("replay-play")) $("replay-play").textContent = "Play"; }

function draw() {
  let left = +$("replay-step").value, said = "Bytes: nothing is joined yet.";
  const boxes = words.map(steps => {
    const done = Math.min(left, steps.length - 1), now = steps[done];
    const newestHere = done > 0 && done === left;
    left -= done;
    const joined = newestHere ? now.pair.join("") : null;
    if (newestHere) { said = `merge ${number(now.rank)}: ${now.pair[0]} + ${now.pair[1]} → ${joined}`; left = -1; }
    return el("span", { class: "word" }, ...now.tokens.map(token => {
      const hit = token === joined;
      return el("span", { class: `token${hit ? " joined" : ""}` }, token);
    }));
  }).filter(Boolean);
  $("replay-words").replaceChildren(...boxes);
  const at = +$("replay-step").value;
  $("replay-caption").textContent = words.length ? `${at} of ${total()} · ${said}` : "";
}
