// Numbers, times and small drawings as people read them.

import { svg } from "./elements.js";

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** `950`, `1.2K`, `3.4M`. */
export const count = (number) => (number < 10000 ? whole.format(number) : compact.format(number));

/** `0`, `4.2`, `87`, `1.2K`. */
export const rate = (number) => (number > 0 && number < 10 ? number.toFixed(1) : count(Math.round(number)));

/** `84 ms`, `1.25 s`, `–` for null. */
export function latency(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

/** `45 s`, `12 min`, `3.5 h`, `4 d`. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.ceil(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 2 * 86400) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** The time of day of a Unix time: `14:03:59`. */
export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");

/** A line over the last values, as wide as its box; values that are null leave a gap. */
export class Sparkline {
  constructor(length = 90) {
    this.length = length;
    this.values = [];
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.element = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" },
      this.area, this.line);
  }

  push(value) {
    this.values.push(value);
    if (this.values.length > this.length) this.values.shift();
    const top = Math.max(1e-9, ...this.values.map((one) => one ?? 0)) * 1.1;
    const step = 100 / (this.length - 1);
    const start = 100 - (this.values.length - 1) * step;
    let line = "";
    let area = "";
    let from = null;
    this.values.forEach((one, index) => {
      const x = (start + index * step).toFixed(2);
      if (one === null) {
        if (from !== null) area += `L${(start + (index - 1) * step).toFixed(2)} 30Z`;
        from = null;
        return;
      }
      const y = (29 - (one / top) * 27).toFixed(2);
      line += `${from === null ? "M" : "L"}${x} ${y}`;
      area += from === null ? `M${x} 30L${x} ${y}` : `L${x} ${y}`;
      from = x;
    });
    if (from !== null) area += "L100 30Z";
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }
}
