// The charts of a report: learning curves and performance profiles on canvas, drawn from the JSON beside this script.
"use strict";

const RESAMPLES = 500, MAX_GRID = 2000, PALETTE = 8;
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// ---- Data ----

function decode(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Float32Array(bytes.buffer);  // little-endian, as every machine with a browser is
}

// Straight lines between knots, at increasing `places`.
function interpolate(knots, values, places) {
  const out = new Float64Array(places.length);
  let k = 0;
  for (let i = 0; i < places.length; i++) {
    while (k < knots.length - 2 && knots[k + 1] < places[i]) k++;
    const width = knots.length > 1 ? knots[k + 1] - knots[k] : 0;
    const share = width ? Math.min(1, Math.max(0, (places[i] - knots[k]) / width)) : 0;
    out[i] = share ? values[k] + share * (values[k + 1] - values[k]) : values[k];
  }
  return out;
}

// Row of each point: the middle of a bucket, whose limits are those of `bucket_starts` in page.py.
function rowsOf(curve, count) {
  if (curve.rows) return decode(curve.rows);
  const start = i => Math.floor(i * curve.n / count);
  return Float64Array.from({length: count}, (_, i) => (start(i) + start(i + 1) - 1) / 2);
}

const cache = new Map();
function curveOf(run, metric, axis) {
  const key = `${run} ${axis} ${metric}`;
  if (cache.has(key)) return cache.get(key);
  const {axes, curves} = data.runs[run], stored = curves[metric];
  let curve = null;
  if (stored && axes[axis]) {
    const mean = decode(stored.mean);
    const x = interpolate(...axes[axis], rowsOf(stored, mean.length));
    curve = {x, mean, low: stored.low ? decode(stored.low) : mean, high: stored.high ? decode(stored.high) : mean};
  }
  cache.set(key, curve);
  return curve;
}

// Exponential moving average that starts at the first value instead of 0.
function smooth(values, weight) {
  if (!weight) return values;
  const out = new Float32Array(values.length);
  let sum = 0, norm = 0;
  for (let i = 0; i < values.length; i++) {
    sum = weight * sum + (1 - weight) * values[i];
    norm = weight * norm + (1 - weight);
    out[i] = sum / norm;
  }
  return out;
}

// ---- Statistics ----

// How often each of `count` seeds is drawn, over `count`, in each resample; the same in every visit.
const drawn = new Map();
function resamples(count) {
  if (drawn.has(count)) return drawn.get(count);
  let state = 0x9e3779b9;
  const random = () => {  // mulberry32
    state = state + 0x6d2b79f5 | 0;
    let t = Math.imul(state ^ state >>> 15, 1 | state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
  const shares = new Float64Array(RESAMPLES * count);
  for (let r = 0; r < RESAMPLES; r++) {
    for (let i = 0; i < count; i++) shares[r * count + Math.floor(random() * count)] += 1 / count;
  }
  drawn.set(count, shares);
  return shares;
}

function quantile(sorted, share) {
  const place = share * (sorted.length - 1), below = Math.floor(place);
  return sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}

// Mean over seeds and its bootstrap band, at all points of the seeds where all have values.
function band(members) {
  const begin = Math.max(...members.map(member => member.x[0]));
  const end = Math.min(...members.map(member => member.x[member.x.length - 1]));
  let x = Float64Array.from(new Set(members.flatMap(member => Array.from(member.x)))).sort();
  x = x.filter(value => value >= begin && value <= end);
  if (x.length > MAX_GRID) x = x.filter((_, i) => i % Math.ceil(x.length / MAX_GRID) === 0);
  const values = members.map(member => interpolate(member.x, member.mean, x));
  const count = members.length, shares = resamples(count), means = new Float64Array(RESAMPLES);
  const [mean, low, high] = [0, 0, 0].map(() => new Float64Array(x.length));
  for (let i = 0; i < x.length; i++) {
    for (let s = 0; s < count; s++) mean[i] += values[s][i] / count;
    for (let r = 0; r < RESAMPLES; r++) {
      let sum = 0;
      for (let s = 0; s < count; s++) sum += shares[r * count + s] * values[s][i];
      means[r] = sum;
    }
    means.sort();
    low[i] = quantile(means, 0.025);
    high[i] = quantile(means, 0.975);
  }
  return {x, mean, low, high};
}

// ---- Numbers and ticks ----

function short(value) {
  const size = Math.abs(value);
  for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit * 0.99999) return `${Number((value / unit).toPrecision(3))}${name}`;
  }
  return size && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}
