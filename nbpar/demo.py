"""`python -m nbpar demo`: execute the demo notebook in a real kernel and say what came of it.

The executed notebook and its HTML are written to `demo_notebooks/executed/`. The cell tagged `summary` is printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "demo_notebooks" / "01_data_parallel.ipynb"
SUMMARY = "summary"
TIMEOUT = 600  # seconds a cell may take


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m nbpar demo", description="Execute a demo notebook.")
    parser.add_argument("notebook", nargs="?", type=Path, default=NOTEBOOK, help="another notebook (default: %(default)s)")
    parser.add_argument("--to", type=Path, help="folder for the results (default: executed/ beside the notebook)")
    chosen = parser.parse_args(arguments)
    if not chosen.notebook.exists():
        parser.error(f"no notebook {chosen.notebook}: the demo notebooks are in nbpar's source repository.")
    try:
        import nbclient  # noqa: F401
        import nbconvert  # noqa: F401
    except ImportError as error:
        parser.error(f"{error}: `pip install nbpar[demo]`, or `make demo`.")
    return demo(chosen.notebook, chosen.to or chosen.notebook.parent / "executed")


def demo(path: Path, folder: Path) -> int:
    """Executes the notebook, writes it and its HTML into the folder; 0 if all cells ran, else 1."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    try:
        execute(notebook, path.parent)
        status, text = 0, f"{summary(notebook)}\nThe whole notebook took {time.perf_counter() - start:.0f} s."
    except CellExecutionError as error:
        status, text = 1, f"{error}\nA cell failed."
    print(f"\n{text}")
    print(f"Executed, as a page: {write(notebook, folder, path.stem)}")
    return status


def execute(notebook: Any, folder: Path) -> None:
    """Runs all cells in a new kernel, with one line on the terminal for each. Raises CellExecutionError."""
    from nbclient import NotebookClient

    def say(cell: Any, cell_index: int) -> None:
        if cell.cell_type == "code":
            print(f"  cell {cell_index + 1:2} of {len(notebook.cells)}: {cell.source.splitlines()[0]}", flush=True)

    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,  # a saved widget would hide the plain outputs from pages without its scripts
        on_cell_start=say,
    )
    client.execute()


def write(notebook: Any, folder: Path, name: str) -> Path:
    """The notebook and its HTML page; the page's path."""
    import nbformat
    from nbconvert import HTMLExporter

    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    page = folder / f"{name}.html"
    page.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    return page


def summary(notebook: Any) -> str:
    """The text that the cell tagged `summary` printed."""
    tagged = [cell for cell in notebook.cells if SUMMARY in cell.metadata.get("tags", [])]
    return "".join(output.get("text", "") for cell in tagged for output in cell.get("outputs", []))
