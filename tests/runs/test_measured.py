"""Measurements on disk: whole or not there, packed into few files, and read back as they were."""

import errno
import json

import numpy as np
import pandas as pd
import pytest
from samples import files_in, make_table

from mmchar.runs.campaign import measured
from mmchar.runs.campaign.measured import load_points, pack, read_measured, set_aside, stage_points, write_point


def point(name, **changes):
    facts = {"median_s": {"denoise": 0.5}, "iqr_s": {"denoise": 0.01}, "samples": {"denoise": [0.5, 0.5, 0.51]}}
    facts |= {"idle_share": {"denoise": None}, "idle": {"denoise": None}, "energy_j": {"denoise": None}}
    facts |= {"memory": {"denoise": {"peak_bytes": 7}}, "coverage": {"denoise": {"of_operators": 0.99}}}
    facts |= {"doubts": {"denoise": ["busy"]}}
    asked = {"model": "sd", "request": {"batch": 2}, "device": "cpu", "dtype": "float32", "attention": "flash"}
    asked |= {"tiny": True, "samples": 3, "warmup": 1, "levers": {}, "stages": None}
    row = {"id": name, "status": "ok", "reason": "", "asked": asked, "hardware": "cpu", "attempts": 1, "facts": facts}
    return {**row, **changes}


def operators(rows=4, seed=0):
    random = np.random.default_rng(seed)
    table = pd.concat([make_table()] * rows, ignore_index=True).assign(stage="denoise", repeats=10)
    return table.assign(time_s=random.random(len(table)))


def fill(folder, many, rows=4):
    tables = {f"sd-{number:02d}": operators(rows, number) for number in range(many)}
    for name, table in tables.items():
        write_point(folder, point(name), table)
    return tables


def test_points_read_back_as_they_were_before_and_after_packing(tmp_path):
    tables = fill(tmp_path, 3)
    write_point(tmp_path, point("sd-skipped", status="skipped", reason="too large", facts={}))
    before = read_measured(tmp_path)
    assert pack(tmp_path) == []
    after = read_measured(tmp_path)
    for points, rows in (before, after):
        assert points["id"].tolist() == ["sd-00", "sd-01", "sd-02", "sd-skipped"]
        assert points["time_s"].tolist()[:3] == [5.0, 5.0, 5.0]  # 0.5 s * 10 repeats
        assert points["doubts"].tolist() == [["busy"], ["busy"], ["busy"], []]
        for name, table in tables.items():
            part = rows[rows["id"] == name].drop(columns="id").reset_index(drop=True)
            for column in table:
                assert part[column].tolist() == pytest.approx(table[column].tolist(), nan_ok=True), column
    assert [name.split("-")[0] for name in files_in(tmp_path)] == ["measured", "run.json"]


def test_a_row_per_stage_holds_what_its_passes_found(tmp_path):
    fill(tmp_path, 1)
    (row,) = stage_points(read_measured(tmp_path)[0]).to_dict("records")
    assert (row["median_s"], row["samples"], row["peak_bytes"], row["idle_share"]) == (0.5, 3, 7, None)
    assert row["request"] == {"batch": 2} and row["stage"] == "denoise"


def test_packed_files_stay_below_their_limit_and_what_finds_no_place_stays(tmp_path):
    tables = fill(tmp_path, 6, rows=3000)
    size = max(path.stat().st_size for path in (tmp_path / "points").glob("*.parquet"))
    left = pack(tmp_path, max_bytes=int(2.5 * size), max_files=2)
    packed = list(tmp_path.glob("measured-*.parquet"))
    assert len(packed) == 2 and all(path.stat().st_size <= 2.5 * size for path in packed)
    assert left and files_in(tmp_path / "points") == sorted(
        f"{name}{end}" for name in left for end in (".json", ".parquet")
    )
    assert set(read_measured(tmp_path)[1]["id"]) == set(tables)
    assert pack(tmp_path) == [] and set(read_measured(tmp_path)[1]["id"]) == set(tables)


