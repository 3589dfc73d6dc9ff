// The widget: sections behind a line each. What changes while a cell runs is painted once a frame at most. The kernel sends pictures
// of several moments at a time; they are shown one after the other.

const PERIOD = 100; // milliseconds between two pictures

function drawSection(section, model, palette, later) {
  const box = element("details", { class: "nbpar-section", open: section.opened ? "" : null });
  box.dataset.name = section.name;
  box.append(control("summary", { text: section.summary }));
  for (const grid of section.grids) box.append(drawGrid(grid, palette));
  if (section.name === "live") {
    const live = drawLive(model, palette);
    box.append(live.box);
    later.live.push(live.update);
  } else if (section.name === "timeline" && section.data) {
    const timeline = drawTimeline(section.data, palette);
    box.append(timeline.box);
    later.size.push(timeline.draw);
    box.addEventListener("toggle", timeline.draw);
  } else if (section.name === "what-if" && section.data) box.append(drawWhatIf(section.data).box);
  else if (section.name === "output" && section.data) box.append(drawOutput(section.data).box);
  return box;
}

function render({ model, el }) {
  const palette = model.get("palette");
  const root = element("div", { class: "nbpar", role: "group", "aria-label": "nbpar panels" });
  el.append(root);
  let later = { live: [], size: [] }, paints = 0, queued = false, picture = [[], ""], timer = 0;

  function paintLive() {
    queued = false;
    root.dataset.paints = ++paints;
    for (const update of later.live) update(picture);
  }
  function play([first, ...rest]) {
    if (first) picture = first;
    ask();
    if (rest.length) timer = setTimeout(play, PERIOD, rest);
  }
  function live() {
    clearTimeout(timer);
    play(model.get("live").pictures ?? []);
  }
  function ask() {
    if (!queued) {
      queued = true;
      requestAnimationFrame(paintLive);
    }
  }
  function all() {
    const open = Object.fromEntries([...root.children].map((one) => [one.dataset.name, one.open]));
    later = { live: [], size: [] };
    root.replaceChildren(...model.get("sections").map((section) => drawSection(section, model, palette, later)));
    for (const one of root.children) if (one.dataset.name in open) one.open = open[one.dataset.name];
    ask();
    for (const draw of later.size) requestAnimationFrame(draw);
  }

  model.on("change:live", live);
  model.on("change:sections", all);
  const observer = new ResizeObserver(() => later.size.forEach((draw) => draw()));
  all();
  live();
  observer.observe(el);
  return () => {
    observer.disconnect();
    clearTimeout(timer);
    model.off("change:live", live);
    model.off("change:sections", all);
  };
}

export default { render };
