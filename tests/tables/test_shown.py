"""An operator table shows itself in a screenful, and stays a DataFrame in all else."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest

import mmchar
from mmchar.tables.shown import CATEGORY_COLORS, OperatorTable, summary_html, whole
from mmchar.tables.totals import totals


@pytest.fixture(scope="module")
def table():
    return mmchar.count("stable-diffusion-1.5", tiny=True)


def test_a_count_and_a_projection_show_totals_stages_and_categories(table):
    for one in (table, mmchar.project(table, gpu="l4")):
        shown = one._repr_html_()
        assert shown == summary_html(one) and len(shown) < 10_000
        for stage in table["stage"].unique():
            assert f"<td>{stage}</td>" in shown
        assert "stable-diffusion-1.5" in shown and "scaled-down variant" in shown and "Convolution" in shown
    assert "projected time on l4" in shown and "<th>seconds</th>" in shown
    assert "counted" in table._repr_html_() and "<th>seconds</th>" not in table._repr_html_()


def test_the_numbers_shown_are_those_of_the_table(table):
    sums = totals(table, ["category"])
    assert sums["flop"].sum() == (table["flop"] * table["repeats"]).sum()
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", table._repr_html_())]
    shares = 100 * sums["flop"] / sums["flop"].sum()
    assert sorted(widths) == pytest.approx(sorted(shares[shares > 0]), abs=0.006)
    assert f"{sums['flop'].sum() / 1e12:,.3f}" in table._repr_html_()


def test_it_is_well_formed_and_escapes_names(table):
    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    odd = whole(table.assign(stage="<b>&"))
    odd.attrs = {**table.attrs, "model": "<script>"}
    parser = Tags()
    parser.feed(odd._repr_html_())
    assert parser.open == [] and "<script>" not in odd._repr_html_() and "&lt;b&gt;&amp;" in odd._repr_html_()


def test_what_is_taken_from_it_is_a_plain_frame_with_its_attrs(table):
    assert isinstance(table, OperatorTable) and isinstance(table, pd.DataFrame)
    for part in (table.head(), table[["op"]], table[table["flop"] > 0], table.copy(), table.assign(x=1)):
        assert type(part) is pd.DataFrame
    assert table.head().attrs["model"] == "stable-diffusion-1.5"
    assert type(table["flop"]) is pd.Series and "stage" in table.head()._repr_html_()
    assert "summary" not in repr(table) and str(table) == str(pd.DataFrame(table))


def test_a_table_that_lost_a_column_or_all_rows_is_shown_as_any_other(table):
    bare = whole(table.head(2))
    del bare["category"]
    assert "<td>" in bare._repr_html_() and "counted" not in bare._repr_html_()
    assert "counted" not in whole(table.head(0))._repr_html_()


def test_every_category_has_a_colour_of_its_own(table):
    assert set(table["category"]) <= set(CATEGORY_COLORS)
    assert len(set(CATEGORY_COLORS.values())) == len(CATEGORY_COLORS)
