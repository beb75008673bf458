"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg", HEIGHT = 240, LEFT = 50, RIGHT = 18, TOP = 8, BOTTOM = 34;
const DASHES = ["", "6 3", "6 2 2 2", "2 2"], NEAR = 12;  // pixels within which a single run is pointed at
const state = { axis: "steps", single: false, hidden: new Set() };
const color = group => `var(--c${group % data.colors})`;
const dashes = group => DASHES[Math.floor(group / data.colors) % DASHES.length];

const svg = (name, attributes, parent) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.append(node);
  return node;
};
const element = (name, className, ...children) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
};
const swatch = group => {
  const node = svg("svg", { class: "swatch", viewBox: "0 0 24 10", "aria-hidden": "true" });
  svg("line", { x1: 0, x2: 24, y1: 5, y2: 5, "stroke-width": 4, "stroke-dasharray": dashes(group) }, node).style.stroke = color(group);
  return node;
};
// A number as people write it: 1,234 and 2.5M; on an axis of steps 200k as well.
const short = (value, thousands = false) => {
  const size = Math.abs(value);
  if (size >= 1e6) return (+(value / 1e6).toPrecision(4)).toLocaleString("en") + "M";
  if (size >= 1e3 && thousands) return +(value / 1e3).toPrecision(4) + "k";
  return (+value.toPrecision(size >= 1e3 ? 6 : 4)).toLocaleString("en", { maximumFractionDigits: 6 });
};
const ticks = (low, high, count) => {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
};
const extent = values => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
// The value of a curve at x, between its points; null where it has none.
const at = (curve, key, x) => {
  const xs = curve.x, n = xs.length;
  if (!n || x < xs[0] || x > xs[n - 1]) return null;
  let i = 0, j = n - 1;
  while (j - i > 1) { const k = (i + j) >> 1; if (xs[k] <= x) i = k; else j = k; }
  const width = xs[j] - xs[i];
  return curve[key][i] + (width ? (x - xs[i]) / width : 0) * (curve[key][j] - curve[key][i]);
};

const visible = curves => curves.filter(curve => curve.x.length && !state.hidden.has(curve.group));
function curvesOf(chart) {
  const runs = state.single && chart.runs ? chart.runs.map(run => ({ group: run.group, seed: run.seed, ...run[state.axis] })) : [];
  return { means: visible(chart[state.axis]), runs: visible(runs) };
}

function frame(plot, chart, width, [x0, x1], [y0, y1]) {
  const X = x => LEFT + (x - x0) / (x1 - x0 || 1) * (width - LEFT - RIGHT);
  const Y = y => TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
  const text = (words, x, y, anchor) => { svg("text", { x, y, "text-anchor": anchor }, plot).textContent = words; };
  for (const y of ticks(y0, y1, 5)) {
    svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: Y(y), y2: Y(y) }, plot);
    text(short(y), LEFT - 5, Y(y) + 4, "end");
  }
  for (const x of ticks(x0, x1, width / 75)) text(short(x, true), X(x), HEIGHT - BOTTOM + 15, "middle");
  text(chart.label[state.axis], (LEFT + width - RIGHT) / 2, HEIGHT - 4, "middle");
  if (chart.threshold != null)
    svg("line", { class: "goal", x1: LEFT, x2: width - RIGHT, y1: Y(chart.threshold), y2: Y(chart.threshold) }, plot);
  return { X, Y };
}

