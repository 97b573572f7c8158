"""The site opens from the file system: nothing foreign, no dead link, every image described, small enough."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from samples import SITE_MODELS

from mmchar import Request, count, get_gpu, project
from mmchar.cli.main import main
from mmchar.provenance import SOURCE
from mmchar.runs.notebooks import load_notebook
from mmchar.study.site import build, explorer_page
from mmchar.study.site.breakdown import breakdown
from mmchar.study.site.build import EXPLORER
from mmchar.study.site.figure_pages import figure_names
from mmchar.study.site.flowchart import drawn
from mmchar.study.site.notebook_pages import RENDERED, _without_silent
from mmchar.study.site.sources import with_links

MODEL = SITE_MODELS[0]
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """What a page loads and links to, its anchors, its images without a description."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.ids, self.bare_images, self.folded = [], [], set(), [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.folded += tag == "details" and "hide" in (given.get("class") or "").split()
        if given.get(LOADED.get(tag)):
            self.loads.append(given[LOADED[tag]])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img" and not (given.get("alt") or "").strip():
            self.bare_images.append(given.get("src"))


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


@pytest.mark.slow
def test_a_page_of_each_kind_is_there(site, pages):
    names = {path.relative_to(site).as_posix() for path in pages}
    expected = {
        "index",
        "figures/scorecard",
        "figures/index",
        "zoo/index",
        f"zoo/{MODEL}",
        "docs/architecture",
        "api/index",
    }
    expected |= {"data/README", "api/study", *(f"notebooks/rendered/{path.stem}" for path in RENDERED.glob("*.ipynb"))}
    assert {f"{name}.html" for name in expected} | {EXPLORER} <= names


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site, pages):
    foreign = {(path.name, load) for path, page in pages.items() for load in page.loads if urlsplit(load).netloc}
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    styles += "".join(part for path in pages for part in re.findall(r"<style>.*?</style>", path.read_text(), re.DOTALL))
    assert foreign == set()
    assert re.findall(r"url\([\"']?(?:https?:)?//|@import", styles) == []


@pytest.mark.slow
def test_every_link_and_image_leads_somewhere(site, pages):
    dead = []
    for path, page in pages.items():
        for link in [*page.loads, *page.links]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].ids if target in pages else {parts.fragment}
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                dead.append((path.relative_to(site).as_posix(), link))
    assert dead == []


@pytest.mark.slow
def test_every_image_is_described(pages):
    assert {path.name: page.bare_images for path, page in pages.items() if page.bare_images} == {}


@pytest.mark.slow
def test_the_code_of_every_notebook_is_folded_above_what_it_shows(site, pages):
    for path in RENDERED.glob("*.ipynb"):
        code = [cell for cell in load_notebook(path)["cells"] if cell["cell_type"] == "code"]
        assert pages[site / "notebooks" / "rendered" / f"{path.stem}.html"].folded == sum(
            bool(cell["outputs"]) for cell in code
        )


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def test_code_that_shows_nothing_stands_with_that_of_the_next_that_does():
    text, said = {"cell_type": "markdown", "source": "# A"}, {"output_type": "stream"}
    cells = [text, code("import a"), text, code("b = 1"), code("b", said), text, code("c", said), code("save()")]
    shown = _without_silent(cells)
    assert [cell["source"] for cell in shown] == ["# A", "# A", "import a\n\nb = 1\n\nb", "# A", "c\n\nsave()"]
    assert _without_silent(cells[:4]) == cells[:4]


@pytest.mark.slow
def test_every_figure_downloads_with_its_files_and_stands_in_its_notebook(site, pages):
    links = set(pages[site / "figures" / "index.html"].links)
    files = {f"{name}{end}" for name in figure_names() for end in (".png", ".svg", ".csv")}
    assert {f"./{file}" for file in files if (SOURCE / "figures" / file).is_file()} <= links
    for path in RENDERED.glob("*.ipynb"):
        shown = {Path(load).stem for load in pages[site / "notebooks" / "rendered" / f"{path.stem}.html"].loads}
        assert set(figure_names(f"{path.stem[:2]}_")) <= shown


@pytest.mark.slow
def test_the_site_is_small(site, pages):
    size = {path: path.stat().st_size for path in site.rglob("*") if path.is_file()}
    first = site / "index.html"
    loaded = {(site / urlsplit(load).path).resolve() for load in pages[first].loads}
    assert sum(size.values()) < 30e6
    assert size[first] + sum(size[path] for path in loaded if path in size) < 1e6
    assert size[site / EXPLORER] < 1.5e6


