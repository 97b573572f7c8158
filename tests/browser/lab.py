"""A JupyterLab of a test's own: its settings, notebooks and processes end with the test."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from mmchar.provenance import SOURCE
from mmchar.runs.own_process import kill_marked

MARK = "MMCHAR_RUN"
ARGUMENTS = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--ServerApp.port=0"]
ARGUMENTS += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # no network


@dataclass(frozen=True)
class Lab:
    """A server that runs: its address, the word that lets one in, its folder, and the mark of its processes."""

    url: str
    token: str
    folder: Path
    mark: str

    def page(self, path: str) -> str:
        """The address of a file of the folder."""
        return f"{self.url}lab/tree/{path}?token={self.token}"

    def ask(self, path: str, body: dict | None = None) -> object:
        """What the server answers, read as JSON; a body is posted."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}api/{path}", data, {"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def lab_of_notebooks(folder: Path):
    """JupyterLab on a copy of the notebooks in a folder, on loopback; no process of it is left, however this ends."""
    (folder / "notebooks").mkdir(parents=True)
    for path in (SOURCE / "notebooks").glob("*.ipynb"):
        shutil.copy(path, folder / "notebooks")
    mark, token = secrets.token_hex(8), secrets.token_hex(16)
    around = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # a user's kernel draws inline
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *ARGUMENTS, f"--ServerApp.root_dir={folder}"],
            env=around | _own_folders(folder) | {MARK: mark, "JUPYTER_TOKEN": token},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Lab(_address(process, folder), token, folder, mark)
    finally:
        process.send_signal(signal.SIGTERM)  # which ends its kernels too
        try:
            process.wait(20)
        finally:
            kill_marked(mark)
            process.wait(5)


def processes(mark: str) -> list[str]:
    """Command lines of the processes of a server that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def _own_folders(folder: Path) -> dict[str, str]:
    """Nothing is read from the user's settings, and nothing written to them."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    names += ("JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    return {name: str(folder / "jupyter" / name.lower()) for name in names} | {"PYTHONPATH": str(SOURCE)}


def _address(process: subprocess.Popen, folder: Path, seconds: float = 60) -> str:
    """The address of a server that has started, which it writes into its runtime folder."""
    end = time.monotonic() + seconds
    written = folder / "jupyter" / "jupyter_runtime_dir" / f"jpserver-{process.pid}.json"
    while not (written.is_file() and written.read_text().endswith("}")):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"JupyterLab did not start: {(folder / 'server.log').read_text()[-500:]}")
        time.sleep(0.1)
    return json.loads(written.read_text())["url"]
