"""Every loss against numbers that were worked out by hand, and the promises that all of
them keep.
"""

import math

import pytest
import torch

from mirabelle.base.errors import InputError
from mirabelle.distillation.features import FEATURE_LOSSES, Hints
from mirabelle.distillation.losses import ANY_WIDTH, LOSSES, TAKES_TARGET

S, T = (
    torch.tensor([[0.0, math.log(3.0)]]),
    torch.tensor([[0.0, 0.0]]),
)  # probabilities (1/4, 3/4) and (1/2, 1/2)
DENSE = {"channelwise"}


def test_kd_by_hand():
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert LOSSES["kd"](S, T, 1.0).item() == pytest.approx(expected, rel=1e-5)
    # At temperature 2 the student's odds are sqrt(3); T^2 = 4.
    q = 1 / (1 + math.sqrt(3))
    assert LOSSES["kd"](S, T, 2.0).item() == pytest.approx(
        4 * (0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q))), rel=1e-5
    )
    assert LOSSES["kd"](S.repeat(5, 1), T.repeat(5, 1), 1.0).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_dist_by_hand():
    # Classes within samples: (1/4, 3/4) against (3/4, 1/4): correlation -1. Samples within classes:
    # the same both times, correlation 1 and -1.
    a = torch.tensor([[0.25, 0.75], [0.75, 0.25]]).log()
    b = a.flip(1)
    assert LOSSES["dist"](a, a, 1.0).item() == pytest.approx(0, abs=1e-5)
    assert LOSSES["dist"](a, b, 1.0).item() == pytest.approx(2 + 2, rel=1e-4)
    assert LOSSES["dist"](a[:1], b[:1], 1.0).item() == pytest.approx(2, rel=1e-4)
    assert LOSSES["dist"](a, a * 1.0 + 7, 3.0).item() == pytest.approx(0, abs=1e-4)


def test_standardized_kd_ignores_scale_and_shift():
    t = torch.tensor([[1.0, 2.0, 3.0]])
    assert LOSSES["standardized_kd"](5 * t - 3, t, 1.0).item() == pytest.approx(0, abs=1e-6)
    z = torch.tensor([[-1.0, 0.0, 1.0]])  # mean 0, standard deviation (n - 1) 1
    assert LOSSES["standardized_kd"](t, t.flip(1), 1.0).item() == pytest.approx(
        LOSSES["kd"](z, z.flip(1), 1.0).item(), rel=1e-5
    )


