// What other meshes would cost: answers were reckoned beforehand and are looked up here.

function drawWhatIf(data) {
  const COLOURS = ["#0072B2", "#999999", "#E69F00", "#CC79A7", "#56B4E9"];
  const answers = data.answers.map(([d, m, micro, schedule, memory, waiting, sent]) => ({ d, m, micro, schedule, memory, waiting, sent }));
  const sorted = (values) => [...new Set(values)].sort((a, b) => a - b);
  const sizes = sorted(answers.map((one) => one.d * one.m));
  let [d, m, micro, schedule] = data.now;

  const ofSize = () => answers.filter((one) => one.d * one.m === d * m);
  const stages = () => sorted(ofSize().map((one) => one.m));
  const micros = () => sorted(answers.filter((one) => one.d === d && one.m === m).map((one) => one.micro));
  const nearest = (values, value) => values.reduce((best, one) => (Math.abs(one - value) < Math.abs(best - value) ? one : best), values[0]);

  const ranks = slider("ranks", sizes.length - 1, 0, (k) => String(sizes[k]), (k) => {
    const size = sizes[k];
    const fitting = sorted(answers.filter((one) => one.d * one.m === size).map((one) => one.m));
    m = nearest(fitting, m);
    d = size / m;
    settle();
  });
  const mesh = slider("mesh", 0, 0, (k) => `${(d * m) / stages()[k]} replicas × ${stages()[k]} ${data.part}s`, (k) => {
    const size = d * m;
    m = stages()[k];
    d = size / m;
    settle();
  });
  const batches = slider("micro-batches", 0, 0, (k) => String(micros()[k]), (k) => { micro = micros()[k]; settle(); });
  const id = fresh("control");
  const order = control("select", { id });
  for (const name of ["gpipe", "1f1b"]) order.append(element("option", { value: name, text: name }));
  order.addEventListener("change", () => { schedule = order.value; settle(); });
  const orderBox = element("div", { class: "nbpar-slider" }, element("label", { for: id, text: "schedule" }), order);

  batches.box.hidden = orderBox.hidden = data.part === "shard"; // a split layer takes the batch whole

  const verdict = element("div", { class: "nbpar-verdict", role: "status", "aria-live": "polite" });
  const bars = element("div", { class: "nbpar-bars" });
  const keys = element("div", { class: "nbpar-footer" });
  data.kinds.forEach((kind, k) => {
    const key = element("span", { class: "nbpar-key", text: " " });
    key.style.backgroundColor = COLOURS[k];
    keys.append(key, ` ${kind}   `);
  });
  const notes = element("div", { class: "nbpar-footer", text: data.notes.join(" · ") });
  const box = element("div", { class: "nbpar-grid nbpar-whatif" }, ranks.box, mesh.box, batches.box, orderBox, verdict, bars, keys, notes);

  function settle() {
    micro = nearest(micros(), micro);
    ranks.set(sizes.indexOf(d * m), sizes.length - 1);
    mesh.set(stages().indexOf(m), stages().length - 1);
    batches.set(micros().indexOf(micro), micros().length - 1);
    const fitting = answers.filter((one) => one.d === d && one.m === m && one.micro === micro);
    const found = fitting.find((one) => one.schedule === schedule) ?? fitting[0];
    order.value = found.schedule;
    order.disabled = fitting.length < 2;
    show(found);
  }

  function show(found) {
    const sums = found.memory.map((kinds) => kinds.reduce((a, b) => a + b, 0));
    const most = Math.max(...sums);
    const now = data.now[0] === d && data.now[1] === m && data.now[2] === found.micro && data.now[3] === found.schedule;
    verdict.textContent =
      `Predicted${now ? ", as planned" : ""}: the fullest rank holds ${bytes(most * 1024)}, ranks wait ${(found.waiting / 10).toFixed(0)}% of a step, ` +
      `the busiest hands over ${bytes(found.sent)} in a step.`;
    bars.replaceChildren();
    found.memory.forEach((kinds, stage) => {
      const bar = element("div", { class: "nbpar-bar", role: "img", "aria-label": `${data.part} ${stage}: ${bytes(sums[stage] * 1024)}` });
      kinds.forEach((amount, k) => {
        const part = element("span", { title: `${data.kinds[k]}: ${bytes(amount * 1024)}` });
        part.style.width = `${(100 * amount) / Math.max(1, most)}%`;
        part.style.backgroundColor = COLOURS[k];
        bar.append(part);
      });
      const whose = found.m === 1 ? "each rank" : `${data.part} ${stage}`;
      bars.append(element("span", { text: whose }), bar, element("span", { text: bytes(sums[stage] * 1024) }));
    });
  }

  settle();
  return { box };
}
