"""Timing the two sides of a ratio in turn, so that whatever else the machine does meanwhile hits both."""

import statistics
import time
from collections.abc import Callable

FEWEST_REPEATS = 9
"""Of a median that is quoted."""

BUILDS = 3
"""How often each side is built anew: where its tensors come to lie changes a step's time, too."""

Step = Callable[[], object]
"""One training step (or matrix product), complete when it returns."""


def alternate(over: Step, under: Step, repeats: int, warm_up: int = 2) -> tuple[list[float], list[float]]:
    """Seconds of each call of the two sides, called in turn: over, under, over, under, ... after `warm_up` such pairs."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(warm_up + repeats):
        for side, step in zip(times, (over, under), strict=True):
            start = time.perf_counter()
            step()
            side.append(time.perf_counter() - start)
    return times[0][warm_up:], times[1][warm_up:]


def steadily(step: Step, repeats: int, warm_up: int = 2, least: float = 1.0) -> list[float]:
    """Seconds of each call, after `warm_up` calls: `repeats` of them, or as many more as fill `least` seconds."""
    times: list[float] = []
    while len(times) < warm_up + repeats or sum(times[warm_up:]) < least:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times[warm_up:]


def summary(values: list[float]) -> dict:
    """{"median", "n", "spread": [lower quartile, upper quartile]} of at least two values."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "n": len(values), "spread": [lower, upper]}
