/** What a result means, in sentences: pure functions of the server's answer. */

import { digits, probability, signed } from "./numbers.js";

export const CLASSES = {
  no: { name: "no substructure", what: "a smooth halo" },
  sphere: { name: "subhaloes", what: "clumps of cold dark matter" },
  vort: { name: "vortex", what: "a line-like defect, as of axions" },
};

const HYPOTHESES = { no: "smooth lens", sphere: "with point masses", vort: "with a line" };

// What a line, or three points, lower chi2 by in 1 of 100 lenses of common-test-i without substructure:
// results/common-test-i/hypotheses/chance.json.
export const CHANCE = { sphere: 31, vort: 18 };

const MAPS = {
  image: "As the model received it.",
  smooth: "The best one, without substructure.",
  residual: "Structure here is what a smooth lens cannot explain.",
  evidence_point: "Red: a mass there would better the fit. Blue: only a negative mass would.",
  evidence_line: "The best of several lengths and directions, on a coarse grid.",
  residual_points: "Noise alone, if points explain the image.",
  residual_line: "Noise alone, if a line explains the image.",
  kappa: "Surface density of the lens in units of the critical one.",
  deflection_x: "By how much light is bent, to the right.",
  deflection_y: "By how much light is bent, upwards.",
  k: "The map k(x, y) that the network made of the image.",
  source: "Light moved back to the source plane.",
};

/** Return what a map shows, in a sentence. */
export const captionOf = (name) => MAPS[name] ?? "";

/** Return a class with what it stands for. */
export const classText = (name) => (CLASSES[name] ? `${name} · ${CLASSES[name].name}` : name);

const listed = (names) =>
  names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} or ${names[names.length - 1]}`;

/** Return headline, explanation and tone (`sure`, `unsure`, `unfamiliar`) of a result. */
export function verdict(result) {
  const p = result.probabilities[result.predicted];
  const percent = result.coverage ? Math.round(100 * result.coverage) : null;
  const most = `${result.predicted}, probability ${probability(p)}`;
  if (result.ood?.unfamiliar) {
    return {
      tone: "unfamiliar",
      headline: "Don't know: this is unlike the training images",
      text: `The most probable class is ${most}, but the model has not seen such images, so that number promises nothing.`,
    };
  }
  if (result.dont_know) {
    const several = result.set.length > 1;
    return {
      tone: "unsure",
      headline: several ? `Don't know: ${listed(result.set)}` : "Don't know: no class is plausible",
      text: several
        ? `To hold the true class in ${percent} % of images like those it was calibrated on, the model has to name ${result.set.length} classes. The most probable is ${most}.`
        : `No class is plausible enough at ${percent} %. The most probable is ${most}.`,
    };
  }
  const name = CLASSES[result.predicted];
  const headline = name ? `${result.predicted}: ${name.what}` : result.predicted;
  const text =
    percent === null
      ? `Probability ${probability(p)}. This model has no calibrated sets, so it cannot say when it does not know.`
      : `Probability ${probability(p)}. Sets like this one hold the true class in ${percent} % of images like those the model was calibrated on.`;
  return { tone: "sure", headline, text };
}

/** Return the sentence on familiarity, or null where the model cannot tell. */
export function familiarity(result) {
  const ood = result.ood;
  if (!ood) return null;
  const numbers = `score ${digits(ood.score, 3)}, limit ${digits(ood.threshold, 3)}`;
  return ood.unfamiliar
    ? `Unfamiliar image (${numbers}): unlike 99 % of held-out images of the training population.`
    : `Familiar image (${numbers}).`;
}

/** Return rows [hypothesis, chi2, gain over the smooth lens] of the fits that were compared. */
export function hypotheses(result) {
  const all = result.hypotheses;
  if (!all) return [];
  return Object.entries(all).map(([name, chi2]) => [
    HYPOTHESES[name] ?? name,
    digits(chi2, 5),
    name === "no" ? "–" : signed(all.no - chi2, 1),
  ]);
}

/** Return by how much an explanation lowers chi2 of the smooth lens, or null. */
export function gain(result, name) {
  const all = result.hypotheses;
  return all && Number.isFinite(all.no) && Number.isFinite(all[name]) ? all.no - all[name] : null;
}

