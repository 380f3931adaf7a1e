/** The page: what is chosen, what is asked, what is shown. */

import * as api from "./api.js";
import { STRETCHES } from "./colours.js";
import { byId, make, save, table } from "./dom.js";
import { toCsv, toJson, toPng } from "./downloads.js";
import { LensPanel } from "./lens.js";
import { Probe, rangesOf } from "./maps.js";
import { digits, probability } from "./numbers.js";
import { details, figures, mapsOf, summary } from "./results.js";
import { massesBetween, pointOf, sweepCard, told } from "./sweep.js";
import * as words from "./words.js";

/** An image: a file or a lens that was made, with a result for each model that has seen it. */
const state = {
  models: [],
  limits: null,
  mode: "files",
  files: [],
  lens: [],
  chosen: 0,
  stretch: "root",
  probe: new Probe(),
  columns: [],
  running: null,
  panel: null,
  sweep: null,
};

const items = () => state[state.mode];
const current = () => items()[state.mode === "files" ? state.chosen : 0];
const chosenModels = () => [...new Set([byId("model").value, byId("second").value])].filter(Boolean);

// ---------------------------------------------------------------- asking

/** Run `work(signal)` in place of what was running: the newest wishes win. */
async function run(work) {
  state.running?.abort();
  const own = new AbortController();
  state.running = own;
  byId("results").setAttribute("aria-busy", "true");
  alertOf("");
  try {
    await work(own.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof api.ServerError)) throw error;
    if (error.code === 401) byId("token-field").hidden = false;
    alertOf(error.message);
  } finally {
    if (state.running === own) {
      state.running = null;
      byId("results").setAttribute("aria-busy", "false");
      progress("");
    }
  }
}

/** Classify what has not been classified by the chosen models yet. */
function classify() {
  return run(async (signal) => {
    for (const model of chosenModels()) await classifyWith(model, signal);
    render();
    await withMaps(current(), signal);
    announceAll();
  });
}

async function classifyWith(model, signal) {
  if (state.mode === "lens") {
    for (const item of state.lens.filter(({ results }) => !results[model])) {
      const answer = await api.simulate({ ...item.request, model }, signal);
      Object.assign(item, { truth: answer.truth });
      item.results[model] = answer.images[0];
    }
    return;
  }
  const left = state.files.filter(({ results }) => !results[model]);
  const byFile = new Map(left.map((item) => [item.file, item]));
  const heavy = left.filter(({ file }) => file.size > state.limits.max_bytes);
  for (const item of heavy) item.results[model] = refused(tooLarge(item.file));
  const sent = left.filter((item) => !heavy.includes(item)).map(({ file }) => file);
  let done = 0;
  for (const group of api.inGroups(sent, state.limits)) {
    if (sent.length > 1) progress(`${done} of ${sent.length} files`);
    try {
      const maps = state.files.length === 1;
      const answer = await api.predict(model, group, { maps, pixelScale: pixelScale(), signal });
      group.forEach((file, i) => {
        const item = byFile.get(file);
        item.results[model] = answer.images[i];
        if (maps) item.asked.add(model);
      });
    } catch (error) {
      if (!(error instanceof api.ServerError) || error.code === 401 || error.code === 0) throw error;
      for (const file of group) byFile.get(file).results[model] = refused(error.message);
    }
    done += group.length;
    if (sent.length > 1) render();
  }
}

/** Fetch the maps of an image of a batch once it is looked at. */
async function withMaps(item, signal) {
  if (!item?.file) return;
  const missing = chosenModels().filter((m) => item.results[m]?.status === "ok" && !item.results[m].maps && !item.asked.has(m));
  for (const model of missing) {
    const answer = await api.predict(model, [item.file], { maps: true, pixelScale: pixelScale(), signal });
    item.asked.add(model);
    item.results[model] = answer.images[0];
  }
  if (missing.length) render();
}

const refused = (message) => ({ status: "error", message });

const megabytes = (bytes) => `${digits(bytes / 1e6, 3)} MB`;

