"""A Jupyter server on loopback and a Chromium that drives it. JupyterLab and Notebook are served by the same process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

TOKEN = "test"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-default-apps",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
]  # fmt: skip
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
IDLE = """() => {
    const kernel = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === 'connected' && kernel?.status === 'idle';
}"""


def chromium() -> str | None:
    """The browser's path, if this machine has one."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@dataclass
class Page:
    """A page of the browser, with what went wrong in it. foreign: requests to other servers, all refused."""

    page: Any
    base: str
    root: Path
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.route("**/*", self._allow)

    def _allow(self, route: Any) -> None:
        if route.request.url.startswith((self.base, "data:", "blob:", "file:")):
            route.continue_()
        else:
            self.foreign.append(route.request.url)
            route.abort()

    def open(self, name: str, *cells: str, app: str = "lab/tree", kernel: str = "python3") -> None:
        """A notebook of these cells, or one that is there already, with a kernel that is ready."""
        if cells:
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
            notebook.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
            nbformat.write(notebook, self.root / name)
        self.page.goto(f"{self.base}/{app}/{name}?{'reset&' if app == 'lab/tree' else ''}token={TOKEN}")
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(IDLE, timeout=60_000)

    def command(self, name: str, **arguments: Any) -> None:
        self.page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments])

    def start(self) -> None:
        """Runs all cells; `window.finished` says when they have ended."""
        self.page.evaluate(
            "() => { window.finished = false;"
            " window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.finished = true; }); }"
        )

    def finish(self, timeout: float = 60) -> None:
        self.page.wait_for_function("window.finished", timeout=timeout * 1000)
        self.page.wait_for_timeout(200)

    @property
    def running(self) -> bool:
        return not self.page.evaluate("window.finished")


@contextmanager
def server(root: Path, home: Path) -> Iterator[str]:
    """The server's address. root: where notebooks are; home: for its settings and logs, and a prefix for kernelspecs."""
    port = free_port()
    for name, values in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    folders = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython",
        "JUPYTER_PATH": "share/jupyter", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }  # fmt: skip
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    env = {
        **os.environ,
        **{name: str(home / folder) for name, folder in folders.items()},
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable, "-m", "jupyter", "lab", "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", "--expose-app-in-browser",
        "--JupyterNotebookApp.expose_app_in_browser=True",
        f"--ServerApp.root_dir={root}",
    ]  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            wait(base, process, home / "server.log")
            yield base
        finally:
            process.terminate()  # it ends its kernels
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(base: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a server answers."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{base}/api/status?token={TOKEN}", timeout=2).read()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the Jupyter server did not start:\n{log.read_text(errors='replace')[-2000:]}")
