// Attention: all heads as small pictures, one of them at large, token by token.

import { newest, shorts } from "./api.js";
import { set, state } from "./state.js";
import { $, careful, el, percent, segments, tokenList } from "./ui.js";

const askAttention = newest();
let data = null, list = null, showDirection;

export function start() {
  showDirection = segments($("direction"), "direction", [["from", "looks at"], ["to", "is looked at by"]], state.direction, v => set({ direction: v }));
  const canvas = $("matrix");
  canvas.addEventListener("pointermove", event => {
    const n = data?.tokens.length;
    if (!n) return;
    const place = canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - place.top) / place.height * n), column = Math.floor((event.clientX - place.left) / place.width * n);
    if (row >= 0 && row < n && column >= 0 && column <= row) {
      shade(state.direction === "from" ? row : column);
      $("attention-caption").textContent =
        `“${data.tokens[row].text}” (${row}) takes ${percent(weight(row, column))} from “${data.tokens[column].text}” (${column})`;
    }
  });
  canvas.addEventListener("pointerleave", () => shade(token()));
  document.addEventListener("colours", () => { if (data && state.panel === "attention") drawAll(); });
}

export function update(changed) {
  showDirection(state.direction);
  if (changed.some(key => ["text", "model"].includes(key))) careful(load);
  else if (data && changed.some(key => ["layer", "head", "token", "direction"].includes(key))) choose();
}

async function load() {
  const answer = await askAttention("attention", { text: state.text, model: state.model });
  data = { ...answer, weights: shorts(answer.weights) };
  drawAll();
}

const layer = () => Math.min(+state.layer || 0, data.n_layer - 1);
const head = () => Math.min(+state.head || 0, data.n_head - 1);
const token = () => state.token === "" ? data.tokens.length - 1 : Math.min(+state.token, data.tokens.length - 1);
const start_ = (l, h) => (l * data.n_head + h) * data.tokens.length ** 2;
const weight = (row, column) => data.weights[start_(layer(), head()) + row * data.tokens.length + column] / 65535;

/** The accent and the card's colour as red, green and blue, in the colours chosen now. */
function colours() {
  const pen = el("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  return ["--accent", "--card"].map(name => {
    const box = el("i");
    box.style.color = `var(${name})`;
    $("panel-attention").append(box);
    pen.fillStyle = getComputedStyle(box).color;
    pen.fillRect(0, 0, 1, 1);
    box.remove();
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  });
}

function paint(canvas, l, h, [ink, paper]) {
  const n = data.tokens.length, first = start_(l, h);
  canvas.width = canvas.height = n;
  const picture = new ImageData(n, n);
  for (let i = 0; i < n * n; i++) {
    const w = Math.sqrt(data.weights[first + i] / 65535);  // small weights should be seen too
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = paper[c] + (ink[c] - paper[c]) * w;
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function drawAll() {
  const inks = colours();
  const rows = [];
  for (let l = 0; l < data.n_layer; l++) {
    const heads = [];
    for (let h = 0; h < data.n_head; h++) {
      const canvas = el("canvas", { "aria-hidden": "true" });
      paint(canvas, l, h, inks);
      heads.push(el("button", {
        type: "button", class: "head", "data-layer": l, "data-head": h, "aria-label": `layer ${l}, head ${h}`, title: `layer ${l}, head ${h}`,
        onclick: () => set({ layer: l, head: h }),
      }, canvas));
    }
    rows.push(el("div", { class: "layer" }, el("span", {}, `layer ${l}`), el("div", {}, ...heads)));
  }
  $("heads").replaceChildren(...rows);
  list = tokenList($("attention-text"), data.tokens, token(), n => set({ token: n }), { hover: true });
  choose();
}

function choose() {
  for (const button of $("heads").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(+button.dataset.layer === layer() && +button.dataset.head === head()));
  }
  $("head-title").textContent = `Layer ${layer()}, head ${head()}`;
  $("head-figures").textContent = habits() + (data.dropped ? ` · the first ${data.dropped} tokens are left out` : "");
  paint($("matrix"), layer(), head(), colours());
  list.mark(token());
  shade(token());
}

/** What this head does on this text, in figures. */
function habits() {
  const n = data.tokens.length;
  let bits = 0, back = 0, first = 0, self = 0, previous = 0;
  for (let row = 0; row < n; row++) {
    for (let column = 0; column <= row; column++) {
      const p = weight(row, column);
      if (p > 0) bits -= p * Math.log2(p);
      back += p * (row - column);
    }
    first += weight(row, 0);
    self += weight(row, row);
    if (row) previous += weight(row, row - 1);
  }
  return `on average ${(back / n).toFixed(1)} tokens back, ${(bits / n).toFixed(1)} bits · ` +
    `to itself ${percent(self / n)}, to the one before ${percent(n > 1 ? previous / (n - 1) : 0)}, to the first ${percent(first / n)}`;
}

function shade(chosen) {
  const n = data.tokens.length, from = state.direction === "from";
  const weights = data.tokens.map((_, other) => from ? (other <= chosen ? weight(chosen, other) : 0) : (other >= chosen ? weight(other, chosen) : 0));
  const most = Math.max(...weights, 1e-9);
  list.nodes.forEach((node, i) => {
    node.style.background = weights[i] ? `color-mix(in srgb, var(--accent) ${(75 * Math.sqrt(weights[i] / most)).toFixed(0)}%, transparent)` : "";
  });
  const best = weights.map((w, i) => [w, i]).sort((a, b) => b[0] - a[0]).slice(0, 4).filter(([w]) => w > 0.001);
  const said = best.map(([w, i]) => `“${data.tokens[i].text}” (${i}) ${percent(w)}`).join(", ");
  $("attention-caption").textContent = n ? `“${data.tokens[chosen].text}” (${chosen}) ${from ? "looks at" : "is looked at by"} ${said || "nothing"}` : "";
}