const exact = value => Math.abs(value) >= 1e5 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(5)));
function clock(seconds) {
  if (seconds < 100) return `${Number(seconds.toPrecision(3))} s`;
  return seconds < 6000 ? `${Number((seconds / 60).toPrecision(3))} min` : `${Number((seconds / 3600).toPrecision(3))} h`;
}
function ticks(low, high, count, steps = [1, 2, 2.5, 5, 10]) {
  const raw = (high - low) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * steps.find(factor => factor * unit >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, i) => (first + i) * step);
}
function clockTicks(low, high, count) {
  const unit = high < 100 ? 1 : high < 6000 ? 60 : 3600;
  return ticks(low / unit, high / unit, count).map(value => value * unit);
}

// ---- Charts ----

// `lines()` gives [{place, label, x, mean, low?, high?, faint?}]: faint curves are drawn behind, with their extremes.
class Chart {
  constructor(host, legend, {lines, labels, time = () => false}) {
    Object.assign(this, {host, legend, lines, labels, time, hidden: new Set(), zoom: null, drag: null, pointer: null});
    this.canvas = host.appendChild(make("canvas"));
    this.tip = host.appendChild(make("div", {className: "tip", hidden: true}));
    this.canvas.setAttribute("role", "img");
    const place = event => event.clientX - this.canvas.getBoundingClientRect().left;
    this.canvas.onpointerdown = event => {
      if (event.button) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.drag = [place(event), place(event)];
    };
    this.canvas.onpointermove = event => {
      this.pointer = place(event);
      if (this.drag) this.drag[1] = this.pointer;
      this.draw();
    };
    this.canvas.onpointerup = () => {
      const [a, b] = (this.drag ?? [0, 0]).map(pixel => this.value(pixel)).sort((a, b) => a - b);
      const wide = this.drag && Math.abs(this.drag[1] - this.drag[0]) > 5;
      this.drag = null;
      if (wide) this.zoom = [a, b];
      this.draw();
    };
    this.canvas.onpointercancel = () => { this.drag = null; this.draw(); };
    this.canvas.onpointerleave = () => { this.pointer = null; this.draw(); };
    this.canvas.ondblclick = () => { this.zoom = null; this.draw(); };
    new ResizeObserver(() => this.draw()).observe(host);
    this.update();
  }

