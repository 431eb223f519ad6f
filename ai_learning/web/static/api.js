// Questions to the server. A refusal becomes an Error whose message can be shown.

export async function request(path, body, signal) {
  const options = body === undefined ? { signal } : {
    method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try { response = await fetch("/api/" + path, options); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer: is `ai-learning web` still running?");
  }
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try { message = (await response.json()).error ?? message; } catch { /* not JSON */ }
  throw new Error(message);
}

export async function ask(path, body, signal) { return (await request(path, body, signal)).json(); }

/** Questions of which only the newest matters: asking again drops the one before. */
export function newest() {
  let controller = null;
  return async (path, body) => {
    controller?.abort();
    controller = new AbortController();
    return ask(path, body, controller.signal);
  };
}

const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
export const floats = text => new Float32Array(bytes(text));
export const shorts = text => new Uint16Array(bytes(text));
