"""The scorecard: one verdict per statement, as committed; what is not there is named and never confirmed."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from mmchar.cli.main import main
from mmchar.provenance import REFERENCE, SOURCE
from mmchar.runs.verdicts import HOLDS, IF, NOT, UNKNOWN, UNREAD, VERDICTS, counts, head
from mmchar.study.claims import statements
from mmchar.study.verdicts import scorecard as cards
from mmchar.study.verdicts.claim import Claim
from mmchar.study.verdicts.evidence import others
from mmchar.study.verdicts.figure import verdict_rows
from mmchar.study.verdicts.setting import EVERYTHING, Setting, changes, timed

QUICK = ["c006", "c007", "c052", "c053", "c054", "c059", "c071", "c073"]  # SeamlessM4T, and what needs no model


@pytest.fixture(scope="module")
def quick():
    return cards.scorecard(ids=QUICK, progress=False).set_index("id")


def committed():
    return pd.read_csv(REFERENCE / "verdicts.csv", keep_default_na=False, na_values={"ours": "", "low": "", "high": ""})


def assert_as_committed(card):
    was = committed().set_index("id").loc[card["id"]].reset_index()
    for words in ("verdict", "condition", "our_unit", "basis", "figure", "reason"):
        assert card[words].tolist() == was[words].tolist(), words
    for number in ("ours", "low", "high"):
        np.testing.assert_allclose(card[number].to_numpy(), was[number].to_numpy(dtype=float), rtol=0.006)


def test_some_verdicts_are_as_committed(quick):
    assert_as_committed(quick.reset_index())


@pytest.mark.slow
def test_all_verdicts_are_as_committed():
    """Written by ``mmchar claims --out data/reference/verdicts.csv``."""
    card = cards.scorecard(progress=False)
    assert_as_committed(card)
    readme = (SOURCE / "README.md").read_text(encoding="utf-8")
    assert head(card) in readme
    assert counts(card) in readme


def test_every_statement_has_a_row_with_a_verdict_and_a_reason():
    was, said = committed(), statements()
    assert was["id"].tolist() == said["id"].tolist()
    assert set(was["verdict"]) <= set(VERDICTS) and (was["reason"] != "").all()
    assert (was.loc[said["read"] != "read", "verdict"] == UNREAD).all()
    judged = was[was["verdict"].isin([HOLDS, IF, NOT])]
    assert judged["ours"].notna().all() and ((judged["verdict"] == IF) == (judged["condition"] != "")).all()
    figures = {path.stem for path in (SOURCE / "figures").glob("*.svg")}
    assert set(was["figure"]) - {""} <= figures


def test_values_of_speech_follow_from_the_table(quick):
    assert quick.loc["c059", "ours"] == 96  # 24 layers x self and cross attention x keys and values
    assert quick.loc["c071", ["ours", "low"]].tolist() == [64, 48]  # 8 x 8; x 3 colours / 4 channels
    assert quick.loc["c073", "verdict"] == UNKNOWN and np.isnan(quick.loc["c073", "ours"])
    assert quick.loc["c007", "verdict"] == UNREAD
    assert (quick["low"].dropna() <= quick["ours"].dropna()).all()


def test_a_claim_about_what_is_not_there_names_it_and_is_never_confirmed(monkeypatch):
    absent = {
        "c001": Claim("c001", "", lambda s: {("",): timed("sd-9", s)["flop"].sum()}, (0, 1e99)),
        "c002": Claim("c002", "", lambda s: {("",): timed("imagen", s.but(gpu="h900"))["flop"].sum()}, (0, 1e99)),
    }
    monkeypatch.setattr(cards, "CLAIMS", absent)
    card = cards.scorecard(ids=["c001", "c002", "c003"], progress=False)
    assert card["verdict"].tolist() == [UNKNOWN] * 3 and card["ours"].isna().all()
    assert card["reason"].tolist()[0] == "the zoo has no sd-9" and "h900" in card["reason"].tolist()[1]


def test_what_was_not_read_is_not_judged_whatever_its_value(monkeypatch):
    monkeypatch.setattr(cards, "CLAIMS", {"c021": Claim("c021", "{ours}", lambda _: {("",): 1.52}, (1.5, 1.6), "x")})
    row = cards.scorecard(ids=["c021"], progress=False).iloc[0]
    assert (row["verdict"], row["ours"], row["reason"]) == (UNREAD, 1.52, "1.52 times")


def test_bad_names_end_in_one_line():
    with pytest.raises(ValueError, match="no claim c999; ids are c001 to c077"):
        cards.scorecard(ids=["c999"], progress=False)
    with pytest.raises(ValueError, match="nothing is computed for claim c073; choose among c001, c002"):
        cards.moves("c073")


def test_one_assumption_is_changed_at_a_time():
    start = Setting()
    for name, one in changes(start).items():
        fields = {key for key in vars(start) if vars(start)[key] != vars(one)[key]}
        assert len(fields) == (name in EVERYTHING), name
    assert all(set(claim.decides) <= set(EVERYTHING) for claim in cards.CLAIMS.values())


def test_moves_start_at_ours_and_say_what_agrees(quick):
    table = cards.moves("c054")
    assert table["change"].iloc[0] == "as projected" and table["ours"].iloc[0] == quick.loc["c054", "ours"]
    assert table["moved"].iloc[0] == 0 and table.loc[table["change"] == "host twice as slow", "moved"].iloc[0] > 0
    assert (table["kind"] == "reading").sum() == 2 and (table["paper_low"] == 2).all()


def test_the_range_of_a_share_is_that_of_its_own_time():
    assert cards._if_off(50, 1.5, "%") == pytest.approx(60)  # 75 of 75 + 50
    assert cards._if_off(2, 1.5, "x") == 3


def test_paper_ranges_are_read_from_statements():
    said = statements().set_index("id")
    assert cards.paper_range(said.loc["c001"]) == (44, 44)
    assert cards.paper_range(said.loc["c003"]) == (1.1, 2.5)
    assert cards.paper_range(said.loc["c005"]) == (60, 100)
    assert np.isnan(cards.paper_range(said.loc["c046"])).all()


def test_the_figure_has_a_row_per_judged_claim(quick):
    card = quick.reset_index()
    ax = verdict_rows(card)
    texts = [text.get_text() for text in ax.texts]
    assert [text[:4] for text in texts if text.startswith("c0")] == ["c006", "c052", "c053", "c054", "c059", "c071"]
    assert "if the network alone" in texts and len(ax.patches) == 6
    plt.close(ax.figure)
    with pytest.raises(ValueError, match="figure needs column short"):
        verdict_rows(card.drop(columns="short"))


def test_what_others_measured_is_of_known_claims_and_says_where_it_stands():
    table = others()
    assert set(table["claim"]) <= set(statements()["id"])
    assert table["share"].between(0, 100).all() and (table[["how", "source", "licence"]] != "").all(axis=None)


def test_the_shell_shows_what_moves_a_claim(capsys):
    assert main(["claims", "--moves", "c071"]) in (0, None)
    assert "numbers are counted" in capsys.readouterr().out
