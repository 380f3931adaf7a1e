/** Requests to the server. Every failure is a ServerError with one sentence. */

let token = "";

export class ServerError extends Error {
  constructor(message, { code = 0, reason = "unreachable" } = {}) {
    super(message);
    this.code = code;
    this.reason = reason;
  }
}

/** Set the bearer token; it is kept in memory only. */
export function setToken(value) {
  token = value.trim();
}

async function send(path, { method = "GET", body = null, json = null, signal = null } = {}) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (json !== null) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: json === null ? body : JSON.stringify(json), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not respond; is `darklens serve` still running?");
  }
  let content = null;
  try {
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && content !== null) return content;
  const detail = content?.error ?? {};
  throw new ServerError(detail.message ?? `The server responded with status ${response.status} and no message.`, {
    code: response.status,
    reason: detail.reason ?? "unknown",
  });
}

export const limits = () => send("v1/limits");
export const models = () => send("v1/models");
export const sliders = () => send("v1/lens");
export const simulate = (lens, signal) => send("v1/lens", { method: "POST", json: lens, signal });

/** Classify files; `pixelScale` (arcsec) overrides that of the files. */
export function predict(model, files, { maps = true, pixelScale = null, signal = null } = {}) {
  const body = new FormData();
  for (const file of files) body.append("files", file, file.name);
  const query = new URLSearchParams({ model, maps: String(maps) });
  if (pixelScale) query.set("pixel_scale", String(pixelScale));
  return send(`v1/predict?${query}`, { method: "POST", body, signal });
}

export const searchChoices = () => send("v1/search");

/** Search a telescope image for a perturber; `files` and `options` are by the names of fields and parameters. */
export function search(files, options, signal) {
  const body = new FormData();
  for (const [field, file] of Object.entries(files)) body.append(field, file, file.name);
  return send(`v1/search?${new URLSearchParams(options)}`, { method: "POST", body, signal });
}

/** Split files into groups, in order; each group respects the limits of a request. */
export function inGroups(files, { max_files, max_bytes }, maxGroup = 8) {
  const groups = [];
  let bytes = 0;
  for (const file of files) {
    const last = groups.at(-1);
    if (!last || last.length >= Math.min(maxGroup, max_files) || bytes + file.size > 0.9 * max_bytes) {
      groups.push([file]);
      bytes = file.size;
    } else {
      last.push(file);
      bytes += file.size;
    }
  }
  return groups;
}
