"""What one notebook finds: parameters, tables, figures and checks, told as they come and saved together at its end."""

import ast
import logging
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmchar.faults import did_you_mean
from mmchar.files import can_write, nearest_there
from mmchar.locks import join_batch, step_aside
from mmchar.runs.records import Drawn, save_result
from mmchar.study.drawing.look import style

_INJECTED = "# Parameters\n"  # how papermill begins the cell that it puts in
_SHOWN = {"display.precision": 3, "display.max_rows": 100, "display.width": 170, "display.max_colwidth": 60}


class Findings:
    """The record of one notebook; `begin` makes it."""

    def __init__(self, notebook: str, *, out_dir: str, parameters: dict[str, Any]) -> None:
        self.notebook, self.out_dir, self.parameters = notebook, out_dir, parameters
        self.tables: dict[str, pd.DataFrame] = {}
        self.figures: dict[str, Drawn] = {}
        self._checks: list[dict[str, Any]] = []

    def draw(self, name: str, drawn: Axes | Figure, table: pd.DataFrame, caption: str) -> pd.DataFrame:
        """The table of a figure, which is kept with it; the figure's name gets the notebook's number in front.

        `caption` says what is to be seen, with units, GPU and the kind of time; its first sentence is the title of a
        figure that has none.
        """
        figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
        assert figure is not None  # axes without one cannot be drawn on
        if not (figure.get_suptitle() if isinstance(drawn, Figure) else drawn.get_title() or figure.get_suptitle()):
            (figure.suptitle if isinstance(drawn, Figure) else drawn.set_title)(_title(caption), fontsize=10)
        self.figures[f"{self.notebook[:2]}_{name}"] = Drawn(figure, caption, name)
        return self.keep(name, table)

    def keep(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Keep a table, and give it back, so that a cell can end with it."""
        self.tables[name] = table
        step_aside()
        return table

    def check(self, name: str, *, expected: Any, got: Any, good: bool | None, claim: str = "") -> None:
        """Hold an expectation against what came out; `claim` is an id of ``data/reference/claims.csv`` or "".

        `good` is None for what is shown beside an expectation and not judged, e.g. one that is known second-hand.
        """
        verdict = "not judged" if good is None else "agrees" if good else "differs"
        row = {"name": name, "expected": expected, "got": got, "verdict": verdict}
        self._checks.append({"claim": claim, **row} if claim else row)

    def near(self, name: str, expected: float, got: float, within: float, *, unit: str = "", claim: str = "") -> None:
        """Check that a number is as far from what was expected as it may be."""
        said = f"{expected:,.4g} ± {within:,.4g} {unit}".rstrip()
        good = abs(got - expected) <= within
        self.check(name, expected=said, got=f"{got:,.4g} {unit}".rstrip(), good=good, claim=claim)

    def checks(self) -> pd.DataFrame:
        """One row per check: claim, name, expected, got, verdict."""
        rows = [{"claim": "", **check} for check in self._checks]
        return pd.DataFrame(rows, columns=["claim", "name", "expected", "got", "verdict"])

    def save(self) -> None:
        """Write tables, figures and checks to the folder of results, if there is one."""
        if self.out_dir:
            about = {"parameters": self.parameters, "tables": self.tables, "figures": self.figures}
            save_result(self.out_dir, notebook=self.notebook, checks=self._checks, **about)


def begin(notebook: str, out_dir: str, *, progress: bool = True, **parameters: Any) -> Findings:
    """The record of a notebook that starts now; sets the look of its figures and tables.

    `notebook` is the name of its file without suffix, `parameters` are those of its parameters cell: all of them, as a
    name that papermill has put in beside them is refused as misspelt. Raises a ValueError for such a name, and for a
    folder of results that cannot be written to.
    """
    _refuse_misspelt({"out_dir": out_dir, "progress": progress, **parameters})
    if out_dir:
        _check_writable(Path(out_dir))
    join_batch(notebook)
    style()
    for option, value in _SHOWN.items():
        pd.set_option(option, value)
    warnings.filterwarnings("ignore", message="IProgress")  # bars are drawn as text where there are no widgets
    for library in ("transformers", "diffusers"):  # their advice on weights and packages is not about what is counted
        logging.getLogger(library).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}\.")
    return Findings(notebook, out_dir=out_dir, parameters=parameters)


def _title(caption: str) -> str:
    return "\n".join(textwrap.wrap(caption.split(". ")[0].removesuffix("."), 90))


def _refuse_misspelt(known: dict[str, Any]) -> None:
    """Papermill puts a cell in front of the others and only warns of a name that the notebook does not read."""
    from IPython import get_ipython

    shell = get_ipython()
    for source in shell.user_ns.get("In", []) if shell else []:
        if source.startswith(_INJECTED):
            assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
            names = [target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if name not in known:
                    hint = did_you_mean(name, known)
                    raise ValueError(f"no parameter {name!r}; {hint}there are {', '.join(known)}")


def _check_writable(folder: Path) -> None:
    if not can_write(nearest_there(folder)):
        raise ValueError(f"cannot write results to {str(folder)!r}; give out_dir a folder that can be written to")