const tooLarge = (file) =>
  `${file.name} has ${megabytes(file.size)}, this server takes ${megabytes(state.limits.max_bytes)}; cut the lens out of it.`;

function pixelScale() {
  const given = Number(byId("scale").value);
  return given > 0 ? given : null;
}

// ---------------------------------------------------------------- choosing

function takeFiles(given) {
  const files = [...given];
  if (!files.length || !state.models.length) return;
  select("files");
  Object.assign(state, { files: files.map((file) => ({ name: file.name, file, results: {}, asked: new Set() })), chosen: 0 });
  classify();
}

function takeExample(example) {
  select("lens", { ask: false });
  state.panel.set({ ...state.panel.defaults(), ...example.parameters });
  byId("results").focus({ preventScroll: true });
}

function makeLens(request) {
  if (state.mode !== "lens") return;
  run(async (signal) => {
    const item = { name: "made lens", request, results: {} };
    for (const model of chosenModels()) {
      const answer = await api.simulate({ ...request, model }, signal);
      item.truth = answer.truth;
      item.results[model] = answer.images[0];
    }
    Object.assign(state, { lens: [item], sweep: null });
    render();
    announceAll();
  });
}

/** Make the same lens with one mass after the other, and show from which on it is found. */
function sweep(request, low, high) {
  const [model] = chosenModels();
  run(async (signal) => {
    const points = [];
    const masses = massesBetween(low, high);
    for (const mass of masses) {
      progress(`${points.length} of ${masses.length} masses`);
      const answer = await api.simulate({ ...request, mass, model }, signal);
      points.push(pointOf(request.class, mass, answer.images[0]));
    }
    state.sweep = { points, kind: request.class, model };
    render();
    announce(told(points, request.class));
  });
}

function select(mode, { ask = true, focus = false } = {}) {
  const changed = state.mode !== mode;
  state.mode = mode;
  for (const name of ["files", "lens"]) {
    const tab = byId(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === mode));
    tab.tabIndex = name === mode ? 0 : -1;
    byId(`panel-${name}`).hidden = name !== mode;
    if (focus && name === mode) tab.focus();
  }
  if (!changed) return;
  render();
  if (mode === "lens" && ask && !state.lens.length && state.panel) makeLens(state.panel.request());
}

// ---------------------------------------------------------------- showing

function render() {
  for (const { views } of state.columns) views.forEach((view) => view.close());
  state.columns = [];
  const item = current();
  byId("empty").hidden = Boolean(item);
  byId("batch").replaceChildren(...(state.mode === "files" && state.files.length > 1 ? [batchTable()] : []));
  const swept = state.mode === "lens" ? state.sweep : null;
  byId("sweep").replaceChildren(...(swept ? [sweepCard(swept.points, swept.kind, swept.model)] : []));
  const models = item ? chosenModels().filter((model) => item.results[model]) : [];
  const maps = models.map((model) => mapsOf(item.results[model]));
  const ranges = rangesOf(maps);
  const options = { ranges, probe: state.probe, stretch: state.stretch, truth: item?.truth, named: models.length > 1 };
  const drawn = models.map((model, i) => figures(model, item.results[model], maps[i], options));
  state.columns = models.map((model, i) => ({ model, result: item.results[model], views: drawn[i].views }));
  const told = models.map((model) =>
    make(
      "article",
      { class: "told", "aria-label": `${item.name}, ${model}` },
      ...[summary(model, item.results[model], item.truth), details(item.results[model])].filter(Boolean),
    ),
  );
  byId("shown").className = models.length > 1 ? "two" : "one";
  byId("shown").replaceChildren(
    ...(models.length ? [make("h3", { class: "image-name", text: item.name }), make("div", { class: "columns" }, ...told)] : []),
    ...mapsSection(models, drawn),
  );
  byId("toolbar").hidden = !models.length;
  byId("save-png").disabled = !state.columns.some(({ views }) => views.length);
  state.columns.forEach(({ views }) => views.forEach((view) => view.draw()));
  if (state.mode === "lens") state.columns.forEach(({ views }) => views.filter(({ name }) => name === "image").forEach(placeByClick));
  lensLine(item);
}

