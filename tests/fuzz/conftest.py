"""Profiles of hypothesis for this folder: `ci` is short and always draws the same; `long`, which
`make fuzz` runs, draws others each time and keeps what failed in `.hypothesis`. It shares
FUZZ_SECONDS, an hour by default, among its tests, and ends with a table of outcomes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.errors import StopTest, UnsatisfiedAssumption

from tests.fuzz.outcomes import Hang, noted

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
OUTCOMES = ("tried", "good", "fine", "foreign", "wrong", "hang")
HERE = Path(__file__).parent
SHARE = pytest.StashKey[float]()  # seconds of each test
LIMIT = 120.0  # seconds of the processor for one example, after which it hangs

settings.register_profile(
    "ci", settings.get_profile("ci"), max_examples=15, derandomize=True, database=None, **QUIET
)
settings.register_profile(
    "long",
    settings.get_profile("default"),
    max_examples=100_000,
    derandomize=False,
    print_blob=True,
    **QUIET,
)


class _TimeIsUp(BaseException):
    """The test has had its share: it ends as it stands."""


def _of_the_test(error: BaseException) -> bool:
    """Whether a test says so; packages assert things too."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    here = place is not None and Path(place.tb_frame.f_code.co_filename).parent == HERE
    return here and isinstance(error, AssertionError)


def _alarm(*_: Any) -> None:
    raise Hang


def _counting(inner: Callable, found: Counter, until: float) -> Callable:
    """`inner`, whose outcomes are counted up to the first failure: what follows shrinks that."""

    def counted(*args: Any, **given: Any) -> None:
        failed = sum(found[k] for k in ("foreign", "wrong", "hang"))
        outcome = "good"
        noted.clear()
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            inner(*args, **given)
            outcome = "fine" if noted else "good"
        except (StopTest, UnsatisfiedAssumption):
            outcome = ""
            raise
        except Hang:
            outcome = "hang"
            raise AssertionError(f"it took more than {LIMIT:.0f} s") from None
        except BaseException as error:
            outcome = "wrong" if _of_the_test(error) else "foreign"
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            if outcome and not failed:
                found["tried"] += 1
                found[outcome] += 1
        if not failed and time.monotonic() > until:
            raise _TimeIsUp

    return counted


def _long(config: pytest.Config) -> bool:
    return config.getoption("--hypothesis-profile") == "long"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    drawn = [i for i in items if hasattr(getattr(i, "obj", None), "hypothesis")]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    share = float(os.environ.get("FUZZ_SECONDS", 3600)) * workers / max(1, len(drawn))
    config.stash[SHARE] = share


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    if handle is None or not _long(pyfuncitem.config):
        return (yield)
    found: Counter = Counter()
    inner, before = handle.inner_test, signal.signal(signal.SIGPROF, _alarm)
    handle.inner_test = _counting(inner, found, time.monotonic() + pyfuncitem.config.stash[SHARE])
    try:
        return (yield)
    except _TimeIsUp:
        return True
    finally:
        handle.inner_test = inner
        signal.signal(signal.SIGPROF, before)
        pyfuncitem.user_properties.append(("outcomes", json.dumps(found)))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, from the reports of all workers."""
    if not _long(config):
        return
    rows: dict[str, Counter] = {}
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        for name, value in getattr(report, "user_properties", ()):
            if name == "outcomes" and report.when == "call":
                rows[report.nodeid.partition("::")[2]] = Counter(json.loads(value))
    rows["in all"] = sum(rows.values(), Counter())
    terminalreporter.section("outcomes")
    terminalreporter.write_line(f"{'':64}" + "".join(f"{k:>9}" for k in OUTCOMES))
    for name, counts in rows.items():
        terminalreporter.write_line(f"{name[:64]:64}" + "".join(f"{counts[k]:9}" for k in OUTCOMES))
