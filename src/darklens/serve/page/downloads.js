/** Downloads as JSON, CSV and PNG. */

import { PAPER, heightOf } from "./maps.js";
import { probability } from "./numbers.js";
import { unit, verdict } from "./words.js";

/** Return the responses for all images and models as JSON. */
export function toJson(items) {
  return JSON.stringify({ schema: 1, images: items.map(({ name, truth, results }) => ({ name, truth: truth ?? null, results })) }, null, 1);
}

/** Return a CSV table with one row per image and model, with the columns of predictions.csv. */
export function toCsv(items) {
  const rows = items.flatMap(({ name, results }) =>
    Object.entries(results).map(([model, result]) => rowOf(name, model, result)),
  );
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const last = ["message", "changes"].filter((column) => columns.includes(column));
  const header = [...columns.filter((column) => !last.includes(column)), ...last];
  return [header, ...rows.map((row) => header.map((column) => row[column] ?? ""))]
    .map((cells) => cells.map(quoted).join(","))
    .join("\n")
    .concat("\n");
}

function rowOf(path, model, result) {
  const row = { path, model, status: result.status, message: result.message ?? "" };
  if (result.status !== "ok") return row;
  if (result.row) return { ...row, ...result.row, changes: result.changes.join("; ") };
  Object.assign(row, { predicted: result.predicted, verdict: result.verdict ?? "" });
  row.reason = (result.reasons ?? []).join("; ");
  if (result.fallback) row.fallback = result.fallback;
  if (result.fallback) row.fallback_reason = result.fallback_reasons.join("; ");
  for (const [name, p] of Object.entries(result.probabilities)) row[`p_${name}`] = p;
  row.set = (result.set ?? []).join("|");
  if (result.ood) Object.assign(row, { ood_score: result.ood.score, ood: result.ood.unfamiliar ? "yes" : "no" });
  for (const [name, { value, error }] of Object.entries(result.fit?.parameters ?? {})) {
    Object.assign(row, { [name]: value, [`${name}_error`]: error ?? "" });
  }
  for (const [name, chi2] of Object.entries(result.hypotheses ?? {})) row[`chi2_${name}`] = chi2;
  row.changes = (result.changes ?? []).join("; ");
  return row;
}

// A cell that starts like a formula gets an apostrophe, because spreadsheets would evaluate it.
function quoted(cell) {
  const text = typeof cell === "string" && /^[=+@\t\r-]/.test(cell) ? `'${cell}` : String(cell);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Return a PNG image of all maps of an image, with one band per model, in the colours for print. */
export function toPng(name, columns) {
  const [width, gap, head, scale] = [320, 14, 66, 2];
  const across = 4;
  const bands = columns.filter(({ views }) => views.length);
  const rows = bands.map(({ views }) => Math.ceil(views.length / across));
  const row = heightOf(width) + 26;
  const size = [across * (width + gap) + gap, rows.reduce((sum, n) => sum + head + n * row, gap)];
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = size.map((v) => v * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = PAPER.ground;
  context.fillRect(0, 0, ...size);
  let top = gap;
  bands.forEach(({ model, result, views }, band) => {
    text(context, "600 17px system-ui, sans-serif", `${name} · ${model}`, gap, top + 18);
    text(context, "13px system-ui, sans-serif", result.summary ?? classText(result), gap, top + 40);
    views.forEach((view, i) => {
      const [x, y] = [gap + (i % across) * (width + gap), top + head + Math.floor(i / across) * row];
      text(context, "600 13px system-ui, sans-serif", view.map.label + (view.map.unit ? `, ${unit(view.map.unit)}` : ""), x + 4, y + 8);
      context.save();
      context.translate(x, y + 16);
      view.drawOn(context, width, PAPER);
      context.restore();
    });
    top += head + rows[band] * row;
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function classText(result) {
  const probabilities = Object.entries(result.probabilities).map(([c, p]) => `${c} ${probability(p)}`).join(", ");
  return `${verdict(result).headline} (${probabilities})`;
}

function text(context, font, content, x, y) {
  context.font = font;
  context.fillStyle = PAPER.ink;
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  context.fillText(content, x, y);
}
