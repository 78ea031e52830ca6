"""What the tests of this folder say of an example beside passing: the message could be better."""

from __future__ import annotations

noted: list[str] = []


class Hang(BaseException):
    """An example that does not end; no code that catches exceptions keeps it."""


def check_message(error: Exception, *names: str) -> None:
    """An error of ours has to say something; one that names nothing of what was given is noted, and
    counts as `fine` instead of `good`.
    """
    text = str(error)
    assert text.strip() and "Traceback" not in text
    if not any(name in text for name in names):
        noted.append(text)
