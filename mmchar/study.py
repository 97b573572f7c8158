"""The whole study: every notebook of a folder run as a batch, and the scorecard of what they found."""

import sys
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchar.batch import RunStatus, relative_path, require_papermill, run_notebook
from mmchar.files import atomic_write
from mmchar.hardware import get_gpu
from mmchar.notebooks import render
from mmchar.parameters import check_parameters, read_parameters
from mmchar.records import read_checks
from mmchar.tables import write_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class _Run:
    notebook: Path
    out_dir: Path
    parameters: dict[str, Any]


def study(
    notebooks_dir: str | Path = "notebooks",
    results_dir: str | Path = "results",
    *,
    only: str | Iterable[str] | None = None,
    gpu: str | None = None,
    quick: bool = False,
    jobs: int = 1,
    timeout_s: float = 1800,
    figures_dir: str | Path | None = None,
    render_dir: str | Path | None = None,
) -> list[RunStatus]:
    """How each ``NN_*.ipynb`` of a folder ended, in order; shows progress on stderr and prints one line per run.

    Every parameter of every run is checked before the first one starts; the others go on after a failure. Then
    ``scorecard.md`` and ``scorecard.csv`` in `figures_dir` list the checks of all good results in `results_dir`.

    Parameters
    ----------
    notebooks_dir, results_dir : str or Path
        The run of ``02_x.ipynb`` goes to ``results_dir/02_x``.
    only : str or iterable of str, optional
        Numbers of the notebooks, as ``"02,05"``.
    gpu : str, optional
        Name of a GPU, given to every notebook that has a parameter ``gpu``.
    quick : bool
        Give ``quick=True`` to every notebook that has such a parameter.
    jobs : int
        Runs at a time; measured times are only worth something with 1.
    timeout_s : float
        Seconds per run.
    figures_dir : str or Path, optional
        Given to every notebook that has a parameter ``figures_dir``; by default ``figures`` beside `notebooks_dir`, or
        inside `results_dir` when `quick`.
    render_dir : str or Path, optional
        Gets a copy for readers of every good run's notebook; a run whose copy is refused ends as not rendered.
    """
    if type(jobs) is not int or jobs < 1 or not timeout_s > 0:
        raise ValueError(f"jobs = {jobs!r}, timeout_s = {timeout_s!r}; give a whole number of jobs and seconds above 0")
    require_papermill()
    if gpu is not None:
        get_gpu(gpu)
    folder, results_dir = Path(notebooks_dir).resolve(), Path(results_dir)
    figures = Path(figures_dir or (results_dir if quick else folder.parent) / "figures")
    everywhere = {"gpu": gpu, "quick": quick or None, "figures_dir": relative_path(figures, folder)}
    runs = _plan(_selected(folder, only), results_dir, {k: v for k, v in everywhere.items() if v is not None})
    statuses = _run_all(runs, jobs, timeout_s)
    if render_dir:
        statuses = [_render(run, results_dir, Path(render_dir)) for run in statuses]
    print(_summary(statuses, results_dir))
    print(_write_scorecard(results_dir, figures, quick=quick))
    return statuses


def study_exit_code(statuses: list[RunStatus]) -> int:
    """0 if there are runs and every one is ok, else 1."""
    return 0 if statuses and all(run.status == "ok" for run in statuses) else 1


def _selected(folder: Path, only: str | Iterable[str] | None) -> list[Path]:
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(f"no notebooks NN_*.ipynb in {str(folder)!r}; give the folder that holds them")
    if only is None:
        return found
    names = only.split(",") if isinstance(only, str) else only
    wanted = {str(name).strip() for name in names}
    wanted = {name.zfill(2) if name.isdigit() else repr(name) for name in wanted}
    unknown = sorted(wanted - {path.name[:2] for path in found})
    have = ", ".join(dict.fromkeys(path.name[:2] for path in found))
    if not wanted:
        raise ValueError(f"no notebook is selected; there are {have}")
    if unknown:
        raise ValueError(f"no notebook with number {', '.join(unknown)}; there are {have}")
    return [path for path in found if path.name[:2] in wanted]


