"""Files and tables: whole or absent, the same after reading, and named when damaged."""

import os
import threading
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, strategies as st
from samples import files_in, make_table, one_line

from mmchar import files
from mmchar.tables import stored


@pytest.fixture
def table():
    return make_table()


# files


def test_atomic_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.atomic_write(path, "long content é")
    files.atomic_write(path, b"short")
    assert path.read_bytes() == b"short" and files_in(tmp_path) == ["new/a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_atomic_write_that_fails_keeps_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = files.atomic_write(tmp_path / "a.txt", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.atomic_write(path, "new")
    assert path.read_text() == "old" and files_in(tmp_path) == ["a.txt"]


def test_a_reader_never_sees_half_of_what_two_writers_write(tmp_path):
    path, seen = tmp_path / "a.txt", set()
    texts = {letter * 200_000 for letter in "ab"}
    writers = [threading.Thread(target=lambda t=t: [files.atomic_write(path, t) for _ in range(20)]) for t in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    assert seen <= texts and path.read_text() in texts and files_in(tmp_path) == ["a.txt"]


# tables


def test_parquet_keeps_types_values_and_attrs(tmp_path, table):
    back = stored.read_table(stored.write_table(tmp_path / "t.parquet", table))
    pd.testing.assert_frame_equal(back, table)
    assert back.attrs == table.attrs


def test_csv_keeps_values_and_empty_strings(tmp_path, table):
    back = stored.read_table(stored.write_table(tmp_path / "t.csv", table))
    pd.testing.assert_frame_equal(back, table.astype({"model": back["model"].dtype}), check_categorical=False)
    assert back["flop"].tolist() == [2**53 + 1, 0, 7] and back["attention"].tolist() == ["self", "", "causal"]


@given(st.floats(), st.integers(-(2**63), 2**63 - 1))
def test_csv_returns_the_same_numbers(number, integer):
    frame = pd.DataFrame({"time_s": [number, 1.5], "flop": [integer, 0]})
    data = stored._encode(frame, Path("t.csv"))
    pd.testing.assert_frame_equal(stored._decode_csv(data), frame, check_exact=True)


def test_csv_written_by_hand_may_leave_numbers_blank(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("model,steps,energy_j,note\nflux,50,,\nsd,,12.5,007\nsd,4,,x\n")
    back = stored.read_table(path)
    assert back["energy_j"].isna().tolist() == [True, False, True] and back["energy_j"][1] == 12.5
    assert back["steps"].isna().tolist() == [False, True, False] and back["note"].tolist() == ["", "007", "x"]


def test_csv_keeps_an_index_that_means_something_and_drops_row_numbers(tmp_path, table):
    grouped = table.groupby("model", observed=True)["flop"].sum().to_frame()
    back = stored.read_table(stored.write_table(tmp_path / "t.csv", grouped))
    assert list(back.columns) == ["model", "flop"]
    back = stored.read_table(stored.write_table(tmp_path / "t.csv", table[1:]))
    assert list(back.columns) == list(table.columns)


@pytest.mark.parametrize("name", ["t.pkl", "t", "t.PARQUET", "t.parquet.gz"])
def test_other_suffixes_are_refused(tmp_path, table, name):
    with pytest.raises(ValueError, match=r"\.parquet or \.csv") as caught:
        stored.write_table(tmp_path / name, table)
    one_line(caught)
    with pytest.raises(ValueError, match=r"\.parquet or \.csv"):
        stored.read_table(tmp_path / name)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not a table\n" * 99, "truncated", "flipped"])
def test_a_damaged_parquet_is_named(tmp_path, table, data):
    path = stored.write_table(tmp_path / "t.parquet", table)
    good = path.read_bytes()
    cases = {"truncated": good[: len(good) // 2], "flipped": good[:-9] + b"\xff" * 9}
    path.write_bytes(cases.get(data, data))
    with pytest.raises(ValueError, match=r"t\.parquet is damaged or no table") as caught:
        stored.read_table(path)
    one_line(caught)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b'a,b\n1,2\n1,2,3,4\n"'])
def test_a_damaged_csv_is_named(tmp_path, data):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=r"t\.csv is damaged or no table") as caught:
        stored.read_table(tmp_path / "t.csv")
    one_line(caught)


def test_tables_that_cannot_be_kept_and_folders_that_cannot_be_written_are_named(tmp_path, table):
    with pytest.raises(ValueError, match="cannot hold this table") as caught:
        stored.write_table(tmp_path / "t.parquet", pd.DataFrame({"mixed": [1, "a", {}]}))
    one_line(caught)
    table.attrs["request"] = object()
    with pytest.warns(UserWarning, match="attrs"), pytest.raises(ValueError, match="not JSON serializable"):
        stored.write_table(tmp_path / "t.parquet", table)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose a folder you can write to") as caught:
        stored.write_table(tmp_path / "file" / "t.csv", table)
    one_line(caught)
    with pytest.raises(ValueError, match="No such file"):
        stored.read_table(tmp_path / "none.csv")
    assert files_in(tmp_path) == ["file"]
