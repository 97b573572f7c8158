"""The site in Chromium, offline, from the file system: nothing fails, links lead somewhere, tables sort, it fits."""

from dataclasses import dataclass, field
from urllib.parse import unquote, urldefrag, urlsplit

import numpy as np
import pytest
from PIL import Image
from samples import SITE_MODELS

pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
SHOWN = ["index", "notebooks/rendered/02_operator_breakdown", "figures/index", "zoo/index", "explore", "docs/tutorial"]

# Images that would be loaded when they are scrolled to are loaded now; those without a width did not load.
BROKEN = """async () => {
  const images = [...document.images];
  for (const image of images) image.loading = "eager";
  await Promise.allSettled(images.map((image) => image.decode()));
  return images.filter((image) => !image.naturalWidth).map((image) => image.src);
}"""
FOUND = """() => ({
  unsorted: [...document.querySelectorAll("main table, article table")].filter((table) => table.checkVisibility())
    .filter((table) => table.tBodies[0]?.rows.length > 2 && table.tHead?.innerText.trim())
    .filter((table) => !table.querySelector("button.sort, .dt-column-order"))
    .map((table) => table.innerText.trim().slice(0, 40)),
  links: [...document.querySelectorAll("a[href]")].map((a) => a.href),
  anchors: [...document.querySelectorAll("[id], a[name]")].map((e) => e.id || e.name),
})"""
WIDE = """() => document.scrollingElement.scrollWidth - innerWidth"""
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@dataclass
class Visit:
    """What a page did when it was opened, and what stands on it."""

    errors: list = field(default_factory=list)
    foreign: list = field(default_factory=list)
    broken: list = field(default_factory=list)
    links: list = field(default_factory=list)
    anchors: set = field(default_factory=set)
    unsorted: list = field(default_factory=list)
    pixels_too_wide: int = 0


def listen(page, visits):
    """Note of the last visit everything that fails on a page, and everything it asks for that is no file."""
    page.on("console", lambda message: visits[-1].errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visits[-1].errors.append(str(error)))
    page.on("requestfailed", lambda request: visits[-1].errors.append(f"not loaded: {request.url[:200]}"))
    known = ("file:", "data:", "blob:")
    page.on("request", lambda ask: None if ask.url.startswith(known) else visits[-1].foreign.append(ask.url))


def look_at(page, path, visit):
    """Open a page and look at all of it, wide and as on a phone."""
    page.set_viewport_size(DESKTOP)
    page.goto(path.as_uri())
    visit.broken = page.evaluate(BROKEN)
    found = page.evaluate(FOUND)
    visit.links, visit.anchors, visit.unsorted = found["links"], set(found["anchors"]), found["unsorted"]
    page.set_viewport_size(PHONE)
    page.evaluate(DRAWN)
    if path.name == "explore.html":
        page.wait_for_timeout(1000)  # its chart is drawn anew
    visit.pixels_too_wide = page.evaluate(WIDE)


@pytest.fixture(scope="module")
def visits(chromium, site):
    """What every page of the site did, by its name."""
    paths, found = sorted(site.rglob("*.html")), []
    page = chromium.new_context(offline=True).new_page()
    listen(page, found)
    for path in paths:
        found.append(Visit())
        look_at(page, path, found[-1])
    page.context.close()
    return {path.relative_to(site).as_posix(): visit for path, visit in zip(paths, found, strict=True)}


@pytest.fixture
def page(chromium):
    """A page, offline, on which nothing may fail."""
    context = chromium.new_context(offline=True, viewport=DESKTOP)
    visit, page = Visit(), context.new_page()
    listen(page, [visit])
    yield page
    context.close()
    assert visit.errors + visit.foreign == []


def of_each(visits, name):
    """One part of what the pages did, of those pages that have any."""
    return {page: getattr(visit, name) for page, visit in visits.items() if getattr(visit, name)}


def test_no_page_has_an_error_or_asks_for_anything_but_files(visits):
    assert len(visits) > 30
    assert of_each(visits, "errors") == {}
    assert of_each(visits, "foreign") == {}


def test_every_image_is_drawn(visits):
    assert of_each(visits, "broken") == {}


def test_every_link_leads_to_a_file_and_its_anchor(visits, site):
    pages = {(site / name).as_uri(): visit.anchors for name, visit in visits.items()}
    dead = set()
    for name, visit in visits.items():
        for address, anchor in map(urldefrag, visit.links):
            parts = urlsplit(address)
            here = parts.scheme == "file" and not (site / unquote(parts.path)).is_file()
            lost = address in pages and name != "explore.html" and anchor and unquote(anchor) not in pages[address]
            dead |= {(name, address, anchor)} if here or lost else set()
    assert dead == set()


def test_no_page_is_wider_than_a_phone(visits):
    assert {page: pixels for page, pixels in of_each(visits, "pixels_too_wide").items() if pixels > 0} == {}


def test_every_table_of_some_rows_can_be_sorted(visits):
    assert of_each(visits, "unsorted").keys() <= {"explore.html"}


def column(page, table, number):
    """What stands in a column of a table, from top to bottom, once there is any."""
    cells = page.locator(f"{table} tbody tr > :nth-child({number})")
    cells.first.wait_for()
    return [text.strip() for text in cells.all_inner_texts()]


def numbers(texts):
    return [float(text.replace(",", "")) for text in texts]


