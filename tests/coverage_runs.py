"""Our count on meta held against a real CPU run of the same call, for every tiny pipeline and architecture.

``python tests/coverage_runs.py`` runs all of them and writes ``docs/coverage.md``: what equals, and what does not, with
the reason. The tests run a part of it (`generation/test_coverage.py`).
"""

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiny_architectures
import tiny_pipelines

import mmchar
from mmchar.counting import operator_table as counting
from mmchar.generation.recording import Recording
from mmchar.generation.run import record
from mmchar.generation.subject import subject_of

OWN_FAULT = "the library's own run on the CPU fails as well: "
PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
# Products for which torch's counter has no formula, so that only we count them.
UNKNOWN_TO_THE_COUNTER = (
    *("_cdist_forward", "_euclidean_dist", "_fft_c2c", "_fft_r2c", "_fft_c2r", "_trilinear"),
    *("_linalg_solve_ex", "linalg_solve_triangular"),
)


# Where both ran and differ, why: what a network computes decides what it does next, which a count cannot know.
DATA_DECIDES = {
    "dbrx": "experts run one by one on the tokens that chose them, and are counted with all tokens",
    "longcat_flash": "experts run one by one on the tokens that chose them, and are counted with all tokens",
}


@dataclass(frozen=True)
class Compared:
    """FLOPs of one call: counted on meta, and measured by ``FlopCounterMode`` over a real run."""

    name: str
    counted: int
    measured: int
    reason: str = ""

    @property
    def equal(self) -> bool:
        """Whether both are the same integer."""
        return not self.reason and self.counted == self.measured


def pipeline(name: str, **overrides: object) -> Compared:
    """A pipeline of diffusers, called with all its defaults but for two steps and what is given."""
    measured, calls = tiny_pipelines.measured_flop(name, **overrides)
    built, call = tiny_pipelines.build(name), tiny_pipelines.call_arguments(name) | overrides
    subject = subject_of(built, (), call)
    recording = record(subject)
    table = counting.recorded_table(subject, recording)
    return Compared(name, flop_of(table), measured, other_calls(recording, calls))


def other_calls(recording: Recording, measured: dict[str, int]) -> str:
    """Which networks were called more or less often than in the real run; empty where none was."""
    counted: Counter[str] = Counter()
    for stage in recording.stages:
        if stage.method in tiny_pipelines.ENTRIES:
            counted[stage.component] += stage.repeats
    other = [
        f"{role}: {counted[role]} calls, {many} in the run" for role, many in measured.items() if counted[role] != many
    ]
    return "; ".join(other)


def architecture(name: str) -> Compared:
    """A model of transformers: one ``generate()`` or one forward."""
    measured = tiny_architectures.run(name).flop
    model, call = tiny_architectures.build(name), tiny_architectures.inputs(name)
    entry = tiny_architectures.entry(name)
    if entry["generate"] is not None:
        tiny_architectures._prepare(model, entry.get("generation_config", {}))
        call |= tiny_architectures.generate_options(name)
    return Compared(name, flop_of(mmchar.count(model, **call)), measured)


def flop_of(table: "mmchar.counting.operator_table.pd.DataFrame") -> int:
    """FLOPs of a whole generation, of the operators that torch's counter knows."""
    known = table[~table["op"].isin(UNKNOWN_TO_THE_COUNTER)]
    return int((known["flop"] * known["repeats"]).sum())


def tried(compare: Callable[[str], Compared], real: Callable[[str], object], name: str) -> Compared:
    """One comparison; what stops it is its reason."""
    try:
        return compare(name)
    except Exception as error:  # noqa: BLE001 (the page says why)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    try:
        real(name)
    except Exception:  # noqa: BLE001
        reason = f"{OWN_FAULT}{reason}"
    return Compared(name, 0, 0, reason)


def page(pipelines: list[Compared], architectures: list[Compared]) -> str:
    """The page, in Markdown."""
    lines = ["# What counts as it runs", ""]
    lines += ["Tiny networks with random weights: our count on meta against torch's `FlopCounterMode` over a real CPU"]
    lines += ["run of the same call. Made by `python tests/coverage_runs.py`.", ""]
    for title, rows in (("Pipelines of diffusers", pipelines), ("Models of transformers", architectures)):
        good = [row.name for row in rows if row.equal]
        able = [row for row in rows if not row.reason.startswith(OWN_FAULT)]
        lines += [
            f"## {title}: {len(good)} of {len(able)} that run are equal to the last FLOP",
            "",
            ", ".join(good),
            "",
        ]
        lines += ["| not equal | why |", "| --- | --- |"]
        for row in rows:
            if not row.equal:
                why = row.reason or f"counted {row.counted:,}, measured {row.measured:,}"
                why += f": {DATA_DECIDES[row.name]}" if row.name in DATA_DECIDES else ""
                lines.append(f"| {row.name} | {why.replace('|', '/')} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Compare everything and write the page."""
    warnings.simplefilter("ignore")
    found: list[list[Compared]] = []
    for names, compare, real in (
        (tiny_pipelines.names(), pipeline, tiny_pipelines.measured_flop),
        (tiny_architectures.names(), architecture, tiny_architectures.run),
    ):
        found.append([])
        for name in names:
            found[-1].append(tried(compare, real, name))
            print(name, found[-1][-1].equal, file=sys.stderr, flush=True)
    PAGE.write_text(page(*found))


if __name__ == "__main__":
    main()
