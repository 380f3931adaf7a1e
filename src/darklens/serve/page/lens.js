/** The panel "Simulate a lens": sliders, and the request that they stand for. */

import { make } from "./dom.js";
import { digits, signed } from "./numbers.js";
import { CLASSES, unit } from "./words.js";

const GROUPS = [
  { title: "Perturber", names: ["mass", "x", "y", "length", "angle"] },
  { title: "Lens", names: ["theta_E", "gamma1", "gamma2", "q", "e1", "e2"] },
  { title: "Source", names: ["source_x", "source_y"] },
  { title: "Observation", names: ["exposure"] },
];
const DELAY = 120; // ms after the last movement of a slider
const SPOKEN_UNITS = { "″": "arcsec", "°": "degrees", "M☉": "solar masses" };

/** Calls `onChange(request)` after the sliders have stopped moving, `onSweep(request, low, high)` for a sweep in mass. */
export class LensPanel {
  constructor(form, settings, { onChange, onSweep }) {
    this.onChange = onChange;
    this.onSweep = onSweep;
    this.sliders = new Map();
    this.seeds = settings.parameters.find((p) => p.name === "seed") ?? { min: 0, max: 9999, default: 0 };
    this.choice = { class: "sphere", seed: this.seeds.default };
    this.parameters = settings.parameters.filter((p) => !["seed", "class"].includes(p.name));
    const known = GROUPS.flatMap((g) => g.names);
    const ungrouped = { title: "More", names: this.parameters.map((p) => p.name).filter((n) => !known.includes(n)) };
    this.groups = [...GROUPS, ungrouped].map((g) => this.#group(g)).filter(Boolean);
    const again = make("button", { type: "button", text: "New source and noise", on: { click: () => this.#reseed() } });
    const reset = make("button", { type: "button", text: "Reset", on: { click: () => this.set(this.defaults()) } });
    form.replaceChildren(this.#classes(), ...this.groups, make("div", { class: "buttons" }, again, reset));
    form.addEventListener("submit", (event) => event.preventDefault());
    this.#show();
  }

  /** Return the request that the sliders stand for. */
  request() {
    const values = [...this.sliders].filter(([, s]) => this.#applies(s)).map(([name, s]) => [name, s.value()]);
    return { ...this.choice, ...Object.fromEntries(values) };
  }

  /** Return the class and parameters that the panel starts with. */
  defaults() {
    return { class: "sphere", seed: this.seeds.default, ...Object.fromEntries(this.parameters.map((p) => [p.name, p.default])) };
  }

  /** Move the sliders to these values and request the lens. */
  set(values) {
    for (const [name, value] of Object.entries(values)) {
      if (this.sliders.has(name)) this.sliders.get(name).set(value);
      else if (name in this.choice) this.choice[name] = value;
    }
    for (const radio of this.radios) radio.checked = radio.value === this.choice.class;
    this.#show();
    this.#requestAfter(0);
  }

  /** Move the perturber, if there is one, to a position in arcsec. */
  moveTo({ x, y }) {
    if (this.choice.class !== "no") this.set({ x, y });
  }

  #applies(slider) {
    return !slider.classes || slider.classes.includes(this.choice.class);
  }

  #classes() {
    this.radios = Object.keys(CLASSES).map((name) =>
      make("input", { type: "radio", name: "class", value: name, checked: name === this.choice.class, on: { change: () => this.#choose(name) } }),
    );
    const labels = this.radios.map((radio) => make("label", { class: "choice" }, radio, ` ${CLASSES[radio.value].name}`));
    return make("fieldset", { class: "choices" }, make("legend", { text: "Substructure" }), ...labels);
  }

  #choose(name) {
    this.choice.class = name;
    this.#show();
    this.#requestAfter(0);
  }

  #reseed() {
    this.choice.seed = this.choice.seed < this.seeds.max ? this.choice.seed + 1 : this.seeds.min;
    this.#requestAfter(0);
  }

  #group({ title, names }) {
    const parameters = names.map((name) => this.parameters.find((p) => p.name === name)).filter(Boolean);
    if (!parameters.length) return null;
    const button = parameters[0].name === "mass" ? this.#sweepButton(parameters[0]) : null;
    return make("fieldset", {}, make("legend", { text: title }), ...parameters.map((p) => this.#slider(p)), button);
  }

  #sweepButton({ min, max }) {
    const click = () => {
      clearTimeout(this.timer);
      this.onSweep(this.request(), min, max);
    };
    return make("button", { type: "button", text: "Try all masses", on: { click } });
  }

  #slider(p) {
    const log = p.scale === "log";
    const [to, from] = log ? [Math.log10, (v) => 10 ** v] : [(v) => v, (v) => v];
    const decimals = Math.max(0, Math.ceil(-Math.log10(p.step) - 1e-9));
    const id = `slider-${p.name}`;
    const input = make("input", { type: "range", id, min: to(p.min), max: to(p.max), step: p.step, value: to(p.default) });
    const output = make("output", { for: id });
    const value = () => Number(from(Number(input.value)).toPrecision(6));
    const update = () => {
      const u = unit(p.unit);
      const text = log ? digits(value(), 3) : signed(value(), decimals);
      output.textContent = /^[″°]$/.test(u) ? `${text}${u}` : `${text} ${u}`.trim();
      input.setAttribute("aria-valuetext", `${text} ${SPOKEN_UNITS[u] ?? u}`.trim());
    };
    input.addEventListener("input", () => {
      update();
      this.#requestAfter(DELAY);
    });
    const row = make("div", { class: "slider" }, make("label", { for: id, text: p.label }), output, input);
    update();
    this.sliders.set(p.name, {
      row,
      classes: p.classes,
      value,
      set: (v) => {
        input.value = to(v);
        update();
      },
    });
    return row;
  }

  #show() {
    for (const slider of this.sliders.values()) slider.row.hidden = !this.#applies(slider);
    for (const group of this.groups) group.hidden = [...group.querySelectorAll(".slider")].every((row) => row.hidden);
  }

  #requestAfter(delay) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.onChange(this.request()), delay);
  }
}