@pytest.mark.parametrize("how", ["click", "Enter"])
def test_a_table_sorts_by_its_header(page, site, how):
    page.goto((site / "zoo" / f"{SITE_MODELS[0]}.html").as_uri())
    button = page.get_by_role("button", name="TFLOP")
    table = "table:has(button.sort:has-text('TFLOP'))"
    place = 4  # stage, network, calls, TFLOP
    before = numbers(column(page, table, place))
    assert len(before) > 2 and before not in (sorted(before), sorted(before, reverse=True))
    for order, expected in [("ascending", sorted(before)), ("descending", sorted(before, reverse=True))]:
        button.click() if how == "click" else button.press(how)
        assert page.locator(f"{table} th[aria-sort]").get_attribute("aria-sort") == order
        assert numbers(column(page, table, place)) == expected
    stages = column(page, table, 1)
    assert len(set(stages)) == len(before)  # whole rows moved


def test_the_zoo_is_sorted_and_searched(page, site):
    page.goto((site / "zoo" / "index.html").as_uri())
    table = ".dt-container table:has(tbody a)"
    assert sorted(column(page, table, 1)) == sorted(SITE_MODELS)
    header = page.locator(f"{table} th", has_text="TFLOP").first
    for order in ("ascending", "descending"):
        header.click()
        page.wait_for_selector(f"{table} th[aria-sort={order}]:has-text('TFLOP')")
        shown = numbers(column(page, table, 6))
        assert shown == sorted(shown, reverse=order == "descending")
    page.get_by_role("searchbox").last.fill(SITE_MODELS[1])
    page.locator(f"{table} tbody tr").nth(1).wait_for(state="detached")
    assert column(page, table, 1) == [SITE_MODELS[1]]


def test_the_page_to_play_with_redraws_when_a_choice_changes(page, site):
    page.goto((site / "explore.html").as_uri())
    page.wait_for_selector("#chart svg")
    for choice, value in [("gpu", "b200"), ("batch", "8"), ("show", "flop")]:
        field = page.locator(f"[name={choice}]")
        assert field.input_value() != value
        before = page.inner_html("#chart"), page.inner_text("#stages")
        field.select_option(value)
        page.wait_for_function("drawn => document.getElementById('chart').innerHTML !== drawn", arg=before[0])
        assert page.inner_text("#stages") != before[1] or choice == "show"
        assert f"{choice}={value}" in page.url
    address = page.url
    page.locator("[name=steps]").fill("0")
    assert page.inner_text("#wrong").startswith("steps=0 is not possible")
    page.goto("about:blank")
    page.goto(address)
    assert page.locator("[name=gpu]").input_value() == "b200"


def test_search_finds_pages(page, site):
    page.goto((site / "search.html").as_uri() + "?q=attention")
    page.get_by_text("matching the search query").wait_for()
    assert page.locator("#search-results li a").count() > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_can_be_read_in_light_and_dark_and_on_a_phone(chromium, site, tmp_path, scheme, size):
    context = chromium.new_context(offline=True, viewport=size, color_scheme=scheme)
    page = context.new_page()
    for name in SHOWN:
        page.goto((site / f"{name}.html").as_uri())
        if name == "explore":
            page.wait_for_selector("#chart svg")
        picture = tmp_path / f"{name.replace('/', '_')}.png"
        page.screenshot(path=picture)
        grey = np.asarray(Image.open(picture).convert("L"), dtype=float) / 255
        ground = np.median(grey)
        assert ground < 0.2 if scheme == "dark" else ground > 0.8
        written = np.abs(grey - ground) > 0.4  # what can be told from its ground
        assert 0.005 < written.mean() < 0.5
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_as_light_or_dark_as_the_page(chromium, site, tmp_path, scheme):
    context = chromium.new_context(offline=True, viewport=DESKTOP, color_scheme=scheme)
    page = context.new_page()
    page.goto((site / "figures" / "index.html").as_uri())
    page.locator("figure.result img").first.screenshot(path=tmp_path / "figure.png")
    ground = np.median(np.asarray(Image.open(tmp_path / "figure.png").convert("L"))) / 255
    assert ground < 0.2 if scheme == "dark" else ground > 0.9
    context.close()


def test_the_name_of_an_index_stands_in_the_row_of_names(page, site):
    page.goto((site / "notebooks" / "rendered" / "02_operator_breakdown.html").as_uri())
    head = page.locator("table:has(th:text-is('c001')) thead").first
    assert head.locator("tr").count() == 1
    assert head.locator("th").first.inner_text().strip().startswith("id")
    names = page.locator("table:has(th:text-is('flash')):has-text('total_s') thead th").all_inner_texts()
    assert [name.split()[0] for name in names[:3]] == ["model", "attention", "Embedding"]


def test_figures_have_their_place_at_once_and_text_of_a_size_to_read_on_a_phone(page, site):
    page.goto((site / "figures" / "index.html").as_uri(), wait_until="commit")
    sizes = "images => images.map(image => [image.width, image.height, image.getAttribute('width')].map(Number))"
    figures = page.locator("figure.result img")
    figures.last.wait_for()
    for width, height, natural in figures.evaluate_all(sizes):
        assert 0 < width <= natural and height > 0
    page.set_viewport_size(PHONE)
    shown = [width / natural for width, _, natural in figures.evaluate_all(sizes)]  # letters have 21 pixels of 150 dpi
    assert len(shown) > 20 and min(shown) > 0.44