def test_decoupled_kd_by_hand():
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4), target 0: (1/2, 1/2) against (1/4, 3/4),
    and (1/2, 1/2) against (2/3, 1/3) among the others.
    """
    t, s = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    target = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    others = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    loss = LOSSES["decoupled_kd"]
    assert loss(s, t, 1.0, target=torch.tensor([0])).item() == pytest.approx(
        target + 8 * others, rel=1e-5
    )
    assert loss(s, t, 1.0).item() == pytest.approx(target + 8 * others, rel=1e-5), (
        "without labels the teacher's first choice, class 0"
    )
    # With target 1: (1/4, 3/4) against (1/2, 1/2), and (2/3, 1/3) against (1/2, 1/2).
    target = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    others = 2 / 3 * math.log((2 / 3) / 0.5) + 1 / 3 * math.log((1 / 3) / 0.5)
    assert loss(s, t, 1.0, target=torch.tensor([1])).item() == pytest.approx(
        target + 8 * others, rel=1e-5
    )
    assert loss(s, t, 1.0, target=torch.tensor([255])).item() == loss(s, t, 1.0).item(), (
        "no class: ignored"
    )
    with pytest.raises(InputError, match="two classes"):
        loss(s[:, :1], t[:, :1])


def test_decoupled_kd_with_weights_one_and_p_of_the_others_is_kd():
    """KD = TCKD + (1 - q_target) NCKD: eq. 6 of the paper."""
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(1, 5, generator=g), torch.randn(1, 5, generator=g)
    both = LOSSES["decoupled_kd"](s, t, 1.0, target=torch.tensor([2])).item()
    p, q = s.softmax(1)[0, 2].item(), t.softmax(1)[0, 2].item()
    binary = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert LOSSES["kd"](s, t, 1.0).item() == pytest.approx(
        binary + (1 - q) * (both - binary) / 8, rel=1e-4
    )


def test_binary_kd_by_hand():
    """Teacher 1/2, student 1/4: one label; T = 2 halves the student's log-odds -log 3, and
    T^2 = 4.
    """
    s, t = torch.tensor([-math.log(3.0)]), torch.tensor([0.0])
    one = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert LOSSES["binary_kd"](s, t, 1.0).item() == pytest.approx(one, rel=1e-5)
    two = torch.stack([s, s], 1)
    assert LOSSES["binary_kd"](two, torch.zeros(1, 2), 1.0).item() == pytest.approx(
        2 * one, rel=1e-5
    ), "summed over the labels"
    q = 1 / (1 + math.sqrt(3))
    assert LOSSES["binary_kd"](s, t, 2.0).item() == pytest.approx(
        4 * 0.5 * (math.log(0.5 / q) + math.log(0.5 / (1 - q))), rel=1e-5
    )
    assert torch.isfinite(LOSSES["binary_kd"](torch.tensor([1e4]), torch.tensor([-1e4]), 1.0))


def test_channelwise_by_hand():
    """One class on two positions: (1/2, 1/2) against (1/4, 3/4)."""
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert LOSSES["channelwise"](
        S.reshape(1, 1, 1, 2), T.reshape(1, 1, 1, 2), 1.0
    ).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="dense outputs"):
        LOSSES["channelwise"](S, T, 1.0)


@pytest.mark.parametrize("name", ["kd", "standardized_kd", "dist", "decoupled_kd", "binary_kd"])
def test_dense_outputs_are_samples_at_every_position(name):
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5, generator=g), torch.randn(2, 3, 4, 5, generator=g)
    rows = [z.permute(0, 2, 3, 1).reshape(-1, 3) for z in (s, t)]
    assert LOSSES[name](s, t, 2.0).item() == pytest.approx(
        LOSSES[name](*rows, 2.0).item(), rel=1e-5
    )
    if name in TAKES_TARGET:
        target = torch.randint(0, 3, (2, 4, 5), generator=g)
        assert LOSSES[name](s, t, 2.0, target=target).item() == pytest.approx(
            LOSSES[name](*rows, 2.0, target=target.reshape(-1)).item(), rel=1e-5
        )


def test_mse_cosine_and_l2_by_hand():
    assert LOSSES["mse"](torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])).item() == 2.5
    a, b = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert LOSSES["cosine"](a, b).item() == pytest.approx(0.5)
    assert LOSSES["l2"](a, b).item() == pytest.approx(
        1.0
    )  # (1, 0) to (0, 1): 2; (1, 0) to (1, 0): 0


def test_rkd_distance_by_hand():
    """Points 0, 1, 3: distances 1, 3, 2, mean 2. Points 0, 2, 4: 2, 4, 2, mean 8/3. The relative
    ones differ by 1/4, 0, 1/4; Huber's loss halves the squares.
    """
    s, t = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    assert LOSSES["rkd_distance"](s, t).item() == pytest.approx((2 * 0.5 / 16) / 3, rel=1e-5)
    assert LOSSES["rkd_distance"](s[:1], t[:1]).item() == 0


def test_rkd_angle_by_hand():
    """A right angle at the origin with legs 1, 1 (cosines 0, sqrt 1/2, sqrt 1/2) against three
    points on a line (1, 1 at the ends, -1 in the middle).
    """
    s = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    t = torch.tensor([[0.0], [1.0], [-1.0]])
    c = 1 - math.sqrt(0.5)
    # Each corner is counted twice, as (i, k) and (k, i), of six triplets: (0 - -1) gives Huber 0.5,
    # each other corner c^2 / 2.
    assert LOSSES["rkd_angle"](s, t).item() == pytest.approx(2 * (0.5 + 2 * c**2 / 2) / 6, rel=1e-5)
    assert LOSSES["rkd_angle"](s[:2], t[:2]).item() == 0


def test_similarity_by_hand():
    """Students (1, 0), (0, 1): similarities [[1, 0], [0, 1]]. Teachers 3, 3: [[9, 9], [9, 9]], rows
    (1, 1) / sqrt 2. N^2 = 4.
    """
    r = math.sqrt(0.5)
    expected = (2 * (1 - r) ** 2 + 2 * r**2) / 4
    assert LOSSES["similarity"](torch.eye(2), torch.tensor([[3.0], [3.0]])).item() == pytest.approx(
        expected, rel=1e-5
    )
    assert FEATURE_LOSSES["feature_similarity"](
        torch.eye(2), torch.tensor([[3.0], [3.0]])
    ).item() == pytest.approx(expected, rel=1e-5)


def test_attention_by_hand():
    """Maps (1, 0) and (3, 4) / 5; the channels differ, and the mean square of equal ones is
    theirs.
    """
    s = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    t = torch.tensor([math.sqrt(3.0), 2.0]).reshape(1, 1, 1, 2).repeat(1, 4, 1, 1)
    expected = (1 - 0.6) ** 2 + 0.8**2
    assert FEATURE_LOSSES["attention"](s, t).item() == pytest.approx(expected, rel=1e-5)
    tokens = [z.flatten(2).mT for z in (s, t)]
    assert FEATURE_LOSSES["attention"](*tokens).item() == pytest.approx(expected, rel=1e-5)


def test_hints_by_hand():
    s, t = {"a": torch.full((1, 2, 4, 4), 3.0)}, {"b": torch.full((1, 2, 2, 2), 2.0)}
    assert FEATURE_LOSSES["features"](s["a"], t["b"]).item() == pytest.approx(1)
    assert Hints({"a": "b"}, s, t)(s, t)["features"].item() == pytest.approx((3 - 2) ** 2 / 2**2)
    wide = {"b": torch.ones(1, 5, 2, 2)}
    hints = Hints({"a": "b"}, s, wide)
    hints.projections[0].weight.data.fill_(0.5)  # 0.5 * (3 + 3) = 3
    assert hints(s, wide)["features"].item() == pytest.approx((3 - 1) ** 2)
    # The scale is the first batch's, so that a share of a batch gives its share of the loss.
    assert hints(s, {"b": 3 * wide["b"]})["features"].item() == pytest.approx(0)
    with pytest.raises(
        InputError, match=r"student 'a' gives \(1, 2, 4, 4\) and teacher 'b' \(1, 5\)"
    ):
        Hints({"a": "b"}, s, {"b": torch.ones(1, 5)})


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_finite_scalar_with_gradient_and_least_at_the_teacher(name):
    g = torch.Generator().manual_seed(0)
    shape = (5, 4, 3, 3) if name in DENSE else (5, 4)
    t = torch.randn(shape, generator=g)
    s = torch.randn(shape, generator=g).requires_grad_()
    value = LOSSES[name](s, t, 2.0)
    value.backward()
    assert (
        value.shape == ()
        and value > LOSSES[name](t, t, 2.0) - 1e-6
        and torch.isfinite(s.grad).all()
        and s.grad.abs().sum() > 0
    )
    assert LOSSES[name](t, t, 2.0).item() == pytest.approx(0, abs=1e-5)
    zeros = torch.zeros(shape).requires_grad_()
    nothing = LOSSES[name](zeros, torch.zeros(shape), 1.0)
    nothing.backward()
    assert torch.isfinite(nothing) and torch.isfinite(zeros.grad).all()
    assert (
        LOSSES[name](s.half().float(), t, 1.0).dtype
        == LOSSES[name](s.bfloat16(), t.bfloat16(), 1.0).dtype
        == torch.float32
    )
    assert LOSSES[name].__doc__ and (
        "19" in LOSSES[name].__doc__ or "20" in LOSSES[name].__doc__
    ), "a source"


@pytest.mark.parametrize("name", sorted(ANY_WIDTH))
def test_widths_may_differ(name):
    g = torch.Generator().manual_seed(0)
    assert torch.isfinite(
        LOSSES[name](torch.randn(5, 4, generator=g), torch.randn(5, 9, generator=g), 1.0)
    )


@pytest.mark.parametrize(
    "name", ["kd", "standardized_kd", "decoupled_kd", "binary_kd", "mse", "cosine", "l2"]
)
def test_the_mean_over_the_batch(name):
    """Not divided by the classes, and two halves of a batch make the whole: what several processes
    rely on.
    """
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)
    halves = [LOSSES[name](s[i : i + 3], t[i : i + 3], 1.0).item() for i in (0, 3)]
    assert sum(halves) / 2 == pytest.approx(LOSSES[name](s, t, 1.0).item(), rel=1e-5)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_every_feature_loss_is_a_finite_scalar_with_gradient_and_least_at_the_teacher(name):
    g = torch.Generator().manual_seed(0)
    t = torch.randn(4, 3, 6, 6, generator=g)
    s = torch.randn(4, 3, 6, 6, generator=g).requires_grad_()
    value = FEATURE_LOSSES[name](s, t)
    value.backward()
    assert (
        value.shape == () and value > 0 and torch.isfinite(s.grad).all() and s.grad.abs().sum() > 0
    )
    assert FEATURE_LOSSES[name](t, t).item() == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(FEATURE_LOSSES[name](torch.zeros(4, 3, 6, 6), t))
    assert torch.isfinite(FEATURE_LOSSES[name](t[:, :, :3, :3], t)), "smaller images"
    assert "20" in (FEATURE_LOSSES[name].__doc__ or ""), "a source"


def test_temperature_keeps_the_gradients_size():
    g = torch.Generator().manual_seed(0)
    t = torch.randn(8, 5, generator=g)
    sizes = []
    for temperature in (1.0, 20.0):
        s = (
            t + 0.01 * torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
        ).requires_grad_()
        LOSSES["kd"](s, t, temperature).backward()
        sizes.append(s.grad.norm().item())
    assert 0.3 < sizes[1] / sizes[0] < 3
