// A training that the server runs, as it is watched: rows of metrics, figures, the chart.

import { ask } from "./api.js";
import { drawLoss } from "./chart.js";
import { figure, number } from "./ui.js";

const WORDS = {
  starting: "is starting", running: "is learning", stopping: "is stopping, and saves", done: "is done",
  stopped: "was stopped and can go on", failed: "failed",
};

export class Watch {
  /** @param {(run) => void} show called with every report; `run.rows` are all rows so far */
  constructor(show) { this.show = show; this.run = null; this.timer = 0; this.name = ""; }

  /** Look at the run `name`, and follow it while it is trained. */
  async follow(name) {
    this.stop();
    this.name = name;
    if (!name) { this.run = null; return; }
    await this.look();
  }

  stop() { clearTimeout(this.timer); this.timer = 0; }

  async look() {
    const name = this.name, known = this.run?.name === name ? this.run : null;
    const after = known ? known.rows.length : 0;
    let report = await ask(`training/${name}?after=${after}`);
    // Resumed elsewhere, or shorter than what is known: read it all again.
    if (known && (report.starts !== known.starts || report.n_rows < after)) report = await ask(`training/${name}`);
    if (this.name !== name) return;
    this.run = { ...report, rows: report.after ? [...known.rows, ...report.rows] : report.rows };
    this.show(this.run);
    if (["starting", "running", "stopping"].includes(report.state)) this.timer = setTimeout(() => this.look().catch(() => this.retry()), 600);
  }

  retry() { this.timer = setTimeout(() => this.look().catch(() => this.retry()), 3000); }
}

export const busy = run => ["starting", "running", "stopping"].includes(run?.state);

export function showRun(run, { title, figures, chart }) {
  title.textContent = `${run.name} ${WORDS[run.state]}`;
  const of = name => run.rows.findLast(row => row[name] !== undefined)?.[name];
  const step = run.rows.at(-1)?.step ?? 0;
  const values = [["step", `${number(step)} / ${number(run.steps)}`]];
  if (of("loss") !== undefined) values.push(["training loss", of("loss").toFixed(3)]);
  if (of("val_loss") !== undefined) values.push(["held-out loss", of("val_loss").toFixed(3)]);
  if (of("tokens_per_s") !== undefined) values.push(["tokens/s", number(Math.round(of("tokens_per_s")))]);
  if (of("elapsed_s") !== undefined) values.push(["seconds", of("elapsed_s").toFixed(0)]);
  figures.replaceChildren(...values.map(([label, value]) => figure(label, value)));
  drawLoss(chart, run.rows, run.steps);
}