def _plan(notebooks: list[Path], results_dir: Path, everywhere: dict[str, Any]) -> list[_Run]:
    """The runs, with every parameter checked."""
    runs = []
    for path in notebooks:
        given = {key: value for key, value in everywhere.items() if key in read_parameters(path)}
        check_parameters(path, given | {"out_dir": ""})
        runs.append(_Run(path, results_dir / path.stem, given))
    if "gpu" in everywhere and not any("gpu" in run.parameters for run in runs):
        raise ValueError(f"gpu = {everywhere['gpu']!r} fits no selected notebook, as none has this parameter; omit it")
    return runs


def _run_all(runs: list[_Run], jobs: int, timeout_s: float) -> list[RunStatus]:
    """Statuses in the order of the runs; on Ctrl-C what runs is killed and the rest does not start."""
    from tqdm import tqdm  # comes with papermill

    stop = threading.Event()

    def one(run: _Run) -> RunStatus:
        if stop.is_set():
            return RunStatus(run.notebook.stem, "interrupted", 0.0, message="not started")
        return run_notebook(run.notebook, run.out_dir, run.parameters, timeout_s=timeout_s, stop=stop)

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run", desc="study", file=sys.stderr) as bar:
        futures = [pool.submit(one, run) for run in runs]
        pending = set(futures)
        while pending:
            try:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                stop.set()
                continue
            for future in done:
                bar.set_postfix_str(f"{future.result().name} {future.result().status}")
            bar.update(len(done))
    return [future.result() for future in futures]


def _render(run: RunStatus, results_dir: Path, render_dir: Path) -> RunStatus:
    """The status after copying the executed notebook of a good run for readers."""
    if run.status != "ok":
        return run
    try:
        render(results_dir / run.name / f"{run.name}.ipynb", render_dir / f"{run.name}.ipynb")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return replace(run, status="not rendered", message=f"cannot write to {render_dir}: {reason}")
    except ValueError as error:
        return replace(run, status="not rendered", message=str(error))
    return run


def _summary(statuses: list[RunStatus], results_dir: Path) -> str:
    """A table, one line per run, and a last line that counts the good ones."""
    width = max(len(run.name) for run in statuses)
    lines = [f"{'run':<{width}}  {'status':<12}  {'seconds':>7}  message"]
    for run in statuses:
        message = ": ".join(part for part in (f"cell {run.cell}" if run.cell else "", run.message) if part)
        lines.append(f"{run.name:<{width}}  {run.status:<12}  {run.seconds:7.1f}  {message}".rstrip())
    good = sum(run.status == "ok" for run in statuses)
    hint = "" if good == len(statuses) else f"; the logs are {results_dir}/<run>/run.log"
    return "\n".join([*lines, f"{good} of {len(statuses)} runs ok{hint}"])


def _write_scorecard(results_dir: Path, folder: Path, *, quick: bool) -> str:
    """A line that counts the verdicts in ``scorecard.md`` and ``scorecard.csv``; quick results only when `quick`."""
    checks = read_checks(results_dir) if results_dir.is_dir() else None
    if checks is not None and not quick:
        checks = checks[~checks["quick"].astype(bool)]
    if checks is None or checks.empty:
        return "no checks, so no scorecard is written"
    checks = checks[["notebook", "claim", "name", "expected", "got", "verdict"]]
    counts = checks["verdict"].replace({"agrees": "agree", "differs": "differ"}).value_counts().sort_index()
    counted = f"{len(checks)} checks: {', '.join(f'{number} {verdict}' for verdict, number in counts.items())}"
    try:
        atomic_write(folder / "scorecard.md", _scorecard(checks, counted))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error
    write_table(folder / "scorecard.csv", checks)
    return f"{counted}; see {folder}/scorecard.md"


def _scorecard(checks: "pd.DataFrame", counted: str) -> str:
    """The checks as a Markdown table."""
    said = "What the notebooks expected before they ran, and what they got; each states the rule of its verdicts."
    rows = [[_cell(value) for value in row] for row in checks.itertuples(index=False)]
    lines = [list(checks.columns), ["---"] * checks.shape[1], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Scorecard\n\n{said}\n\n{counted}.\n\n{table}\n"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    if value is None or value != value:  # NaN is the only value that differs from itself
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
