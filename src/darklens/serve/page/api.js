/** The server's requests. Every failure is a ServerError with one sentence. */

let token = "";

export class ServerError extends Error {
  constructor(message, { code = 0, reason = "unreachable" } = {}) {
    super(message);
    this.code = code;
    this.reason = reason;
  }
}

/** Keep a bearer token, in memory only. */
export function setToken(given) {
  token = given.trim();
}

async function ask(path, { method = "GET", body = null, json = null, signal = null } = {}) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (json !== null) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: json === null ? body : JSON.stringify(json), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer; is darklens serve still running?");
  }
  let content = null;
  try {
    content = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (answer.ok && content !== null) return content;
  const told = content?.error ?? {};
  throw new ServerError(told.message ?? `The server answered ${answer.status} without a reason.`, {
    code: answer.status,
    reason: told.reason ?? "unknown",
  });
}

export const limits = () => ask("v1/limits");
export const models = () => ask("v1/models");
export const sliders = () => ask("v1/lens");
export const simulate = (wanted, signal) => ask("v1/lens", { method: "POST", json: wanted, signal });

/** Classify files; `pixelScale` (arcsec) goes before what the files say. */
export function predict(model, files, { maps = true, pixelScale = null, signal = null } = {}) {
  const body = new FormData();
  for (const file of files) body.append("files", file, file.name);
  const query = new URLSearchParams({ model, maps: String(maps) });
  if (pixelScale) query.set("pixel_scale", String(pixelScale));
  return ask(`v1/predict?${query}`, { method: "POST", body, signal });
}

/** Return files in the order given, in groups that the limits allow one request each. */
export function inGroups(files, { max_files, max_bytes }, most = 8) {
  const groups = [];
  let bytes = 0;
  for (const file of files) {
    const last = groups.at(-1);
    if (!last || last.length >= Math.min(most, max_files) || bytes + file.size > 0.9 * max_bytes) {
      groups.push([file]);
      bytes = file.size;
    } else {
      last.push(file);
      bytes += file.size;
    }
  }
  return groups;
}
