"""Efficiencies of one's own GPU: a fit to measurements that expects what we ship, and how good it is."""

from collections.abc import Sequence

import pandas as pd

from mmchar.projection.efficiency_file import EfficiencyFile, Range
from mmchar.projection.evidence.calibration import fit, leave_out, shipped_priors
from mmchar.projection.evidence.cases import Case
from mmchar.projection.evidence.validation import predicted


def fit_own(cases: Sequence[Case], *, progress: bool = False) -> EfficiencyFile:
    """What a fit to the cases finds, as a file that does not say yet where the cases are from.

    A parameter that no measurement touches stays as we ship it. Its errors are of models that the fit had not seen,
    where there are two or more; else they are those that the fit leaves.
    """
    priors = shipped_priors()
    found = fit(cases, priors=priors)
    models = list(dict.fromkeys(case.asked["model"] for case in cases))
    if len(models) > 1:
        how = "each model by a fit to the others"
        table = leave_out(cases, by="model", priors=priors, progress=progress)
    else:
        how, table = f"{models[0]}, which the fit has seen", predicted(cases, found.rates, found.power)
    error = table["latency_error"]
    low, middle, high = (float(value) for value in (error.quantile(0.1), error.abs().median(), error.quantile(0.9)))
    return EfficiencyFile(
        efficiency=found.rates.kernels,
        messages=found.rates.messages,
        power=found.power,
        priors=priors[0] | priors[1],
        spread=found.spread,
        errors=Range(low, high, middle, len(table), how),
        n=len(cases),
        gpus=list(dict.fromkeys(case.gpu.name for case in cases)),
        models=models,
    )


def parameters(file: EfficiencyFile) -> pd.DataFrame:
    """Each fitted parameter: what was expected, what was found, and the spread of its logarithm before and after."""
    parts = {"": file.efficiency, "messages": file.messages}
    rows = []
    for name, (expected, spread) in file.priors.items():
        of, _, own = name.rpartition(".")
        part = parts[of] if hasattr(parts[of], own) else file.power
        left = file.spread.get(name, spread)
        rows.append((name, f"{expected:.3g}", f"{getattr(part, own):.3g}", f"{spread:.2f}", f"{left:.2f}"))
    return pd.DataFrame(rows, columns=["parameter", "expected", "found", "spread", "left"])
