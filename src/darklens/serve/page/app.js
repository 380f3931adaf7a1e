/** The page: its state, its requests and its display. */

import * as api from "./api.js";
import { STRETCHES } from "./colours.js";
import { byId, make, save, table } from "./dom.js";
import { toCsv, toJson, toPng } from "./downloads.js";
import { LensPanel } from "./lens.js";
import { Probe, rangesOf } from "./maps.js";
import { digits, probability } from "./numbers.js";
import { details, figures, mapsOf, summary } from "./results.js";
import { SearchPanel, searchDetails, searchFigures, searchSummary } from "./search.js";
import { massGrid, sweepCard, sweepPoint, sweepSentence } from "./sweep.js";
import * as words from "./words.js";

const MODES = ["files", "lens", "search"];

/** An item of `files`, `lens` or `search` is an image, with the results by model, or by scene and perturber. */
const state = {
  models: [],
  limits: null,
  mode: "files",
  files: [],
  lens: [],
  search: [],
  selected: 0,
  stretch: "root",
  probe: new Probe(),
  columns: [],
  running: null,
  panel: null,
  searchPanel: null,
  sweep: null,
};

const items = () => state[state.mode];
const current = () => items()[state.mode === "files" ? state.selected : 0];
const selectedModels = () => [...new Set([byId("model").value, byId("second").value])].filter(Boolean);

// ---------------------------------------------------------------- requests

/** Run `work(signal)`, after aborting the work that is still running. */
async function run(work) {
  state.running?.abort();
  const controller = new AbortController();
  state.running = controller;
  byId("results").setAttribute("aria-busy", "true");
  alertOf("");
  try {
    await work(controller.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof api.ServerError)) throw error;
    if (error.code === 401) byId("token-field").hidden = false;
    alertOf(error.message);
  } finally {
    if (state.running === controller) {
      state.running = null;
      byId("results").setAttribute("aria-busy", "false");
      progress("");
    }
  }
}

/** Classify the images that the selected models have not classified yet. */
function classify() {
  return run(async (signal) => {
    for (const model of selectedModels()) await classifyWith(model, signal);
    render();
    await fetchMaps(current(), signal);
    announceAll();
  });
}

async function classifyWith(model, signal) {
  if (state.mode === "lens") {
    for (const item of state.lens.filter(({ results }) => !results[model])) {
      const response = await api.simulate({ ...item.request, model }, signal);
      Object.assign(item, { truth: response.truth });
      item.results[model] = response.images[0];
    }
    return;
  }
  const pending = state.files.filter(({ results }) => !results[model]);
  const byFile = new Map(pending.map((item) => [item.file, item]));
  const oversized = pending.filter(({ file }) => file.size > state.limits.max_bytes);
  for (const item of oversized) item.results[model] = errorResult(tooLarge(item.file));
  const sendable = pending.filter((item) => !oversized.includes(item)).map(({ file }) => file);
  let done = 0;
  for (const group of api.inGroups(sendable, state.limits)) {
    if (sendable.length > 1) progress(`${done} of ${sendable.length} files`);
    try {
      const maps = state.files.length === 1;
      const response = await api.predict(model, group, { maps, pixelScale: pixelScale(), signal });
      group.forEach((file, i) => {
        const item = byFile.get(file);
        item.results[model] = response.images[i];
        if (maps) item.withMaps.add(model);
      });
    } catch (error) {
      if (!(error instanceof api.ServerError) || error.code === 401 || error.code === 0) throw error;
      for (const file of group) byFile.get(file).results[model] = errorResult(error.message);
    }
    done += group.length;
    if (sendable.length > 1) render();
  }
}

/** Fetch the maps of an image of a batch when it is selected. */
async function fetchMaps(item, signal) {
  if (!item?.file) return;
  const missing = selectedModels().filter((m) => item.results[m]?.status === "ok" && !item.results[m].maps && !item.withMaps.has(m));
  for (const model of missing) {
    const response = await api.predict(model, [item.file], { maps: true, pixelScale: pixelScale(), signal });
    item.withMaps.add(model);
    item.results[model] = response.images[0];
  }
  if (missing.length) render();
}

const errorResult = (message) => ({ status: "error", message });

const megabytes = (bytes) => `${digits(bytes / 1e6, 3)} MB`;

const tooLarge = (file) =>
  `${file.name} has ${megabytes(file.size)}, and this server takes at most ${megabytes(state.limits.max_bytes)}; cut out the lens.`;

