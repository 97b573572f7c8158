"""The first page: the scorecard, then where everything is."""

import re
from pathlib import Path

from mmchar.files import atomic_write
from mmchar.provenance import SOURCE
from mmchar.study.site.figure_pages import shown
from mmchar.study.site.sources import with_links

_FIGURE = "10_verdicts"


def stage_first_page(folder: Path, pages: list[str]) -> None:
    """Write the first page into a folder, with a table of contents of all that was gathered there."""
    readme = (SOURCE / "README.md").read_text(encoding="utf-8")
    title, _, tagline = readme.partition("\n\n")
    card = (SOURCE / "figures" / "scorecard.md").read_text(encoding="utf-8").partition("\n## ")[0]
    parts = [title, tagline.partition("\n\n")[0], _WAYS]
    parts += ["## What of the papers holds", card.partition("\n\n")[2].strip(), shown(_FIGURE, "figures")]
    parts += [_about(readme), _tree(pages)]
    atomic_write(folder / "index.md", with_links("\n\n".join(parts) + "\n", Path(), folder))


def _about(readme: str) -> str:
    """What the head of the README says after its tagline, under a heading."""
    head = re.split(r"^## ", readme, maxsplit=1, flags=re.MULTILINE)[0]
    return "## What it is\n\n" + head.split("\n\n", 2)[2].strip()


def _tree(pages: list[str]) -> str:
    """Tables of contents, in the order of the menu."""
    trees = [
        ("Results", ["Scorecard <figures/scorecard>", "notebooks/index", "figures/index", "zoo/index"]),
        ("How to", ["docs/tutorial", *sorted(page for page in pages if page.startswith("docs/howto/"))]),
        ("Reference", ["Read me <README>", "Data dictionary <data/README>", "api/index"]),
    ]
    pages = [page for page in pages if page != "docs/zoo"]
    trees[2][1].append("Counts of the zoo <docs/zoo>")
    placed = {entry.split("<")[-1].rstrip(">") for _, entries in trees for entry in entries}
    trees[2][1].extend(page for page in pages if page not in placed)
    return "\n\n".join(
        _TREE.format(caption=caption, entries="\n".join(entries)) for caption, entries in trees if entries
    )


_WAYS = """<nav class="ways" aria-label="Where to go">
<a href="explore.html"><b>Play</b> change model, GPU, size, steps</a>
<a href="notebooks/index.html"><b>Notebooks</b> a question each</a>
<a href="zoo/index.html"><b>Zoo</b> a page per model</a>
<a href="figures/index.html"><b>Figures</b> with their tables</a>
</nav>"""
_TREE = """```{{toctree}}
:hidden:
:caption: {caption}

{entries}
```"""
