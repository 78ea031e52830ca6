"""Timing, with clocks that the test sets."""

import gc
import os
import time
from itertools import count

import numpy as np
import pytest

from mirabelle.base.errors import InputError
from mirabelle.measurement import Latency, alternate, latency, speedup


def fake_clock(monkeypatch, durations):
    """`perf_counter_ns` that stands still but for what the candidates add to it."""
    now = [0]
    monkeypatch.setattr(latency, "perf_counter_ns", lambda: now[0])

    def candidate(name):
        times = iter(durations[name])

        def call():
            now[0] += int(next(times) * 1e6)

        return call

    return {name: candidate(name) for name in durations}


def led(samples: list[float]) -> list[float]:
    """Each sample behind the untimed call that warms the caches for it."""
    return [t for sample in samples for t in (50.0, sample)]


def test_alternate_by_hand(monkeypatch):
    samples = [5.0, 1.0, 3.0, 2.0, 4.0]
    functions = fake_clock(
        monkeypatch, {"a": led([99.0, *samples]), "b": led([99.0, *(2 * s for s in samples)])}
    )
    result = alternate(functions, runs=5, warmup=1)
    assert result["a"] == Latency(3.0, 4.8, 3.0, 5)  # 95th percentile: 4 + 0.8 * (5 - 4)
    assert result["b"].samples == (10.0, 2.0, 6.0, 4.0, 8.0)
    gain = speedup(result["b"], result["a"])
    assert (gain.value, gain.low, gain.high, gain.rounds) == (2.0, 2.0, 2.0, 5)


def test_speedup_survives_drift_and_has_an_interval(monkeypatch):
    drift = [1 + i / 10 for i in range(100)]
    noise = np.random.default_rng(1).normal(1, 0.1, size=100)
    functions = fake_clock(
        monkeypatch,
        {"a": led([d * n for d, n in zip(drift, noise)]), "b": led([3 * d for d in drift])},
    )
    result = alternate(functions, runs=100, warmup=0)
    gain = speedup(result["b"], result["a"])
    assert gain.low < gain.value < gain.high
    assert 2.8 < gain.low < 3 < gain.high < 3.2
    assert gain == speedup(result["b"], result["a"])
    with pytest.raises(InputError, match="100 rounds against 0"):
        speedup(result["a"], Latency(1, 1, 1, 100))


def test_alternate_mixes_the_order_and_keeps_the_budget():
    calls: list[str] = []
    result = alternate({n: (lambda n=n: calls.append(n)) for n in "abc"}, runs=20, warmup=3)
    assert calls[::2] == calls[1::2]  # each candidate twice in a row
    rounds = [tuple(calls[i : i + 6 : 2]) for i in range(0, len(calls), 6)]
    assert len(rounds) == 23 and all(sorted(r) == list("abc") for r in rounds)
    assert len(set(rounds)) > 3 and {r[0] for r in rounds} == set("abc")
    assert list(result) == list("abc")
    again: list[str] = []
    alternate({n: (lambda n=n: again.append(n)) for n in "abc"}, runs=20, warmup=3)
    assert again == calls
    slow = alternate({"slow": lambda: time.sleep(0.01)}, runs=1000, warmup=0, seconds=0.1)["slow"]
    assert 5 <= slow.runs <= 6 and slow.p50_ms >= 10
    assert (
        alternate({"slow": lambda: time.sleep(0.01)}, runs=1000, warmup=0, seconds=0)["slow"].runs
        == 5
    )
    for wrong in ({"runs": 0}, {"warmup": -1}):
        with pytest.raises(InputError, match="runs is"):
            alternate({"a": int}, **wrong)
    with pytest.raises(InputError, match="nothing to time"):
        alternate({})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_pinning_and_collection_are_undone():
    before, seen, calls = os.sched_getaffinity(0), [], count()

    def candidate():
        seen.append((os.sched_getaffinity(0), gc.isenabled()))
        if next(calls) == 4:
            raise KeyError("candidate")

    with pytest.raises(KeyError):
        alternate({"a": candidate}, runs=9, warmup=2, pin=True)
    assert seen == [({max(before)}, True)] * 4 + [({max(before)}, False)]
    assert os.sched_getaffinity(0) == before and gc.isenabled()
    with pytest.raises(InputError, match="core 4096"), latency.pinned(4096):
        pass
