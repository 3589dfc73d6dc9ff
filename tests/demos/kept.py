"""`python -m tests.demos.kept [NAME …]`: execute demo notebooks and keep their outputs in them.

What says something of the machine only is left out: widgets' state, the host's name, paths, the hours of execution.
"""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any

import nbformat

from nbpar import demo

FOLDER = demo.NOTEBOOK.parent
WIDGET = "application/vnd.jupyter.widget-view+json"  # drawn from a state that no notebook keeps; the tables beside it stay
PATH = re.compile(r"(?:(?<=\dm)|(?<![\w.…/+-]))/[\w./+-]*?/(site-packages|lib/python3\.\d+|nbpar)/")  # after a space or a colour
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks() -> list[Path]:
    """Those that are executed."""
    return sorted(path for path in FOLDER.glob("*.ipynb") if "." not in path.stem)


def translations(path: Path) -> list[Path]:
    """`07_step_by_step.zh-CN.ipynb` of `07_step_by_step.ipynb`: the same code, the text in another language."""
    return sorted(path.parent.glob(f"{path.stem}.*.ipynb"))


def clean(notebook: Any) -> Any:
    """The same notebook without what differs from machine to machine."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]  # what libraries warn of
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
    return replaced(notebook)


def replaced(node: Any) -> Any:
    """With other words for this machine's in all texts."""
    if isinstance(node, str):
        return anonymous(node)
    if isinstance(node, list):
        return [replaced(one) for one in node]
    if isinstance(node, dict):
        return nbformat.from_dict({name: replaced(value) for name, value in node.items()})
    return node


def anonymous(text: str) -> str:
    for host in {socket.gethostname(), socket.getfqdn()}:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "localhost", text)
    return PATH.sub(r"…/\1/", text)


def keep(path: Path) -> None:
    """Its translations get the same code and outputs."""
    notebook = nbformat.read(path, as_version=4)
    demo.execute(notebook, path.parent)
    nbformat.write(clean(notebook), path)
    for other in translations(path):
        translated = nbformat.read(other, as_version=4)
        translated.cells = [
            ours if ours.cell_type == "code" else theirs for ours, theirs in zip(notebook.cells, translated.cells, strict=True)
        ]
        nbformat.write(clean(translated), other)


if __name__ == "__main__":
    for chosen in [FOLDER / f"{name.removesuffix('.ipynb')}.ipynb" for name in sys.argv[1:]] or notebooks():
        print(chosen.name)
        keep(chosen)
