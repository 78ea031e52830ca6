"""What is tried inside never shows on the user's terminal; what the user's own code says does."""

import copy
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.base.quiet import copying, muffled
from mirabelle.graph.capture import capture

ROOT = Path(__file__).parents[2]

WHOLE = """
import mirabelle as mb
from tests.tiny import data, model

network, (train, calibration, test) = model().eval(), data()
x = next(iter(test))[0][:1]
small = mb.prune(
    network, x, macs=0.5, align=1, data=train, samples=32, repair="least-squares"
)
small = mb.distill(small, network, train, losses={"dist": 1.0}, steps=2, lr=1e-3)
mb.save(small, "small")
small = mb.load("small", model())
q = mb.quantize(small, calibration, samples=32)
file = mb.export(q, "int8", runtime="onnxruntime", inputs=x)
mb.verify(q, file, test, samples=4)
mb.fit(q, train, steps=1, lr=1e-3)
"""

TOKEN = """
import mirabelle as mb
import torch
from torch import nn

class Token(nn.Module):
    '''Takes two samples and no others, which one sample more finds out.'''
    def __init__(self):
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.token, self.last = nn.Parameter(torch.zeros(2, 1, 8)), nn.Linear(8, 4)
    def forward(self, x):
        x = self.next(torch.relu(self.conv(x))).mean((2, 3))
        return self.last(torch.cat([x[:, None], self.token], 1).mean(1))

x = torch.randn(2, 3, 8, 8)
mb.prune(Token(), x, macs=0.6, align=1, criterion="l1")
mb.quantize(Token().eval(), [x])
"""

REFUSED = """
import mirabelle as mb
import torch
from torch import nn

class Refused(nn.Linear):
    '''What it computes depends on values: torch prints the graph so far.'''
    def forward(self, x):
        y = super().forward(x)
        return y + 1 if y.sum() > 0 else y

assert "torch.export refuses" in str(mb.explain(Refused(4, 4), torch.randn(2, 4)))
"""

WARNS = """
import warnings
import mirabelle as mb
import torch
from torch import nn

class Warns(nn.Sequential):
    def forward(self, x):
        warnings.warn("the user's own words")
        return super().forward(x)

mb.explain(Warns(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4))
"""


def errors_of(code, folder):
    """What a fresh Python with all its warnings writes to standard error."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("code", [WHOLE, TOKEN + REFUSED], ids=["whole", "refused"])
def test_nothing_is_written_to_standard_error(code, tmp_path):
    assert errors_of(code, tmp_path) == ""


def test_warnings_of_the_users_code_are_shown(tmp_path):
    assert "the user's own words" in errors_of(WARNS, tmp_path)


def test_muffled_hides_errors_that_are_logged_and_what_this_thread_prints(capsys, caplog):
    with muffled():
        logging.getLogger("torch").error("logged")
        warnings.warn("warned", stacklevel=1)
        print("printed", file=sys.stderr)
        other = threading.Thread(target=lambda: print("another's", file=sys.stderr))
        other.start()
        other.join()
    assert capsys.readouterr().err == "another's\n" and not caplog.records
    logging.getLogger("torch").error("afterwards")
    assert [r.message for r in caplog.records] == ["afterwards"]


def test_muffled_keeps_what_was_disabled_before():
    logging.disable(logging.CRITICAL)
    try:
        with muffled():
            assert logging.root.manager.disable == logging.CRITICAL
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)


def test_copying_hides_one_warning_of_torch_alone():
    class Speaks(nn.Module):
        def __deepcopy__(self, memo):
            warnings.warn("copied", UserWarning, stacklevel=1)
            return self

    graph = capture(nn.Linear(2, 2), as_batch(torch.randn(2, 2)))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with copying():
            copy.deepcopy(graph), copy.deepcopy(Speaks())
    assert [str(w.message) for w in heard] == ["copied"]
