// Small helpers for building the page.

export const $ = id => document.getElementById(id);

/** `el("b", {class: "x", onclick: f}, "text", child)` */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function tell(error) {
  $("message").hidden = !error;
  $("message").textContent = error ? error.message : "";
}

let working = 0;

/** Run `work`, and show at the top of the page what goes wrong; dropped questions are no error. An older message
 * goes when something new begins. */
export async function careful(work) {
  if (!working) tell(null);
  working++;
  try { return await work(); } catch (error) { if (error.name !== "AbortError") tell(error); } finally { working--; }
  return undefined;
}

export function later(milliseconds, work) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(work, milliseconds); };
}

/** A labelled slider; `oninput(value)`. `off` is shown instead of the value `offAt`. */
export function slider(label, { id, min, max, step, value, off, offAt }, oninput) {
  const output = el("output", { for: id });
  const input = el("input", { type: "range", id, min, max, step, value });
  const show = () => {
    output.textContent = off !== undefined && +input.value === offAt ? off : input.value;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => { show(); oninput(input.value); });
  show();
  const box = el("label", { class: "slider" }, el("span", {}, label), input, output);
  box.set = v => { if (input.value !== String(v)) input.value = v; show(); };
  return box;
}

/** Radio buttons in a row. `choices`: [value, label]. */
export function segments(fieldset, name, choices, value, onchange) {
  for (const [choice, label] of choices) {
    const input = el("input", { type: "radio", name, value: choice, onchange: () => onchange(choice) });
    input.checked = choice === value;
    fieldset.append(el("label", {}, input, label));
  }
  return v => { for (const input of fieldset.querySelectorAll("input")) input.checked = input.value === v; };
}

/** Fill a select; keeps the choice where it is still there. Gives the chosen value. */
export function options(select, values, chosen) {
  const key = JSON.stringify(values);
  if (select.dataset.values !== key) {
    select.dataset.values = key;
    select.replaceChildren(...values.map(v => Array.isArray(v) ? el("option", { value: v[0] }, v[1]) : el("option", { value: v }, v)));
  }
  if (chosen !== undefined && [...select.options].some(o => o.value === chosen)) select.value = chosen;
  return select.value;
}

/** Tokens as a list box: one of them is chosen, by pointer or arrow keys. `choose(n)`. */
export function tokenList(box, tokens, chosen, choose, { hover = false, colour = () => "" } = {}) {
  const nodes = tokens.map((token, n) => el("span", {
    role: "option", class: `token ${colour(n)}`, tabindex: n === chosen ? 0 : -1, "aria-selected": String(n === chosen),
    title: `id ${token.id}`, onclick: () => move(n), ...(hover ? { onmouseenter: () => choose(n) } : {}),
  }, token.text));
  const parts = nodes.flatMap((node, n) => tokens[n].text.includes("⏎") ? [node, el("br")] : [node]);
  box.replaceChildren(...parts);
  function move(n) { choose(n); mark(n); nodes[n].focus(); }
  function mark(n) { nodes.forEach((node, i) => { node.tabIndex = i === n ? 0 : -1; node.setAttribute("aria-selected", String(i === n)); }); }
  box.onkeydown = event => {
    const here = nodes.findIndex(node => node.getAttribute("aria-selected") === "true");
    const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(Math.max(0, Math.min(nodes.length - 1, to)));
  };
  return { nodes, mark };
}

export const figure = (label, value) => el("div", { class: "figure" }, el("b", {}, value), el("span", {}, label));
export const percent = p => p >= 0.9995 ? "100 %" : p >= 0.1 ? (100 * p).toFixed(1) + " %" : p >= 0.0001 ? (100 * p).toFixed(2) + " %" : p === 0 ? "0 %" : "<0.01 %";
export const number = n => n.toLocaleString("en");