function pixelScale() {
  const scale = Number(byId("scale").value);
  return scale > 0 ? scale : null;
}

// ---------------------------------------------------------------- selection

function takeFiles(fileList) {
  const files = [...fileList];
  if (!files.length || !state.models.length) return;
  select("files");
  Object.assign(state, { files: files.map((file) => ({ name: file.name, file, results: {}, withMaps: new Set() })), selected: 0 });
  classify();
}

function takeExample(example) {
  select("lens", { simulate: false });
  state.panel.set({ ...state.panel.defaults(), ...example.parameters });
  byId("results").focus({ preventScroll: true });
}

function simulateLens(request) {
  if (state.mode !== "lens") return;
  run(async (signal) => {
    const item = { name: "simulated lens", request, results: {} };
    for (const model of selectedModels()) {
      const response = await api.simulate({ ...request, model }, signal);
      item.truth = response.truth;
      item.results[model] = response.images[0];
    }
    Object.assign(state, { lens: [item], sweep: null });
    render();
    announceAll();
  });
}

/** Simulate the same lens with one mass after the other. */
function sweep(request, low, high) {
  const [model] = selectedModels();
  run(async (signal) => {
    const points = [];
    const masses = massGrid(low, high);
    for (const mass of masses) {
      progress(`${points.length} of ${masses.length} masses`);
      const response = await api.simulate({ ...request, mass, model }, signal);
      points.push(sweepPoint(request.class, mass, response.images[0]));
    }
    state.sweep = { points, kind: request.class, model };
    render();
    announce(sweepSentence(points, request.class));
  });
}

/** Search a telescope image, and say how long it has taken so far. */
function searchImage(files, options) {
  const oversized = Object.values(files).reduce((sum, file) => sum + file.size, 0) > 0.99 * state.limits.max_bytes;
  if (oversized) return alertOf(`The files are larger than the ${megabytes(state.limits.max_bytes)} that this server takes; cut out the lens.`);
  return run(async (signal) => {
    const started = Date.now();
    const tick = () => progress(`Fitting the lens and searching: ${Math.round((Date.now() - started) / 1000)} s`);
    announce("Fitting the lens and searching.");
    tick();
    const timer = setInterval(tick, 1000);
    try {
      const result = await api.search(files, options, signal);
      state.search = [{ name: result.name, results: { [`${result.scene} + ${result.perturber}`]: result } }];
      if (state.mode === "search") render();
      announce(result.status === "ok" ? result.summary : result.message);
    } finally {
      clearInterval(timer);
    }
  });
}

function select(mode, { simulate = true, focus = false } = {}) {
  const changed = state.mode !== mode;
  state.mode = mode;
  for (const name of MODES) {
    const tab = byId(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === mode));
    tab.tabIndex = name === mode ? 0 : -1;
    byId(`panel-${name}`).hidden = name !== mode;
    if (focus && name === mode) tab.focus();
  }
  for (const id of ["model-field", "second-field", "card"]) byId(id).hidden = mode === "search";
  if (!changed) return;
  render();
  if (mode === "lens" && simulate && !state.lens.length && state.panel) simulateLens(state.panel.request());
}

// ---------------------------------------------------------------- display

function render() {
  for (const { views } of state.columns) views.forEach((view) => view.close());
  state.columns = [];
  const item = current();
  const searching = state.mode === "search";
  byId("empty").hidden = Boolean(item) || searching;
  byId("empty-search").hidden = Boolean(item) || !searching;
  byId("batch").replaceChildren(...(state.mode === "files" && state.files.length > 1 ? [batchTable()] : []));
  const { points, kind, model: sweepModel } = (state.mode === "lens" && state.sweep) || {};
  byId("sweep").replaceChildren(...(points ? [sweepCard(points, kind, sweepModel)] : []));
  const models = item ? (searching ? Object.keys(item.results) : selectedModels().filter((model) => item.results[model])) : [];
  const maps = models.map((model) => mapsOf(item.results[model]));
  const ranges = rangesOf(maps);
  const options = { ranges, probe: state.probe, stretch: state.stretch, truth: item?.truth, withModelName: models.length > 1 };
  const columns = models.map((model, i) => (searching ? searchFigures(item.results[model], maps[i], options) : figures(model, item.results[model], maps[i], options)));
  const parts = (model, result) => (searching ? [searchSummary(model, result), searchDetails(result)] : [summary(model, result, item.truth), details(result)]);
  state.columns = models.map((model, i) => ({ model, result: item.results[model], views: columns[i].views }));
  const articles = models.map((model) =>
    make(
      "article",
      { class: "result", "aria-label": `${item.name}, ${model}` },
      ...parts(model, item.results[model]).filter(Boolean),
    ),
  );
  byId("output").className = models.length > 1 ? "two" : "one";
  byId("output").replaceChildren(
    ...(models.length ? [make("h3", { class: "image-name", text: item.name }), make("div", { class: "columns" }, ...articles)] : []),
    ...mapsSection(models, columns),
  );
  byId("toolbar").hidden = !models.length;
  byId("save-png").disabled = !state.columns.some(({ views }) => views.length);
  state.columns.forEach(({ views }) => views.forEach((view) => view.draw()));
  if (state.mode === "lens") state.columns.forEach(({ views }) => views.filter(({ name }) => name === "image").forEach(moveOnClick));
  lensLine(item);
}

