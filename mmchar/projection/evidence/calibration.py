"""Fits what a projection assumes to measurements of whole generations, and says how far off a model not seen would be.

A least-squares fit of log(predicted / measured) with priors: every parameter has the value that microbenchmarks and
papers lead to expect, and a spread; measurements pull it from there only as far as several models agree. Every model
counts the same, however many rows it has, and rows that no setting explains lose their weight.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mmchar.projection.communication import Interconnect
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.energy_model import Power
from mmchar.projection.evidence.cases import Case, predict
from mmchar.projection.evidence.together import Together
from mmchar.projection.roofline import Rates

Priors = dict[str, tuple[float, float]]
# Expected value and spread (of its logarithm: 0.1 is about 10 %). Sources: see `Efficiency`, `Interconnect`, `Power`.
PRIORS: Priors = {
    "fed": (250.0, 0.15),
    "fed_convolution": (30.0, 0.4),
    "fed_convolution_hopper": (110.0, 0.4),
    "fill_depth": (150.0, 0.3),
    "joules_12nm": (3.4e-12, 0.3),
    "joules_8nm": (2.2e-12, 0.3),
    "joules_7nm": (1.2e-12, 0.2),
    "joules_4nm": (0.75e-12, 0.15),
    "flash": (0.84, 0.08),
    # FlashAttention-2's forward on an H100 SXM, head_dim 128, no mask, in TFLOP/s; of each follows `flash_mma` x 66.9 x
    # 128 / (128 + softmax_depth) x keys / (keys + fill_keys). 370 with 16,384 keys (arXiv 2407.08608, figure 5) and 370
    # with 8,192 (Dao-AILab/flash-attention, pull request 1791): 6.7. 360 with 32,256 (Wan2.1 in kernel_times.csv) and
    # 355 with 32,768 (Dao-AILab/flash-attention, issue 1051): 6.4. Their spread is 3 %.
    "flash_mma": (6.5, 0.03),
    # At head_dim 64 for 128 the same is 324 for 370 (2407.08608, figure 5), of which follow 21 columns; on an A100 190
    # for 225 (2307.08691, figure 5): 29.
    "softmax_depth": (25.0, 0.15),
    "fill_keys": (100.0, 0.4),
    "causal": (0.88, 0.05),
    "mem_efficient": (0.5, 0.3),
    "bandwidth": (0.87, 0.04),
    "product": (0.77, 0.04),
    "layout": (0.55, 0.08),
    "one_by_one": (1.25, 0.1),
    "statistics": (0.65, 0.1),
    "cache_bytes": (16.0, 0.4),
    "kernel_s": (3e-6, 0.3),
    "kernel_compiled_s": (2.5e-6, 0.2),
    "dispatch_s": (20e-6, 0.3),
    "messages.pair": (0.3, 0.4),
    "messages.latency_s": (20e-6, 0.5),
    "messages.host_s": (50e-6, 0.5),
}
POWER_PRIORS: Priors = {
    "compute": (0.98, 0.03),
    "memory": (0.85, 0.15),
    "launch": (0.30, 0.3),
    "communication": (0.45, 0.3),
    "attention_j_per_flop": (2.0e-12, 0.2),
}
NOISE = 0.1  # spread of log(predicted / measured) of a model that the projection describes well
LEFT_OUT = ("model", "family", "gpu")  # what can be left out of a fit, to be predicted by it
STEP = 0.02  # of a parameter's logarithm, for the derivative


@dataclass(frozen=True)
class Fit:
    """What a fit found: the rates and powers, and the spread (of the logarithm) that is left of each parameter."""

    rates: Rates
    power: Power
    spread: dict[str, float]


def fit(
    cases: Sequence[Case],
    *,
    priors: tuple[Priors, Priors] | None = None,
) -> Fit:
    """Rates from the latencies of the cases, then powers from their energies; parameters without data stay expected.

    Cases whose ``fitted`` is not ``yes`` take no part. The priors are `PRIORS` and `POWER_PRIORS`, or others.
    """
    of_rates, of_powers = priors or (PRIORS, POWER_PRIORS)
    cases = [case for case in cases if case.asked.get("fitted", "yes") == "yes"]
    if not cases:
        raise ValueError("nothing to fit to: no measurement can be used")

    together, measured_s = Together(cases), np.array([case.asked["latency_s"] for case in cases])

    def latency_errors(values: dict[str, float]) -> np.ndarray:
        return np.log(together.seconds(_rates(values)) / measured_s)

    values, spread = _least_squares(latency_errors, of_rates, _settings(cases))
    rates = _rates(values)
    metered = [case for case in cases if "energy_j" in case.asked]
    if not metered:
        return Fit(rates, Power(), spread)

    def energy_errors(values: dict[str, float]) -> np.ndarray:  # of the power alone: with the latency measured
        errors = [predict(case, rates, replace(Power(), **values)) for case in metered]
        return np.log([(1 + error["energy_error"]) / (1 + error["latency_error"]) for error in errors])

    powers, power_spread = _least_squares(energy_errors, of_powers, _settings(metered))
    return Fit(rates, replace(Power(), **powers), spread | power_spread)


def leave_out(
    cases: Sequence[Case],
    beside: Sequence[Case] = (),
    *,
    by: str = "model",
    priors: tuple[Priors, Priors] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """The validation table with each model, family or GPU predicted by a fit to the others, here and ``beside``."""
    if by not in LEFT_OUT:
        raise ValueError(f"cannot leave out one {by!r} after the other; choose one of {', '.join(LEFT_OUT)}")
    kinds = list(dict.fromkeys(case.asked[by] for case in cases))
    if len({case.asked[by] for case in (*cases, *beside)}) < 2:
        raise ValueError(f"leaving a {by} out needs measurements of two at least, and there is {kinds[0]} alone")
    rows: list[dict[str, Any]] = []
    for kind in tqdm(kinds, desc="leave out", unit=by, disable=not progress):
        found = fit([case for case in (*cases, *beside) if case.asked[by] != kind], priors=priors)
        here = [case for case in cases if case.asked[by] == kind]
        rows += [case.asked | predict(case, found.rates, found.power) for case in here]
    return pd.DataFrame(rows)


def shipped_priors() -> tuple[Priors, Priors]:
    """Priors of a fit to one's own GPU: what we ship is expected, with the spreads of `PRIORS` and `POWER_PRIORS`."""
    at = {"": Efficiency(), "messages": Interconnect()}
    parts = {name: name.rpartition(".") for name in PRIORS}
    rates = {name: (float(getattr(at[of], own)), PRIORS[name][1]) for name, (of, _, own) in parts.items()}
    return rates, {name: (float(getattr(Power(), name)), spread) for name, (_, spread) in POWER_PRIORS.items()}


