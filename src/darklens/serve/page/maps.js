/** Maps on canvases: axes in arcsec, colour bar, marks, and the value at a position that all maps share. */

import { STRETCHES, colourMap } from "./colours.js";
import { make } from "./dom.js";
import { digits, signed, tickLabels, ticks } from "./numbers.js";
import { captionOf, mapText, unit } from "./words.js";

const LIGHT = new Set(["image", "smooth", "source"]);
const SYMMETRIC = /residual|evidence|deflection/;
const FAMILIES = [/^(image|smooth)$/, /residual/, /evidence/, /deflection/]; // each with a common scale
const MIN_RANGE = 5; // standard deviations: the colour bar reaches at least this far, so noise looks like noise
const MARGIN = { left: 38, right: 58, top: 8, bottom: 34 };
const FONT = "12px system-ui, sans-serif";

/** Return a map of a response with its values decoded; row 0 is at the bottom. */
export function decode(map) {
  const bytes = Uint8Array.from(atob(map.data), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * i, true);
  return { ...map, values };
}

/** Return the range of the colour bar of each map; maps of a family share a range. */
export function rangesOf(sets) {
  const all = sets.flatMap((maps) => Object.entries(maps));
  const ranges = {};
  for (const [name] of all) {
    const family = FAMILIES.find((f) => f.test(name));
    const related = all.filter(([other]) => (family ? family.test(other) : other === name)).map(([, map]) => map);
    let low = Math.min(...related.map((map) => map.min));
    let high = Math.max(...related.map((map) => map.max));
    if (SYMMETRIC.test(name)) {
      const minimum = /deflection/.test(name) ? 0 : MIN_RANGE;
      high = Math.max(Math.abs(low), Math.abs(high), minimum);
      low = -high;
    }
    ranges[name] = { low, high: high > low ? high : low + 1 };
  }
  return ranges;
}

/** A position (arcsec) that all maps mark. */
export class Probe extends EventTarget {
  position = null;

  set(position) {
    this.position = position;
    this.dispatchEvent(new Event("moved"));
  }
}

/** One map as a figure. */
export class MapView {
  /**
   * @param {string} name
   * @param {object} map  from `decode`
   * @param {object} options
   * @param {{low: number, high: number}} options.range  range of the colour bar
   * @param {object[]} options.marks  {kind, x, y, length, angle, role: "suggested" | "true"}
   * @param {Probe} options.probe
   * @param {string} options.stretch
   * @param {string|null} options.model  name of the model, to display if there are several
   */
  constructor(name, map, { range, marks, probe, stretch, model }) {
    Object.assign(this, { name, map, range, marks, probe, stretch, model });
    this.text = mapText(map, extremesOf(map));
    this.pixels = this.#paint();
    this.canvas = make("canvas", { role: "img", tabindex: "0", "aria-label": this.#label(), class: "map" });
    this.readout = make("output", { class: "readout", text: this.#resting() });
    const units = map.unit ? make("span", { class: "unit", text: `, ${unit(map.unit)}` }) : null;
    this.element = make(
      "figure",
      { class: "map-figure", "data-map": name },
      make(
        "figcaption",
        {},
        model ? make("p", { class: "map-model", text: model }) : null,
        make("strong", { text: map.label }),
        units,
        make("p", { text: captionOf(name) }),
      ),
      this.canvas,
      this.readout,
    );
    this.#listen();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
  }

  /** Stop observing size and position. */
  close() {
    this.observer.disconnect();
    this.probe.removeEventListener("moved", this.onMoved);
  }

  /** Draw on the canvas of this view, in the colours of the page. */
  draw() {
    const width = this.canvas.clientWidth;
    if (width < 80) return;
    const ratio = window.devicePixelRatio || 1;
    const height = heightOf(width);
    const size = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) [this.canvas.width, this.canvas.height] = size;
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    this.drawOn(context, width, paletteOfPage(), this.probe.position);
  }

  /** Draw with the upper left corner at the origin of the context. */
  drawOn(context, width, palette, position = null) {
    const side = width - MARGIN.left - MARGIN.right;
    const box = { left: MARGIN.left, top: MARGIN.top, side };
    const [x0, x1, y0, y1] = this.map.extent;
    const toX = (x) => box.left + ((x - x0) / (x1 - x0)) * side;
    const toY = (y) => box.top + ((y1 - y) / (y1 - y0)) * side;
    context.font = FONT;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.pixels, box.left, box.top, side, side);
    context.strokeStyle = palette.line;
    context.lineWidth = 1;
    context.strokeRect(box.left - 0.5, box.top - 0.5, side + 1, side + 1);
    this.#axes(context, box, palette, { toX, toY });
    this.#bar(context, box, palette);
    context.save();
    context.beginPath();
    context.rect(box.left, box.top, side, side);
    context.clip();
    for (const mark of this.marks) drawMark(context, mark, toX, toY, side / (x1 - x0));
    if (position) drawCross(context, toX(position.x), toY(position.y));
    context.restore();
  }

  #paint() {
    const [h, w] = this.map.shape;
    const picture = make("canvas", { width: w, height: h });
    const context = picture.getContext("2d");
    const image = context.createImageData(w, h);
    const colours = colourMap(this.#colours());
    const { low, high } = this.range;
    const stretch = this.#stretch();
    for (let row = 0; row < h; row++) {
      for (let column = 0; column < w; column++) {
        const value = this.map.values[row * w + column];
        const fraction = stretch(Math.min(1, Math.max(0, (value - low) / (high - low))));
        const offset = 4 * ((h - 1 - row) * w + column);
        const level = 3 * Math.round(255 * (Number.isFinite(fraction) ? fraction : 0));
        image.data.set([colours[level], colours[level + 1], colours[level + 2], Number.isFinite(value) ? 255 : 0], offset);
      }
    }
    context.putImageData(image, 0, 0);
    return picture;
  }

  #colours() {
    if (SYMMETRIC.test(this.name)) return "diverging";
    return LIGHT.has(this.name) ? "magma" : "viridis";
  }

  #stretch() {
    return LIGHT.has(this.name) ? STRETCHES[this.stretch].of : STRETCHES.linear.of;
  }