/** Let a click into the image move the substructure there; on a keyboard its sliders do. */
function placeByClick(view) {
  view.canvas.addEventListener("click", (event) => {
    const place = view.placeOf(event);
    if (place) state.panel.place(place);
  });
}

/** Return the maps: of one model in a row, of two models in pairs. */
function mapsSection(models, drawn) {
  const names = [...new Set(drawn.flatMap(({ views }) => views.map(({ name }) => name)))];
  if (!names.length) return [];
  const head = [make("h3", { text: "Maps" }), drawn.map(({ legend }) => legend).find(Boolean)].filter(Boolean);
  const of = (views, name) => views.find((view) => view.name === name)?.element;
  if (models.length === 1) return [...head, make("div", { class: "maps" }, ...names.map((name) => of(drawn[0].views, name)))];
  const without = (model) => make("p", { class: "missing", text: `${model} has no such map.` });
  const pair = (name) => drawn.map(({ views }, i) => of(views, name) ?? without(models[i]));
  return [...head, make("div", { class: "pairs" }, ...names.flatMap(pair))];
}

function lensLine(item) {
  if (state.mode !== "lens" || !item) return;
  const [first] = chosenModels();
  const result = item.results[first];
  if (result?.status === "ok") byId("lens-line").textContent = words.seenOfMade(result, item.truth);
}

function batchTable() {
  const [first] = chosenModels();
  const classes = state.models.find(({ name }) => name === first)?.classes ?? [];
  const rows = state.files.map((item, i) => {
    const result = item.results[first];
    const button = make("button", { type: "button", class: "link", text: item.name, "aria-current": i === state.chosen ? "true" : null, on: { click: () => choose(i) } });
    if (!result) return [button, "waiting", ...classes.map(() => ""), "", ""];
    if (result.status !== "ok") return [button, make("span", { class: "bad", text: result.message }), ...classes.map(() => ""), "", ""];
    const shown = result.ood?.unfamiliar || result.dont_know ? "don't know" : result.predicted;
    const odds = classes.map((name) => probability(result.probabilities[name]));
    return [button, shown, ...odds, (result.set ?? []).join(", "), result.ood ? (result.ood.unfamiliar ? "yes" : "no") : "–"];
  });
  const header = ["file", "answer", ...classes.map((name) => `p(${name})`), "set", "unfamiliar"];
  return table(`${state.files.length} files, judged by ${first}`, header, rows, "batch");
}

function choose(i) {
  state.chosen = i;
  render();
  byId("batch").querySelectorAll("button.link")[i]?.focus();
  run((signal) => withMaps(current(), signal));
}

function announceAll() {
  const item = current();
  const [first] = chosenModels();
  if (state.mode === "files" && state.files.length > 1) {
    const results = state.files.map(({ results: r }) => r[first]).filter(Boolean);
    const good = results.filter(({ status }) => status === "ok").length;
    announce(`${results.length} files: ${good} classified, ${results.length - good} could not be read.`);
  } else if (item?.results[first]) {
    const result = item.results[first];
    const told = result.status !== "ok" ? result.message : words.verdict(result).headline;
    announce([told, item.truth && result.status === "ok" ? words.seenOfMade(result, item.truth) : ""].join(". "));
  }
}

const announce = (text) => (byId("announce").textContent = text);

function alertOf(text) {
  byId("alert").textContent = text;
  byId("alert").hidden = !text;
}

function progress(text) {
  byId("progress").textContent = text;
  byId("progress").hidden = !text;
}

// ---------------------------------------------------------------- starting

function theme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").setAttribute("aria-pressed", String(name === "dark"));
  redraw();
}

const redraw = () => state.columns.forEach(({ views }) => views.forEach((view) => view.draw()));

function wireTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  let before = null;
  const follow = () => theme(chosen ?? (dark.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    follow();
  });
  dark.addEventListener("change", follow);
  window.addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    theme("light");
  });
  window.addEventListener("afterprint", () => theme(before));
  follow();
}

