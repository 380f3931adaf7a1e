/** Sentences about a result: pure functions of the server's response. */

import { digits, probability, signed } from "./numbers.js";

export const CLASSES = {
  no: { name: "no substructure", meaning: "a smooth halo" },
  sphere: { name: "subhaloes", meaning: "subhaloes of cold dark matter" },
  vort: { name: "vortex", meaning: "an axion vortex (line mass)" },
};

const HYPOTHESES = { no: "smooth lens", sphere: "with point masses", vort: "with a line" };

// Decrease in chi2 by three points, or by a line, that 1 in 100 lenses of common-test-i without substructure exceeds:
// results/common-test-i/hypotheses/chance.json.
export const CHANCE_DELTA_CHI2 = { sphere: 31, vort: 18 };

const CAPTIONS = {
  image: "The image that the model received.",
  residual_perturber: "Only noise if the perturber explains the image.",
  gain: "By how much a perturber here would lower χ², to first order. Empty far from the arcs.",
  detectable: "The mass that would be detected here. Empty far from the arcs.",
  smooth: "Best fit without a perturber.",
  residual: "Structure that a smooth lens cannot explain.",
  evidence_point: "Red: a point mass here improves the fit. Blue: only a negative mass would.",
  evidence_line: "Best of several lengths and directions, on a coarse grid.",
  residual_points: "Only noise if point masses explain the image.",
  residual_line: "Only noise if a line explains the image.",
  kappa: "Surface density in units of the critical density.",
  deflection_x: "Positive to the right.",
  deflection_y: "Positive upwards.",
  k: "The map k(x, y) that the network predicts.",
  source: "Light traced back to the source plane.",
};

/** Return one sentence on a map. */
export const captionOf = (name) => CAPTIONS[name] ?? "";

/** Return a class and its name in words. */
export const classText = (name) => (CLASSES[name] ? `${name} · ${CLASSES[name].name}` : name);

const joined = (names) =>
  names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} or ${names[names.length - 1]}`;

/** Return headline, explanation and tone (`certain`, `uncertain`, `ood`) of a result. */
export function verdict(result) {
  const p = result.probabilities[result.predicted];
  const percent = result.coverage ? Math.round(100 * result.coverage) : null;
  const best = `The most probable class is ${result.predicted}, with probability ${probability(p)}`;
  if (result.ood?.unfamiliar) {
    return {
      tone: "ood",
      headline: "Don't know: out of distribution",
      text: `The model was not trained on images like this one. ${best}, but such a probability is not reliable.`,
    };
  }
  if (result.verdict === "unknown") {
    return {
      tone: "uncertain",
      headline: "Don't know: the model does not describe this image",
      text: `Reasons: ${result.reasons.join("; ")}. ${best}, widened for these reasons.`,
    };
  }
  if (result.dont_know) {
    const n = result.set.length;
    return {
      tone: "uncertain",
      headline: n ? `Don't know: ${joined(result.set)}` : "Don't know: empty prediction set",
      text: `The ${percent} % prediction set ${n ? `contains ${n} classes` : "is empty"}. ${best}.`,
    };
  }
  const known = CLASSES[result.predicted];
  const headline = known ? `${result.predicted}: ${known.meaning}` : result.predicted;
  const set =
    percent === null
      ? "This model is not calibrated and has no prediction set."
      : `The ${percent} % prediction set contains no other class.`;
  return { tone: "certain", headline, text: `Probability ${probability(p)}. ${set}` };
}

/** Return a sentence on the model that classified the image in place of the requested one, or null. */
export function fallback(result) {
  if (!result.fallback) return null;
  return `Classified by ${result.fallback}, which assumes less, because: ${result.fallback_reasons.join("; ")}.`;
}

/** Return a sentence on the out-of-distribution score, or null if the model has none. */
export function outOfDistribution(result) {
  const ood = result.ood;
  if (!ood) return null;
  const scores = `score ${digits(ood.score, 3)}, threshold ${digits(ood.threshold, 3)}`;
  return ood.unfamiliar
    ? `Out of distribution (${scores}). 99 % of held-out images of the training population lie below the threshold.`
    : `Within the training distribution (${scores}).`;
}

/** Return rows [hypothesis, chi2, decrease of chi2 relative to the smooth lens] of the fits. */
export function hypothesisRows(result) {
  const chi2 = result.hypotheses;
  if (!chi2) return [];
  return Object.entries(chi2).map(([name, value]) => [
    HYPOTHESES[name] ?? name,
    digits(value, 5),
    name === "no" ? "–" : signed(chi2.no - value, 1),
  ]);
}

