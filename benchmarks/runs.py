"""Runs of a benchmark that are kept one by one, so that it goes on where it stopped; and the
figures of several seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from mirabelle.base.files import read_json, write_json

Run = dict[str, Any]


def command(about: str | None, kinds: Iterable[str]) -> argparse.Namespace:
    """The command line of a benchmark whose runs have a kind, and some of them a method and
    a seed.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--only", choices=list(kinds), help="one table")
    parser.add_argument("--methods", default="", help="only methods with this in their names")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--runs", type=int, help="at most so many runs more")
    parser.add_argument(
        "--table", action="store_true", help="only print the tables of what is there"
    )
    return parser.parse_args()


def is_asked(run: Run, options: argparse.Namespace) -> bool:
    return (
        options.only in (None, run["kind"])
        and options.methods in run.get("method", "")
        and options.seed in (None, run.get("seed"))
    )


def kept(path: Path) -> dict[str, Any]:
    """The results in the file, or none yet."""
    return read_json(path) if path.exists() else {"runs": []}


def rows(results: Mapping[str, Any], **known: Any) -> list[Run]:
    """The runs that have these values."""
    return those(results["runs"], **known)


def those(runs: Iterable[Run], **known: Any) -> list[Run]:
    return [r for r in runs if all(r.get(k) == v for k, v in known.items())]


def carry_out(
    path: Path,
    asked: Iterable[Run],
    do: Callable[[Run], Run | None],
    conditions: Mapping[str, Any],
    most: int | None = None,
) -> None:
    """Does those of the runs that are not in the file yet, at most so many, and adds each to it
    with the conditions.

    do: run -> what was found; None where it cannot be done yet.
    """
    for run in [r for r in asked if not rows(kept(path), **r)][:most]:
        found = do(run)
        if found is None:
            continue
        results = kept(path) | dict(conditions)  # read anew: another process may have added to it
        results["runs"].append(run | found)
        write_json(path, results)
        print(run | found, flush=True)


def span(values: list[float]) -> str:
    """The mean of some seeds, from what to what they reach, and how many there are."""
    return (
        f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f}; {len(values)})"
        if values
        else "not run"
    )


class Row(dict):
    """What is known of one network or file; a stage that fails ends it and says why."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self["stage"] = name
        begun = time.process_time()
        yield
        self.setdefault("cpu_s", {})[name] = round(time.process_time() - begun, 2)