  #axes(context, box, palette, { toX, toY }) {
    const [x0, x1, y0, y1] = this.map.extent;
    context.fillStyle = palette.ink;
    context.strokeStyle = palette.line;
    const xs = ticks(x0, x1, 4);
    context.textAlign = "center";
    context.textBaseline = "top";
    xs.forEach((x, i) => {
      stroke(context, [toX(x), box.top + box.side, toX(x), box.top + box.side + 4]);
      context.fillText(tickLabels(xs)[i], toX(x), box.top + box.side + 6);
    });
    context.fillStyle = palette.muted;
    context.fillText("arcsec", box.left + box.side / 2, box.top + box.side + 20);
    context.fillStyle = palette.ink;
    const ys = ticks(y0, y1, 4);
    context.textAlign = "right";
    context.textBaseline = "middle";
    ys.forEach((y, i) => {
      stroke(context, [box.left - 4, toY(y), box.left, toY(y)]);
      context.fillText(tickLabels(ys)[i], box.left - 7, toY(y));
    });
  }

  #bar(context, box, palette) {
    const left = box.left + box.side + 8;
    const colours = colourMap(this.#colours());
    for (let row = 0; row < box.side; row++) {
      const level = 3 * Math.round(255 * (1 - row / (box.side - 1)));
      context.fillStyle = `rgb(${colours[level]} ${colours[level + 1]} ${colours[level + 2]})`;
      context.fillRect(left, box.top + row, 10, 1.5);
    }
    context.strokeStyle = palette.line;
    context.strokeRect(left - 0.5, box.top - 0.5, 11, box.side + 1);
    context.fillStyle = palette.ink;
    context.textAlign = "left";
    context.textBaseline = "middle";
    const { low, high } = this.range;
    const stretch = this.#stretch();
    const values = ticks(low, high, 5);
    const labels = tickLabels(values);
    let lastLabel = Infinity;
    values.forEach((value, i) => {
      const y = box.top + box.side * (1 - stretch((value - low) / (high - low)));
      if (lastLabel - y < 13) return;
      lastLabel = y;
      stroke(context, [left + 10, y, left + 13, y]);
      context.fillText(labels[i], left + 15, y);
    });
  }

  #listen() {
    this.onMoved = () => {
      this.draw();
      this.readout.textContent = this.#reading();
    };
    this.probe.addEventListener("moved", this.onMoved);
    this.canvas.addEventListener("pointermove", (event) => this.probe.set(this.positionOf(event)));
    this.canvas.addEventListener("pointerdown", (event) => this.probe.set(this.positionOf(event)));
    this.canvas.addEventListener("pointerleave", () => this.probe.set(null));
    // Screen readers only announce the map with the focus.
    this.canvas.addEventListener("focus", () => this.readout.setAttribute("aria-live", "polite"));
    this.canvas.addEventListener("blur", () => this.readout.setAttribute("aria-live", "off"));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [0, 0];
    if (event.key === "Escape") return this.probe.set(null);
    if (!dx && !dy) return undefined;
    event.preventDefault();
    const [x0, x1, y0, y1] = this.map.extent;
    const [h, w] = this.map.shape;
    const stride = event.shiftKey ? 10 : 1;
    const start = this.probe.position ?? { x: (x0 + x1) / 2, y: (y0 + y1) / 2 };
    const within = (v, low, high, step) => Math.min(high - step / 2, Math.max(low + step / 2, v));
    const [sx, sy] = [(x1 - x0) / w, (y1 - y0) / h];
    return this.probe.set({ x: within(start.x + stride * dx * sx, x0, x1, sx), y: within(start.y + stride * dy * sy, y0, y1, sy) });
  }

  /** Return the position of a pointer event in arcsec, or null outside the map. */
  positionOf(event) {
    const frame = this.canvas.getBoundingClientRect();
    const side = frame.width - MARGIN.left - MARGIN.right;
    const [x0, x1, y0, y1] = this.map.extent;
    const across = (event.clientX - frame.left - MARGIN.left) / side;
    const down = (event.clientY - frame.top - MARGIN.top) / side;
    if (across < 0 || across > 1 || down < 0 || down > 1) return null;
    return { x: x0 + across * (x1 - x0), y: y1 - down * (y1 - y0) };
  }

  #reading() {
    const position = this.probe.position;
    if (!position) return this.#resting();
    const [x0, x1, y0, y1] = this.map.extent;
    const [h, w] = this.map.shape;
    const column = Math.floor(((position.x - x0) / (x1 - x0)) * w);
    const row = Math.floor(((position.y - y0) / (y1 - y0)) * h);
    const inside = row >= 0 && row < h && column >= 0 && column < w;
    const value = inside ? digits(this.map.values[row * w + column], 3) : "outside the map";
    return `x ${signed(position.x, 2)}″, y ${signed(position.y, 2)}″: ${value}${inside && this.map.unit ? ` ${unit(this.map.unit)}` : ""}`;
  }

  #resting() {
    return `${digits(this.map.min, 3)} to ${digits(this.map.max, 3)}`;
  }

  #label() {
    const marks = this.marks.map((m) => `${m.role} ${m.kind} at x ${signed(m.x, 2)}, y ${signed(m.y, 2)} arcsec`);
    return [this.model ? `${this.model}:` : "", this.text, marks.length ? `Marked: ${marks.join("; ")}.` : "", "Use the arrow keys to read values."].filter(Boolean).join(" ");
  }
}

