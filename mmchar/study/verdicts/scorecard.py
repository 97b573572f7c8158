"""All statements, one row each: the paper's value, ours with its range, verdict, reason, and the figure behind it."""

import re
from collections.abc import Collection
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmchar.projection.uncertainty import error_range
from mmchar.runs.verdicts import UNKNOWN, UNREAD
from mmchar.study.claims import statements
from mmchar.study.verdicts import diffusion, language, slides, transformers, video
from mmchar.study.verdicts.claim import Claim, Readings, judge
from mmchar.study.verdicts.evidence import by_others, measured_here
from mmchar.study.verdicts.setting import AS_IT_IS, Setting, changes

CLAIMS: dict[str, Claim] = {
    claim.id: claim for room in (diffusion, transformers, video, language, slides) for claim in room.CLAIMS
}
OWN_FIGURE = "10_verdicts"  # of claims that no earlier notebook draws
_SHOWN = ["id", "model", "statement", "value", "unit", "where", "read", "source"]


def scorecard(
    setting: Setting | None = None, *, ids: Collection[str] | None = None, progress: bool = True
) -> pd.DataFrame:
    """One row per statement of ``data/reference/claims.csv``, or of those with these ids.

    Columns: ``id, model, statement, value, unit, where, read, source`` as published, ``paper_low, paper_high`` where it
    is a number; ``ours``, with ``low, high`` over all readings and ``may_low, may_high`` by the errors of
    projections of its kind, in ``our_unit``; ``short``, the statement in a few words; ``basis`` (``counted``,
    ``projected on GPU``, or empty); ``measured`` and ``measured_by_others``, in words; ``verdict``, ``condition``,
    ``reason``, and ``figure``, a name in ``figures/``. Numbers are NaN where nothing is computed. Raises a ValueError
    for an unknown id or GPU.
    """
    said = statements().set_index("id", drop=False)
    if unknown := set(ids or ()) - set(said.index):
        raise ValueError(f"no claim {', '.join(sorted(unknown))}; ids are c001 to {said.index[-1]}")
    rows = [said.loc[name] for name in (ids or said.index)]
    setting, found = setting or Setting(), []
    for row in tqdm(rows, desc="judge", disable=not progress):
        found.append({**row[_SHOWN].to_dict(), **_judged(row, setting)})
    card = pd.DataFrame(found)
    return card.assign(measured=card["id"].map(measured_here()), measured_by_others=card["id"].map(by_others()))


def _judged(row: "pd.Series[Any]", setting: Setting) -> dict[str, Any]:
    claim = CLAIMS.get(row["id"]) or Claim(row["id"], _why_not(row))
    values: Readings = {}
    reason, verdict = claim.reason, claim.verdict or UNKNOWN
    if claim.readings:
        try:
            values = claim.readings(setting)
        except ValueError as error:  # a model, stage or GPU that is not there, by name
            reason = f"{error}"
    decided, condition = judge(values, claim.agrees) if values and not claim.verdict else (verdict, "")
    if row["read"] != "read":
        decided, condition = UNREAD, ""
    numbers = _range(values, claim, setting)
    words = {name: _words(numbers[name], claim.unit) for name in ("ours", "low", "high")}
    basis = claim.basis if claim.basis == "counted" else f"projected on {claim.gpu or setting.gpu}"
    return {
        **numbers,
        **dict(zip(("paper_low", "paper_high"), _bounds(row, claim), strict=True)),
        "our_unit": claim.unit,
        "short": claim.short,
        "basis": basis if values else "",
        "verdict": decided,
        "condition": condition,
        "reason": reason.format(**words) if values else reason,
        "figure": claim.figure or (OWN_FIGURE if values else ""),
    }


def _bounds(row: "pd.Series[Any]", claim: Claim) -> tuple[float, float]:
    """The paper's value in our unit; of a statement without a number, the values that agree with it."""
    low, high = paper_range(row)
    return claim.agrees if pd.isna(low) and claim.short else (low, high)


def _why_not(row: "pd.Series[Any]") -> str:
    return "No function computes it." if row["read"] == "read" else "Not read where it stands, and not computed."


def _range(values: Readings, claim: Claim, setting: Setting) -> dict[str, float]:
    if not values:
        return dict.fromkeys(("ours", "low", "high", "may_low", "may_high"), float("nan"))
    ours = next(iter(values.values()))
    off = (1.0, 1.0)
    if claim.basis != "counted":
        error = error_range(claim.family, execution=setting.execution, gpu=claim.gpu or setting.gpu)
        off = 1 / (1 + error["high"]), 1 / (1 + error["low"])
    may = [_if_off(ours, times, claim.unit) for times in off]
    return {
        "ours": ours,
        "low": min(values.values()),
        "high": max(values.values()),
        "may_low": may[0],
        "may_high": may[1],
    }


def _if_off(value: float, times: float, unit: str) -> float:
    """The value, if what it is of took ``times`` as long and, of a share, nothing else did."""
    if unit != "%":
        return value * times
    part = value * times
    return 100 * part / (part + 100 - value)


def _words(value: float, unit: str) -> str:
    return f"{value:.3g}{' %' if unit == '%' else ' times' if unit.startswith('x') else f' {unit}'.rstrip()}"


def moves(claim_id: str, setting: Setting | None = None) -> pd.DataFrame:
    """Ours under one changed assumption at a time, then under every other reading.

    Columns: ``id, change, kind`` (``assumption`` or ``reading``), ``ours``, ``moved`` (by how much), ``agrees``, and
    ``paper_low, paper_high``. Raises a ValueError for a claim that has no value here.
    """
    (claim,), start = known([claim_id]), setting or Setting()
    assert claim.readings is not None
    first, *others = claim.readings(start).items()
    rows = [(AS_IT_IS, "assumption", first[1])]
    among = changes(start)
    rows += [(name, "assumption", next(iter(claim.readings(among[name]).values()))) for name in claim.decides]
    rows += [(", ".join(reading), "reading", value) for reading, value in others]
    low, high = paper_range(statements().set_index("id").loc[claim_id])
    out = pd.DataFrame(rows, columns=["change", "kind", "ours"])
    agrees = out["ours"].between(*claim.agrees)
    out = out.assign(id=claim_id, paper_low=low, paper_high=high, agrees=agrees, moved=out["ours"] - first[1])
    return out[["id", "change", "kind", "ours", "moved", "agrees", "paper_low", "paper_high"]]


def known(ids: Collection[str]) -> list[Claim]:
    """The claims of these ids; raises a ValueError where nothing is computed for one of them."""
    able = sorted(name for name, claim in CLAIMS.items() if claim.readings)
    if unknown := [name for name in ids if name not in able]:
        raise ValueError(f"nothing is computed for claim {', '.join(unknown)}; choose among {', '.join(able)}")
    return [CLAIMS[name] for name in ids]


def paper_range(row: "pd.Series[Any]") -> tuple[float, float]:
    """Lowest and highest value of a statement; NaN where it has none in numbers."""
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", str(row["value"]))]
    if not numbers or not re.match(r"[\d.]", str(row["value"])):
        return float("nan"), float("nan")
    return (numbers[0], 100.0) if "over" in row["unit"] else (numbers[0], numbers[-1])
