"""The whole study: every notebook of a folder run as a batch, and the scorecard of what they found."""

import sys
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchar.files import atomic_write, checksum, set_aside
from mmchar.projection.data_sheets import get_gpu
from mmchar.runs.batch import KEPT, Run, RunStatus, run_one, why_run
from mmchar.runs.identity import notebook_identity, run_id
from mmchar.runs.listing import read_checks
from mmchar.runs.notebooks import render
from mmchar.runs.papermill_process import relative_path, require_papermill
from mmchar.runs.parameters import check_parameters, read_parameters
from mmchar.runs.run_state import run_state
from mmchar.tables import read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

    from mmchar.runs.slurm import SlurmOptions


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
    force: bool = False,
    dry_run: bool = False,
    slurm: "SlurmOptions | None" = None,
) -> list[RunStatus]:
    """How each ``NN_*.ipynb`` of a folder ended, in order; shows progress on stderr and prints one line per run.

    Every parameter of every run is checked before the first one starts; the others go on after a failure. What has its
    good result in `results_dir` already (see `identity`) is kept, and its figures are copied to `figures_dir`
    where they are missing. Then ``scorecard.md`` and ``scorecard.csv`` in `figures_dir` list the checks of all good
    results in `results_dir`; rows of notebooks that were not asked for and have no result there stay as they are.

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
    force : bool
        Run also what has its good result; that stays until the new one is complete.
    dry_run : bool
        Only print what would run, and why; nothing is written.
    slurm : mmchar.runs.slurm.SlurmOptions, optional
        Send the runs to a Slurm cluster instead, as one job array; `jobs` is not used then. A good
        result of other hardware than this machine's is kept too, as this machine runs nothing.
    """
    if type(jobs) is not int or jobs < 1 or not timeout_s > 0:
        raise ValueError(f"jobs = {jobs!r}, timeout_s = {timeout_s!r}; give a whole number of jobs and seconds above 0")
    require_papermill()
    if gpu is not None:
        get_gpu(gpu)
    folder, results_dir = Path(notebooks_dir).resolve(), Path(results_dir)
    figures = Path(figures_dir or (results_dir if quick else folder.parent) / "figures")
    everywhere = {"gpu": gpu, "quick": quick or None, "figures_dir": relative_path(figures, folder)}
    notebooks = _selected(folder, only)
    runs = _plan(notebooks, results_dir, {k: v for k, v in everywhere.items() if v is not None})
    runs = [replace(run, force=force) for run in runs]
    if dry_run:
        statuses = [_missing(run, any_hardware=slurm is not None) for run in runs]
        print(_plan_text(statuses))
        return statuses
    statuses = _run_in_slurm(runs, timeout_s, slurm) if slurm else _run_all(runs, jobs, timeout_s)
    for run, status in zip(runs, statuses, strict=True):
        if status.status == "ok" and status.message == KEPT:
            _share_figures(run.out_dir, figures)
    if render_dir:
        statuses = [_render(run, results_dir, Path(render_dir)) for run in statuses]
    print(_summary(statuses, results_dir))
    keep = {path.stem for path in folder.glob("[0-9][0-9]_*.ipynb")} - {path.stem for path in notebooks}
    print(_write_scorecard(results_dir, figures, keep, quick=quick))
    return statuses


def study_exit_code(statuses: list[RunStatus]) -> int:
    """0 if there are good runs and the others were skipped, 130 after Ctrl-C, else 1."""
    ended = {run.status for run in statuses}
    if "interrupted" in ended:
        return 130
    return 0 if "ok" in ended and ended <= {"ok", "skipped"} else 1


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


def _plan(notebooks: list[Path], results_dir: Path, everywhere: dict[str, Any]) -> list[Run]:
    """The runs, with every parameter checked."""
    runs = []
    for path in notebooks:
        given = {key: value for key, value in everywhere.items() if key in read_parameters(path)}
        check_parameters(path, given | {"out_dir": ""})
        runs.append(Run(path, results_dir / path.stem, given))
    if "gpu" in everywhere and not any("gpu" in run.parameters for run in runs):
        raise ValueError(f"gpu = {everywhere['gpu']!r} fits no selected notebook, as none has this parameter; omit it")
    return runs


def _missing(run: Run, *, any_hardware: bool) -> RunStatus:
    """The status "kept", or "to run" with the reason."""
    identity = notebook_identity(run.notebook, run.parameters)
    why = "forced" if run.force else why_run(run.out_dir.resolve(), identity, run.notebook, any_hardware=any_hardware)
    return RunStatus(run.notebook.stem, "to run" if why else KEPT, 0.0, message=why, id=run_id(identity))


