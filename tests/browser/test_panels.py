"""The panels in a real JupyterLab and Notebook: they appear, move, end at the true values, and survive what pages go through."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

from tests.browser.lab import Page

SETUP = """%load_ext nbpar
import nbpar, time, torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
opt = torch.optim.SGD(model.parameters(), lr=.1)
loader = DataLoader(TensorDataset(torch.randn(256, 32), torch.randint(10, (256,))), batch_size=32)
%parallel start -n 2"""

STEP = """    for x, y in loader:
        opt.zero_grad(); loss = F.cross_entropy(model(x), y); loss.backward(); opt.step()
        time.sleep(.03)"""
TRAIN = f"%%parallel data\nfor epoch in range(12):\n{STEP}\n    print(f'epoch {{epoch + 1}}, loss {{loss.item():.3f}}')"
EVERYTHING = f"%%parallel data --show all\nfor epoch in range(2):\n{STEP}\nprint('rank', nbpar.rank())"
FOREVER = f"%%parallel data\nfor epoch in range(10_000):\n{STEP}"

# What Notebook 7 says by itself when the server of JupyterLab shows it.
OF_NOTEBOOK_7 = ("Cannot read properties of undefined (reading 'schema')", "Command 'filebrowser:open-path' not registered")
MOVING = """() => {
    const panels = document.querySelector('.nbpar'), bar = panels?.querySelector('progress');
    return Number(panels?.dataset.paints ?? 0) > 10 && bar.value > 0;
}"""


@pytest.fixture(scope="module")
def trained(page: Page) -> Page:
    """The page after a training cell has run, in which more than ten paints were seen before its end."""
    page.open("training.ipynb", SETUP, TRAIN, EVERYTHING)
    page.start()
    page.page.wait_for_function(MOVING, timeout=60_000)
    assert page.running
    assert page.page.get_by_role("progressbar", name="rank 1 progress").first.evaluate("bar => bar.value") < 1000
    page.finish()
    return page


def test_live_ends_at_the_true_values(trained: Page) -> None:
    live = trained.page.locator(".nbpar-section[data-name=live]").first
    text = live.inner_text()
    assert text.count("✓ done") == 2
    assert text.count("12/12 · 8/8") == 2
    assert "epoch 12, loss" in text
    assert "The cell has ended" in live.get_by_role("status").inner_text()
    assert live.get_by_role("progressbar", name="rank 0 progress").get_attribute("value") == "1000"


def test_every_panel_is_there_and_named(trained: Page) -> None:
    cell = trained.page.locator(".jp-Cell").nth(2)
    names = cell.locator(".nbpar-section").evaluate_all("sections => sections.map(one => one.dataset.name)")
    assert [name for name in names if name != "live"] == ["split", "timeline", "aggregation", "what-if", "output"]
    cell.get_by_role("table", name=re.compile("Who holds which layer")).wait_for()
    cell.get_by_role("table", name=re.compile("Whose bytes went into whose results")).wait_for()
    cell.get_by_role("img", name=re.compile(r"Time by rank. Measured, steps 14 to 16 of 16: forward \d+%")).wait_for()
    cell.get_by_role("slider", name="from").wait_for()
    cell.get_by_role("searchbox", name="search").wait_for()
    cell.get_by_role("log", name="lines of output by rank").wait_for()


def test_the_keyboard_moves_a_slider(trained: Page) -> None:
    slider = trained.page.locator(".jp-Cell").nth(2).get_by_role("slider", name="from")
    slider.focus()
    before = int(slider.input_value())
    trained.page.keyboard.press("ArrowLeft")
    assert int(slider.input_value()) == before - 1
    assert slider.get_attribute("aria-valuetext") == f"step {before} of 16"


def test_the_keyboard_folds_a_panel(trained: Page) -> None:
    summary = trained.page.locator(".jp-Cell").nth(2).locator(".nbpar-section[data-name=split] > summary")
    summary.focus()
    was = summary.evaluate("one => one.parentElement.open")
    trained.page.keyboard.press("Enter")
    assert summary.evaluate("one => one.parentElement.open") is not was
    trained.page.keyboard.press("Enter")


def test_tab_reaches_every_control(trained: Page) -> None:
    cell = trained.page.locator(".jp-Cell").nth(2)
    wanted = cell.locator(".nbpar :is(summary, input, select, .nbpar-lines):not([disabled])").count()
    cell.locator(".nbpar summary").first.focus()
    reached = 1
    for _ in range(wanted - 1):
        trained.page.keyboard.press("Tab")
        reached += trained.page.evaluate("() => !!document.activeElement.closest('.nbpar')")
    assert reached == wanted


def test_output_is_searched(trained: Page) -> None:
    cell = trained.page.locator(".jp-Cell").nth(2)
    lines = cell.get_by_role("log")
    assert "rank 0" in lines.inner_text()
    cell.get_by_role("searchbox").fill("nothing has this")
    assert lines.inner_text().strip() == ""
    cell.get_by_role("searchbox").fill("1: rank")
    assert "rank 1" in lines.inner_text()


def test_light_and_dark_are_readable(trained: Page, tmp_path: Path) -> None:
    colours = []
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        trained.command("apputils:change-theme", theme=theme)
        trained.page.wait_for_timeout(500)
        colours.append(trained.page.locator(".nbpar").first.evaluate("one => getComputedStyle(one).color"))
        assert len(trained.page.locator(".nbpar").last.screenshot()) > 5000
    assert colours[0] != colours[1]


def test_reload_keeps_the_panels(trained: Page) -> None:
    trained.command("docmanager:save")
    trained.page.reload()
    trained.ready()
    live = trained.page.locator(".nbpar-section[data-name=live]").first
    live.wait_for(timeout=20_000)
    assert live.inner_text().count("✓ done") == 2


def test_the_saved_notebook_shows_the_end_where_no_widget_runs(trained: Page, tmp_path: Path) -> None:
    trained.command("docmanager:save")
    saved = nbformat.read(trained.root / "training.ipynb", 4)
    bundles = [output.data for output in saved.cells[1].outputs if output.output_type == "display_data"]
    tables = next(data["text/html"] for data in bundles if "Who holds which layer" in data.get("text/plain", ""))
    assert tables.count(">✓ done<") == 2
    assert "epoch 12, loss" in "".join(o.text for o in saved.cells[1].outputs if o.output_type == "stream")
    html, _ = HTMLExporter().from_notebook_node(saved)
    (tmp_path / "page.html").write_text(html)
    for scripts in (True, False):
        context = trained.page.context.browser.new_context(java_script_enabled=scripts, offline=True)
        static = context.new_page()
        static.goto((tmp_path / "page.html").as_uri(), wait_until="domcontentloaded")
        assert static.get_by_text("✓ done").first.is_visible()
        assert static.get_by_role("table", name=re.compile("What the ranks did")).first.is_visible()
        context.close()


def test_an_untrusted_copy_shows_the_tables(trained: Page) -> None:
    saved = (trained.root / "training.ipynb").read_text()
    (trained.root / "copy.ipynb").write_text(saved.replace('"version_major": 2', '"version_major": 2, "copied": true'))
    trained.open("copy.ipynb")
    first = trained.page.locator(".jp-Cell").nth(1)
    first.get_by_text("✓ done").first.wait_for(timeout=20_000)
    assert first.get_by_role("table", name=re.compile("What the ranks did")).count() == 1


def test_an_interrupt_stops_a_cell_with_panels(trained: Page) -> None:
    trained.open("interrupt.ipynb", SETUP, FOREVER)
    trained.start()
    trained.page.wait_for_function(MOVING.replace("bar.value > 0", "true"), timeout=60_000)
    trained.command("notebook:interrupt-kernel")
    trained.finish(20)
    assert "KeyboardInterrupt" in trained.page.locator(".jp-OutputArea").last.inner_text()
    live = trained.page.locator(".nbpar-section[data-name=live]").first
    assert live.inner_text().count("! failed") == 2


def test_a_plan_in_notebook_7(trained: Page) -> None:
    plan = "nbpar.plan(model, torch.zeros(32, 32), 'hybrid', '2x2', micro=4)"
    trained.open("seven.ipynb", SETUP.rpartition("\n")[0], plan, plan.replace("micro=4", "how='tensor'"), app="notebooks")
    trained.start()
    trained.finish()
    cell = trained.page.locator(".jp-Cell").nth(1)
    cell.get_by_role("table", name=re.compile("The mesh 2x2")).wait_for()
    verdict = cell.locator(".nbpar-verdict")
    assert verdict.inner_text().startswith("Predicted, as planned: the fullest rank holds")
    before = verdict.inner_text()
    slider = cell.get_by_role("slider", name="ranks")
    slider.focus()
    trained.page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "6"
    assert verdict.inner_text() != before
    shards = trained.page.locator(".jp-Cell").nth(2)
    assert shards.locator(".nbpar-verdict").inner_text().startswith("Predicted, as planned: the fullest rank holds")
    assert shards.locator(".nbpar-bars").inner_text().count("shard") == 2
    assert shards.get_by_role("slider", name="mesh").get_attribute("aria-valuetext") == "2 replicas × 2 shards"
    assert not shards.get_by_label("micro-batches").is_visible()


def test_a_running_cell_in_notebook_7(trained: Page) -> None:
    trained.open("seven_live.ipynb", SETUP, TRAIN, app="notebooks")
    trained.start()
    trained.page.wait_for_function(MOVING, timeout=60_000)
    assert trained.running
    trained.finish()
    live = trained.page.locator(".nbpar-section[data-name=live]").first
    assert live.inner_text().count("✓ done") == live.inner_text().count("12/12 · 8/8") == 2
    trained.command("docmanager:save")
    trained.page.reload()
    trained.ready()
    live.wait_for(timeout=20_000)
    assert live.inner_text().count("✓ done") == 2


def test_nothing_went_wrong_in_the_page(trained: Page) -> None:
    """Last: no error in the console, no request to another server."""
    assert [error for error in trained.errors if not error.startswith(OF_NOTEBOOK_7)] == []
    assert trained.foreign == []
