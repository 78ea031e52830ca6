"""The loop against steps done by hand, interrupted runs against whole ones, two processes against
one.
"""

import copy
import math
import os
import socket

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import CheckpointError, InputError, MirabelleError
from mirabelle.training import train
from mirabelle.training.api import LabelsObjective
from mirabelle.training.optimizers import SCHEDULES, learning_rate
from mirabelle.training.state import placed
from tests.tiny import Noisy, model

pytestmark = pytest.mark.usefixtures("one_thread")


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def pairs(count: int, n: int = 4, seed: int = 0) -> list:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, generator=g), torch.randint(0, 2, (n,), generator=g))
        for _ in range(count)
    ]


PLAIN = {
    "optimizer": "sgd",
    "schedule": "constant",
    "weight_decay": 0.0,
    "lr": 0.1,
    "precision": "float32",
}


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_two_steps_of_sgd_by_hand():
    """Nesterov: v = 0.9 v + g, w -= lr (g + 0.9 v). mse of w x to t with x = 1: g = 2 (w - t)."""
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(3.0)
    batch = (torch.ones(2, 1), torch.full((2, 1), 1.0))
    w, v = 3.0, 0.0
    for _ in range(2):
        g = 2 * (w - 1)
        v = 0.9 * v + g
        w -= 0.1 * (g + 0.9 * v)
    trained = mb.fit(net, [batch, batch], loss="mse", **PLAIN)
    assert trained.weight.item() == pytest.approx(w, rel=1e-6)
    assert net.weight.item() == 3.0


def test_vectors_are_not_decayed():
    net = nn.Linear(2, 2)
    trained = mb.fit(
        net,
        [(torch.zeros(1, 2), torch.zeros(1, 2))],
        loss=lambda o, t: (o * 0).sum(),
        **{**PLAIN, "weight_decay": 0.5},
    )
    torch.testing.assert_close(trained.weight, net.weight * (1 - 0.1 * 0.5 * 1.9))
    assert torch.equal(trained.bias, net.bias)


def test_ema_by_hand():
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    batches = [(torch.ones(1, 1), torch.ones(1, 1))] * 3
    each = [mb.fit(net, batches, loss="mse", steps=k, **PLAIN).weight.item() for k in (1, 2, 3)]
    expected = each[0]
    for w in each[1:]:
        expected = 0.8 * expected + 0.2 * w
    assert mb.fit(net, batches, loss="mse", ema=0.8, **PLAIN).weight.item() == pytest.approx(
        expected, rel=1e-5
    )


