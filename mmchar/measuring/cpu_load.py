"""How much of this machine's processors others use while something is measured."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def other_cores() -> Iterator[list[float]]:
    """A list that holds, at the end, the mean number of cores that were busy with anything but this process.

    Time that a hypervisor gave to other machines counts too. Two threads that share a core's caches and its memory slow
    each other down, so a measurement beside a busy core is not that of a quiet machine.
    """
    import psutil

    def busy_s() -> float:
        times = psutil.cpu_times()
        return (
            sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        )  # guest is in user

    found: list[float] = []
    wall, busy, own = time.perf_counter(), busy_s(), time.process_time()
    try:
        yield found
    finally:
        wall = time.perf_counter() - wall
        others = busy_s() - busy - (time.process_time() - own)
        found.append(max(0.0, others / wall) if wall > 0 else 0.0)
