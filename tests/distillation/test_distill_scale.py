"""Two processes against one, accumulation, mixed precision, resumption: the weights are the same
ones.
"""

import os
import socket

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.distillation import LOSSES
from mirabelle.distillation.api import run
from tests.tiny import Noisy, model, teacher

pytestmark = pytest.mark.usefixtures("one_thread")


def student() -> nn.Module:
    """Without BatchNorm, whose statistics are those of a process's share."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3))


def large(outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, outputs))


def batches() -> list:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 1, 8, 8, generator=g), torch.randint(0, 3, (n,), generator=g))
        for n in (5, 6, 7, 5)
    ]


COMMON = {
    "optimizer": "sgd",
    "schedule": "constant",
    "weight_decay": 0.0,
    "lr": 0.1,
    "precision": "float32",
    "epochs": 2,
    "accumulate": 2,
}
SETTINGS = {
    "relations": {
        "losses": {
            "dist": 1.0,
            "kd": 1.0,
            "rkd_distance": 1.0,
            "rkd_angle": 1.0,
            "similarity": 1.0,
            "decoupled_kd": 0.1,
            "labels": 0.5,
        }
    },
    "layers": {"losses": {"features": 1.0, "feature_similarity": 1.0}, "features": {"1": "1"}},
    "embeddings": {"losses": {"cosine": 1.0, "l2": 1.0}},
    "random": {"losses": {"mse": 1.0}, "ensemble": "random"},
    "cached": {"losses": {"dist": 1.0}, "views": 1},
}


def trained(name: str, folder: str) -> nn.Module:
    taught = (
        [large(), student()] if name == "random" else large(5) if name == "embeddings" else large()
    )
    options = {"cache": folder} if name == "cached" else {}
    return mb.distill(student(), taught, batches(), **COMMON, **SETTINGS[name], **options)


def _one_of_two(rank: int, port: int, path: str) -> None:
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        for name in SETTINGS:
            torch.save(trained(name, f"{path}/cache").state_dict(), f"{path}/{name}{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_one_of_two, (port, str(tmp_path)), nprocs=2)
    for name in SETTINGS:
        one = trained(name, str(tmp_path / "alone")).state_dict()
        assert not torch.equal(one["1.weight"], student()[1].weight)
        for rank in range(2):
            two = torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True)
            for k in one:
                torch.testing.assert_close(
                    two[k],
                    one[k],
                    rtol=1e-4,
                    atol=1e-5,
                    msg=lambda m, n=name, k=k: f"{n}, {k}: {m}",
                )


def test_accumulation_equals_larger_batches():
    """For losses that are means over samples; those that relate samples see the smaller batches."""
    data = [x for x, _ in batches()[:1]] * 4
    big = [torch.cat(data[:2]), torch.cat(data[2:])]
    options = {**COMMON, "losses": {"kd": 1.0, "cosine": 1.0}}
    a = mb.distill(student(), large(), data, **options)
    b = mb.distill(student(), large(), big, **{**options, "accumulate": 1})
    torch.testing.assert_close(a[1].weight, b[1].weight, rtol=1e-5, atol=1e-6)


class StopError(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 4, 8])
def test_resumed_equals_uninterrupted(tmp_path, after):
    """Projections, dropout, BatchNorm, augmentation, a random teacher for each batch; stopped
    within and between epochs.
    """
    data = DataLoader(Noisy(24), batch_size=8, shuffle=True)
    calls = 0

    def loss(output, target):
        nonlocal calls
        calls += 1
        if calls == after:
            raise StopError
        return nn.functional.cross_entropy(output, target)

    for taught, settings in (
        (
            teacher(),
            {"losses": {"dist": 1.0, "features": 1.0, "labels": 0.1}, "features": {"3": "3"}},
        ),
        (
            [teacher(), model(4)],
            {"losses": {"kd": 1.0, "labels": 0.1}, "ensemble": "random", "views": 2},
        ),
    ):
        calls = 1000
        options = {
            "epochs": 3,
            "lr": 0.01,
            "accumulate": 1,
            "ema": 0.9,
            **settings,
            "label_loss": loss,
        }
        whole = run(model(), taught, data, **options)
        keep = {"checkpoint": tmp_path / str(len(settings)), "checkpoint_seconds": -1.0}
        calls = 0
        with pytest.raises(StopError):
            run(model(), taught, data, **options, **keep)
        calls = 1000
        torch.manual_seed(99)
        resumed = run(model(), taught, data, **options, **keep)
        assert resumed.history == whole.history
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
            )
        )


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_mixed_precision_computes_losses_in_float32(precision, monkeypatch):
    seen = []

    def loss(output, taught, temperature):
        seen.append((output.dtype, (output @ taught.T).dtype))
        return (output - taught).square().mean()

    monkeypatch.setitem(LOSSES, "watched", loss)
    found = run(
        student(),
        large(),
        [x for x, _ in batches()],
        losses={"watched": 1.0, "similarity": 1.0},
        precision=precision,
        epochs=8,
        lr=0.02,
    )
    assert set(seen) == {(torch.float32, torch.float32)}
    assert found.history[-1]["watched"] < found.history[0]["watched"]


def test_names_under_distributed_data_parallel_are_found_or_refused():
    """`module.` in front of every name: a hint that matches nothing must never be a loss of
    zero.
    """

    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.module = net

        def forward(self, x):
            return self.module(x)

    with pytest.raises(
        InputError,
        match=r"'1', which is no module of the student; did you mean .*'module\.1'|'1', which "
        r"is no module of the student",
    ):
        mb.distill(Wrapped(student()), large(), batches(), features={"1": "1"})
    with pytest.raises(InputError, match=r"'module\.1', which is no module of the student"):
        mb.distill(student(), large(), batches(), features={"module.1": "1"})
    with pytest.raises(InputError, match=r"'module\.1', which is no module of the teacher"):
        mb.distill(student(), large(), batches(), features={"1": "module.1"})
    assert (
        run(Wrapped(student()), large(), batches(), features={"module.1": "1"}).history[0][
            "features"
        ]
        > 0
    )