/** Let a click on the image move the perturber; keyboard users have the sliders. */
function moveOnClick(view) {
  view.canvas.addEventListener("click", (event) => {
    const position = view.positionOf(event);
    if (position) state.panel.moveTo(position);
  });
}

/** Return the maps: those of one model in a row, those of two models in pairs. */
function mapsSection(models, columns) {
  const names = [...new Set(columns.flatMap(({ views }) => views.map(({ name }) => name)))];
  if (!names.length) return [];
  const head = [make("h3", { text: "Maps" }), columns.map(({ legend }) => legend).find(Boolean)].filter(Boolean);
  const elementOf = (views, name) => views.find((view) => view.name === name)?.element;
  if (models.length === 1) return [...head, make("div", { class: "maps" }, ...names.map((name) => elementOf(columns[0].views, name)))];
  const placeholder = (model) => make("p", { class: "missing", text: `${model} does not compute this map.` });
  const pair = (name) => columns.map(({ views }, i) => elementOf(views, name) ?? placeholder(models[i]));
  return [...head, make("div", { class: "pairs" }, ...names.flatMap(pair))];
}

function lensLine(item) {
  if (state.mode !== "lens" || !item) return;
  const [first] = selectedModels();
  const result = item.results[first];
  if (result?.status === "ok") byId("lens-line").textContent = words.detection(result, item.truth);
}

function batchTable() {
  const [first] = selectedModels();
  const classes = state.models.find(({ name }) => name === first)?.classes ?? [];
  const rows = state.files.map((item, i) => {
    const result = item.results[first];
    const button = make("button", { type: "button", class: "link", text: item.name, "aria-current": i === state.selected ? "true" : null, on: { click: () => choose(i) } });
    if (!result) return [button, "waiting", ...classes.map(() => ""), "", ""];
    if (result.status !== "ok") return [button, make("span", { class: "bad", text: result.message }), ...classes.map(() => ""), "", ""];
    const answer = result.ood?.unfamiliar || result.dont_know ? "don't know" : result.predicted;
    const probabilities = classes.map((name) => probability(result.probabilities[name]));
    return [button, answer, ...probabilities, (result.set ?? []).join(", "), result.ood ? (result.ood.unfamiliar ? "yes" : "no") : "–"];
  });
  const header = ["file", "class", ...classes.map((name) => `p(${name})`), "prediction set", "out of distribution"];
  return table(`${state.files.length} files, classified by ${first}`, header, rows, "batch");
}

function choose(i) {
  state.selected = i;
  render();
  byId("batch").querySelectorAll("button.link")[i]?.focus();
  run((signal) => fetchMaps(current(), signal));
}