def test_one_table_larger_than_a_file_may_be_stays_alone(tmp_path):
    fill(tmp_path, 1, rows=3000)
    write_point(tmp_path, point("sd-small"), operators(1))
    size = (tmp_path / "points" / "sd-00.parquet").stat().st_size
    assert pack(tmp_path, max_bytes=size // 2) == ["sd-00"]
    assert set(read_measured(tmp_path)[1]["id"]) == {"sd-00", "sd-small"}


def test_a_second_campaign_adds_to_the_packed_files(tmp_path):
    fill(tmp_path, 2)
    pack(tmp_path)
    write_point(tmp_path, point("sd-00", attempts=2), operators(1, 9))  # measured again
    write_point(tmp_path, point("sd-new"), operators(1, 8))
    pack(tmp_path)
    points, rows = read_measured(tmp_path)
    assert points["id"].tolist() == ["sd-00", "sd-01", "sd-new"]
    assert (rows["id"] == "sd-00").sum() == 3  # the rows of the new table, not the 12 of the old
    assert len(list(tmp_path.glob("measured-*"))) == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
@pytest.mark.parametrize("file", ["sd-00.json", "sd-00.parquet"])
def test_a_damaged_point_is_named_and_set_aside(tmp_path, file, damage):
    fill(tmp_path, 2)
    path = tmp_path / "points" / file
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if damage == "cut" else data.replace(b"sd", b"sx") + b" ")
    if damage == "gone" and file.endswith("json"):
        assert load_points(tmp_path)[1] == {}  # a table that no row names was never finished
        return
    with pytest.warns(UserWarning, match=f"points/{file} is damaged"):
        assert read_measured(tmp_path)[0]["id"].tolist() == ["sd-01"]
    assert len(set_aside(tmp_path)) == 1
    assert damage == "gone" or len(list((tmp_path / "points").glob(f"{file}.damaged-*"))) == 1


def test_a_damaged_packed_file_is_set_aside_with_its_points(tmp_path):
    fill(tmp_path, 2)
    write_point(tmp_path, point("sd-skipped", status="skipped", facts={}))
    pack(tmp_path)
    (path,) = tmp_path.glob("measured-*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="is damaged"):
        points, rows = read_measured(tmp_path)
    assert points["id"].tolist() == ["sd-skipped"] and rows.empty
    set_aside(tmp_path)
    pack(tmp_path)
    assert read_measured(tmp_path)[0]["id"].tolist() == ["sd-skipped"]
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


def test_a_changed_number_in_run_json_is_damage(tmp_path):
    fill(tmp_path, 1)
    pack(tmp_path)
    run = tmp_path / "run.json"
    run.write_text(run.read_text().replace('"denoise":0.5', '"denoise":0.4'))
    with pytest.warns(UserWarning, match="run.json is damaged"):
        assert read_measured(tmp_path)[0].empty


def test_a_full_disk_while_packing_costs_nothing(tmp_path, monkeypatch):
    fill(tmp_path, 2)
    pack(tmp_path)
    write_point(tmp_path, point("sd-new"), operators(1, 8))
    real = measured.atomic_write

    def full(path, data):
        if path.name == "run.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(measured, "atomic_write", full)
    with pytest.raises(OSError):
        pack(tmp_path)
    monkeypatch.undo()
    assert read_measured(tmp_path)[0]["id"].tolist() == ["sd-00", "sd-01", "sd-new"]
    assert pack(tmp_path) == []
    assert len(list(tmp_path.glob("measured-*"))) == 1


def test_nothing_is_written_outside_the_folder(tmp_path):
    with pytest.raises(ValueError, match="cannot be a file name"):
        write_point(tmp_path, point("../sd"))
    fill(tmp_path, 1)
    pack(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert set(run["points"]["sd-00"]["table"]) == {"file", "sha256", "rows"}


def test_no_folder_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        read_measured(tmp_path / "none")