  // Call when what `lines` gives has changed.
  update() {
    this.current = this.lines();
    this.canvas.setAttribute("aria-label", this.labels().join(" over "));
    this.legend.replaceChildren(...this.current.map(line => {
      const swatch = make("i", {className: "swatch"});
      swatch.style.background = `var(--c${line.place % PALETTE})`;
      const button = make("button", {type: "button"}, swatch, line.label);
      button.setAttribute("aria-pressed", !this.hidden.has(line.place));
      button.onclick = () => {
        if (!this.hidden.delete(line.place)) this.hidden.add(line.place);
        button.setAttribute("aria-pressed", !this.hidden.has(line.place));
        this.draw();
      };
      return button;
    }));
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  value(pixel) { return this.x0 + (pixel - this.left) / (this.right - this.left) * (this.x1 - this.x0); }
  pixel(x) { return this.left + (x - this.x0) / (this.x1 - this.x0) * (this.right - this.left); }
  height(y) { return this.bottom - (y - this.y0) / (this.y1 - this.y0) * (this.bottom - this.top); }

  paint() {
    const {clientWidth: width, clientHeight: height} = this.host, density = devicePixelRatio || 1;
    if (!width) return;
    Object.assign(this.canvas, {width: width * density, height: height * density});
    const pen = this.pen = this.canvas.getContext("2d");
    pen.scale(density, density);
    const style = getComputedStyle(document.documentElement);
    this.colour = name => style.getPropertyValue(`--${name}`).trim();
    Object.assign(this, {left: 66, right: width - 14, top: 12, bottom: height - 42});
    const shown = this.current.filter(line => !this.hidden.has(line.place) && line.x.length);
    this.scale(shown);
    this.frame(width, height, shown.length);
    pen.save();
    pen.beginPath();
    pen.rect(this.left, this.top - 2, this.right - this.left, this.bottom - this.top + 4);
    pen.clip();
    for (const line of shown) this.behind(line);
    for (const line of shown) this.front(line);
    if (this.drag) {
      pen.fillStyle = this.colour("quiet");
      pen.globalAlpha = 0.2;
      pen.fillRect(Math.min(...this.drag), this.top, Math.abs(this.drag[1] - this.drag[0]), this.bottom - this.top);
      pen.globalAlpha = 1;
    }
    pen.restore();
    this.point(shown);
    Object.assign(this.host.dataset, {x0: this.x0, x1: this.x1, y0: this.y0, y1: this.y1});
  }

  // The part of the plane that is shown: what was zoomed to, and as high as the curves in it.
  scale(shown) {
    const least = list => list.reduce((a, b) => Math.min(a, b), Infinity);
    const most = list => list.reduce((a, b) => Math.max(a, b), -Infinity);
    [this.x0, this.x1] = this.zoom ?? [least(shown.map(line => line.x[0])), most(shown.map(line => line.x[line.x.length - 1]))];
    if (!(this.x1 > this.x0)) [this.x0, this.x1] = isFinite(this.x0) ? [this.x0 - 1, this.x0 + 1] : [0, 1];
    let [y0, y1] = [Infinity, -Infinity];
    for (const line of shown.flatMap(line => [line, ...line.faint ?? []])) {
      for (let i = 0; i < line.x.length; i++) {
        if (line.x[i] < this.x0 || line.x[i] > this.x1) continue;
        y0 = Math.min(y0, line.low ? line.low[i] : line.mean[i]);
        y1 = Math.max(y1, line.high ? line.high[i] : line.mean[i]);
      }
    }
    if (!isFinite(y0)) [y0, y1] = [0, 1];
    const margin = y1 > y0 ? 0.04 * (y1 - y0) : Math.abs(y0) * 0.1 || 1;
    [this.y0, this.y1] = [y0 - margin, y1 + margin];
  }

  frame(width, height, any) {
    const pen = this.pen, [ylabel, xlabel] = this.labels();
    pen.font = "12px system-ui, sans-serif";
    pen.fillStyle = this.colour("quiet");
    pen.strokeStyle = this.colour("line");
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const y of ticks(this.y0, this.y1, 5)) {
      const at = Math.round(this.height(y)) + 0.5;
      pen.beginPath();
      pen.moveTo(this.left, at);
      pen.lineTo(this.right, at);
      pen.stroke();
      pen.fillText(short(y), this.left - 8, at);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    const time = this.time(), count = Math.max(2, Math.round(width / 140));
    for (const x of (time ? clockTicks : ticks)(this.x0, this.x1, count)) {
      pen.fillText(time ? clock(x) : short(x), this.pixel(x), this.bottom + 7);
    }
    pen.fillText(xlabel, (this.left + this.right) / 2, height - 16);
    if (!any) pen.fillText("nothing to show", (this.left + this.right) / 2, (this.top + this.bottom) / 2);
    pen.save();
    pen.translate(10, (this.top + this.bottom) / 2);
    pen.rotate(-Math.PI / 2);
    pen.textBaseline = "middle";
    pen.fillText(ylabel, 0, 0);
    pen.restore();
  }

  behind(line) {
    const pen = this.pen;
    pen.fillStyle = pen.strokeStyle = this.colour(`c${line.place % PALETTE}`);
    for (const area of [line, ...line.faint ?? []]) {
      if (!area.low || area.low === area.mean) continue;
      pen.globalAlpha = area === line ? 0.22 : 0.12;
      pen.beginPath();
      for (let i = 0; i < area.x.length; i++) pen.lineTo(this.pixel(area.x[i]), this.height(area.high[i]));
      for (let i = area.x.length - 1; i >= 0; i--) pen.lineTo(this.pixel(area.x[i]), this.height(area.low[i]));
      pen.fill();
    }
    pen.globalAlpha = 0.5;
    pen.lineWidth = 1;
    for (const faint of line.faint ?? []) this.stroke(faint);
    pen.globalAlpha = 1;
  }

  front(line) {
    const pen = this.pen;
    pen.fillStyle = pen.strokeStyle = this.colour(`c${line.place % PALETTE}`);
    pen.lineWidth = 2;
    pen.lineJoin = "round";
    pen.setLineDash(DASHES[Math.floor(line.place / PALETTE) % DASHES.length]);
    this.stroke(line);
    pen.setLineDash([]);
    if (line.x.length === 1) this.dot(line.x[0], line.mean[0]);
  }

  stroke(line) {
    this.pen.beginPath();
    for (let i = 0; i < line.x.length; i++) this.pen.lineTo(this.pixel(line.x[i]), this.height(line.mean[i]));
    this.pen.stroke();
  }

  dot(x, y) {
    this.pen.beginPath();
    this.pen.arc(this.pixel(x), this.height(y), 4, 0, 2 * Math.PI);
    this.pen.fill();
  }

  // The values of all curves at the pointer.
  point(shown) {
    const inside = this.pointer !== null && this.pointer >= this.left && this.pointer <= this.right;
    this.tip.hidden = !inside || !!this.drag || !shown.length;
    if (this.tip.hidden) return;
    const at = this.value(this.pointer), rows = [];
    for (const line of shown) {
      let i = line.x.findIndex(x => x >= at);
      if (i < 0) i = line.x.length - 1;
      if (i > 0 && at - line.x[i - 1] < line.x[i] - at) i--;
      if (line.x[i] < this.x0 || line.x[i] > this.x1) continue;
      rows.push({line, i});
      this.pen.fillStyle = this.colour(`c${line.place % PALETTE}`);
      this.dot(line.x[i], line.mean[i]);
    }
    rows.sort((a, b) => b.line.mean[b.i] - a.line.mean[a.i]);
    const table = make("table");
    for (const {line, i} of rows) {
      const swatch = make("i", {className: "swatch"});
      swatch.style.background = `var(--c${line.place % PALETTE})`;
      const spread = line.low && line.low[i] !== line.high[i] ? `${exact(line.low[i])} to ${exact(line.high[i])}` : "";
      table.insertRow().append(make("th", {}, swatch, line.label), make("td", {}, exact(line.mean[i])), make("td", {}, spread));
    }
    const near = rows.length ? rows.reduce((a, b) => Math.abs(a.line.x[a.i] - at) < Math.abs(b.line.x[b.i] - at) ? a : b) : null;
    const x = near ? near.line.x[near.i] : at;
    this.tip.replaceChildren(`${this.labels()[1]} ${this.time() ? clock(x) : exact(x)}`, table);
    const room = this.host.clientWidth - this.tip.offsetWidth, beside = this.pointer + 16;
    this.tip.style.left = `${beside > room ? Math.max(0, this.pointer - 16 - this.tip.offsetWidth) : beside}px`;
    this.tip.style.top = `${this.top + 6}px`;
  }
}

// ---- The page ----

const [metric, axis, smoothing, single] = ["metric", "axis", "smoothing", "single"].map(byId);
metric.append(...data.metrics.map(name => make("option", {value: name}, name)));
axis.append(...Object.entries(data.axes).map(([name, label]) => make("option", {value: name}, label)));
metric.value = data.metric;

function learningCurves() {
  const weight = Number(smoothing.value), lines = [];
  data.groups.forEach((group, place) => {
    const curves = group.runs.map(run => curveOf(run, metric.value, axis.value)).filter(curve => curve);
    if (!curves.length) return;
    const members = curves.map(curve => ({x: curve.x, mean: smooth(curve.mean, weight)}));
    const apart = Math.max(...members.map(m => m.x[0])) > Math.min(...members.map(m => m.x[m.x.length - 1]));
    const line = members.length > 1 && !apart ? band(members) : members[0];
    const faint = single.checked || members.length === 1 ? curves.map((curve, i) => ({...curve, mean: members[i].mean,
      low: curve.low === curve.mean ? null : curve.low, high: curve.high === curve.mean ? null : curve.high})) : [];
    const count = members.length > 1 ? ` (${members.length} seeds)` : "";
    lines.push({...line, place, label: group.label + count, faint});
  });
  return lines;
}

const section = byId("curves");
const chart = new Chart(section.querySelector(".chart"), section.querySelector(".legend"), {
  lines: learningCurves,
  labels: () => [metric.value, data.axes[axis.value]],
  time: () => axis.value === "seconds",
});
metric.onchange = single.onchange = () => chart.update();
axis.onchange = () => { chart.zoom = null; chart.update(); };
smoothing.oninput = () => {
  byId("weight").value = smoothing.value;
  chart.update();
};
const longest = Math.max(0, ...data.runs.flatMap(run => Object.values(run.curves).filter(c => c.low).map(c => c.n)));
if (longest) {
  byId("thinned").textContent = `Long curves (up to ${longest.toLocaleString("en")} points) are thinned: each point is `
    + "the mean of a bucket of neighbours, and the pale area around the curve of each run reaches from the bucket's "
    + "least to its greatest value, so no extreme is lost.";
}

const charts = [chart];
document.querySelectorAll(".chart.profile").forEach(host => {
  const {thresholds, lines} = data.profiles[Number(host.dataset.profile)];
  charts.push(new Chart(host, host.previousElementSibling, {
    lines: () => lines.map(({group, estimate, low, high}) => (
      {place: group, label: data.groups[group].label, x: thresholds, mean: estimate, low, high})),
    labels: () => ["share of runs above it", "score"],
  }));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(each => each.draw()));
requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.drawn = Math.round(performance.now()); }));