def _plan_text(statuses: list[RunStatus]) -> str:
    width = max(len(run.name) for run in statuses)
    lines = [f"{run.name:<{width}}  {run.status:<6}  {run.message}".rstrip() for run in statuses]
    wanted = sum(run.status == "to run" for run in statuses)
    return "\n".join(
        [*lines, f"{wanted} of {len(statuses)} would run, {len(statuses) - wanted} kept; nothing was done"]
    )


def _run_in_slurm(runs: list[Run], timeout_s: float, options: "SlurmOptions") -> list[RunStatus]:
    """Statuses in the order of the runs; only what is missing is sent."""
    from mmchar.runs import slurm

    plan = [_missing(run, any_hardware=True) for run in runs]
    wanted = [run for run, status in zip(runs, plan, strict=True) if status.status != KEPT]
    ended = iter(slurm.run_all(wanted, timeout_s=timeout_s, options=options))
    return [next(ended) if one.status != KEPT else replace(one, status="ok", message=KEPT) for one in plan]


def _share_figures(out_dir: Path, figures: Path) -> None:
    """Copy the figures of a kept run to the folder of all, as the run itself did, where they are missing or differ."""
    result = run_state(out_dir)[1]
    for file in result.get("files", {}):
        if result.get("shared") and file.startswith("figures/"):
            data, shared = (out_dir / file).read_bytes(), figures / Path(file).name
            if not shared.is_file() or checksum(shared.read_bytes()) != checksum(data):
                atomic_write(shared, data)


def _run_all(runs: list[Run], jobs: int, timeout_s: float) -> list[RunStatus]:
    """Statuses in the order of the runs; on Ctrl-C what runs is killed and the rest does not start."""
    from tqdm import tqdm  # comes with papermill

    stop = threading.Event()

    def one(run: Run) -> RunStatus:
        if stop.is_set():
            return RunStatus(run.notebook.stem, "interrupted", 0.0, message="not started")
        return run_one(run, timeout_s=timeout_s, stop=stop)

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


def _write_scorecard(results_dir: Path, folder: Path, keep: set[str], *, quick: bool) -> str:
    """A line that counts the verdicts in ``scorecard.md`` and ``scorecard.csv``; quick results only when `quick`.

    Of the notebooks in `keep` that have no result here, as on a fresh clone, the rows of the scorecard there stay.
    """
    checks = read_checks(results_dir) if results_dir.is_dir() else None
    if checks is not None and not quick:
        checks = checks[~checks["quick"].astype(bool)]
    if checks is None or checks.empty:
        return "no checks, so no scorecard is written"
    runs = sorted(set(checks["run"]))
    earlier = [run for run in runs if run_state(results_dir / run)[0].get("status") != "ok"]
    checks = _with_earlier_rows(checks[["notebook", "claim", "name", "expected", "got", "verdict"]], folder, keep)
    counts = checks["verdict"].replace({"agrees": "agree", "differs": "differ"}).value_counts().sort_index()
    counted = f"{len(checks)} checks: {', '.join(f'{number} {verdict}' for verdict, number in counts.items())}"
    try:
        atomic_write(folder / "scorecard.md", _scorecard(checks, counted, earlier))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error
    write_table(folder / "scorecard.csv", checks)
    return f"{counted}; see {folder}/scorecard.md"


def _with_earlier_rows(checks: "pd.DataFrame", folder: Path, keep: set[str]) -> "pd.DataFrame":
    import pandas as pd

    path = folder / "scorecard.csv"
    if not path.exists():
        return checks
    try:
        before = read_table(path)
        rows = before[before["notebook"].isin(keep - set(checks["notebook"]))][list(checks.columns)]
    except (ValueError, KeyError) as error:
        print(f"mmchar: {error}; it is kept as {set_aside(path).name}", file=sys.stderr)
        return checks
    return pd.concat([checks, rows.astype(object)]).sort_values("notebook", kind="stable") if len(rows) else checks


def _scorecard(checks: "pd.DataFrame", counted: str, earlier: Iterable[str] = ()) -> str:
    """The checks as a Markdown table; the runs in `earlier` have a good result, but did not end well since."""
    said = "What the notebooks expected before they ran, and what they got; each states the rule of its verdicts."
    rows = [[_cell(value) for value in row] for row in checks.itertuples(index=False)]
    lines = [list(checks.columns), ["---"] * checks.shape[1], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"Of an earlier run, as the latest did not end well: {', '.join(earlier)}.\n\n" if earlier else ""
    return f"# Scorecard\n\n{said}\n\n{counted}.\n\n{note}{table}\n"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    if value is None or value != value:  # NaN is the only value that differs from itself
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
