"""Runs that are ended at any moment: killed ones resume to the same bytes, others clean up too."""

import random
import signal
import time

import pytest

from tests.pipeline.runs import ENVIRONMENT, command, recipe, results

STEPS = [
    {"prune": {"macs": 0.6, "align": 4, "criterion": "l1", "repair": None}},
    {"fit": {"epochs": 3, "lr": 0.01}},
]
KILLS = 2


def ended(child, by: signal.Signals) -> int:
    child.send_signal(by)
    child.communicate(timeout=100)
    return child.returncode


def test_killed_at_random_moments_and_resumed_to_the_same_bytes(tmp_path):
    path, whole, out = recipe(tmp_path, STEPS), tmp_path / "whole", tmp_path / "out"
    child = command(path, whole)
    begun, first = time.monotonic(), None
    while child.poll() is None:
        if first is None and (whole / "steps").exists():
            first = time.monotonic() - begun
        time.sleep(0.01)
    seconds, said = time.monotonic() - begun, child.communicate()[0]
    assert child.returncode == 0 and first is not None, said
    moments = [random.uniform(0.8 * first, seconds) for _ in range(KILLS)]
    for moment in moments:
        child = command(path, out, "--resume")
        time.sleep(moment)
        ended(child, signal.SIGKILL)
    child = command(path, out, "--resume")
    said = child.communicate(timeout=200)[0]
    assert child.returncode == 0, (moments, said)
    assert results(out) == results(whole), moments
    assert not [p.name for p in out.rglob(".*.mirabelle-*")], moments


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_in_the_middle_of_a_step(tmp_path, by, code):
    """The exit code says how; no temporary folder is left in the run's folder or elsewhere."""
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    environment = {**ENVIRONMENT, "TINY_SLEEP": "0.2", "TMPDIR": str(temporary)}
    child = command(recipe(tmp_path, STEPS[1:]), out, environment=environment)
    begun = time.monotonic()
    while not list(out.glob("steps/.01-fit.*")):
        assert child.poll() is None and time.monotonic() - begun < 100
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    assert ended(child, by) == code
    assert not list((out / "steps").iterdir()) and not list(temporary.iterdir())
