/** Helpers that create elements; text is never parsed as HTML. */

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/**
 * Return a new element.
 * @param {string} tag
 * @param {object} properties  attributes, and `text` and `on` ({event: handler}); null values are omitted
 * @param {...(Node|string|null)} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a table with a header row; the first cell of each row is a header too. */
export function table(caption, header, rows, className = "") {
  return make(
    "div",
    { class: `scroll ${className}`, tabindex: "0", role: "region", "aria-label": caption },
    make(
      "table",
      {},
      make("caption", { text: caption }),
      make("thead", {}, make("tr", {}, ...header.map((cell) => make("th", { scope: "col", text: cell })))),
      make(
        "tbody",
        {},
        ...rows.map(([first, ...others]) =>
          make("tr", {}, make("th", { scope: "row" }, first), ...others.map((cell) => make("td", {}, cell))),
        ),
      ),
    ),
  );
}

/** Offer a blob as a download. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
