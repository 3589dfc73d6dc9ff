"""A notebook opened in JupyterLab with a kernel that has its ranks."""

from __future__ import annotations

from tests.browser.lab import Page

CELL = "%%parallel\nimport torch.distributed as dist\nprint('rank', dist.get_rank(), 'of', dist.get_world_size())"


def test_lab_offers_the_kernel_and_its_ranks_are_ready(page: Page) -> None:
    page.open("ranks.ipynb", "%parallel status", CELL, kernel="nbpar-2")
    page.page.get_by_text("Python 3 (2 MPI ranks)").first.wait_for()
    page.start()
    page.finish()
    text = page.page.locator(".jp-Notebook").inner_text()
    assert "2 ranks on" in text and "rank 0 of 2" in text and "rank 1 of 2" in text
