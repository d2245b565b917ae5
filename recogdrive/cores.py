"""Which cores of the machine this process may use."""

import os


def usable_cores() -> set[int]:
    """Their numbers. Systems that cannot tell them from all there are count all."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
