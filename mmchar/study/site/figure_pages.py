"""Figures on the site: large, with their caption as alternative text, and with their files and table to download."""

import shutil
from pathlib import Path

from PIL import Image

from mmchar.files import atomic_write
from mmchar.provenance import SOURCE

FIGURES = SOURCE / "figures"
_DOWNLOADS = {".png": "PNG", ".svg": "SVG", ".csv": "table (CSV)"}


def figure_names(notebook: str = "") -> list[str]:
    """Names of the figures that the repository holds, or of those of one notebook (``02``)."""
    return sorted(path.stem for path in FIGURES.glob(f"{notebook}*.png") if path.with_suffix(".md").is_file())


def caption(name: str) -> tuple[str, str]:
    """What is to be seen in a figure, and the sentence that says what it was made from."""
    said, _, made_from = (FIGURES / f"{name}.md").read_text(encoding="utf-8").strip().partition("\n\n")
    return " ".join(said.split()), " ".join(made_from.split())


def copy_figures(site: Path) -> None:
    """Copy the files of every figure into a site."""
    (site / "figures").mkdir(exist_ok=True)
    for name in figure_names():
        for suffix in _DOWNLOADS:
            if (FIGURES / f"{name}{suffix}").is_file():
                shutil.copyfile(FIGURES / f"{name}{suffix}", site / "figures" / f"{name}{suffix}")


def stage_gallery(folder: Path) -> None:
    """Write the page that shows all figures into a folder."""
    atomic_write(folder / "figures" / "index.md", _gallery())


def image(name: str, way: str) -> str:
    """A figure as an HTML image, described by its caption; ``way`` leads to the folder of figures.

    It says its size in pixels, so that nothing moves when it comes, and a phone shows it as large as its text needs.
    """
    with Image.open(FIGURES / f"{name}.png") as figure:
        width, height = figure.size
    size = f'width="{width}" height="{height}" style="--natural: {width}px"'
    return f'<img src="{way}/{name}.png" alt="{_attribute(caption(name)[0])}" {size} loading="lazy">'


def shown(name: str, way: str) -> str:
    """A figure in Markdown: the image, its caption, its downloads; ``way`` leads to the folder of figures."""
    said, made_from = caption(name)
    links = [
        f'<a href="{way}/{name}{suffix}" download>{label}</a>'
        for suffix, label in _DOWNLOADS.items()
        if (FIGURES / f"{name}{suffix}").is_file()
    ]
    return "\n".join(
        [
            '<figure class="result">',
            f'<a href="{way}/{name}.svg">{image(name, way)}</a>',
            f"<figcaption>{_text(said)} <span class='downloads'>{' · '.join(links)}</span>",
            f"<details><summary>Made from</summary>{_text(made_from)}</details></figcaption>",
            "</figure>",
        ]
    )


def _gallery() -> str:
    parts = ["# Figures", "Every figure of the study, with what it shows, its files and, where it is kept, its table."]
    names = figure_names()
    for notebook in dict.fromkeys(name.partition("_")[0] for name in names):
        (rendered,) = (SOURCE / "notebooks" / "rendered").glob(f"{notebook}_*.ipynb")
        title = rendered.stem.partition("_")[2].replace("_", " ").capitalize()
        parts.append(f"## {notebook} {title}\n\nFrom [the notebook](../notebooks/rendered/{rendered.name}).")
        parts += [shown(name, ".") for name in names if name.startswith(f"{notebook}_")]
    return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _attribute(text: str) -> str:
    return _text(text).replace('"', "&quot;")
