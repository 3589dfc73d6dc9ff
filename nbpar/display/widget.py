"""Panels in a page: an anywidget whose small state is drawn there. Everything it needs is in this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from nbpar.display import show
from nbpar.display.grid import palette
from nbpar.display.panels import Panels

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("grid.js", "live.js", "timeline.js", "whatif.js", "output.js", "panels.js")  # one module, in this order
WIDGET = "application/vnd.jupyter.widget-view+json"


class Page(anywidget.AnyWidget):
    """sections: `Panels.state()`. live: pictures to show one after the other, a tenth of a second apart; the last one stays."""

    _esm = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    _css = STATIC / "panels.css"
    palette: Any = traitlets.Dict().tag(sync=True)
    sections: Any = traitlets.List().tag(sync=True)
    live: Any = traitlets.Dict().tag(sync=True)

    def __init__(self, panels: Panels, live: dict[str, Any] | None = None) -> None:
        self.panels = panels
        super().__init__(palette=palette(), sections=panels.state(), live=live or {})

    def show(self, panels: Panels) -> None:
        """Other panels in the same place."""
        self.panels = panels
        self.sections = panels.state()

    def move(self, live: dict[str, Any]) -> int:
        """What the page draws from now on, without the price of a trait's change; `live` itself is set when ranks have ended.

        Returns about how many bytes that are.
        """
        if self.comm is not None:
            self.comm.send({"method": "update", "state": {"live": live}, "buffer_paths": []})
        return len(json.dumps(live))

    def bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """MIME bundle: this widget, and for where it cannot run tables and text; these alone where nobody looks on."""
        made: Any = super()._repr_mimebundle_() or {}
        data, metadata = made if isinstance(made, tuple) else (made, {})
        fallback = {"text/plain": self.panels.text(), "text/html": self.panels.html()}
        return ({} if show.is_batch() else {WIDGET: data[WIDGET]}) | fallback, metadata

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle()
