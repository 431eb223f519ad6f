// The library's generate.py in the page: from logits to the distribution that a token is drawn from.
// The logits come sorted, the largest first, so whatever a filter keeps is the beginning of the list.

/** @returns {{p: Float64Array, kept: number}} probabilities of the first `kept` tokens */
export function distribution(logits, { temperature, top_k, top_p, min_p }) {
  if (temperature === 0) return { p: new Float64Array([1]), kept: 1 };
  const scaled = Float64Array.from(logits, x => (x - logits[0]) / temperature);
  let kept = scaled.length;
  if (top_k) while (kept > top_k && scaled[kept - 1] < scaled[top_k - 1]) kept--;  // ties of the k-th stay
  if (top_p < 1) {
    const p = softmax(scaled, kept);
    let before = 0, n = 0;
    while (n < kept && before < top_p) before += p[n++];
    kept = n;
  }
  if (min_p > 0) { const least = Math.log(min_p); while (kept > 1 && scaled[kept - 1] < least) kept--; }
  return { p: softmax(scaled, kept), kept };
}

export function softmax(logits, n = logits.length) {
  const p = Float64Array.from(logits.subarray(0, n), x => Math.exp(x - logits[0]));
  let sum = 0;
  for (const value of p) sum += value;
  return p.map(value => value / sum);
}

export function entropy(p) {
  let bits = 0;
  for (const value of p) if (value > 0) bits -= value * Math.log2(value);
  return bits;
}
