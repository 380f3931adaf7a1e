/** Perceptually uniform colour maps, and brightness scales. */

// Seventeen colours of matplotlib's magma and viridis (CC0), interpolated linearly: within 5 of 255.
const STOPS = {
  magma:
    "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf",
  viridis:
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
};
const LEVELS = 256;

/** Return 256 colours of three bytes each. */
export function colourMap(name) {
  return (CACHE[name] ??= name === "diverging" ? diverging() : interpolated(STOPS[name]));
}

const CACHE = {};

function interpolated(text) {
  const stops = text.split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const table = new Uint8ClampedArray(3 * LEVELS);
  for (let i = 0; i < LEVELS; i++) {
    const position = (i / (LEVELS - 1)) * (stops.length - 1);
    const low = Math.min(Math.floor(position), stops.length - 2);
    for (let c = 0; c < 3; c++) {
      table[3 * i + c] = stops[low][c] + (position - low) * (stops[low + 1][c] - stops[low][c]);
    }
  }
  return table;
}

/** Blue through near-white to red: lightness and chroma change linearly on both sides in Oklab (Ottosson 2020). */
function diverging() {
  const table = new Uint8ClampedArray(3 * LEVELS);
  for (let i = 0; i < LEVELS; i++) {
    const side = (2 * i) / (LEVELS - 1) - 1;
    const strength = Math.abs(side);
    const hue = ((side < 0 ? 255 : 32) * Math.PI) / 180;
    const chroma = 0.15 * Math.min(1, 1.6 * strength) * (1 - 0.25 * Math.max(0, strength - 0.6));
    table.set(fromOklab(0.97 - 0.6 * strength, chroma * Math.cos(hue), chroma * Math.sin(hue)), 3 * i);
  }
  return table;
}

function fromOklab(L, a, b) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((v) => {
    const clipped = Math.min(1, Math.max(0, v));
    return 255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055);
  });
}

/** Brightness scales: functions of a brightness in [0, 1]. */
export const STRETCHES = {
  linear: { label: "linear", of: (v) => v },
  root: { label: "square root", of: (v) => Math.sqrt(v) },
  asinh: { label: "asinh (shows faint light)", of: (v) => Math.asinh(30 * v) / Math.asinh(30) },
};