@pytest.fixture(scope="module")
def played(site):
    """What the page to play with knows, as its script reads it."""
    return json.loads(re.search(r"const DATA = (.*);</script>", (site / EXPLORER).read_text())[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "batch", "steps", "gpu"), [(512, 1, 50, "a100-80gb"), (768, 4, 20, "l40s"), (256, 8, 3, "b200")]
)
def test_the_page_to_play_with_says_what_project_says(played, side, batch, steps, gpu):
    (model,) = played["models"]
    (size,) = [size for size in model["sizes"] if size["height"] == side]
    found = size["batches"][played["batches"].index(batch)]
    table = count(MODEL, Request(height=side, width=side, batch=batch, steps=steps))
    parts = breakdown(project(table, gpu=gpu)).set_index(["stage", "category"])
    number = 4 + [each["name"] for each in played["gpus"]].index(gpu)
    # Each number is rounded to three figures, so it is off by at most half a unit of the third: 0.5 %.
    for cell in found["cells"]:
        stage, category = model["stages"][cell[0]], played["categories"][cell[1]]
        factor = 1 - model["per_step"][cell[0]] + model["per_step"][cell[0]] * steps / model["steps"]
        if stage != "pipeline":  # between the networks the share is that of the default size
            assert cell[number] * factor / 1e9 == pytest.approx(parts.at[(stage, category), "time_s"], rel=0.005)
            assert cell[2] * factor == pytest.approx(parts.at[(stage, category), "flop"], rel=0.005)
    factors = [1 - share + share * steps / model["steps"] for share in model["per_step"]]
    total = sum(cell[number] * factors[cell[0]] for cell in found["cells"]) / 1e9
    assert total == pytest.approx(parts["time_s"].sum(), rel=0.005)
    assert model["weight_bytes"] + found["live_bytes"] == pytest.approx(
        sum(table.attrs["weight_bytes"].values()) + table["live_bytes"].max(), rel=0.005
    )
    assert {each["name"]: each["memory_bytes"] for each in played["gpus"]}[gpu] == get_gpu(gpu).memory_bytes
    calls = {name: a + b * steps for name, (a, b) in zip(model["stages"], model["calls"], strict=True)}
    assert calls["denoise"] == table.loc[table["stage"] == "denoise", "repeats"].max()


def test_a_page_to_play_with_above_its_size_is_refused(monkeypatch):
    monkeypatch.setattr(explorer_page, "explorer_data", lambda *_, **__: {"much": "0" * explorer_page.MOST_BYTES})
    with pytest.raises(ValueError, match="above 1,500,000; offer fewer choices"):
        explorer_page.explorer_page()


def test_round_numbers_are_written_short_and_read_the_same():
    data = [[0, 1, 1230000000, 4500, 12], {"text": "1000000"}]
    short = explorer_page._short(json.dumps(data, separators=(",", ":")))
    assert "123e7" in short and json.loads(short) == data


def test_a_folder_that_is_no_site_is_kept(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["site", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and (tmp_path / "mine.txt").read_text() == "mine"


def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build, "NEEDS", ("sphinx", "no_such_package"))
    assert main(["site", "--out", str(tmp_path / "site")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no_such_package" in said and "pip install" in said


def test_links_lead_to_pages_of_the_site(tmp_path):
    def mended(text):
        return with_links(text, Path("docs"), tmp_path)

    assert mended("[x](../README.md#two-commands)") == "[x](../README.md#two-commands)"
    assert (
        mended("[x](../notebooks/02_operator_breakdown.ipynb)")
        == "[x](../notebooks/rendered/02_operator_breakdown.ipynb)"
    )
    assert mended("[code](../mmchar/request.py), [room](../mmchar/study)") == "code, room"
    assert mended("[`x`](https://example.org)") == "[`x`](https://example.org)"
    assert mended("```\n[x](../mmchar/request.py)\n```\n") == "```\n[x](../mmchar/request.py)\n```\n"
    assert mended("[rows](../data/reference/claims.csv)") == "[rows](../data/reference/claims.csv)"
    assert (tmp_path / "data" / "reference" / "claims.csv").is_file()
    assert re.fullmatch(
        r'<img src="../figures/02_projected.png" alt="[^"]{20,}" width="(\d{3,4})" height="\d{3,4}"'
        r' style="--natural: \1px" loading="lazy">',
        mended("![x](../figures/02_projected.png)"),
    )


def test_a_flowchart_has_a_row_for_each_level():
    text = drawn('```mermaid\nflowchart BT\n    a["one<br/>first"] --> b\n    b --> c["three"] & d\n```')
    rows = re.findall(r'<div class="row">(.*?)</div></div>', text)
    assert [re.findall(r"<b>(\w+)</b>", row) for row in rows] == [["three", "d"], ["b"], ["one"]]
    with pytest.raises(ValueError, match="sequenceDiagram"):
        drawn("```mermaid\nsequenceDiagram\n    a->>b: no\n```")