/** Return the decrease of chi2 relative to the smooth lens under the hypothesis of a class, or null. */
export function deltaChi2(result, name) {
  const chi2 = result.hypotheses;
  return chi2 && Number.isFinite(chi2.no) && Number.isFinite(chi2[name]) ? chi2.no - chi2[name] : null;
}

const PERTURBERS = { sphere: "Point masses lower", vort: "A line lowers" };

function comparedWithChance(name, delta) {
  const relation = delta > CHANCE_DELTA_CHI2[name] ? "more" : "less";
  return (
    `${PERTURBERS[name]} χ² of the fit by ${signed(delta, 0)}, ${relation} than the ${CHANCE_DELTA_CHI2[name]} ` +
    "that 1 in 100 smooth lenses reaches by chance"
  );
}

/** Return a sentence on the perturber that improves the fit most, or null. */
export function fitComparison(result) {
  const deltas = ["sphere", "vort"]
    .map((name) => ({ name, delta: deltaChi2(result, name) }))
    .filter(({ delta }) => delta !== null);
  if (!deltas.length) return null;
  if (result.ood?.unfamiliar || result.fit?.converged === false) {
    return "The fitted lens does not describe this image, so its χ² is not compared.";
  }
  const best = deltas.reduce((a, b) => (b.delta > a.delta ? b : a));
  if (best.delta <= 0) return "Neither point masses nor a line improve the fit of the smooth lens.";
  return `${comparedWithChance(best.name, best.delta)}.`;
}

/** Return whether the model predicts this class with certainty. */
export const isDetected = (result, kind) => result.predicted === kind && !result.dont_know && !result.ood?.unfamiliar;

/** Return a sentence on whether the model finds the perturber of a simulated lens. */
export function detection(result, truth) {
  const kind = truth.class;
  if (kind === "no") {
    const agreement = result.predicted === "no" ? "and the model agrees" : `but the model predicts ${result.predicted}`;
    const comparison = fitComparison(result);
    return `The lens is smooth, ${agreement}.${comparison ? ` ${comparison}` : ""}`;
  }
  const delta = deltaChi2(result, kind);
  const detected = isDetected(result, kind);
  const p = probability(result.probabilities[kind]);
  const outcome = result.ood?.unfamiliar
    ? "the image is out of distribution"
    : `the model ${detected ? "finds" : "does not find"} the perturber (p(${kind}) ${/^[<>]/.test(p) ? p : `= ${p}`})`;
  if (delta === null) return `${outcome[0].toUpperCase()}${outcome.slice(1)}.`;
  const conjunction = delta > CHANCE_DELTA_CHI2[kind] === detected ? "and" : "but";
  return `${comparedWithChance(kind, delta)}, ${conjunction} ${outcome}.`;
}

/** Return a sentence on the suggested perturber, or null; out-of-distribution images get none. */
export function suggestion(result) {
  const s = result.suggestion;
  if (!s || result.ood?.unfamiliar) return null;
  const squared = Number.isFinite(s.theta_E_squared) ? `, θ_E² = ${digits(s.theta_E_squared, 3)} arcsec²` : "";
  const mass = Number.isFinite(s.mass) ? `, mass ${digits(s.mass, 3)} ${unit(s.units?.mass)}` : squared;
  const position = `(${signed(s.x, 2)}″, ${signed(s.y, 2)}″)`;
  return s.kind === "line"
    ? `Suggested perturber: line centred at ${position}, ${digits(s.length, 3)}″ long, ${digits(s.angle, 3)}° from the x axis${mass}.`
    : `Suggested perturber: point mass at ${position}${mass}.`;
}

/** Return a unit as it is printed. */
export function unit(name) {
  if (!name) return "";
  return { "M_sun": "M☉", "arcsec^2": "arcsec²", "arcsec": "″", "deg": "°", "degrees": "°", "standard deviations": "σ", "log10 M_sun": "log₁₀ M☉" }[name] ?? name;
}

/** Return a unit as it is printed in a table. */
export const tableUnit = (name) => (["arcsec", "arcsec^2", "deg"].includes(name) ? name.replace("^2", "²") : unit(name));

/** Return the extremes of a map in words, for screen readers. */
export function mapText(map, extremes) {
  const position = ({ x, y }) => `x ${signed(x, 2)}, y ${signed(y, 2)} arcsec`;
  const u = map.unit ? ` ${map.unit}` : "";
  return (
    `${map.label}: from ${digits(extremes.low.value, 3)}${u} at ${position(extremes.low)}, ` +
    `to ${digits(extremes.high.value, 3)}${u} at ${position(extremes.high)}.`
  );
}
