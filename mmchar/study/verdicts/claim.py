"""A claim: which values would agree with a statement, how to get ours under every reading, and the verdict."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import combinations

from mmchar.projection.uncertainty import OTHER
from mmchar.runs.verdicts import HOLDS, IF, NOT
from mmchar.study.claims import NEAR
from mmchar.study.verdicts.setting import Setting

Reading = tuple[str, ...]  # what one reading takes a statement to mean, an aspect each: ("pixel space", "end to end")
Readings = dict[Reading, float]


@dataclass(frozen=True)
class Claim:
    """One statement: ours by reading, of which the first is what it says on its face; those in ``agrees`` agree.

    ``readings`` is a function of a `Setting`, so that `scorecard.moves` can change one assumption at a time. Without
    it there is nothing to compute, and ``verdict`` and ``reason`` say why. ``figure`` is one of ``figures/``.
    """

    id: str
    reason: str
    readings: Callable[[Setting], Readings] | None = None
    agrees: tuple[float, float] = (float("-inf"), float("inf"))
    unit: str = ""
    figure: str = ""
    basis: str = "projected"
    verdict: str = ""  # where values alone do not decide
    decides: tuple[str, ...] = ()  # names of `setting.changes` that may move it
    gpu: str = ""  # where the statement names another than the papers' GPU
    short: str = ""  # the statement in a few words, for the figure
    family: str = OTHER  # whose errors a projection of it has


def near(value: float) -> tuple[float, float]:
    """The values that agree with "up to ``value``"."""
    return value * (1 - NEAR), value * (1 + NEAR)


def judge(values: Readings, agrees: tuple[float, float]) -> tuple[str, str]:
    """Verdict and condition: what readings that agree have in common, and others have not."""
    low, high = agrees
    held = [reading for reading, value in values.items() if low <= value <= high]
    if len(held) == len(values):
        return HOLDS, ""
    return (IF, condition(held, values)) if held else (NOT, "")


def condition(held: Collection[Reading], among: Collection[Reading]) -> str:
    """What the readings that hold have in common and no other has; or what the others have, where that is shorter."""
    others = [reading for reading in among if reading not in held]
    that, but = _clauses(held, others), _clauses(others, held)
    return "; or ".join(that) if len(that) <= len(but) else f"not {'; nor '.join(but)}"


def _clauses(chosen: Collection[Reading], others: Collection[Reading]) -> list[str]:
    """Few clauses, of as few aspects as each needs, that are true of every chosen reading and of no other."""
    clauses, left = [], list(chosen)
    for many in range(1, len(left[0]) + 1):
        for aspects in combinations(range(len(left[0]) if left else 0), many):
            taken = {_part(reading, aspects) for reading in others}
            found = dict.fromkeys(_part(one, aspects) for one in left if _part(one, aspects) not in taken)
            clauses += [", ".join(each) for each in found]
            left = [reading for reading in left if _part(reading, aspects) not in found]
            if not left:
                return clauses
    raise ValueError(f"readings of the same name: {', '.join(left[0])}; give each its own aspects")


def _part(reading: Reading, aspects: tuple[int, ...]) -> Reading:
    return tuple(reading[i] for i in aspects)
