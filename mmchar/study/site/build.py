"""`make site`: gather the pages, let Sphinx render them, add the page to play with, and say how large it all is."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmchar.files import atomic_write
from mmchar.provenance import SOURCE

NEEDS = ("sphinx", "myst_nb", "furo", "itables", "altair", "vl_convert")
EXPLORER = "explore.html"


def build_site(
    out: str | Path,
    *,
    models: Sequence[str] | None = None,
    played: Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """The folder of a static site, to be opened from the file system or served; what was in it is replaced.

    ``models`` have a page (default: the whole zoo), ``played`` can be chosen on the page to play with (default:
    `choices.MODELS`). Both are counted where no count is at hand, which takes minutes.

    Raises
    ------
    ValueError
        A package of the extra ``site`` is missing, this is no checkout, ``out`` holds something else, or Sphinx has a
        warning.
    """
    out = Path(out).resolve()
    _check(out)
    from mmchar.study.site.explorer_page import explorer_page
    from mmchar.study.site.figure_pages import copy_figures

    with tempfile.TemporaryDirectory(prefix="mmchar-site-") as folder:
        work = Path(folder)
        stage(work / "pages", models, progress=progress)
        page = explorer_page(played, progress=progress)
        made = _sphinx(work)
        copy_figures(made)
        atomic_write(made / EXPLORER, page)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(made, out)
    return out


def stage(folder: Path, models: Sequence[str] | None, *, progress: bool) -> None:
    """Gather every page that Sphinx renders in a folder."""
    from mmchar.study.site.api_pages import stage_api
    from mmchar.study.site.figure_pages import stage_gallery
    from mmchar.study.site.first_page import stage_first_page
    from mmchar.study.site.model_pages import stage_models
    from mmchar.study.site.notebook_pages import stage_notebooks
    from mmchar.study.site.sources import stage_pages

    stage_models(folder, models, progress=progress)
    pages = stage_pages(folder)
    stage_gallery(folder)
    stage_notebooks(folder)
    stage_api(folder)
    stage_first_page(folder, pages)


def size_line(site: Path) -> str:
    """One line that says how large the site, its first page and the page to play with are."""
    bytes_of = {path: path.stat().st_size for path in site.rglob("*") if path.is_file()}
    pages = sum(path.suffix == ".html" for path in bytes_of)
    whole, first, play = sum(bytes_of.values()), bytes_of[site / "index.html"], bytes_of[site / EXPLORER]
    parts = f"index.html {first / 1e6:.2f} MB, {EXPLORER} {play / 1e6:.2f} MB"
    return f"{site.name}: {pages} pages, {whole / 1e6:.1f} MB; {parts}"


def _check(out: Path) -> None:
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise ValueError(f"the site needs {', '.join(missing)}; make site sets it up, or pip install -e '.[site]'")
    if not (SOURCE / "docs" / "conf.py").is_file():
        raise ValueError("the site is made of a checkout's docs, notebooks and figures; run this in a clone")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (out / ".buildinfo").is_file():
        raise ValueError(f"{out.name} holds something that is no site; choose a new or empty folder")


def _sphinx(work: Path) -> Path:
    """The folder of HTML that Sphinx makes of the gathered pages, beside them."""
    made = work / "html"
    options = ["-q", "-W", "--keep-going", "-c", str(SOURCE / "docs"), "-d", str(work / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(work / "pages"), str(made)]
    if subprocess.run(command, check=False).returncode:
        raise ValueError("Sphinx has warnings, which it says above; the site was not made")
    return made
