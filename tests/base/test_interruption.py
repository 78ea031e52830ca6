"""No signal is lost, whatever was being done when it arrived."""

import os
import signal
import threading
import weakref

import pytest

from mirabelle.base.interruption import check, interruptible
from mirabelle.base.progress import track


class Thing:
    pass


def swallowed(number):
    """The signal arrives in a callback of a weak reference, where exceptions are lost."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing
    assert reference() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_that_was_swallowed_is_raised_between_steps(number, kind):
    seen = []
    with pytest.raises(kind) as raised, interruptible():
        for i in track(range(5), "steps"):
            seen.append(i)
            if i == 2:
                swallowed(number)
    assert seen == [0, 1, 2]
    assert kind is KeyboardInterrupt or raised.value.code == 143
    check()  # nothing is left of it


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_was_swallowed_last_comes_out_of_the_block():
    with pytest.raises(KeyboardInterrupt), interruptible():
        swallowed(signal.SIGINT)


def test_what_a_library_makes_of_an_interruption_is_an_interruption():
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("DataLoader worker exited unexpectedly") from None


def test_a_second_signal_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt) as raised, interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
    assert isinstance(raised.value.__context__, KeyboardInterrupt)


def test_handlers_are_restored_and_those_of_others_stay():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        ours = signal.getsignal(signal.SIGTERM)
        with interruptible():
            assert signal.getsignal(signal.SIGTERM) is ours is not before[1]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before[1])


def test_errors_of_others_stay_what_they_are():
    with pytest.raises(KeyError), interruptible():
        raise KeyError("x")


def test_nothing_happens_in_other_threads():
    done = []

    def work():
        with interruptible():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
