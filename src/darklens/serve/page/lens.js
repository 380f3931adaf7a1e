/** The panel "Make a lens": sliders, and what they ask the server for. */

import { make } from "./dom.js";
import { digits, signed } from "./numbers.js";
import { CLASSES, unit } from "./words.js";

const GROUPS = [
  { title: "Substructure", names: ["mass", "x", "y", "length", "angle"] },
  { title: "Lens", names: ["theta_E", "gamma1", "gamma2", "q", "e1", "e2"] },
  { title: "Source", names: ["source_x", "source_y"] },
  { title: "Observation", names: ["exposure"] },
];
const WAIT = 120; // ms after the last movement
const SPOKEN = { "″": "arcsec", "°": "degrees", "M☉": "solar masses" };

/** Calls `changed(request)` once the sliders have rested, `sweep(request, low, high)` when all masses are to be tried. */
export class LensPanel {
  constructor(form, settings, { changed, sweep }) {
    this.changed = changed;
    this.sweep = sweep;
    this.sliders = new Map();
    this.seeds = settings.parameters.find((p) => p.name === "seed") ?? { min: 0, max: 9999, default: 0 };
    this.extra = { class: "sphere", seed: this.seeds.default };
    this.parameters = settings.parameters.filter((p) => !["seed", "class"].includes(p.name));
    const known = GROUPS.flatMap((g) => g.names);
    const others = { title: "More", names: this.parameters.map((p) => p.name).filter((n) => !known.includes(n)) };
    this.groups = [...GROUPS, others].map((g) => this.#group(g)).filter(Boolean);
    const again = make("button", { type: "button", text: "Another source and noise", on: { click: () => this.#reseed() } });
    const reset = make("button", { type: "button", text: "Reset", on: { click: () => this.set(this.defaults()) } });
    form.replaceChildren(this.#classes(), ...this.groups, make("div", { class: "buttons" }, again, reset));
    form.addEventListener("submit", (event) => event.preventDefault());
    this.#show();
  }

  /** Return the request that the sliders stand for. */
  request() {
    const values = [...this.sliders].filter(([, s]) => this.#applies(s)).map(([name, s]) => [name, s.value()]);
    return { ...this.extra, ...Object.fromEntries(values) };
  }

  /** Return the class and parameters that the panel starts with. */
  defaults() {
    return { class: "sphere", seed: this.seeds.default, ...Object.fromEntries(this.parameters.map((p) => [p.name, p.default])) };
  }

  /** Move the sliders to these values, and ask. */
  set(values) {
    for (const [name, value] of Object.entries(values)) {
      if (this.sliders.has(name)) this.sliders.get(name).set(value);
      else if (name in this.extra) this.extra[name] = value;
    }
    for (const radio of this.radios) radio.checked = radio.value === this.extra.class;
    this.#show();
    this.#soon(0);
  }

  /** Put the substructure there (arcsec), if there is any. */
  place({ x, y }) {
    if (this.extra.class !== "no") this.set({ x, y });
  }

  #applies(slider) {
    return !slider.classes || slider.classes.includes(this.extra.class);
  }

  #classes() {
    this.radios = Object.keys(CLASSES).map((name) =>
      make("input", { type: "radio", name: "class", value: name, checked: name === this.extra.class, on: { change: () => this.#choose(name) } }),
    );
    const labels = this.radios.map((radio) => make("label", { class: "choice" }, radio, ` ${CLASSES[radio.value].name}`));
    return make("fieldset", { class: "choices" }, make("legend", { text: "What is in the lens" }), ...labels);
  }

  #choose(name) {
    this.extra.class = name;
    this.#show();
    this.#soon(0);
  }

  #reseed() {
    this.extra.seed = this.extra.seed < this.seeds.max ? this.extra.seed + 1 : this.seeds.min;
    this.#soon(0);
  }

  #group({ title, names }) {
    const own = names.map((name) => this.parameters.find((p) => p.name === name)).filter(Boolean);
    if (!own.length) return null;
    const last = names.includes("mass") && own[0].name === "mass" ? this.#sweepButton(own[0]) : null;
    return make("fieldset", {}, make("legend", { text: title }), ...own.map((p) => this.#slider(p)), last);
  }

  #sweepButton({ min, max }) {
    const click = () => {
      clearTimeout(this.timer);
      this.sweep(this.request(), min, max);
    };
    return make("button", { type: "button", text: "Try all masses", on: { click } });
  }

  #slider(p) {
    const log = p.scale === "log";
    const [to, from] = log ? [Math.log10, (v) => 10 ** v] : [(v) => v, (v) => v];
    const decimals = Math.max(0, Math.ceil(-Math.log10(p.step) - 1e-9));
    const id = `slider-${p.name}`;
    const input = make("input", { type: "range", id, min: to(p.min), max: to(p.max), step: p.step, value: to(p.default) });
    const shown = make("output", { for: id });
    const value = () => Number(from(Number(input.value)).toPrecision(6));
    const tell = () => {
      const u = unit(p.unit);
      const text = log ? digits(value(), 3) : signed(value(), decimals);
      shown.textContent = /^[″°]$/.test(u) ? `${text}${u}` : `${text} ${u}`.trim();
      input.setAttribute("aria-valuetext", `${text} ${SPOKEN[u] ?? u}`.trim());
    };
    input.addEventListener("input", () => {
      tell();
      this.#soon(WAIT);
    });
    const row = make("div", { class: "slider" }, make("label", { for: id, text: p.label }), shown, input);
    tell();
    this.sliders.set(p.name, {
      row,
      classes: p.classes,
      value,
      set: (v) => {
        input.value = to(v);
        tell();
      },
    });
    return row;
  }

  #show() {
    for (const slider of this.sliders.values()) slider.row.hidden = !this.#applies(slider);
    for (const group of this.groups) group.hidden = [...group.querySelectorAll(".slider")].every((row) => row.hidden);
  }

  #soon(wait) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.changed(this.request()), wait);
  }
}
