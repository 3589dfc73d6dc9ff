"""Mode `each`: the cell runs as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nbpar.parallel.report import Report


@contextmanager
def mode(options: Mapping[str, object], namespace: dict[str, Any], report: Report) -> Iterator[None]:
    yield