const CAUSES = { sphere: "point masses", vort: "a line" };

/** Return a sentence on what the fits see in a file's image, or null. */
export function seen(result) {
  const gains = ["sphere", "vort"].map((name) => ({ name, by: gain(result, name) })).filter(({ by }) => by !== null);
  if (!gains.length) return null;
  if (result.ood?.unfamiliar || result.fit?.converged === false) {
    return "No lens that was fitted is known to describe this image, so what the fits found says little.";
  }
  const best = gains.reduce((a, b) => (b.by > a.by ? b : a));
  if (best.by <= 0) return "Neither point masses nor a line explain the image better than a smooth lens.";
  const judged = best.by > CHANCE[best.name] ? "more than" : "no more than";
  const [first, ...others] = CAUSES[best.name];
  return (
    `${first.toUpperCase()}${others.join("")} would lower χ² of the smooth fit by ${signed(best.by, 0)}: ` +
    `${judged} the ${CHANCE[best.name]} that chance reaches in 1 of 100 smooth lenses.`
  );
}

/** Return whether the model answers with this class and stands by it. */
export const foundIn = (result, kind) => result.predicted === kind && !result.dont_know && !result.ood?.unfamiliar;

/** Return a sentence on whether what was put into a made lens shows. */
export function seenOfMade(result, truth) {
  const kind = truth.class;
  if (kind === "no") {
    const told = result.predicted === "no" ? "and the model says so" : `but the model says ${result.predicted}`;
    const found = seen(result);
    return `There is nothing but the smooth lens, ${told}.${found ? ` ${found}` : ""}`;
  }
  const thing = kind === "vort" ? "The line" : "The clump";
  const by = gain(result, kind);
  const right = foundIn(result, kind);
  const judged = right
    ? `the model finds it (${kind} ${probability(result.probabilities[kind])})`
    : result.ood?.unfamiliar
      ? "the model does not know such images"
      : `the model does not find it (${kind} ${probability(result.probabilities[kind])})`;
  if (by === null) return `${thing} is there, and ${judged}.`;
  const over = by > CHANCE[kind];
  const measured = `${thing} raises χ² of the smooth fit by ${signed(by, 0)}, ${over ? "beyond" : "within"} the ${CHANCE[kind]} that chance reaches in 1 of 100 smooth lenses`;
  return over === right ? `${measured}, and ${judged}.` : `${measured}, but ${judged}.`;
}

/** Return a sentence on the suggested substructure, or null; unfamiliar images get none. */
export function suggestion(result) {
  const s = result.suggestion;
  if (!s || result.ood?.unfamiliar) return null;
  const squared = Number.isFinite(s.theta_E_squared) ? `, mass ${digits(s.theta_E_squared, 3)} arcsec² (θ_E²)` : "";
  const mass = Number.isFinite(s.mass) ? `, mass ${digits(s.mass, 3)} ${unit(s.units?.mass)}` : squared;
  const at = `(${signed(s.x, 2)}″, ${signed(s.y, 2)}″)`;
  return s.kind === "line"
    ? `Suggested: a line through ${at}, ${digits(s.length, 3)}″ long, at ${digits(s.angle, 3)}°${mass}.`
    : `Suggested: a point mass at ${at}${mass}.`;
}

/** Return a unit as it is printed. */
export function unit(name) {
  if (!name) return "";
  return { "M_sun": "M☉", "arcsec^2": "arcsec²", "arcsec": "″", "deg": "°", "degrees": "°", "standard deviations": "σ" }[name] ?? name;
}

/** Return a unit as it stands in a table. */
export const tableUnit = (name) => (["arcsec", "arcsec^2", "deg"].includes(name) ? name.replace("^2", "²") : unit(name));

/** Return what is to be read off a map by those who do not see it. */
export function mapText(map, extremes) {
  const where = ({ x, y }) => `x ${signed(x, 2)}, y ${signed(y, 2)} arcsec`;
  const u = map.unit ? ` ${map.unit}` : "";
  return (
    `${map.label}: from ${digits(extremes.low.value, 3)}${u} at ${where(extremes.low)}, ` +
    `to ${digits(extremes.high.value, 3)}${u} at ${where(extremes.high)}.`
  );
}
