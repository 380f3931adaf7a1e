/** The panel "Search a telescope image", and its result as elements. */

import { byId, make, table } from "./dom.js";
import { MapView } from "./maps.js";
import { digits, signed, withError } from "./numbers.js";

const FILE_FIELDS = ["image", "noise_map", "psf", "mask"];
const NUMBERS = ["pixel_scale", "z_lens", "z_source", "half_width", "psf_fwhm", "background_rms", "exposure"];
const ROLES = { noise_map: /noise|rms|err|sigma|var|wht|weight/i, psf: /psf/i, mask: /mask/i };

/** Calls `onSearch(files, options)` when the form is submitted. */
export class SearchPanel {
  constructor(form, choices, { onSearch }) {
    this.form = form;
    this.#fill("scene", choices.scenes, "epl-shear");
    this.#fill("perturber", choices.perturbers, "tnfw");
    byId("search-limits").textContent =
      `At most ${choices.max_pixels} pixels, such as ${Math.floor(Math.sqrt(choices.max_pixels))} × ${Math.floor(Math.sqrt(choices.max_pixels))}; ` +
      `cut out the lens, or give the half width. The time limit is ${digits(choices.timeout_s, 3)} s.`;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      onSearch(this.files(), this.options());
    });
  }

  /** Return the chosen files by field. */
  files() {
    const chosen = FILE_FIELDS.map((field) => [field, this.#input(field).files[0]]);
    return Object.fromEntries(chosen.filter(([, file]) => file));
  }

  /** Return the parameters of the request. */
  options() {
    const numbers = NUMBERS.map((name) => [name, this.#input(name).value]).filter(([, value]) => value !== "");
    const choices = ["scene", "perturber"].map((name) => [name, this.#input(name).value]);
    return { ...Object.fromEntries([...choices, ...numbers]), flip_rows: String(this.#input("flip_rows").checked) };
  }

  /** Take dropped files: noise map, PSF and mask by their names, any other one as the image. */
  take(files) {
    for (const file of files) {
      const field = Object.keys(ROLES).find((name) => ROLES[name].test(file.name)) ?? "image";
      const transfer = new DataTransfer();
      transfer.items.add(file);
      this.#input(field).files = transfer.files;
      if (field !== "image") byId("search-files").open = true;
    }
  }

  #input(name) {
    return byId(`search-${name}`);
  }

  #fill(name, choices, selected) {
    const select = this.#input(name);
    const hint = byId(`search-${name}-hint`);
    const describe = () => (hint.textContent = choices.find((choice) => choice.name === select.value)?.description ?? "");
    select.replaceChildren(...choices.map((choice) => make("option", { value: choice.name, text: choice.name, selected: choice.name === selected })));
    select.addEventListener("change", describe);
    describe();
  }
}

/** Return the summary of a search: sentence, numbers, what they rest on, changes to the files. */
export function searchSummary(label, result) {
  const heading = make("h3", { class: "model", text: label });
  if (result.status !== "ok") {
    return make("section", { class: "card summary error" }, heading, make("p", { class: "message", text: result.message }));
  }
  const tone = result.message ? "uncertain" : "certain";
  const changes = result.changes.length ? result.changes : ["None: the files were used as they are."];
  return make(
    "section",
    { class: `card summary ${tone}`, "aria-label": "Result of the search" },
    heading,
    make("p", { class: "headline", text: result.summary }),
    ...result.notes.map((note) => make("p", { class: "note", text: note })),
    make("div", { class: "changes" }, make("h4", { text: "Assumptions about the files" }), make("ul", {}, ...changes.map((text) => make("li", { text })))),
  );
}

/** Return the table of the numbers of a search, or null. */
export function searchDetails(result) {
  const row = result.row;
  if (!row) return null;
  const position = row.x === null ? "–" : `${signed(row.x, 2)}″, ${signed(row.y, 2)}″`;
  const lines = [
    ["Δχ²", `${digits(row.delta_chi2, 4)} (threshold ${digits(row.threshold, 3)})`],
    ["position x, y", position],
    ["log₁₀ mass, M☉", row.log10_mass === null ? "–" : withError(row.log10_mass, row.log10_mass_error)],
    ...(row.concentration === null ? [] : [["concentration c200", withError(row.concentration, row.concentration_error)]]),
    ["χ² per pixel without, with", `${digits(row.chi2_per_pixel_smooth, 4)}, ${digits(row.chi2_per_pixel, 4)}`],
    ["Einstein radius θ_E, arcsec", withError(row.theta_E, row.theta_E_error)],
    ["processor time, s", digits(row.seconds, 2)],
  ];
  return make("div", { class: "card details" }, table("Best-fitting perturber, value ± standard deviation", ["quantity", "value"], lines));
}

/** Return the maps of a search as views, and the legend of the mark of a detected perturber. */
export function searchFigures(result, maps, { ranges, probe, stretch }) {
  const { detected, x, y } = result.row ?? {};
  const marks = detected ? [{ kind: "point", x, y, role: "suggested" }] : [];
  const views = Object.entries(maps).map(([name, map]) => new MapView(name, map, { range: ranges[name], marks, probe, stretch, model: null }));
  const legend = marks.length ? make("p", { class: "legend", text: "On the maps: ○ detected perturber." }) : null;
  return { views, legend };
}