function draw(box, chart) {
  const plot = box.querySelector(".plot"), width = plot.clientWidth || 340;
  const { means, runs } = curvesOf(chart), all = [...means, ...runs];
  plot.replaceChildren();
  plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  if (!all.length) {
    svg("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, plot).textContent = "nothing to show here";
    box.scale = null;
    return;
  }
  const [x0, x1] = extent(all.flatMap(c => [c.x[0], c.x[c.x.length - 1]]));
  const goal = chart.threshold == null ? [] : [chart.threshold];
  let [y0, y1] = extent(all.flatMap(c => [...c.y, ...(c.low || []), ...(c.high || [])]).concat(goal));
  const margin = y0 === y1 ? 1 : (y1 - y0) * .03;
  y0 -= margin; y1 += margin;
  const { X, Y } = frame(plot, chart, width, [x0, x1], [y0, y1]);
  const series = svg("g", { class: "series" }, plot);
  const path = (xs, ys) => xs.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)},${Y(ys[i]).toFixed(1)}`).join("");
  const stroke = (c, attributes) => { svg("path", { d: path(c.x, c.y), fill: "none", ...attributes }, series).style.stroke = color(c.group); };
  for (const c of runs) stroke(c, { class: "run", "stroke-width": 1, opacity: .4 });
  for (const c of means) {
    if (c.low) svg("path", { class: "band", d: path(c.x, c.high) + path([...c.x].reverse(), [...c.low].reverse()).replace("M", "L") + "Z", opacity: .18 }, series).style.fill = color(c.group);
    // Round ends show a curve that is one point.
    stroke(c, { class: "mean", "stroke-width": 2, "stroke-linecap": c.x.length > 1 ? "butt" : "round", "stroke-dasharray": dashes(c.group) });
  }
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, plot);
  box.scale = { means, runs, cursor, X, Y, toX: pixel => x0 + (pixel - LEFT) / (width - LEFT - RIGHT) * (x1 - x0), x0, x1, width };
}

// Show the values at x; y, if given, is a pixel, and the single run nearest to it is named as well.
function point(box, x, y) {
  const tip = box.querySelector(".tip"), scale = box.scale;
  if (!scale) return;
  box.at = x = Math.min(scale.x1, Math.max(scale.x0, x));
  const left = scale.X(x);
  scale.cursor.setAttribute("x1", left); scale.cursor.setAttribute("x2", left); scale.cursor.setAttribute("visibility", "visible");
  const means = scale.means.map(c => ({ c, y: at(c, "y", x) })).filter(l => l.y !== null).sort((a, b) => b.y - a.y);
  const lines = means.map(({ c, y }) => element("div", "", swatch(c.group),
    `${data.groups[c.group]}: ${short(y)}` + (c.low ? ` [${short(at(c, "low", x))}, ${short(at(c, "high", x))}]` : "")));
  const distance = c => { const value = at(c, "y", x); return value === null ? Infinity : Math.abs(scale.Y(value) - y); };
  const nearest = y === undefined ? null : scale.runs.reduce((best, c) => (best && distance(best) <= distance(c) ? best : c), null);
  if (nearest && distance(nearest) <= NEAR)
    lines.push(element("div", "", `seed ${nearest.seed} of ${data.groups[nearest.group]}: ${short(at(nearest, "y", x))}`));
  tip.replaceChildren(short(x, true), ...lines);
  tip.style.display = "block";
  // On the side that the pointer is not on, so that it hides nothing that is pointed at.
  tip.style.left = left > scale.width / 2 ? "60px" : "auto"; tip.style.right = left > scale.width / 2 ? "auto" : "12px";
}

function follow(box, event) {
  const place = box.querySelector(".plot").getBoundingClientRect();
  if (box.scale) point(box, box.scale.toX(event.clientX - place.left), event.clientY - place.top);
}

function leave(box) {
  box.querySelector(".tip").style.display = "none";
  if (box.scale) box.scale.cursor.setAttribute("visibility", "hidden");
}

function step(box, event) {
  const sign = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!sign || !box.scale) return;
  event.preventDefault();
  point(box, (box.at ?? box.scale.x0) + sign * (box.scale.x1 - box.scale.x0) / 50);
}

const boxes = data.charts.map(chart => {
  const plot = svg("svg", { class: "plot", role: "img", tabindex: 0, "aria-label": `curves of ${chart.title}` });
  const box = element("div", "chart", element("h3", "", chart.title), plot, element("div", "tip"));
  byId("charts").append(box);
  plot.addEventListener("pointermove", event => follow(box, event));
  plot.addEventListener("pointerdown", event => follow(box, event));
  plot.addEventListener("keydown", event => step(box, event));
  // A finger that is lifted leaves, too; what it has pointed at stays until it points elsewhere.
  plot.addEventListener("pointerleave", event => { if (event.pointerType !== "touch") leave(box); });
  plot.addEventListener("blur", () => leave(box));
  return box;
});
document.addEventListener("pointerdown", event => boxes.filter(box => !box.contains(event.target)).forEach(leave));
const redraw = () => {
  boxes.forEach(leave);
  boxes.forEach((box, i) => draw(box, data.charts[i]));
  byId("axis").textContent = "x: " + (state.axis === "steps" ? "environment steps" : "wall clock");
};

data.groups.forEach((name, i) => {
  const button = element("button", "", swatch(i), element("span", "name", name));
  button.setAttribute("aria-pressed", "true");
  button.addEventListener("click", () => {
    if (!state.hidden.delete(i)) state.hidden.add(i);
    button.setAttribute("aria-pressed", String(!state.hidden.has(i)));
    redraw();
  });
  byId("groups").append(button);
});
byId("axis").addEventListener("click", () => { state.axis = state.axis === "steps" ? "clock" : "steps"; redraw(); });
byId("single").addEventListener("click", event => {
  state.single = !state.single;
  event.target.setAttribute("aria-pressed", String(state.single));
  redraw();
});
byId("switches").hidden = !data.charts.some(chart => chart.runs);
byId("notices").hidden = !byId("notices").querySelector("li");
byId("filter").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of byId("runs").rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  }
});
document.querySelectorAll(".runs th").forEach((head, column) => head.addEventListener("click", () => {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  document.querySelectorAll(".runs th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  byId("runs").append(...[...byId("runs").rows].sort((a, b) => compare(a.cells[column], b.cells[column], sign)));
}));
// Numbers by their value, names by their letters; a number that is missing comes last either way.
function compare(a, b, sign) {
  const [x, y] = [a.dataset.sort, b.dataset.sort];
  if (x === undefined && y === undefined) return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  if (x === undefined || y === undefined) return x === undefined ? 1 : -1;
  return sign * (x - y);
}
addEventListener("resize", redraw);
redraw();
