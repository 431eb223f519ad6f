// The loss of a run as a drawing.

const SVG = "http://www.w3.org/2000/svg", W = 640, H = 240, LEFT = 44, RIGHT = 12, TOP = 10, BOTTOM = 26;

function node(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Draw rows of metrics, up to `steps`, into `box`. */
export function drawLoss(box, rows, steps) {
  const train = rows.filter(r => r.loss !== undefined), held = rows.filter(r => r.val_loss !== undefined);
  const values = [...train.map(r => r.loss), ...held.map(r => r.val_loss)];
  if (!values.length) { box.replaceChildren(); return; }
  const top = Math.max(...values), low = Math.min(...values, top - 0.1), pad = (top - low) * 0.06;
  const x = step => LEFT + (W - LEFT - RIGHT) * step / steps;
  const y = loss => TOP + (H - TOP - BOTTOM) * (top + pad - loss) / (top - low + 2 * pad);
  const last = train.at(-1), lastHeld = held.at(-1);
  const said = `Loss after ${(last ?? lastHeld).step} of ${steps} steps: ` +
    [last && `training ${last.loss.toFixed(3)}`, lastHeld && `held out ${lastHeld.val_loss.toFixed(3)}`].filter(Boolean).join(", ");
  const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": said });
  for (const tick of ticks(low, top, 5)) {
    svg.append(node("line", { x1: LEFT, x2: W - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }),
      node("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, String(+tick.toFixed(3))));
  }
  for (const tick of ticks(0, steps, 6)) svg.append(node("text", { x: x(tick), y: H - 8, "text-anchor": "middle" }, tick.toLocaleString("en")));
  const path = (points) => points.map(([a, b], n) => `${n ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
  svg.append(node("path", { d: path(train.map(r => [x(r.step), y(r.loss)])), class: "train" }),
    node("path", { d: path(held.map(r => [x(r.step), y(r.val_loss)])), class: "held" }));
  for (const r of held) svg.append(node("circle", { cx: x(r.step), cy: y(r.val_loss), r: 3 }));
  const legend = document.createElement("div");
  legend.className = "legend-line";
  for (const [label, colour] of [["training", "--accent"], ["held out", "--second"]]) {
    const item = document.createElement("span"), line = document.createElement("i");
    line.style.background = `var(${colour})`;
    item.append(line, label);
    legend.append(item);
  }
  const unit = document.createElement("span");
  unit.textContent = "nats a token, by step";
  legend.append(unit);
  box.replaceChildren(svg, legend);
}

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(t);
  return found;
}
