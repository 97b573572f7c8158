"""What is recorded of the machine and the source, and what never is."""

import getpass
import json
import socket
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from mmchar import provenance


def test_provenance_says_what_ran_but_not_where_or_who():
    found = provenance.provenance()
    assert {"python", "mmchar", "torch", "diffusers", "transformers", "pandas"} == found["versions"].keys()
    assert found["versions"]["pandas"] == pd.__version__ and found["cores"] >= 1 and found["memory_bytes"] > 2**28
    assert found["cpu"] and isinstance(found["gpus"], list) and found["utc"].endswith("+00:00")
    text = json.dumps(found)
    assert str(Path.home()) not in text and str(provenance.SOURCE) not in text
    words = set(text.replace('"', " ").replace(",", " ").split())
    assert not {socket.gethostname(), getpass.getuser()} & words


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "mmchar").mkdir()
    (tmp_path / "mmchar" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(provenance, "SOURCE", tmp_path.resolve())

    def git(*words):
        options = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *options, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    return git


def test_git_commit_of_a_checkout_is_dirty_when_its_code_changed(checkout):
    assert provenance._git_commit() is None  # no repository
    checkout("init", "-q")
    assert provenance._git_commit() is None  # no commit
    checkout("add", "-A")
    checkout("commit", "-q", "-m", "a", "--no-verify")
    commit = checkout("rev-parse", "HEAD")
    (provenance.SOURCE / "figures.svg").write_text("rewritten by a study")
    assert provenance._git_commit() == commit
    (provenance.SOURCE / "mmchar" / "a.py").write_text("a = 2\n")
    assert provenance._git_commit() == f"{commit}-dirty"


def test_a_package_inside_a_foreign_repository_has_no_commit(checkout, monkeypatch):
    checkout("init", "-q")
    checkout("add", "-A")
    checkout("commit", "-q", "-m", "a", "--no-verify")
    monkeypatch.setattr(provenance, "SOURCE", provenance.SOURCE / "mmchar")
    assert provenance._git_commit() is None