function announceAll() {
  const item = current();
  const [first] = selectedModels();
  if (state.mode === "files" && state.files.length > 1) {
    const results = state.files.map(({ results: r }) => r[first]).filter(Boolean);
    const n = results.filter(({ status }) => status === "ok").length;
    announce(`${results.length} files: ${n} classified, ${results.length - n} could not be read.`);
  } else if (item?.results[first]) {
    const result = item.results[first];
    const headline = result.status !== "ok" ? result.message : words.verdict(result).headline;
    announce([headline, item.truth && result.status === "ok" ? words.detection(result, item.truth) : ""].join(". "));
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

// ---------------------------------------------------------------- set-up

function theme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").setAttribute("aria-pressed", String(name === "dark"));
  redraw();
}

const redraw = () => state.columns.forEach(({ views }) => views.forEach((view) => view.draw()));

function wireTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let selected = null;
  let previous = null;
  const follow = () => theme(selected ?? (dark.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => {
    selected = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    follow();
  });
  dark.addEventListener("change", follow);
  window.addEventListener("beforeprint", () => {
    previous = document.documentElement.dataset.theme;
    theme("light");
  });
  window.addEventListener("afterprint", () => theme(previous));
  follow();
}

function wireTabs() {
  const tabs = MODES.map((name) => byId(`tab-${name}`));
  tabs.forEach((tab) => {
    tab.addEventListener("click", () => select(tab.id.slice(4)));
    tab.addEventListener("keydown", ({ key }) => {
      const at = MODES.indexOf(state.mode);
      const next = { Home: 0, End: MODES.length - 1, ArrowRight: at + 1, ArrowLeft: at - 1 + MODES.length }[key];
      if (next !== undefined) select(MODES[next % MODES.length], { focus: true });
    });
  });
}

function wireFiles() {
  byId("files").addEventListener("change", (event) => takeFiles(event.target.files));
  const drop = byId("drop");
  const highlight = (on) => drop.classList.toggle("active", on);
  for (const name of ["dragenter", "dragover"]) {
    window.addEventListener(name, (event) => {
      event.preventDefault();
      highlight(true);
    });
  }
  window.addEventListener("dragleave", (event) => event.relatedTarget === null && highlight(false));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    highlight(false);
    if (state.mode === "search") state.searchPanel?.take(event.dataTransfer.files);
    else takeFiles(event.dataTransfer.files);
  });
  byId("scale").addEventListener("change", () => {
    for (const item of state.files) Object.assign(item, { results: {}, withMaps: new Set() });
    if (state.files.length) classify();
  });
}

function wireDownloads() {
  const classified = () => items().filter(({ results }) => Object.keys(results).length);
  const json = () => save(new Blob([toJson(classified())], { type: "application/json" }), "darklens.json");
  const csv = () => save(new Blob([toCsv(classified())], { type: "text/csv" }), "darklens.csv");
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
      if (state.mode !== "search" && items().length) classify();
    });
  }
  byId("token").addEventListener("change", (event) => {
    api.setToken(event.target.value);
    if (!state.models.length) run(load);
    else if (state.mode !== "search") classify();
  });
}

function describeModel() {
  const model = state.models.find(({ name }) => name === byId("model").value);
  if (!model) return;
  const { height, width, pixel_scale: scale } = model.input;
  const auc = model.metrics?.val_auc ?? model.metrics?.auc;
  const score = Number.isFinite(auc) ? ` Macro AUC ${auc > 0.99999 ? "> 0.99999" : auc.toFixed(5)} on validation images.` : "";
  byId("card").textContent =
    `${model.recipe}, trained on ${model.population ?? "an unnamed population"}. Input: ${height} × ${width} pixels of ${digits(scale, 2)}″; ` +
    `other images are cropped, padded or resampled.${score} Licence: ${model.licence}.`;
}

async function load() {
  state.limits = await api.limits();
  byId("token-field").hidden = !state.limits.token_needed;
  byId("formats").textContent =
    `or drop them here: ${state.limits.formats.join(", ")}, up to ${megabytes(state.limits.max_bytes)} each. Files go only to this server, which does not keep them.`;
  const [available, settings, choices] = await Promise.all([api.models(), api.sliders(), api.searchChoices()]);
  state.models = available.models;
  const option = ({ name }) => make("option", { value: name, text: name });
  byId("model").replaceChildren(...available.models.map(option));
  byId("model").value = available.default;
  byId("second").replaceChildren(make("option", { value: "", text: "none" }), ...available.models.map(option));
  describeModel();
  state.panel = new LensPanel(byId("sliders"), settings, { onChange: simulateLens, onSweep: sweep });
  state.searchPanel = new SearchPanel(byId("search-form"), choices, { onSearch: searchImage });
  const button = (example) => make("button", { type: "button", text: example.label, on: { click: () => takeExample(example) } });
  byId("examples").replaceChildren(...settings.examples.map(button));
}

wireTheme();
wireTabs();
wireFiles();
wireDownloads();
wireChoices();
run(load);
