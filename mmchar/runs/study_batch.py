"""The whole study: every notebook of a folder run as a batch, and the scorecard of what they found."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmchar.files import atomic_write
from mmchar.locks import batch
from mmchar.projection.data_sheets import get_gpu
from mmchar.provenance import cores
from mmchar.runs import slurm as cluster
from mmchar.runs.batch import KEPT, Run, RunStatus, plan_one, require_papermill, run_one
from mmchar.runs.engine import Stop, run_all
from mmchar.runs.notebooks import render
from mmchar.runs.parameters import check_parameters, read_parameters
from mmchar.runs.run_state import run_state
from mmchar.runs.scorecard import write_scorecard
from mmchar.runs.slurm import SlurmOptions

_MOST_JOBS = 4  # by default: each may hold two gigabytes


def study(
    notebooks_dir: str | Path = "notebooks",
    results_dir: str | Path = "results",
    *,
    only: str | Iterable[str] | None = None,
    gpu: str | None = None,
    quick: bool = False,
    jobs: int | None = None,
    timeout_s: float = 1800,
    figures_dir: str | Path | None = None,
    render_dir: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    slurm: SlurmOptions | None = None,
) -> list[RunStatus]:
    """How each ``NN_*.ipynb`` of a folder ended, in order; shows progress on stderr and prints one line per run.

    Every parameter of every run is checked before the first one starts; the others go on after a failure. What has its
    good result in `results_dir` already (see `identity`) is kept unless with `force`. Figures of all good runs are
    copied to `figures_dir`, where ``scorecard.md`` and ``scorecard.csv`` list the checks of all good results in
    `results_dir`; rows of notebooks that were not asked for and have no result there stay.

    `only` names notebooks by number, as ``"02,05"``. `gpu` and `quick` go to every notebook that has such a parameter.
    `jobs` run at a time, as many as there are cores but four at most if not given, each for `timeout_s` at most; while
    one measures the others wait (`locks.alone`), as times taken side by side are worth nothing. `render_dir` gets a
    copy for readers of every good run's notebook; a run whose copy is refused ends as not rendered. `figures_dir` is
    ``figures`` in `results_dir`, and beside `notebooks_dir` where notebooks are rendered. A `dry_run` prints what would
    run, and why, and writes nothing. With `slurm` the runs go to a cluster as one job array, and a good result of other
    hardware is kept too, as this machine runs nothing.
    """
    jobs = min(_MOST_JOBS, cores()) if jobs is None else jobs
    if type(jobs) is not int or jobs < 1 or not timeout_s > 0:
        raise ValueError(f"jobs = {jobs!r}, timeout_s = {timeout_s!r}; give a whole number of jobs and seconds above 0")
    require_papermill()
    if gpu is not None:
        get_gpu(gpu)
    folder, results_dir = Path(notebooks_dir).resolve(), Path(results_dir)
    figures = Path(figures_dir or (folder.parent if render_dir and not quick else results_dir) / "figures")
    everywhere = {"gpu": gpu, "quick": quick or None}
    notebooks = _selected(folder, only)
    runs = _wanted(notebooks, results_dir, {k: v for k, v in everywhere.items() if v is not None}, force=force)
    plan = [plan_one(run, any_hardware=slurm is not None) for run in runs]
    if dry_run:
        print(_plan_text(plan))
        return plan
    statuses = _run_missing(runs, plan, jobs, timeout_s, slurm)
    for run, status in zip(runs, statuses, strict=True):
        if status.status == "ok":
            _share_figures(run.out_dir, figures)
    if render_dir:
        statuses = [_render(run, results_dir, Path(render_dir)) for run in statuses]
    print(_summary(statuses, results_dir))
    keep = {path.stem for path in folder.glob("[0-9][0-9]_*.ipynb")} - {path.stem for path in notebooks}
    print(write_scorecard(results_dir, figures, keep, quick=quick))
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
    names = [str(name).strip() for name in (only.split(",") if isinstance(only, str) else only)]
    wanted = {name.zfill(2) if name.isdigit() else repr(name) for name in names}
    unknown = sorted(wanted - {path.name[:2] for path in found})
    have = ", ".join(dict.fromkeys(path.name[:2] for path in found))
    if not wanted:
        raise ValueError(f"no notebook is selected; there are {have}")
    if unknown:
        raise ValueError(f"no notebook with number {', '.join(unknown)}; there are {have}")
    return [path for path in found if path.name[:2] in wanted]


def _wanted(notebooks: list[Path], results_dir: Path, everywhere: dict[str, Any], *, force: bool) -> list[Run]:
    runs = []
    for path in notebooks:
        given = {key: value for key, value in everywhere.items() if key in read_parameters(path)}
        check_parameters(path, given | {"out_dir": ""})
        runs.append(Run(path, results_dir / path.stem, given, force))
    if "gpu" in everywhere and not any("gpu" in run.parameters for run in runs):
        raise ValueError(f"gpu = {everywhere['gpu']!r} fits no selected notebook, as none has this parameter; omit it")
    return runs


def _plan_text(statuses: list[RunStatus]) -> str:
    width = max(len(run.name) for run in statuses)
    wanted = sum(run.status == "to run" for run in statuses)
    said = ["to run  " + run.message if run.status == "to run" else KEPT for run in statuses]
    lines = [f"{run.name:<{width}}  {what}" for run, what in zip(statuses, said, strict=True)]
    lines.append(f"{wanted} of {len(statuses)} would run, {len(statuses) - wanted} kept; nothing was done")
    return "\n".join(lines)


def _run_missing(
    runs: list[Run], plan: list[RunStatus], jobs: int, timeout_s: float, slurm: SlurmOptions | None
) -> list[RunStatus]:
    """Statuses in the order of the runs, here or on a cluster; Ctrl-C ends what runs, and the rest does not start."""
    missing = [run for run, planned in zip(runs, plan, strict=True) if planned.message != KEPT]
    if slurm:
        ended = cluster.run_all(missing, timeout_s=timeout_s, options=slurm)
    else:
        stop = Stop()
        with stop.on_signals():
            one = partial(run_one, timeout_s=timeout_s, stop=stop)
            with batch():
                ended = run_all(missing, one, _line, jobs=jobs, of=len(runs), name="study", unit="run")
    by_name = {status.name: status for status in ended}
    return [by_name.get(planned.name, planned) for planned in plan]


def _line(run: RunStatus, width: int = 0) -> str:
    message = ": ".join(part for part in (f"cell {run.cell}" if run.cell else "", run.message) if part)
    return f"{run.name:<{width}}  {run.status:<12}  {run.seconds:7.1f}  {message}".rstrip()


def _share_figures(out_dir: Path, figures: Path) -> None:
    """Copy the figures of a run to the folder of all, where they are missing or differ."""
    for file in run_state(out_dir)[1].get("files", ()):
        data, shared = (out_dir / file).read_bytes(), figures / Path(file).name
        if file.startswith("figures/") and not (shared.is_file() and shared.read_bytes() == data):
            atomic_write(shared, data)


def _render(run: RunStatus, results_dir: Path, render_dir: Path) -> RunStatus:
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
    width = max(len(run.name) for run in statuses)
    lines = [f"{'run':<{width}}  {'status':<12}  {'seconds':>7}  message"]
    lines += [_line(run, width) for run in statuses]
    good = sum(run.status == "ok" for run in statuses)
    hint = "" if good == len(statuses) else f"; the logs are {results_dir}/<run>/run.log"
    return "\n".join([*lines, f"{good} of {len(statuses)} runs ok{hint}"])
