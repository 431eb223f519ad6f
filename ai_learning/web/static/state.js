// What the page shows, as far as it should survive in the address: `#panel=attention&layer=2&text=…`.

const LONGEST_TEXT = 3000;
const START = {
  panel: "tokens", model: "served", text: "def tokenize(text):\n    return text.split()\n",
  tokenizers: "model,reference-1000,this text", view: "text", merges: "40", words: "", by: "",
  layer: "0", head: "0", token: "", direction: "from",
  temperature: "1", top_k: "0", top_p: "1", min_p: "0", at: "",
  run: "", adapter: "", prompt: "def ", file: "", item: "", tau: "",
};
export const state = { ...START };
const listeners = [];

/** Call `listener(changed keys)` after every change. */
export function listen(listener) { listeners.push(listener); }

/** Change what is shown; a new panel gets a place of its own in the history. */
export function set(changes) {
  const changed = Object.keys(changes).filter(key => String(changes[key]) !== state[key]);
  if (!changed.length) return;
  for (const key of changed) state[key] = String(changes[key]);
  const address = "#" + written();
  if (changed.includes("panel")) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  tell(changed);
}

function written() {
  const parts = new URLSearchParams({ panel: state.panel });
  for (const [key, value] of Object.entries(state)) {
    if (key === "panel" || value === START[key] || (key === "text" && value.length > LONGEST_TEXT)) continue;
    parts.set(key, value);
  }
  return parts.toString();
}

/** Take over what the address says. */
export function read() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const text = state.text.length > LONGEST_TEXT ? state.text : START.text;  // one that the address could not hold
  const said = { ...START, text, ...Object.fromEntries([...parts].filter(([key]) => key in START)) };
  const changed = Object.keys(said).filter(key => said[key] !== state[key]);
  Object.assign(state, said);
  tell(changed);
}

function tell(changed) { if (changed.length) for (const listener of listeners) listener(changed); }
addEventListener("popstate", read);
addEventListener("hashchange", read);