function wireTabs() {
  const tabs = [byId("tab-files"), byId("tab-lens")];
  tabs.forEach((tab) => {
    tab.addEventListener("click", () => select(tab.id.slice(4)));
    tab.addEventListener("keydown", ({ key }) => {
      if (["ArrowLeft", "ArrowRight", "Home", "End"].includes(key)) {
        const other = { Home: "files", End: "lens" }[key] ?? (state.mode === "files" ? "lens" : "files");
        select(other, { focus: true });
      }
    });
  });
}

function wireFiles() {
  byId("files").addEventListener("change", (event) => takeFiles(event.target.files));
  const drop = byId("drop");
  const over = (is) => drop.classList.toggle("over", is);
  for (const name of ["dragenter", "dragover"]) {
    window.addEventListener(name, (event) => {
      event.preventDefault();
      over(true);
    });
  }
  window.addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    takeFiles(event.dataTransfer.files);
  });
  byId("scale").addEventListener("change", () => {
    for (const item of state.files) Object.assign(item, { results: {}, asked: new Set() });
    if (state.files.length) classify();
  });
}

function wireDownloads() {
  const own = () => items().filter(({ results }) => Object.keys(results).length);
  const json = () => save(new Blob([toJson(own())], { type: "application/json" }), "darklens.json");
  const csv = () => save(new Blob([toCsv(own())], { type: "text/csv" }), "darklens.csv");
  const png = async () => save(await toPng(current().name, state.columns), "darklens.png");
  byId("save-json").addEventListener("click", json);
  byId("save-csv").addEventListener("click", csv);
  byId("save-png").addEventListener("click", png);
}

function wireChoices() {
  byId("stretch").append(...Object.entries(STRETCHES).map(([name, { label }]) => make("option", { value: name, text: label, selected: name === state.stretch })));
  byId("stretch").addEventListener("change", (event) => {
    state.stretch = event.target.value;
    render();
  });
  for (const id of ["model", "second"]) {
    byId(id).addEventListener("change", () => {
      describeModel();
      if (items().length) classify();
    });
  }
  byId("token").addEventListener("change", (event) => {
    api.setToken(event.target.value);
    run(state.models.length ? async () => classify() : load);
  });
}

function describeModel() {
  const model = state.models.find(({ name }) => name === byId("model").value);
  if (!model) return;
  const { height, width, pixel_scale: scale } = model.input;
  const auc = model.metrics?.val_auc ?? model.metrics?.auc;
  const judged = Number.isFinite(auc) ? ` Macro AUC ${auc > 0.99999 ? "> 0.99999" : auc.toFixed(5)} on its validation images.` : "";
  byId("card").textContent =
    `${model.recipe}, trained on ${model.population ?? "an unnamed population"}; takes ${height} × ${width} pixels of ${digits(scale, 2)}″ and ` +
    `changes others to that.${judged} Licence ${model.licence}.`;
}

async function load() {
  state.limits = await api.limits();
  byId("token-field").hidden = !state.limits.token_needed;
  byId("formats").textContent =
    `or drop them here: ${state.limits.formats.join(", ")}, up to ${megabytes(state.limits.max_bytes)} each. They go to this server alone, which does not keep them.`;
  const [known, settings] = await Promise.all([api.models(), api.sliders()]);
  state.models = known.models;
  const option = ({ name }) => make("option", { value: name, text: name });
  byId("model").replaceChildren(...known.models.map(option));
  byId("model").value = known.default;
  byId("second").replaceChildren(make("option", { value: "", text: "no other model" }), ...known.models.map(option));
  describeModel();
  state.panel = new LensPanel(byId("sliders"), settings, { changed: makeLens, sweep });
  const example = (given) => make("button", { type: "button", text: given.label, on: { click: () => takeExample(given) } });
  byId("examples").replaceChildren(...settings.examples.map(example));
}

wireTheme();
wireTabs();
wireFiles();
wireDownloads();
wireChoices();
run(load);
