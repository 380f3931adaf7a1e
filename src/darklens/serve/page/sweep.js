/** A sweep in mass: the same lens with one mass after the other, and the smallest mass that the model finds. */

import { make, table } from "./dom.js";
import { digits, probability, signed } from "./numbers.js";
import { deltaChi2, isDetected } from "./words.js";

const COUNT = 9;
const BOX = { width: 460, height: 210, left: 44, right: 12, top: 12, bottom: 40 };
const SVG = "http://www.w3.org/2000/svg";

/** Return masses from low to high, evenly spaced in their logarithm. */
export function massGrid(low, high) {
  const step = Math.log10(high / low) / (COUNT - 1);
  return Array.from({ length: COUNT }, (_, i) => Number((low * 10 ** (i * step)).toPrecision(4)));
}

/** Return the entry of one simulated lens in the sweep. */
export function sweepPoint(kind, mass, result) {
  const classified = result.status === "ok";
  return {
    mass,
    p: classified ? result.probabilities[kind] : 0,
    delta: classified ? deltaChi2(result, kind) : null,
    detected: classified && isDetected(result, kind),
    ood: Boolean(result.ood?.unfamiliar),
  };
}

const massText = (point) => `${digits(point.mass, 2)} M☉`;

/** Return a sentence on the smallest mass that the model finds. */
export function sweepSentence(points, kind) {
  const perturber = kind === "vort" ? "line" : "point mass";
  const lastMissed = points.findLastIndex(({ detected }) => !detected);
  if (lastMissed === -1) return `The model finds the ${perturber} at every mass.`;
  const lastDetected = points.findLastIndex(({ detected }) => detected);
  if (lastDetected === -1) {
    return `The model does not find the ${perturber} at any mass: it is too far from the ring, or the exposure is too short.`;
  }
  if (lastMissed === points.length - 1) {
    const allOod = points.slice(lastDetected + 1).every(({ ood }) => ood);
    const cause = allOod ? "heavier ones are out of distribution" : "the model is uncertain about heavier ones";
    const smallest = points.find(({ detected }) => detected);
    return `The model finds the ${perturber} from ${massText(smallest)} to ${massText(points[lastDetected])}; ${cause}.`;
  }
  return `At this position and exposure, for this noise realisation, the model finds the ${perturber} from ${massText(points[lastMissed + 1])} upwards.`;
}

/** Return the sweep as a card: sentence, chart, table. */
export function sweepCard(points, kind, model) {
  const rows = points.map(({ mass, p, delta, detected }) => [
    digits(mass, 2),
    probability(p),
    delta === null ? "–" : signed(delta, 0),
    detected ? "yes" : "no",
  ]);
  return make(
    "section",
    { class: "card sweep", "aria-label": "Sweep in mass" },
    make("h3", { text: "Smallest mass that the model finds" }),
    make("p", { class: "comparison", text: sweepSentence(points, kind) }),
    make(
      "div",
      { class: "sweep-body" },
      chart(points, `p(${kind}) of ${model} as a function of mass. Filled circles: found.`),
      table(`Masses, classified by ${model}`, ["mass, M☉", `p(${kind})`, "Δχ²", "found"], rows),
    ),
  );
}

function chart(points, caption) {
  const [low, high] = [points[0].mass, points[points.length - 1].mass].map(Math.log10);
  const toX = (mass) => BOX.left + ((Math.log10(mass) - low) / (high - low)) * (BOX.width - BOX.left - BOX.right);
  const toY = (p) => BOX.top + (1 - p) * (BOX.height - BOX.top - BOX.bottom);
  const picture = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": caption });
  for (const p of [0, 0.5, 1]) {
    picture.append(
      svg("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: toY(p), y2: toY(p) }),
      svg("text", { x: BOX.left - 8, y: toY(p) + 4, "text-anchor": "end" }, String(p)),
    );
  }
  for (let power = Math.ceil(low - 1e-6); power <= high + 1e-6; power++) {
    const label = digits(10 ** power, 1).replace("1 × ", "");
    picture.append(svg("text", { x: toX(10 ** power), y: BOX.height - BOX.bottom + 18, "text-anchor": "middle" }, label));
  }
  picture.append(svg("text", { class: "axis", x: (BOX.left + BOX.width) / 2, y: BOX.height - 5, "text-anchor": "middle" }, "mass, M☉"));
  picture.append(svg("polyline", { points: points.map(({ mass, p }) => `${toX(mass)},${toY(p)}`).join(" ") }));
  for (const { mass, p, detected } of points) {
    picture.append(svg("circle", { class: detected ? "detected" : "", cx: toX(mass), cy: toY(p), r: 5 }));
  }
  return make("figure", { class: "chart" }, picture, make("figcaption", { class: "hint", text: caption }));
}

function svg(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
