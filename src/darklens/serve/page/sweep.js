/** From which mass on a substructure is found: the same lens with one mass after the other. */

import { make, table } from "./dom.js";
import { digits, probability, signed } from "./numbers.js";
import { foundIn, gain } from "./words.js";

const COUNT = 9;
const BOX = { width: 460, height: 210, left: 44, right: 12, top: 12, bottom: 40 };
const SVG = "http://www.w3.org/2000/svg";

/** Return masses from low to high, evenly spaced in their logarithm. */
export function massesBetween(low, high) {
  const step = Math.log10(high / low) / (COUNT - 1);
  return Array.from({ length: COUNT }, (_, i) => Number((low * 10 ** (i * step)).toPrecision(4)));
}

/** Return what one made lens adds to the sweep. */
export function pointOf(kind, mass, result) {
  const known = result.status === "ok";
  return {
    mass,
    p: known ? result.probabilities[kind] : 0,
    gain: known ? gain(result, kind) : null,
    found: known && foundIn(result, kind),
    unfamiliar: Boolean(result.ood?.unfamiliar),
  };
}

const mass = (point) => `${digits(point.mass, 2)} M☉`;

/** Return the sentence on the smallest mass that is found. */
export function told(points, kind) {
  const thing = kind === "vort" ? "line" : "clump";
  const missed = points.findLastIndex(({ found }) => !found);
  if (missed === -1) return `The ${thing} is found at every mass that was tried.`;
  const last = points.findLastIndex(({ found }) => found);
  if (last === -1) {
    return `The ${thing} is found at no mass that was tried: it is too far from the ring, or the exposure is too short.`;
  }
  if (missed === points.length - 1) {
    const strange = points.slice(last + 1).every(({ unfamiliar }) => unfamiliar);
    const why = strange ? "heavier ones make a lens unlike those the model was trained on" : "there the model does not stand by an answer";
    return `The ${thing} is not found above ${mass(points[last])}: ${why}. The smallest that is found has ${mass(points.find(({ found }) => found))}.`;
  }
  return `At this place and exposure the ${thing} is found from ${mass(points[missed + 1])} on, in this one draw of the noise.`;
}

/** Return the sweep as a card: sentence, chart, table. */
export function sweepCard(points, kind, model) {
  const rows = points.map(({ mass: m, p, gain: by, found }) => [
    digits(m, 2),
    probability(p),
    by === null ? "–" : signed(by, 0),
    found ? "yes" : "no",
  ]);
  return make(
    "section",
    { class: "card sweep", "aria-label": "Masses tried" },
    make("h3", { text: "From which mass on is it found?" }),
    make("p", { class: "seen", text: told(points, kind) }),
    make(
      "div",
      { class: "sweep-body" },
      chart(points, `Probability of ${kind} by ${model} against mass; filled: found.`),
      table(`Masses tried with ${model}`, ["mass, M☉", `p(${kind})`, "χ² raised by", "found"], rows),
    ),
  );
}

function chart(points, caption) {
  const [low, high] = [points[0].mass, points[points.length - 1].mass].map(Math.log10);
  const toX = (mass) => BOX.left + ((Math.log10(mass) - low) / (high - low)) * (BOX.width - BOX.left - BOX.right);
  const toY = (p) => BOX.top + (1 - p) * (BOX.height - BOX.top - BOX.bottom);
  const picture = drawn("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": caption });
  for (const p of [0, 0.5, 1]) {
    picture.append(
      drawn("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: toY(p), y2: toY(p) }),
      drawn("text", { x: BOX.left - 8, y: toY(p) + 4, "text-anchor": "end" }, String(p)),
    );
  }
  for (let power = Math.ceil(low - 1e-6); power <= high + 1e-6; power++) {
    const label = digits(10 ** power, 1).replace("1 × ", "");
    picture.append(drawn("text", { x: toX(10 ** power), y: BOX.height - BOX.bottom + 18, "text-anchor": "middle" }, label));
  }
  picture.append(drawn("text", { class: "axis", x: (BOX.left + BOX.width) / 2, y: BOX.height - 5, "text-anchor": "middle" }, "mass, M☉"));
  picture.append(drawn("polyline", { points: points.map(({ mass, p }) => `${toX(mass)},${toY(p)}`).join(" ") }));
  for (const { mass, p, found } of points) {
    picture.append(drawn("circle", { class: found ? "found" : "", cx: toX(mass), cy: toY(p), r: 5 }));
  }
  return make("figure", { class: "chart" }, picture, make("figcaption", { class: "hint", text: caption }));
}

function drawn(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
