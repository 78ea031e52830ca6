"""How long one call takes, for several candidates at once, so that what the machine does besides
hits all of them alike.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError
from mirabelle.base.quiet import uncollected

MIN_ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call over `runs` rounds: median, 95th percentile, mean. `samples`: each
    round's, in order.
    """

    p50_ms: float
    p95_ms: float
    mean_ms: float
    runs: int
    samples: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, samples: list[float]) -> Latency:
        p50, p95 = np.percentile(samples, (50, 95))
        return cls(float(p50), float(p95), float(np.mean(samples)), len(samples), tuple(samples))

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.3f} ms, p95 {self.p95_ms:.3f} ms, {self.runs} runs"


@dataclass(frozen=True)
class Speedup:
    """How many times faster: the median of per-round ratios with its 95 % interval; above 1 is
    faster.
    """

    value: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}], {self.rounds} rounds"


@contextmanager
def pinned(core: int | None = None) -> Iterator[None]:
    """Keeps the calling thread, and threads that it starts meanwhile, on one core (None: the last
    one allowed); undone at the end.

    Right for candidates that use one thread. A thread pool made before keeps its own cores, and a
    pool made inside is squeezed onto the one core for good, so do not use this for more threads.
    Does nothing where the system cannot do it (macOS, Windows).
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    if core is not None and core not in allowed:
        raise InputError(f"core {core} is not one of this process's: {sorted(allowed)}")
    os.sched_setaffinity(0, {max(allowed) if core is None else core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def alternate(
    functions: Mapping[str, Callable[[], Any]],
    runs: int = 100,
    warmup: int = 10,
    seconds: float | None = None,
    pin: bool = False,
) -> dict[str, Latency]:
    """The latency of every candidate. In each round each one is called twice, in an order shuffled
    anew (with a fixed seed); the second call counts.

    functions: name -> a call without arguments. runs: rounds that count, after `warmup` rounds that
    do not.
    seconds: stop after the round in which so much time has passed, warm-up not included, but not
    before 5 rounds (or `runs`).
    pin: keep to one core, see `pinned`. Garbage collection is off meanwhile.
    """
    if not functions:
        raise InputError("nothing to time: functions is empty")
    if runs < 1 or warmup < 0:
        raise InputError(f"runs is {runs} and warmup is {warmup}; expected at least 1 and 0")
    order, generator = list(functions), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in functions}

    def rounds(count: int, into: dict[str, list[float]] | None, until: float) -> None:
        for done in range(count):
            if done >= MIN_ROUNDS and perf_counter_ns() >= until:
                return
            generator.shuffle(order)
            for name in order:
                function = functions[name]
                # untimed: the others have just emptied the caches, which one network deployed alone
                # finds warm
                function()
                start = perf_counter_ns()
                function()
                stop = perf_counter_ns()
                if into is not None:
                    into[name].append((stop - start) / 1e6)

    with pinned() if pin else nullcontext():
        rounds(warmup, None, float("inf"))
        gc.collect()
        with uncollected():
            rounds(
                runs,
                samples,
                float("inf") if seconds is None else perf_counter_ns() + seconds * 1e9,
            )
    return {name: Latency.of(samples[name]) for name in functions}


def speedup(before: Latency, after: Latency, resamples: int = 2000) -> Speedup:
    """How much faster `after` is than `before`, both from one call of `alternate`: round i of one
    stands against round i of the other.

    The median of the ratios, and the 2.5th and 97.5th percentile of that median over bootstrap
    resamples of the rounds (Efron 1979; fixed seed).
    """
    if not before.samples or len(before.samples) != len(after.samples):
        raise InputError(
            f"{len(before.samples)} rounds against {len(after.samples)}; a speed-up needs both "
            "from one run of `alternate`"
        )
    ratios = np.array(before.samples) / np.array(after.samples)
    picks = np.random.default_rng(0).integers(len(ratios), size=(resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), (2.5, 97.5))
    return Speedup(float(np.median(ratios)), float(low), float(high), len(ratios))
