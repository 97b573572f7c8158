"""A notebook's record: what is saved, and what is refused before any heavy work."""

import pandas as pd
import pytest
from samples import one_line

from mmchar.runs.records import read_result
from mmchar.study import findings
from mmchar.study.findings import begin


@pytest.fixture
def table():
    return pd.DataFrame({"model": ["a", "b"], "share": [40.0, 60.0]})


def test_a_figure_is_saved_with_the_table_that_it_shows(tmp_path, table):
    from matplotlib.figure import Figure

    found = begin("02_x", str(tmp_path / "02_x"), models="a,b", quick=True)
    found.draw("shares", Figure().subplots(), table, "Shares (%).")
    found.keep("raw", table.head(1))
    found.check("sum", expected=100, got=100.0, good=True)
    found.check("most", expected="<= 50", got=60.0, good=False, claim="c001")
    found.near("near", 87, 86.59, 1, unit="%")
    found.near("far", 87, 85, 1)
    found.check("heard", expected=1, got=2, good=None)
    found.save()
    assert found.figures["02_shares"].figure.axes[0].get_title() == "Shares (%)"  # it had none
    result = read_result(tmp_path / "02_x")
    assert result["parameters"] == {"models": "a,b", "quick": True}
    assert result["tables"].keys() == {"shares", "raw"} and result["figures"] == {"02_shares": "Shares (%)."}
    assert pd.read_csv(tmp_path / "02_x/figures/02_shares.csv")["share"].tolist() == [40.0, 60.0]
    assert found.checks()["verdict"].tolist() == ["agrees", "differs", "agrees", "differs", "not judged"]
    assert found.checks()["claim"].tolist() == ["", "c001", "", "", ""]
    assert found.checks().loc[2, ["expected", "got"]].tolist() == ["87 ± 1 %", "86.59 %"]


def test_without_a_folder_nothing_is_saved(tmp_path, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = begin("02_x", "", quick=True)
    found.keep("t", table)
    found.save()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write results to '.*file/02_x'; give out_dir a folder") as caught:
        begin("02_x", str(tmp_path / "file" / "02_x"))
    one_line(caught)


def test_a_misspelt_parameter_of_papermill_is_refused(monkeypatch):
    class Shell:
        user_ns = {"In": ["", "gpu = 'a100-80gb'", "# Parameters\ngpuu = 't4'\nout_dir = ''\n", "x = 3"]}

    monkeypatch.setattr("IPython.get_ipython", Shell)
    with pytest.raises(ValueError, match="no parameter 'gpuu'; did you mean 'gpu'\\? there are") as caught:
        begin("02_x", "", gpu="t4", quick=False)
    one_line(caught)
    assert findings.begin("02_x", "", gpu="t4", gpuu=1).parameters == {"gpu": "t4", "gpuu": 1}