/** Return the height of a map with this width, pixels. */
export const heightOf = (width) => width - MARGIN.left - MARGIN.right + MARGIN.top + MARGIN.bottom;

/** The colours for print and for downloaded images. */
export const PAPER = { ink: "#1b2430", muted: "#566173", line: "#7d8796", ground: "#ffffff" };

function paletteOfPage() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { ink: of("--ink"), muted: of("--muted"), line: of("--axis") };
}

function extremesOf(map) {
  const [h, w] = map.shape;
  const [x0, x1, y0, y1] = map.extent;
  let low = Math.max(0, map.values.findIndex(Number.isFinite));
  let high = low;
  map.values.forEach((value, i) => {
    if (value < map.values[low]) low = i;
    if (value > map.values[high]) high = i;
  });
  const at = (i) => ({
    value: map.values[i],
    x: x0 + (((i % w) + 0.5) * (x1 - x0)) / w,
    y: y0 + ((Math.floor(i / w) + 0.5) * (y1 - y0)) / h,
  });
  return { low: at(low), high: at(high) };
}

function stroke(context, [x0, y0, x1, y1]) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

// White on black is visible on every colour.
function outlined(context, path, dash = []) {
  for (const [style, width] of [["#000c", 4], ["#fff", 1.8]]) {
    context.setLineDash(dash);
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    path();
    context.stroke();
  }
  context.setLineDash([]);
}

function drawMark(context, mark, toX, toY, scale) {
  const [x, y] = [toX(mark.x), toY(mark.y)];
  const suggested = mark.role === "suggested";
  if (mark.kind === "line") {
    const angle = (mark.angle * Math.PI) / 180;
    const [dx, dy] = [(Math.cos(angle) * mark.length * scale) / 2, (Math.sin(angle) * mark.length * scale) / 2];
    outlined(
      context,
      () => {
        context.moveTo(x - dx, y + dy);
        context.lineTo(x + dx, y - dy);
      },
      suggested ? [] : [5, 4],
    );
  } else if (suggested) {
    outlined(context, () => context.arc(x, y, 8, 0, 2 * Math.PI));
  } else {
    outlined(context, () => {
      context.moveTo(x - 5, y - 5);
      context.lineTo(x + 5, y + 5);
      context.moveTo(x - 5, y + 5);
      context.lineTo(x + 5, y - 5);
    });
  }
}

function drawCross(context, x, y) {
  outlined(context, () => {
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * dx, y + 4 * dy);
      context.lineTo(x + 11 * dx, y + 11 * dy);
    }
  });
}
