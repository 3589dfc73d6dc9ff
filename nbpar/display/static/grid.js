// A grid as a table. Small helpers that the other drawings use.

// An id that no other output of the page has: each has these functions for itself.
const fresh = (kind) => `nbpar-${kind}-${(globalThis.nbparNames = (globalThis.nbparNames ?? 0) + 1)}`;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// JupyterLab takes keys away from what has the focus, unless the focused element itself says no.
function control(tag, attributes = {}, ...children) {
  return element(tag, { "data-lm-suppress-shortcuts": "true", ...attributes }, ...children);
}

function paint(cell, state, palette) {
  const [glyph, , colour, ink] = palette[state] ?? palette.none;
  cell.className = `nbpar-cell nbpar-${state}`;
  cell.style.backgroundColor = colour;
  cell.style.color = ink;
  return glyph;
}

function heads(columns) {
  // Every few columns where there are many, as in the table without scripts.
  const step = columns.length <= 16 ? 1 : columns.length <= 64 ? 4 : 16;
  const found = [];
  for (let at = 0; at < columns.length; at += step) found.push([Math.min(step, columns.length - at), columns[at]]);
  return found;
}

function drawGrid(grid, palette) {
  const noted = grid.notes.some((note) => note);
  const top = element("tr", {}, element("th", { scope: "col", class: "nbpar-name", text: grid.corner }));
  for (const [count, name] of heads(grid.columns)) top.append(element("th", { scope: "col", colspan: count, text: name }));
  if (noted) top.append(element("th", { class: "nbpar-name", text: "" }));
  const body = element("tbody");
  grid.rows.forEach((name, row) => {
    const line = element("tr", {}, element("th", { scope: "row", class: "nbpar-name", title: name, text: name }));
    let column = 0;
    const separate = grid.columns.length <= 16;
    for (const [count, state, text = "", label = ""] of grid.cells[row]) {
      const each = separate ? 1 : count;
      for (let k = 0; k < count; k += each) {
        const cell = element("td", { colspan: each > 1 ? each : null });
        const glyph = paint(cell, state, palette);
        cell.textContent = text || glyph.repeat(each);
        const where = each > 1 ? `${grid.columns[column]} to ${grid.columns[column + each - 1]}` : grid.columns[column];
        cell.title = label || `${name}, ${where}: ${text || (palette[state] ?? palette.none)[1]}`;
        if (!text) cell.setAttribute("aria-label", cell.title);
        line.append(cell);
        column += each;
      }
    }
    if (noted) line.append(element("td", { class: "nbpar-note", text: grid.notes[row] ?? "" }));
    body.append(line);
  });
  const scroller = titled(grid.title, element("thead", {}, top), body);
  const parts = [scroller];
  if (grid.legend.length) parts.push(drawLegend(grid.legend));
  for (const line of grid.footer.split("\n")) if (line) parts.push(element("div", { class: "nbpar-footer", text: line }));
  return element("div", { class: "nbpar-grid" }, ...parts);
}

// A table under its title. Not a <caption>: that would make the table as wide as the title is long.
function titled(title, ...parts) {
  const id = fresh("title");
  const head = element("div", { id, class: "nbpar-title", text: title });
  return element("div", { class: "nbpar-scroll" }, head, element("table", { "aria-labelledby": id }, ...parts));
}

function drawLegend(entries) {
  const legend = element("div", { class: "nbpar-footer" });
  for (const [glyph, words, colour, ink] of entries) {
    const key = element("span", { class: "nbpar-key", text: glyph });
    key.style.backgroundColor = colour;
    key.style.color = ink;
    legend.append(key, ` ${words}   `);
  }
  return legend;
}

function bytes(count) {
  let amount = count;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (amount < 1024 || unit === "TiB") return unit === "B" ? `${Math.round(amount)} B` : `${amount.toFixed(1)} ${unit}`;
    amount /= 1024;
  }
}

function seconds(micro) {
  if (micro < 1e3) return `${Math.round(micro)} µs`;
  return micro < 1e6 ? `${(micro / 1e3).toFixed(1)} ms` : `${(micro / 1e6).toFixed(2)} s`;
}

// A slider with its name and, after it, what it stands at.
function slider(name, largest, value, words, changed) {
  const id = fresh("control");
  const input = control("input", { type: "range", id, min: 0, max: Math.max(0, largest), step: 1 });
  const shown = element("output", { for: id });
  const say = () => {
    shown.textContent = words(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  const set = (next, most = Number(input.max)) => {
    input.max = Math.max(0, most);
    input.value = Math.min(next, most);
    input.disabled = most <= 0;
    say();
  };
  input.addEventListener("input", () => { say(); changed(Number(input.value)); });
  set(value, largest);
  const box = element("div", { class: "nbpar-slider" }, element("label", { for: id, text: name }), input, shown);
  return { box, set, get: () => Number(input.value) };
}
