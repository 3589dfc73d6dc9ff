// A row a rank, brought up to date in place: phase, progress, rate, memory, bytes sent, last line.

function drawLive(model, palette) {
  const columns = ["phase", "progress", "", "steps/s", "memory", "sent", "busy", "last line"];
  const top = element("tr", {}, element("th", { scope: "col", class: "nbpar-name", text: "rank" }));
  for (const name of columns) top.append(element("th", { scope: "col", text: name }));
  const body = element("tbody");
  const table = titled("What each rank is doing (measured)", element("thead", {}, top), body);
  const status = element("div", { class: "nbpar-footer", role: "status", "aria-live": "polite" });
  const box = element("div", { class: "nbpar-grid nbpar-live" }, table, status);
  const lines = [];

  function line(rank) {
    const cells = columns.map(() => element("td", { class: "nbpar-text" }));
    const bar = element("progress", { max: 1000, "aria-label": `rank ${rank} progress` });
    cells[2].append(bar);
    body.append(element("tr", {}, element("th", { scope: "row", class: "nbpar-name", text: `rank ${rank}` }), ...cells));
    return { cells, bar };
  }

  function write(cell, text) {
    if (cell.textContent !== text) cell.textContent = text;
  }

  return {
    box,
    update(picture) {
      const { ranks = [], done = false } = model.get("live");
      const [rows, summary] = picture;
      rows.forEach(([phase, words, share, rate, memory, sent, busy, last], k) => {
        const { cells, bar } = (lines[k] ??= line(ranks[k]));
        const glyph = paint(cells[0], phase, palette);
        write(cells[0], `${glyph} ${(palette[phase] ?? palette.none)[1]}`);
        write(cells[1], words);
        if (share < 0) bar.removeAttribute("value");
        else bar.value = share;
        bar.hidden = share < 0;
        write(cells[3], rate ? String(rate) : "–");
        write(cells[4], memory);
        write(cells[5], sent);
        write(cells[6], `${busy}%`);
        write(cells[7], last);
        cells[7].title = last;
      });
      write(status, (done ? "The cell has ended. " : "") + (summary ? `${summary[0].toUpperCase()}${summary.slice(1)}.` : ""));
      write(table.firstChild, done ? "What each rank did (measured)" : "What each rank is doing (measured)");
    },
  };
}
