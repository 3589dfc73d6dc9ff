// Measured time × ranks on a canvas, over a window of steps that two sliders choose.

function drawTimeline(data, palette) {
  const ROW = 22, LEFT = 64, BELOW = 20;
  const count = data.steps.length;
  const canvas = element("canvas", { role: "img", class: "nbpar-canvas" });
  const summary = element("div", { class: "nbpar-footer", role: "status", "aria-live": "polite" });
  const pointed = element("div", { class: "nbpar-footer nbpar-pointed", text: " " });
  const name = (k) => `step ${data.first + k + 1} of ${data.total}`;
  const width = Math.min(count, 3);
  const from = slider("from", count - 1, count - width, name, draw);
  const many = slider("steps shown", count - 1, width - 1, (k) => String(k + 1), draw);
  const used = [...new Set(data.rows.flat().map((span) => span[2]))];
  const legend = drawLegend(Object.keys(palette).filter((s) => used.includes(s)).map((s) => palette[s]));
  legend.append("(blank) other Python");
  const box = element("div", { class: "nbpar-grid nbpar-timeline" }, from.box, many.box, canvas, pointed, legend, summary);
  let shown = [];

  function range() {
    const first = from.get(), last = Math.min(first + many.get(), count - 1);
    return [first ? data.steps[first - 1] : 0, data.steps[last], first, last];
  }

  function draw() {
    const [start, end, first, last] = range();
    const wide = Math.max(320, box.clientWidth || 700), high = data.rows.length * ROW + BELOW;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = wide * ratio;
    canvas.height = high * ratio;
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const ink = getComputedStyle(box).color;
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const scale = (wide - LEFT - 8) / Math.max(1, end - start);
    shown = [];
    const sums = {};
    data.rows.forEach((spans, k) => {
      pen.fillStyle = ink;
      pen.fillText(`rank ${data.ranks[k]}`, 2, k * ROW + ROW / 2);
      for (const [begin, length, phase, label] of spans) {
        const a = Math.max(begin, start), b = Math.min(begin + length, end);
        if (b <= a) continue;
        sums[phase] = (sums[phase] ?? 0) + b - a;
        const [glyph, words, colour, dark] = palette[phase];
        const x = LEFT + (a - start) * scale, w = Math.max(0.5, (b - a) * scale);
        pen.fillStyle = colour;
        pen.fillRect(x, k * ROW + 2, w, ROW - 4);
        if (w > 12) {
          pen.fillStyle = dark;
          pen.fillText(glyph, x + w / 2 - 4, k * ROW + ROW / 2);
        }
        shown.push([x, x + w, k, `rank ${data.ranks[k]}: ${words}, ${seconds(length)}${data.labels[label] ? `, ${data.labels[label]}` : ""}`]);
      }
    });
    pen.strokeStyle = pen.fillStyle = ink;
    pen.globalAlpha = 0.5;
    for (let k = first; k < last; k++) {
      const x = LEFT + (data.steps[k] - start) * scale;
      pen.beginPath();
      pen.moveTo(x, 0);
      pen.lineTo(x, high - BELOW);
      pen.stroke();
    }
    pen.globalAlpha = 1;
    for (let k = 0; k <= 4; k++) {
      const text = seconds(((end - start) * k) / 4), x = LEFT + ((wide - LEFT - 8) * k) / 4;
      pen.textAlign = k === 4 ? "right" : k ? "center" : "left";
      pen.fillText(text, x, high - BELOW / 2);
    }
    pen.textAlign = "left";
    say(sums, (end - start) * data.rows.length, first, last);
  }

  function waited(first, last) {
    let waits = 0, whole = 0;
    for (const [start, end] of data.passes.slice(first, last + 1)) {
      whole += Math.max(0, end - start) * data.rows.length;
      for (const [begin, length, phase] of data.rows.flat()) {
        if (phase === "wait") waits += Math.max(0, Math.min(begin + length, end) - Math.max(begin, start));
      }
    }
    return Math.round((100 * waits) / Math.max(1, whole));
  }

  function say(sums, whole, first, last) {
    const part = (phase) => `${Math.round((100 * (sums[phase] ?? 0)) / Math.max(1, whole))}%`;
    const wanted = ["forward", "backward", "update", "communicate", "wait"].map((phase) => `${palette[phase][1]} ${part(phase)}`);
    let text = `Measured, ${first === last ? name(first) : `steps ${data.first + first + 1} to ${data.first + last + 1} of ${data.total}`}: `;
    text += wanted.join(" · ");
    if (data.predicted !== null) {
      text += ` (of forward and backward alone ${waited(first, last)}%, predicted ${Math.round(100 * data.predicted)}%)`;
    }
    if (summary.textContent !== text) summary.textContent = text;
    canvas.setAttribute("aria-label", `Time by rank. ${text}`);
  }

  canvas.addEventListener("mousemove", (event) => {
    const x = event.offsetX, k = Math.floor(event.offsetY / ROW);
    const span = shown.findLast((one) => one[2] === k && one[0] <= x && x <= one[1]);
    pointed.textContent = span ? span[3] : " ";
  });
  return { box, draw };
}