def test_schedules():
    assert [SCHEDULES["cosine"](p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [SCHEDULES["linear"](p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert SCHEDULES["constant"](0.7) == 1
    rates = [learning_rate(i, 10, 1.0, SCHEDULES["linear"], 0.2) for i in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and rates[9] == pytest.approx(1 / 8)
    assert all(math.isfinite(learning_rate(i, 3, 1.0, SCHEDULES["cosine"], 1.0)) for i in range(3))


@pytest.mark.parametrize("length_known", [True, False])
@pytest.mark.parametrize("count", [4, 3])
def test_accumulation_equals_larger_batches(count, length_known):
    batches = pairs(count)
    big = [tuple(map(torch.cat, zip(*batches[i : i + 2], strict=True))) for i in range(0, count, 2)]

    class Endless:
        def __iter__(self):
            return iter(batches)

    net = linear()
    a = mb.fit(net, batches if length_known else Endless(), accumulate=2, epochs=2, **PLAIN)
    b = mb.fit(net, big, epochs=2, **PLAIN)
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-6, atol=1e-6)


class StopError(BaseException):
    pass


def interrupted(after: int, function):
    """An objective that raises after so many calls."""
    calls = 0

    def objective(network, batch):
        nonlocal calls
        calls += 1
        if calls > after:
            raise StopError
        return function(network, batch)

    objective.identity = function.identity  # it is the same run
    return objective


def loader(workers: int = 0) -> DataLoader:
    return DataLoader(Noisy(40), batch_size=8, shuffle=True, num_workers=workers)


@pytest.mark.parametrize(
    "options",
    [{"ema": 0.9}, {"optimizer": "sgd", "clip": 0.5}, {"accumulate": 2, "warmup": 0.3, "ema": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("after", [1, 3, 5, 7, 10, 12])
def test_resumed_equals_uninterrupted(tmp_path, after, options):
    """BatchNorm, dropout, shuffling and noise that is drawn anew with each reading; stopped within
    and between epochs.
    """
    net, objective = model(), LabelsObjective("cross_entropy")
    options = {"epochs": 3, "lr": 0.01, **options}
    whole = train(net, loader(), objective, **options)
    keep = {"checkpoint": tmp_path, "checkpoint_seconds": -1.0}
    with pytest.raises(StopError):
        train(net, loader(), interrupted(after, objective), **options, **keep)
    torch.manual_seed(99)
    resumed = train(net, loader(), objective, **options, **keep)
    assert same(resumed.model, whole.model)
    assert resumed.history == whole.history
    again = train(net, loader(), interrupted(0, objective), **options, **keep)
    assert same(again.model, whole.model) and again.history == whole.history


def test_resumed_twice_with_workers_and_a_generator_of_the_loader(tmp_path):
    def make():
        return DataLoader(
            Noisy(24),
            batch_size=8,
            shuffle=True,
            num_workers=1,
            generator=torch.Generator().manual_seed(1),
        )

    net, objective = model(), LabelsObjective("cross_entropy")
    whole = train(net, make(), objective, epochs=3)
    for after in (4, 2):
        with pytest.raises(StopError):
            train(
                net,
                make(),
                interrupted(after, objective),
                epochs=3,
                checkpoint=tmp_path,
                checkpoint_seconds=-1.0,
            )
    assert same(train(net, make(), objective, epochs=3, checkpoint=tmp_path).model, whole.model)


def test_resumed_with_patience_and_validation(tmp_path):
    net, objective = model(), LabelsObjective("cross_entropy")
    options = {
        "epochs": 5,
        "lr": 0.02,
        "validation": DataLoader(Noisy(30), batch_size=10, shuffle=True),
        "patience": 2,
    }
    whole = train(net, loader(), objective, **options)
    with pytest.raises(StopError):
        train(
            net,
            loader(),
            interrupted(8, objective),
            **options,
            checkpoint=tmp_path,
            checkpoint_seconds=-1.0,
        )
    resumed = train(net, loader(), objective, **options, checkpoint=tmp_path)
    assert same(resumed.model, whole.model) and resumed.history == whole.history


def test_checkpoint_of_another_run_or_damaged(tmp_path):
    net, batches = linear(), pairs(2)
    mb.fit(net, batches, checkpoint=tmp_path, **PLAIN)
    for other in ({"lr": 0.2}, {"optimizer": "adamw"}, {"ema": 0.9}):
        with pytest.raises(InputError, match="another run"):
            mb.fit(net, batches, checkpoint=tmp_path, **{**PLAIN, **other})
    with pytest.raises(InputError, match="differs in the network's weights and the network's str"):
        mb.fit(nn.Linear(3, 2, bias=False), batches, checkpoint=tmp_path, **PLAIN)
    file = tmp_path / "checkpoint.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:50], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            mb.fit(net, batches, checkpoint=tmp_path, **PLAIN)


def test_early_stop_returns_the_best():
    """The rate is so high that it gets worse after some time; validation is the training data."""
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    data = [(torch.ones(2, 1), torch.ones(2, 1))]
    seen = []

    def negative_error(output, target):
        seen.append(float(output.detach()[0]))
        return -(output - target).abs().reshape(-1)

    found = train(
        net,
        data,
        LabelsObjective("mse"),
        epochs=20,
        validation=data,
        metric=negative_error,
        patience=2,
        **{**PLAIN, "lr": 0.3},
    )
    scores = [h["validation_negative_error"] for h in found.history]
    assert (
        len(scores) < 20
        and scores[-1] < max(scores)
        and scores.index(max(scores)) == len(scores) - 3
    )
    assert found.model.weight.item() == pytest.approx(seen[scores.index(max(scores))])


def test_same_seed_same_weights_other_seed_others():
    a, b, c = (mb.fit(model(), loader(), seed=s) for s in (1, 1, 2))
    assert same(a, b) and not same(a, c)


def test_input_is_not_changed():
    net = model()
    net.train()
    net[1].eval()
    before = copy.deepcopy(net)
    mb.fit(net, loader(), lr=0.1, ema=0.9)
    assert (
        same(net, before)
        and net.training
        and not net[1].training
        and all(p.grad is None for p in net.parameters())
    )


def test_frozen_parameters_stay():
    net = model()
    net[0].weight.requires_grad_(False)
    trained = mb.fit(net, loader(), lr=0.1)
    assert torch.equal(trained[0].weight, net[0].weight) and not torch.equal(
        trained[3].weight, net[3].weight
    )
    assert not trained.training


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ([], {}, "no batch"),
        (pairs(2), {"epochs": 0}, "epochs"),
        (pairs(2), {"lr": math.nan}, "lr"),
        (pairs(2), {"accumulate": 0}, "accumulate"),
        (pairs(2), {"ema": 2}, "ema"),
        (pairs(2), {"optimizer": "adam"}, "did you mean 'adamw'"),
        (pairs(2), {"schedule": "cosin"}, "did you mean 'cosine'"),
        (pairs(2), {"precision": "fp16"}, "precision"),
        (pairs(2), {"loss": "cross_entrop"}, "did you mean 'cross_entropy'"),
        (pairs(2), {"patience": 1}, "validation"),
        ([torch.randn(2, 3)], {}, "no targets"),
        ([(torch.randn(2, 4), torch.zeros(2, dtype=torch.long))], {}, r"\(2, 4\)"),
        (iter(pairs(2)), {}, "only once"),
    ],
)
def test_wrong_arguments(data, options, words):
    with pytest.raises(InputError, match=words):
        mb.fit(linear(), data, **options)


def test_nothing_to_train():
    with pytest.raises(InputError, match="no parameter"):
        mb.fit(nn.Flatten(), pairs(1))
    with pytest.raises(InputError, match="no parameter"):
        mb.fit(linear().requires_grad_(False), pairs(1))


def test_loss_that_is_not_finite():
    calls = iter((1.0, math.nan))
    with pytest.raises(MirabelleError, match=r"not finite at step 1 of 3.*lower lr"):
        mb.fit(linear(), pairs(3), lambda o, t: o.sum() * next(calls), **PLAIN)


def test_loader_that_ends_early():
    class Liar(list):
        def __len__(self):
            return 5

    with pytest.raises(InputError, match="promised 5"):
        mb.fit(linear(), Liar(pairs(3)))


def test_loader_that_is_empty_the_second_time():
    class Once(list):
        reads = 0

        def __iter__(self):
            self.reads += 1
            return super().__iter__() if self.reads < 2 else iter(())

    with pytest.raises(InputError, match="promised 3"):
        mb.fit(linear(), Once(pairs(3)), lr=0.1)


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
        trained = mb.fit(linear(), pairs(4, 5), epochs=2, accumulate=2, **PLAIN)
        torch.save(trained.state_dict(), f"{path}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_one_of_two, (port, str(tmp_path)), nprocs=2)
    one = mb.fit(linear(), pairs(4, 5), epochs=2, accumulate=2, **PLAIN).state_dict()
    for rank in range(2):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for k in one:
            torch.testing.assert_close(two[k], one[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_reach_convolutions_with_their_channels_last(channels):
    images = torch.randn(4, channels, 6, 5)
    found = placed(as_batch(images[:, :, ::2]), torch.device("cpu")).args[0]
    assert torch.equal(found, images[:, :, ::2])
    assert found.stride() == (15 * channels, 1, 5 * channels, channels)
    assert nn.Conv2d(channels, 8, 3)(found).is_contiguous(memory_format=torch.channels_last)
