// Charts of the last five minutes, in SVG. A table under each chart is its legend and contains its values as text.
// Horizontally, one unit of the picture is one second; vertically, one hundredth of the scale.

export const SECONDS = 300;
// Samples are one second apart. If two samples are further apart than this, no line connects them.
const GAP_S = 2.5;

const SVG = "http://www.w3.org/2000/svg";

const svg = (name, attributes = {}, parent = null) => {
  const element = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  parent?.append(element);
  return element;
};

export const html = (name, text = "", attributes = {}) => {
  const element = document.createElement(name);
  element.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  return element;
};

// Sets a text only if it differs, so that the browser does not redraw, or announce again, an unchanged text.
export const put = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

// Returns the smallest of 1, 2, 5, 10, 20, … that is at least `value`.
const ceiling = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
};

// Scale from 0 to at least `least`, with one mark in the middle.
const linear = (least) => (values) => {
  const top = ceiling(Math.max(least, ...values));
  return { marks: [top, top / 2, 0], place: (value) => (value / top) * 100 };
};

// Logarithmic scale, with marks at powers of ten.
const logarithmic = (values) => {
  const low = Math.floor(Math.log10(Math.max(1, Math.min(...values, 100))));
  const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(...values, 1))));
  const marks = Array.from({ length: high - low + 1 }, (_, step) => 10 ** (high - step));
  return { marks, place: (value) => Math.max(0, ((Math.log10(Math.max(value, 1)) - low) / (high - low)) * 100) };
};

export const SCALES = { linear, logarithmic };

export class Chart {
  // `series`: name and class of each line, and the function that reads its value from a sample (null: unknown). `show`
  // formats a value in the table, `mark` a value on the scale. `total` reads a second number for the table. `stacked`:
  // areas are stacked on each other, up to `full`.
  constructor(place, { label, series, scale, show, mark = show, column = "", total = null, stacked = false, full = null }) {
    Object.assign(this, { series, scale, show, mark, total, stacked, full, column });
    const figure = html("div", "", { class: "figure" });
    this.scaleNames = html("div", "", { class: "scale", "aria-hidden": "true" });
    const plot = html("div", "", { class: "plot" });
    const picture = svg("svg", { viewBox: `0 0 ${SECONDS} 100`, preserveAspectRatio: "none", role: "img" }, plot);
    svg("title", {}, picture).textContent = `${label}, over the last five minutes`;
    this.grid = svg("path", { class: "grid" }, picture);
    this.lines = series.map(({ kind }) => svg("path", { class: `${stacked ? "area" : "line"} ${kind}` }));
    // Each stacked area reaches down to zero, so the upper areas are drawn first and the lower ones cover them.
    picture.append(...this.lines.toReversed());
    this.cursor = svg("path", { class: "cursor" }, picture);
    const times = html("div", "", { class: "times", "aria-hidden": "true" });
    times.append(html("span", "5 min ago"), html("span", "now"));
    figure.append(this.scaleNames, plot, times);
    place.append(figure);
    this.plot = plot;
    if (column) place.append(this.legend());
  }

  legend() {
    const table = html("table", "", { class: "legend" });
    const head = table.createTHead().insertRow();
    this.heading = html("th", this.column, { scope: "col" });
    head.append(html("th", "", { scope: "col" }), this.heading);
    head.firstChild.append(html("span", "Name", { class: "unseen" }));
    if (this.total) head.append(html("th", "total", { scope: "col" }));
    const body = table.createTBody();
    this.cells = this.series.map(({ name, kind }) => {
      const row = body.insertRow();
      const title = html("th", name, { scope: "row" });
      const sample = svg("svg", { viewBox: "0 0 22 10", class: "swatch", "aria-hidden": "true" });
      svg("path", { d: "M1 5H21", class: `line ${kind}` }, sample);
      title.prepend(sample);
      row.append(title);
      return [row.insertCell(), this.total ? row.insertCell() : null];
    });
    return table;
  }

  // Draws `samples` as of `now_ms`. The table shows the sample `chosen`, which is `ago_s` seconds old.
  draw(samples, now_ms, chosen, ago_s) {
    const across = samples.map((sample) => SECONDS - (now_ms - sample.at_ms) / 1000);
    const columns = this.series.map(({ read }) => samples.map(read));
    if (this.stacked) {
      columns.forEach((values, above) => above && values.forEach((_, at) => (values[at] += columns[above - 1][at])));
    }
    const known = columns.flat().filter((value) => value !== null);
    const { marks, place } = this.scale(this.full ? known.concat(samples.slice(-1).map(this.full)) : known);
    const up = (value) => 100 - Math.min(100, place(value));
    const minutes = [60, 120, 180, 240].map((second) => `M${second} 0V100`);
    this.grid.setAttribute("d", marks.map((value) => `M0 ${up(value)}H${SECONDS}`).concat(minutes).join(""));
    if (this.scaleNames.childElementCount !== marks.length) {
      this.scaleNames.replaceChildren(...marks.map(() => html("span")));
    }
    marks.forEach((value, step) => put(this.scaleNames.children[step], this.mark(value)));
    columns.forEach((values, at) => {
      // A series that is always zero has no line, because its line would hide other lines at zero.
      const happened = values.some((value) => value);
      const path = this.stacked ? area(across, values, up) : happened ? line(across, values, up) : "";
      this.lines[at].setAttribute("d", path);
    });
    this.cursor.setAttribute("d", ago_s > 0 ? `M${SECONDS - ago_s} 0V100` : "");
    this.cells?.forEach(([cell, total], at) => {
      const value = chosen ? this.series[at].read(chosen) : null;
      put(cell, value === null ? "–" : this.show(value));
      if (total) put(total, samples.length ? this.show(this.total(samples.at(-1), this.series[at])) : "–");
    });
    if (this.heading) put(this.heading, ago_s > 0 ? "earlier" : this.column);
  }
}

// Returns the parts of a line in which each value is known and there is no gap before it.
function runs(across, values) {
  const parts = [];
  values.forEach((value, at) => {
    if (value === null || across[at] < 0) return;
    const follows = at > 0 && values[at - 1] !== null && across[at - 1] >= 0 && across[at] - across[at - 1] < GAP_S;
    if (follows) parts.at(-1).push(at);
    else parts.push([at]);
  });
  return parts;
}

const point = (across, values, up) => (at) => `${across[at].toFixed(1)} ${up(values[at]).toFixed(1)}`;

function line(across, values, up) {
  const points = runs(across, values).map((part) => part.map(point(across, values, up)));
  // A single point becomes a line of length zero, whose round ends make a dot.
  return points.map((part) => `M${part.length === 1 ? `${part[0]}L${part[0]}` : part.join("L")}`).join("");
}

function area(across, values, up) {
  const shape = (part) => {
    const above = part.map(point(across, values, up)).join("L");
    return `M${across[part[0]].toFixed(1)} 100L${above}L${across[part.at(-1)].toFixed(1)} 100Z`;
  };
  return runs(across, values).map(shape).join("");
}
