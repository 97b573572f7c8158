"""The cache of tables: built once, never trusted when damaged, and good until something that counts changes."""

import contextlib
import os
import subprocess
import sys

import pandas as pd
import pytest
from samples import files_in, make_table, one_line

from mmchar.files import atomic_write
from mmchar.provenance import SOURCE
from mmchar.tables import cache


@pytest.fixture
def table():
    return make_table()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCHAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Build:
    def __init__(self, table):
        self.table, self.calls = table, 0

    def __call__(self):
        self.calls += 1
        return self.table


def test_a_table_is_built_once_per_key_and_comes_back_the_same(folder, table):
    build = Build(table)
    first = cache.cached_table({"model": "sd", "batch": 1}, build)
    second = cache.cached_table({"batch": 1, "model": "sd"}, build)
    assert build.calls == 1 and len(files_in(folder)) == 1
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(first, table)
    assert first.attrs == second.attrs == table.attrs
    cache.cached_table({"model": "sd", "batch": 2}, build)
    assert build.calls == 2


@pytest.mark.parametrize("how", ["empty", "truncated", "one bit", "other key", "a folder"])
def test_a_damaged_cached_table_is_built_again(folder, table, how):
    build = Build(table)
    cache.cached_table({"a": 1}, build)
    (path,) = folder.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "other key":
        other = Build(table.assign(flop=0))
        cache.cached_table({"a": 2}, other)
        (foreign,) = set(folder.iterdir()) - {path}
        foreign.replace(path)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "truncated": path.read_bytes()[:-5], "one bit": bytes(data)}[how])
    warns = pytest.warns(UserWarning, match="no table is cached") if how == "a folder" else contextlib.nullcontext()
    with warns:
        again = cache.cached_table({"a": 1}, build)
    assert build.calls == 2
    pd.testing.assert_frame_equal(again, table)
    if how != "a folder":
        cache.cached_table({"a": 1}, build)
        assert build.calls == 2  # the damaged file was replaced


MAKES = """
import sys, time
from pathlib import Path
import pandas as pd
from mmchar.tables.cache import cached_table
def build():
    with Path(sys.argv[1]).open("a") as made:
        made.write("x")
    time.sleep(1.0)
    return pd.DataFrame({"a": [1]})
print(cached_table({"of": "two processes"}, build)["a"].tolist())
"""


def test_processes_side_by_side_make_a_table_once(folder, tmp_path):
    made = tmp_path / "made"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    both = [
        subprocess.Popen([sys.executable, "-c", MAKES, str(made)], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in both] == ["[1]\n"] * 2
    assert made.read_text() == "x" and [path.suffix for path in folder.iterdir()] == [".table"]


def test_a_cache_folder_that_cannot_be_used_costs_a_warning_not_the_table(tmp_path, monkeypatch, table):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMCHAR_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="MMCHAR_CACHE") as caught:
        pd.testing.assert_frame_equal(cache.cached_table({}, Build(table)), table)
    assert str(tmp_path) not in str(caught[0].message)  # warnings end up in notebooks, which are shared


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path, table):
    def keeps(folder):
        cache.cached_table({"a": 1}, Build(table))
        return len(files_in(folder)) == 1

    monkeypatch.delenv("MMCHAR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert keeps(tmp_path / "caches" / "mmchar")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert keeps(tmp_path / "home" / ".cache" / "mmchar")
    monkeypatch.setenv("MMCHAR_CACHE", str(tmp_path / "named"))
    assert keeps(tmp_path / "named")


def test_a_failed_build_is_not_cached_and_a_key_must_be_plain(folder, table):
    def broken():
        raise RuntimeError("no formula")

    with pytest.raises(RuntimeError, match="no formula"):
        cache.cached_table({"a": 1}, broken)
    assert files_in(folder) == []
    for key in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="cache key") as caught:
            cache.cached_table(key, Build(table))
        one_line(caught)


def test_source_hash_changes_with_content_and_name_but_not_with_order_or_folder(tmp_path):
    contents = {"x/a.py": "1", "x/b.py": "2", "y/a.py": "1", "y/b.py": "2", "z/a.py": "2", "z/b.py": "1"}
    paths = {name: atomic_write(tmp_path / name, content) for name, content in contents.items()}
    pair = {folder: cache.source_hash(paths[f"{folder}/b.py"], paths[f"{folder}/a.py"]) for folder in "xyz"}
    assert pair["x"] == pair["y"] != pair["z"]
    assert pair["x"] == cache.source_hash(paths["x/a.py"], paths["x/b.py"])
    assert len(cache.source_hash()) == 64


BESIDE = {"faults", "files", "locks", "provenance", "tables"}  # what errors say, where tables are kept, what made them


def test_a_count_loads_no_module_that_is_not_in_its_key(tmp_path):
    code = (
        "import sys, mmchar; [mmchar.count(n, tiny=True) for n in ('imagen', 'hstu-ml20m-large', 'next-gpt-7b')]; "
        "print(*sorted(name.split('.')[1] for name in sys.modules if name.startswith('mmchar.')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(cache.PACKAGE.parent), "MMCHAR_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert set(done.stdout.split()) == {*cache.COUNTING, "request"} | BESIDE


def test_the_key_changes_with_what_counts_and_with_nothing_else(tmp_path, monkeypatch):
    for path in cache.PACKAGE.rglob("*.py"):
        atomic_write(tmp_path / path.relative_to(cache.PACKAGE), path.read_bytes())
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)
    cache.source_hash.cache_clear()
    before = cache.source_hash()
    for name, counts in (
        ("study/plots", False),
        ("projection/roofline", False),
        ("tracing/trace", True),
        ("models/networks/hstu", True),
    ):
        cache.source_hash.cache_clear()
        with open(tmp_path / f"{name}.py", "a") as file:
            file.write("# edited\n")
        assert (cache.source_hash() != before) == counts, name
        before = cache.source_hash()
    cache.source_hash.cache_clear()
