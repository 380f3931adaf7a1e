/** One model's result for one image, as elements. */

import { make, table } from "./dom.js";
import { MapView, decode } from "./maps.js";
import { digits, probability, withError } from "./numbers.js";
import * as words from "./words.js";

const ORDER = [
  "image", "smooth", "residual", "residual_perturber", "gain", "detectable", "evidence_point", "evidence_line", "residual_points", "residual_line",
  "source", "k", "kappa", "deflection_x", "deflection_y",
];
const WITH_MARKS = /^(image|residual)$|^evidence/;
const PARAMETER_NAMES = { theta_E: "Einstein radius θ_E", gamma1: "shear γ₁", gamma2: "shear γ₂", source_x: "source position x", source_y: "source position y", centre_x: "lens centre x", centre_y: "lens centre y" };

/** Return the maps of a result, decoded and in display order. */
export function mapsOf(result) {
  const maps = Object.entries(result?.maps ?? {});
  const rank = ([name]) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return Object.fromEntries(maps.sort((a, b) => rank(a) - rank(b)).map(([name, map]) => [name, decode(map)]));
}

/** Return the summary of a result: class, probabilities, comparison of fits, perturber, changes to the image. */
export function summary(model, result, truth) {
  if (result.status !== "ok") {
    return make("section", { class: "card summary error" }, heading(model), make("p", { class: "message", text: result.message }));
  }
  const { tone, headline, text } = words.verdict(result);
  const comparison = truth ? words.detection(result, truth) : words.fitComparison(result);
  const notes = [words.fallback(result), words.outOfDistribution(result), result.fit?.message ?? convergence(result)];
  return make(
    "section",
    { class: `card summary ${tone}`, "aria-label": `Result of ${model}` },
    heading(model),
    make("p", { class: "headline", text: headline }),
    make("p", { text }),
    bars(result),
    comparison ? make("p", { class: "comparison", text: comparison }) : null,
    ...[words.suggestion(result), ...notes].filter(Boolean).map((line) => make("p", { class: "note", text: line })),
    changesOf(result),
  );
}

function changesOf(result) {
  const changes = result.changes?.length ? result.changes : ["None: the image was used as it is."];
  const list = make("ul", {}, ...changes.map((change) => make("li", { text: change })));
  return make("div", { class: "changes" }, make("h4", { text: "Changes to the image" }), list);
}

const heading = (model) => make("h3", { class: "model", text: model });

const convergence = (result) =>
  result.fit && !result.fit.converged ? "The fit did not converge; do not trust its parameters." : null;

function bars(result) {
  const rows = Object.entries(result.probabilities).map(([name, p]) => {
    const inSet = (result.set ?? []).includes(name);
    const fill = make("span", { class: `fill class-${name}` });
    fill.style.width = `${100 * p}%`;
    return make(
      "li",
      {},
      make("span", { class: "class-name", text: words.classText(name) }),
      make("span", { class: "bar", "aria-hidden": "true" }, fill),
      make("span", { class: "number", text: probability(p) }),
      make("span", { class: inSet ? "member in" : "member", text: result.coverage ? (inSet ? "in the set" : "not in the set") : "" }),
    );
  });
  return make("ul", { class: "bars", "aria-label": "Class probabilities" }, ...rows);
}

/** Return the maps as views, and the legend of their marks. */
export function figures(model, result, maps, { ranges, probe, stretch, truth, withModelName }) {
  const marks = marksOf(result, truth);
  const views = Object.entries(maps).map(
    ([name, map]) => new MapView(name, map, { range: ranges[name], marks: WITH_MARKS.test(name) ? marks : [], probe, stretch, model: withModelName ? model : null }),
  );
  const legend = marks.length ? make("p", { class: "legend", text: legendOf(marks) }) : null;
  return { views, legend };
}

function marksOf(result, truth) {
  const suggested = words.suggestion(result) ? [{ ...result.suggestion, role: "suggested" }] : [];
  if (!truth || truth.class === "no") return suggested;
  const kind = truth.class === "vort" ? "line" : "point";
  return [...suggested, { kind, x: truth.x, y: truth.y, length: truth.length, angle: truth.angle, role: "true" }];
}

function legendOf(marks) {
  const signs = { "suggested point": "○ suggested point mass", "suggested line": "— suggested line", "true point": "× true point mass", "true line": "- - true line" };
  const simulated = marks.some(({ role }) => role === "true");
  const legend = `On the maps: ${marks.map((m) => signs[`${m.role} ${m.kind}`]).join(", ")}.`;
  return simulated ? `${legend} Click on the image to move the perturber.` : legend;
}

/** Return tables of the fits, or null. */
export function details(result) {
  if (result.status !== "ok" || !(result.fit || result.hypotheses)) return null;
  const parameters = Object.entries(result.fit?.parameters ?? {}).map(([name, p]) => [
    PARAMETER_NAMES[name] ?? name.replaceAll("_", " "),
    withError(p.value, p.error),
    words.tableUnit(p.unit),
  ]);
  const hypotheses = words.hypothesisRows(result);
  const chi2 = Number.isFinite(result.fit?.chi2_per_pixel)
    ? make("p", { class: "note", text: `χ² per pixel of the smooth lens: ${digits(result.fit.chi2_per_pixel, 3)} (near 1 for a good fit).` })
    : null;
  return make(
    "div",
    { class: "card details" },
    parameters.length ? table("Fitted lens, value ± standard deviation", ["parameter", "value", "unit"], parameters) : null,
    hypotheses.length ? table("Fits compared", ["fit", "χ²", "Δχ²"], hypotheses) : null,
    chi2,
  );
}
