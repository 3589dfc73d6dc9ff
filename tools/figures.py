"""The drawings of docs/how-it-works.md: `python -m tools.figures`. Plain SVG that follows the page's light or dark colours."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #24292f } .small { font-size: 12px }
.bold { font-weight: 600 } .mid { text-anchor: middle }
.code { font-family: ui-monospace, monospace; font-size: 13px } .grey { fill: #6a737d }
.box { fill: #fff; stroke: #8b949e } .kernel { fill: #eef2ff; stroke: #4f5bd5 } .r0 { fill: #dbeafe; stroke: #2563eb }
.r1 { fill: #ffedd5; stroke: #ea580c } .meta { fill: none; stroke: #8b949e; stroke-dasharray: 4 3 }
.line { stroke: #57606a; stroke-width: 1.5; fill: none; marker-end: url(#tip) }
.back { stroke-dasharray: 5 3 } #tip path { fill: #57606a }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .grey { fill: #9198a1 } .box { fill: #161b22 } .kernel { fill: #1e2350; stroke: #9aa4ff }
.r0 { fill: #14305c; stroke: #6ea8ff } .r1 { fill: #5a2d0c; stroke: #ff9a56 }
.line { stroke: #9198a1 } #tip path { fill: #9198a1 } }
"""
TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z"/></marker>'
)


class Drawing:
    """A picture of a width and height in pixels, to which things are added. title: what it shows, in words."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title, self.parts = (width, height), title, list[str]()

    def box(self, x: float, y: float, width: float, height: float, kind: str, label: str = "") -> None:  # noqa: PLR0917
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        if label:
            self.text(x + width / 2, y + height / 2 + 5, label, "mid")

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(f'<text class="{kind}" x="{x}" y="{y}">{words}</text>')

    def arrow(self, *points: tuple[float, float], kind: str = "") -> None:
        path = "L".join(f"{x} {y}" for x, y in points)
        self.parts.append(f'<path class="line {kind}" d="M{path}"/>')

    def write(self, name: str) -> None:
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        )
        lines = [head, f"<title>{self.title}</title>", f"<style>{STYLE}</style>", f"<defs>{TIP}</defs>", *self.parts, "</svg>"]
        (FOLDER / f"{name}.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rules() -> Drawing:
    drawing = Drawing(760, 300, "The notebook's kernel holds the variables; the ranks hold copies while a cell runs")
    drawing.box(20, 40, 230, 230, "kernel")
    drawing.text(20, 28, "the notebook's kernel: the truth", "bold")
    names = {"model": "weights", "optimiser": "state", "loader": "data", "loss": "a number", "": "random state"}
    for at, (name, what) in enumerate(names.items()):
        drawing.box(40, 62 + 40 * at, 190, 30, "box")
        drawing.text(52, 82 + 40 * at, name, "code")
        drawing.text(140, 82 + 40 * at, what, "small")
    for at in range(2):
        top = 40 + 125 * at
        drawing.box(520, top, 220, 105, f"r{at}")
        drawing.text(535, top + 24, f"rank {at}: a copy", "bold")
        drawing.text(535, top + 50, "model  optimiser  loader", "code")
        drawing.text(535, top + 76, "runs the same cell,", "small")
        drawing.text(535, top + 92, "computes its share", "small")
        drawing.arrow((255, 120 + 50 * at), (515, top + 40))
        drawing.arrow((515, top + 70), (255, 150 + 50 * at), kind="back")
    drawing.text(385, 55, "what the cell reads", "mid small")
    drawing.text(385, 71, "(what has changed since)", "mid small grey")
    drawing.text(385, 262, "what the cell changed", "mid small")
    drawing.text(385, 278, "(into the same objects)", "mid small grey")
    return drawing


def border() -> Drawing:
    drawing = Drawing(860, 330, "The border of a split call: whole outside, this rank's rows inside")
    for x, label in ((90, "outside: whole"), (430, "inside the call: this rank's rows"), (770, "outside: whole")):
        drawing.text(x, 26, label, "mid bold")
    drawing.box(30, 60, 120, 140, "box", "x: 8 rows")
    drawing.box(710, 60, 120, 140, "box", "8 rows")
    for at in range(2):
        y = 60 + 78 * at
        drawing.box(235, y, 110, 62, f"r{at}", f"rows {4 * at}–{4 * at + 3}")
        drawing.box(375, y, 110, 62, f"r{at}", "module")
        drawing.box(515, y, 110, 62, f"r{at}", f"rows {4 * at}–{4 * at + 3}")
        drawing.text(290, y + 78 if at else y - 6, f"rank {at}", "mid small grey")
        drawing.arrow((152, 105 + 50 * at), (232, y + 31))
        drawing.arrow((347, y + 31), (373, y + 31))
        drawing.arrow((487, y + 31), (513, y + 31))
        drawing.arrow((627, y + 31), (707, 105 + 50 * at))
    drawing.text(192, 84, "enter", "mid small")
    drawing.text(667, 84, "leave: gather", "mid small")
    drawing.text(770, 222, "loss: the whole batch's,", "mid small")
    drawing.text(770, 238, "on every rank", "mid small")
    drawing.arrow((707, 270), (627, 270), kind="back")
    drawing.arrow((515, 270), (345, 270), kind="back")
    drawing.arrow((233, 270), (152, 270), kind="back")
    drawing.text(30, 258, "backward:", "small grey")
    drawing.text(667, 292, "N × own rows", "mid small")
    drawing.text(430, 292, "parameters: average over the ranks", "mid small")
    drawing.text(192, 292, "gather, ÷ N", "mid small")
    drawing.text(
        430, 318, "N times the share, then the average: what does not pass through the call stays right, too", "mid small grey"
    )
    return drawing


def remote() -> Drawing:
    drawing = Drawing(800, 300, "Remote is meta: both ranks run the whole cell, each computes the layers that it owns")
    layers = ("embedding", "layer 1", "layer 2", "head")
    for at, layer in enumerate(layers):
        drawing.text(205 + 150 * at, 30, layer, "mid bold")
    for rank in range(2):
        y = 50 + 110 * rank
        drawing.text(20, y + 34, f"rank {rank}", "bold")
        for at in range(4):
            own = at // 2 == rank
            drawing.box(138 + 150 * at, y, 134, 60, f"r{rank}" if own else "meta")
            drawing.text(205 + 150 * at, y + 26, "real" if own else "meta", "mid" if own else "mid grey")
            words = ("weights, gradients,", "optimiser state") if own else ("shape and type,", "no memory")
            drawing.text(205 + 150 * at, y + 42, words[0], "mid small" if own else "mid small grey")
            drawing.text(205 + 150 * at, y + 55, words[1], "mid small" if own else "mid small grey")
        for at in range(3):
            if at == 2 * rank:
                drawing.arrow((273 + 150 * at, y + 30), (287 + 150 * at, y + 30))
    drawing.arrow((400, 112), (480, 157))
    drawing.text(455, 132, "activations", "small")
    drawing.arrow((460, 160), (375, 112), kind="back")
    drawing.text(318, 150, "their gradients", "small")
    drawing.text(20, 255, "loss.item(), print(loss), if loss < 1:", "code")
    drawing.text(20, 276, "the owner of the value sends it to all, so that every rank takes the same branch", "small grey")
    return drawing


FIGURES = {"rules": rules, "border": border, "remote": remote}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        draw().write(name)
