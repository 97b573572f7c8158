"""Pages of the site from the repository's own Markdown: the same layout, and no link that leads nowhere."""

import re
import shutil
from pathlib import Path

from mmchar.files import atomic_write
from mmchar.provenance import SOURCE
from mmchar.study.site.figure_pages import image
from mmchar.study.site.flowchart import drawn

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md", "figures/scorecard.md", "docs/**/*.md")
_LINK = re.compile(r"(?P<image>!?)\[(?P<label>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z]+:|#")


def stage_pages(folder: Path) -> list[str]:
    """Copy every Markdown page of the repository into a folder, with its links mended; their paths, without suffix."""
    found = [path for pattern in PAGES for path in sorted(SOURCE.glob(pattern))]
    for path in found:
        place = path.relative_to(SOURCE)
        atomic_write(folder / place, with_links(path.read_text(encoding="utf-8"), place.parent, folder))
    return [path.relative_to(SOURCE).with_suffix("").as_posix() for path in found]


def with_links(text: str, beside: Path, folder: Path) -> str:
    """A page's text whose links lead to pages and files of the site.

    A notebook stands for its rendered copy, and a small file that is no page is copied beside, to download. Of what is
    not on the site (a folder, code) only the label stays. ``beside`` is the page's folder in the repository.
    """
    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(_shown(part, beside, folder) for part in parts)


def _shown(part: str, beside: Path, folder: Path) -> str:
    """A part of a page: prose with its links mended, a chart as HTML, other code as it is."""
    if part.startswith("```mermaid"):
        return drawn(part)
    return part if part.startswith("```") else _LINK.sub(lambda link: _mended(link, beside, folder), part)


def _mended(link: re.Match[str], beside: Path, folder: Path) -> str:
    target, _, anchor = link["target"].partition("#")
    if _ELSEWHERE.match(link["target"]):
        return link[0]
    path = Path(_normal(beside / target))
    if path.suffix == ".ipynb" and path.parent.name == "notebooks":
        path = path.parent / "rendered" / path.name
    if not (SOURCE / path).is_file() or path.suffix in (".py", ".json") or path.parts[0] == "..":
        page = {Path("notebooks/rendered"): "notebooks/index.md", Path("figures"): "figures/index.md"}.get(path)
        return f"[{link['label']}]({_way(Path(page), beside)})" if page else link["label"]
    if link["image"] and path.parent == Path("figures"):
        return image(path.stem, _way(path.parent, beside))
    if path.suffix not in (".md", ".ipynb"):
        _copy(path, folder)
    return f"{link['image']}[{link['label']}]({_way(path, beside)}{'#' * bool(anchor)}{anchor})"


def _copy(path: Path, folder: Path) -> None:
    """Copy a file of the repository to the same place in a folder."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SOURCE / path, folder / path)


def _normal(path: Path) -> str:
    """A path without ``..``, as text."""
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." and parts else [*parts, part]
    return "/".join(parts)


def _way(path: Path, beside: Path) -> str:
    """The way from a folder to a file, both relative to the same root."""
    return "/".join([".."] * len(beside.parts) + list(path.parts))
