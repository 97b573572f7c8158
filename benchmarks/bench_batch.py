"""What the batch adds to a run: all of `run_notebook` beside the papermill process that it starts, in seconds.

Target: under 0.5 s per run. The kernel's own start and the work of the notebook are inside that process and not ours.
"""

import statistics
import tempfile
import time
from pathlib import Path

from mmchar.runs.batch import run_notebook
from mmchar.runs.engine import Stop
from mmchar.runs.identity import notebook_identity

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "00_start_here.ipynb"
ROUNDS = 5


def bench_run(folder: Path) -> None:
    """A whole run of a notebook that saves nothing, less the time of its papermill process."""
    inside: list[float] = []
    answer = Stop.answer

    def timed(*given: object) -> object:
        start = time.perf_counter()
        try:
            return answer(*given)  # type: ignore[arg-type]
        finally:
            inside.append(time.perf_counter() - start)

    notebook = folder / "00_empty.ipynb"
    notebook.write_text(_empty_notebook())
    Stop.answer = timed  # type: ignore[method-assign,assignment]
    took = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        run_notebook(notebook, folder / f"{number}", force=True)
        took.append(time.perf_counter() - start)
    Stop.answer = answer  # type: ignore[method-assign]
    over = [all_ - papermill for all_, papermill in zip(took, inside, strict=True)]
    print(
        f"batch, one run: {statistics.median(took):.2f} s, of which papermill and its kernel "
        f"{statistics.median(inside):.2f} s; overhead {statistics.median(over):.3f} s (target 0.5)"
    )


def bench_identity() -> None:
    """The identity of a real notebook: in a new process, and again."""
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        notebook_identity(NOTEBOOK, {})
        took.append(time.perf_counter() - start)
    print(f"identity of a run: {took[0]:.3f} s at first, then {statistics.median(took[1:]):.4f} s (target 0.1)")


def _empty_notebook() -> str:
    kernel = '{"display_name": "Python 3", "language": "python", "name": "python3"}'
    cell = (
        '{"cell_type": "code", "execution_count": null, "id": "a", "metadata": {"tags": ["parameters"]}, '
        '"outputs": [], "source": "out_dir = \\"a\\""}'
    )
    return f'{{"cells": [{cell}], "metadata": {{"kernelspec": {kernel}}}, "nbformat": 4, "nbformat_minor": 5}}'


if __name__ == "__main__":
    bench_identity()
    with tempfile.TemporaryDirectory() as folder:
        bench_run(Path(folder))
