"""The seconds of many cases at once: those on the same GPU in the same execution as one long table."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmchar.projection.columns import Columns
from mmchar.projection.data_sheets import Gpu
from mmchar.projection.evidence.cases import Case
from mmchar.projection.roofline import Rates, row_times

_NUMBERS = ("stage", "step", "site")  # what a case numbers for itself; 0 of the last is none


class Together:
    """Cases whose seconds are asked for again and again, at other rates."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.many = len(cases)
        places: dict[tuple[str, str], list[int]] = {}
        for place, case in enumerate(cases):
            places.setdefault((case.gpu.name, case.execution), []).append(place)
        self._groups: list[tuple[Columns, Gpu, str, np.ndarray]] = []
        for (_, execution), here in places.items():
            columns = [cases[place].columns for place in here]
            self._groups.append(
                (joined(columns), cases[here[0]].gpu, execution, np.repeat(here, list(map(len, columns))))
            )

    def seconds(self, rates: Rates) -> np.ndarray:
        """Seconds of each case."""
        total_s = np.zeros(self.many)
        for columns, gpu, execution, case in self._groups:
            device_s, wait_s, _ = row_times(columns, gpu, rates, execution=execution)
            total_s += np.bincount(case, (device_s + wait_s) * columns.repeats, minlength=self.many)
        return total_s


def joined(parts: Sequence[Columns]) -> Columns:
    """The columns of several tables below each other; stages, steps and sites of different ones stay apart."""
    dtypes = tuple(dict.fromkeys(name for part in parts for name in part.dtypes))
    arrays: dict[str, list[np.ndarray]] = {
        name: [] for name, value in vars(parts[0]).items() if isinstance(value, np.ndarray)
    }
    first = dict.fromkeys(_NUMBERS, 0)
    for part in parts:
        own = np.array([dtypes.index(name) for name in part.dtypes] or [0])
        for name, values in arrays.items():
            here = getattr(part, name)
            if name in first:
                here = np.where((here > 0) | (name != "site"), here + first[name], here)
                first[name] = max(first[name], int(here.max(initial=0)) + 1)
            values.append(own[here] if name == "dtype" else here)
    return replace(parts[0], dtypes=dtypes, **{name: np.concatenate(values) for name, values in arrays.items()})