def _settings(cases: Sequence[Case]) -> list[str]:
    """What is measured once, however many rows there are of it: a model on a GPU in one execution."""
    return [f"{case.asked['model']} {case.gpu.name} {case.execution}" for case in cases]


def _rates(values: dict[str, float]) -> Rates:
    messages = {name.removeprefix("messages."): value for name, value in values.items() if "." in name}
    kernels = {name: value for name, value in values.items() if "." not in name}
    return Rates(replace(Efficiency(), **kernels), replace(Interconnect(), **messages))


def _least_squares(
    errors: Any, priors: Priors, models: Sequence[str], rounds: int = 8
) -> tuple[dict[str, float], dict[str, float]]:
    """Parameters that bring the errors to zero as far as their priors allow (Gauss-Newton), and what spread is left.

    A row's weight is shared among its model's rows, and falls with its own error (as of a Cauchy distribution).
    """
    names = list(priors)
    expected, spread = (np.array([priors[name][i] for name in names]) for i in (0, 1))
    many = Counter(models)
    share = np.array([np.sqrt(many[model]) / many[model] for model in models]) / NOISE**2
    logs = np.log(expected)
    hessian = np.diag(1 / spread**2)
    for _ in range(rounds):
        now = errors(_values(names, logs))
        slope = np.empty((len(now), len(names)))
        for place in range(len(names)):
            moved = logs + STEP * (np.arange(len(names)) == place)
            slope[:, place] = (errors(_values(names, moved)) - now) / STEP
        weight = share / (1 + (now / NOISE) ** 2)
        hessian = slope.T @ (weight[:, None] * slope) + np.diag(1 / spread**2)
        toward = -slope.T @ (weight * now) - (logs - np.log(expected)) / spread**2
        step = np.clip(np.linalg.solve(hessian, toward), -0.3, 0.3)
        logs = logs + step
        if np.abs(step).max() < 2e-3:
            break
    left = np.sqrt(np.diag(np.linalg.inv(hessian)))
    return _values(names, logs), dict(zip(names, left.tolist(), strict=True))


def _values(names: Sequence[str], logs: np.ndarray) -> dict[str, float]:
    return dict(zip(names, np.exp(logs).tolist(), strict=True))
