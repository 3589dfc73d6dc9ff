// Ranks' lines, equal ones folded, with a search. Only what is in sight and found is drawn.

function drawOutput(lines) {
  const MOST = 500;
  const id = fresh("control");
  const search = control("input", { type: "search", id, placeholder: "text, or 2: for rank 2" });
  const list = control("div", { class: "nbpar-lines", role: "log", tabindex: 0, "aria-label": "lines of output by rank" });
  const count = element("span", { class: "nbpar-footer", role: "status", "aria-live": "polite" });
  const label = element("label", { for: id, text: "search" });
  const box = element("div", { class: "nbpar-grid nbpar-output" }, element("div", { class: "nbpar-slider" }, label, search, count), list);

  function holds(ranks, rank) {
    return ranks.split(",").some((part) => {
      const [first, last] = part.split("-").map(Number);
      return first <= rank && rank <= (last ?? first);
    });
  }

  function show() {
    const [, rank, wanted] = search.value.toLowerCase().match(/^(?:(\d+):)?\s*(.*)$/) ?? [];
    const found = lines.filter(([ranks, text]) =>
      (rank === undefined || holds(ranks, Number(rank))) && (!wanted || text.toLowerCase().includes(wanted)));
    list.replaceChildren(...found.slice(-MOST).map(([ranks, text]) => {
      const who = ranks === "" ? "" : /[-,]/.test(ranks) ? `ranks ${ranks}` : `rank ${ranks}`;
      return element("div", { class: "nbpar-line" }, element("span", { class: "nbpar-who", text: who }), element("span", { text }));
    }));
    count.textContent = `${found.length} of ${lines.length} lines${found.length > MOST ? `, the last ${MOST} shown` : ""}`;
  }

  search.addEventListener("input", show);
  show();
  return { box };
}
