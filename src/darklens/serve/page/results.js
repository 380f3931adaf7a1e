/** One model's result for one image, as elements. */

import { make, table } from "./dom.js";
import { MapView, unpack } from "./maps.js";
import { digits, probability, withError } from "./numbers.js";
import * as words from "./words.js";

const ORDER = [
  "image", "smooth", "residual", "evidence_point", "evidence_line", "residual_points", "residual_line",
  "source", "k", "kappa", "deflection_x", "deflection_y",
];
const MARKED = /^(image|residual)$|^evidence/;
const NAMES = { theta_E: "Einstein radius θ_E", gamma1: "shear γ₁", gamma2: "shear γ₂", source_x: "source x", source_y: "source y", centre_x: "lens x", centre_y: "lens y" };

/** Return the maps of a result, unpacked and in the order in which they are shown. */
export function mapsOf(result) {
  const given = Object.entries(result?.maps ?? {});
  const rank = ([name]) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return Object.fromEntries(given.sort((a, b) => rank(a) - rank(b)).map(([name, map]) => [name, unpack(map)]));
}

/** Return what is said of an image: verdict, probabilities, familiarity, what is seen. */
export function summary(model, result, truth) {
  if (result.status !== "ok") {
    return make("section", { class: "card summary error" }, heading(model), make("p", { class: "message", text: result.message }));
  }
  const { tone, headline, text } = words.verdict(result);
  const told = truth ? words.seenOfMade(result, truth) : words.seen(result);
  const notes = [words.familiarity(result), result.fit?.message ?? unsettled(result)];
  return make(
    "section",
    { class: `card summary ${tone}`, "aria-label": `Result of ${model}` },
    heading(model),
    make("p", { class: "headline", text: headline }),
    make("p", { text }),
    bars(result),
    told ? make("p", { class: "seen", text: told }) : null,
    ...[words.suggestion(result), ...notes].filter(Boolean).map((line) => make("p", { class: "note", text: line })),
    changesOf(result),
  );
}

function changesOf(result) {
  const changes = result.changes?.length ? result.changes : ["Nothing: the image was taken as it is."];
  const list = make("ul", {}, ...changes.map((change) => make("li", { text: change })));
  return make("div", { class: "changes" }, make("h4", { text: "What was done to the image" }), list);
}

const heading = (model) => make("h3", { class: "model", text: model });

const unsettled = (result) =>
  result.fit && !result.fit.converged ? "The fit did not settle; take its numbers with care." : null;

function bars(result) {
  const rows = Object.entries(result.probabilities).map(([name, p]) => {
    const member = (result.set ?? []).includes(name);
    const fill = make("span", { class: `fill class-${name}` });
    fill.style.width = `${100 * p}%`;
    return make(
      "li",
      {},
      make("span", { class: "class-name", text: words.classText(name) }),
      make("span", { class: "bar", "aria-hidden": "true" }, fill),
      make("span", { class: "number", text: probability(p) }),
      make("span", { class: member ? "member in" : "member", text: result.coverage ? (member ? "in the set" : "not in the set") : "" }),
    );
  });
  return make("ul", { class: "bars", "aria-label": "Probabilities of the classes" }, ...rows);
}

/** Return the maps as views, and what the marks on them mean. */
export function figures(model, result, maps, { ranges, probe, stretch, truth, named }) {
  const marks = marksOf(result, truth);
  const views = Object.entries(maps).map(
    ([name, map]) => new MapView(name, map, { range: ranges[name], marks: MARKED.test(name) ? marks : [], probe, stretch, model: named ? model : null }),
  );
  const legend = marks.length ? make("p", { class: "legend", text: legendOf(marks) }) : null;
  return { views, legend };
}

function marksOf(result, truth) {
  const found = words.suggestion(result) ? [{ ...result.suggestion, role: "suggested" }] : [];
  if (!truth || truth.class === "no") return found;
  const kind = truth.class === "vort" ? "line" : "point";
  return [...found, { kind, x: truth.x, y: truth.y, length: truth.length, angle: truth.angle, role: "true" }];
}

function legendOf(marks) {
  const signs = { "suggested point": "○ suggested point mass", "suggested line": "— suggested line", "true point": "× true clump", "true line": "- - true line" };
  const made = marks.some(({ role }) => role === "true");
  const meaning = `On the maps: ${marks.map((m) => signs[`${m.role} ${m.kind}`]).join(", ")}.`;
  return made ? `${meaning} Click into the image to move it.` : meaning;
}

/** Return tables of what was fitted, or null. */
export function details(result) {
  if (result.status !== "ok" || !(result.fit || result.hypotheses)) return null;
  const parameters = Object.entries(result.fit?.parameters ?? {}).map(([name, p]) => [
    NAMES[name] ?? name.replaceAll("_", " "),
    withError(p.value, p.error),
    words.tableUnit(p.unit),
  ]);
  const compared = words.hypotheses(result);
  const chi2 = Number.isFinite(result.fit?.chi2_per_pixel)
    ? make("p", { class: "note", text: `χ² per pixel of the smooth fit: ${digits(result.fit.chi2_per_pixel, 3)}, near 1 where a smooth lens is all there is.` })
    : null;
  return make(
    "div",
    { class: "card details" },
    parameters.length ? table("Fitted lens, value ± standard error", ["parameter", "value", "unit"], parameters) : null,
    compared.length ? table("Explanations compared", ["explanation", "χ²", "better than smooth by"], compared) : null,
    chi2,
  );
}
