/** Formatting of numbers. */

const MINUS = "\u2212";

/** Return a number with `significant` digits and a typographic minus sign. */
export function digits(value, significant = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return powerOfTen(value, significant);
  const decimals = Math.max(0, significant - 1 - Math.floor(Math.log10(size)));
  return signed(value, decimals);
}

/** Return a number with `decimals` decimal places. */
export function signed(value, decimals) {
  const text = Math.abs(value).toFixed(decimals);
  return value < 0 && Number(text) !== 0 ? MINUS + text : text;
}

function powerOfTen(value, significant) {
  const [mantissa, exponent] = value.toExponential(Math.max(0, significant - 1)).split("e");
  const raised = [...String(Number(exponent))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)])).join("");
  return `${mantissa.replace("-", MINUS).replace(/\.?0+$/, "")} × 10${raised}`;
}

/** Return value ± error, both rounded to two significant digits of the error. */
export function withError(value, error) {
  if (!Number.isFinite(error) || error === null || error <= 0) return digits(value, 4);
  const decimals = Math.min(8, Math.max(0, 1 - Math.floor(Math.log10(error))));
  return `${signed(value, decimals)} ± ${error.toFixed(decimals)}`;
}

/** Return a probability; values that round to 0 or 1 become inequalities. */
export function probability(p) {
  if (p >= 0.9995) return "> 0.999";
  if (p < 0.0005) return "< 0.001";
  return p.toFixed(3);
}

/** Return about `count` round numbers between two values. */
export function ticks(low, high, count = 5) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * span; i++) values.push(i * step);
  return values;
}

/** Return tick labels, all with as many decimal places as the step needs. */
export function tickLabels(values) {
  if (values.length < 2) return values.map((v) => digits(v, 2));
  const step = Math.abs(values[1] - values[0]);
  const largest = Math.max(...values.map(Math.abs));
  if (largest >= 1e5 || largest < 1e-3) return values.map((v) => (v === 0 ? "0" : v.toExponential(0).replace("-", MINUS)));
  let decimals = Math.max(0, -Math.floor(Math.log10(step)));
  if (Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6) decimals += 1;
  return values.map((v) => signed(v, decimals));
}
