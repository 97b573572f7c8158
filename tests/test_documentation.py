"""What the pages tell a reader to type is typed here: commands, Python, and the files that go with them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_traces import BF16, TraceMaker

from mmchar.cli.main import COMMANDS, main
from mmchar.provenance import SOURCE

PAGES = [SOURCE / "docs" / "tutorial.md", *sorted((SOURCE / "docs" / "howto").glob("*.md"))]
ALL = [*PAGES, SOURCE / "README.md", SOURCE / "CONTRIBUTING.md", *sorted((SOURCE / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"[Ss]ave (?:this|it) as `([^`]+)`[^`]*?\n+```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader stands: a checkout, which nothing is written into, with a trace in it."""
    for name in ("data", "notebooks", "docs", "mmchar"):
        (tmp_path / name).symlink_to(SOURCE / name)
    trace = TraceMaker()
    trace.op("aten::mm", 0, 10, ([4096, 4096], BF16), ([4096, 4096], BF16))
    trace.kernel("sm90_xmma_gemm_bf16bf16", 5, 8, 200)
    trace.write(tmp_path / "run.pt.trace.json.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(text):
    """Commands of the blocks that a reader is to run, without comments."""
    blocks = [body for kind, body in BLOCK.findall(text) if kind == "sh"]
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.slow
@every_page
def test_what_a_page_says_to_type_works(page, folder, capsys):
    text = page.read_text(encoding="utf-8")
    for name, content in SAVED.findall(text):
        Path(name).write_text(content, encoding="utf-8")
    for command, *arguments in commands(text):
        if command == "mmchar":
            assert main(arguments) == 0, (arguments, capsys.readouterr().err)
        else:
            assert command == "papermill"
            done = subprocess.run([sys.executable, "-m", "papermill", *arguments], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
    if "howto/own_model" not in page.as_posix():  # whose code is run by tests/models/test_own_model.py
        space: dict = {}
        for kind, body in BLOCK.findall(text):
            if kind == "python":
                exec(compile(body, str(page), "exec"), space)


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.stem)
def test_a_page_names_commands_and_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    code = "\n".join([*(body for _, body in BLOCK.findall(text)), *re.findall(r"`([^`\n]+)`", text)])
    for name in re.findall(r"^(?:\.venv/bin/)?mmchar ([a-z]+)\b", code, re.MULTILINE):
        assert name in COMMANDS, name
    targets = set(re.findall(r"^([a-z-]+):", (SOURCE / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"^make ([a-z-]+)\b", code, re.MULTILINE):
        assert name in targets, name
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
