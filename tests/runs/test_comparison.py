"""Two campaigns point by point."""

import pytest

from mmchar.runs.campaign.comparison import compare_campaigns
from mmchar.runs.campaign.measured import pack, write_point

FACTS = ("idle_share", "idle", "energy_j", "memory")


def save(folder, model, seconds, *, iqr=0.01, attention="flash", **changes):
    """Write one measured point of one stage, without an operator table."""
    facts = {"median_s": {"decode": seconds}, "iqr_s": {"decode": iqr}, "samples": {"decode": [seconds]}}
    facts |= {name: {"decode": None} for name in FACTS} | {"doubts": {"decode": []}}
    facts["coverage"] = {"decode": {"of_operators": 1.0}}
    asked = {"model": model, "request": {"batch": 1}, "device": "cpu", "dtype": "float32", "attention": attention}
    asked |= {"tiny": False, "levers": {}, "stages": None, "samples": 1, "warmup": 1, **changes}
    row = {"id": f"{model}-{attention}-{len(changes)}", "status": "ok", "reason": "", "asked": asked, "attempts": 1}
    write_point(folder, {**row, "hardware": "a processor", "facts": facts})


def test_medians_of_the_same_setting_stand_side_by_side(tmp_path):
    for name, seconds in (("one", 1.0), ("two", 1.02)):
        save(tmp_path / name, "llama-2-7b", seconds, iqr=0.03)
        save(tmp_path / name, "parti-350m", seconds**4, iqr=0.03)
    pack(tmp_path / "two")  # packed or not makes no difference
    found = compare_campaigns(tmp_path / "one", tmp_path / "two").set_index("model")
    assert found["first_s"].tolist() == [1.0, 1.0]
    assert found["ratio"].tolist() == pytest.approx([1.02, 1.02**4])
    assert found["spread"].tolist() == pytest.approx([0.03, 0.03])  # the first's: 0.03 / 1
    assert found["within"].tolist() == [True, False]  # 2 % apart, and 8 %


def test_other_settings_are_not_compared(tmp_path):
    save(tmp_path / "one", "llama-2-7b", 1.0)
    save(tmp_path / "two", "llama-2-7b", 1.0, attention="eager")
    with pytest.raises(ValueError, match="no stage with the same settings in common"):
        compare_campaigns(tmp_path / "one", tmp_path / "two")
    save(tmp_path / "two", "llama-2-7b", 2.0)
    save(tmp_path / "two", "llama-2-7b", 3.0, dtype="bfloat16")
    assert compare_campaigns(tmp_path / "one", tmp_path / "two")["ratio"].tolist() == [2.0]


def test_an_empty_folder_is_named(tmp_path):
    save(tmp_path / "one", "llama-2-7b", 1.0)
    (tmp_path / "two").mkdir()
    with pytest.raises(ValueError, match="nothing was measured in .*two"):
        compare_campaigns(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ValueError, match="no folder .*three"):
        compare_campaigns(tmp_path / "three", tmp_path / "one")
