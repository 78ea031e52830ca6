"""MobileFaceNet is the paper's, and verification counts what it says."""

import pytest
import torch

from examples.embeddings import LargeEmbedder, MobileFaceNet, arcface_loss, verify_pairs


def test_mobilefacenet_has_the_papers_size():
    net = MobileFaceNet().eval()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(0.99e6, rel=0.03)
    seen = []
    net.blocks.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[1:])))
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 112, 112)).shape == (1, 128)
    assert seen == [(128, 7, 7)]
    with torch.no_grad():
        assert MobileFaceNet(28, 1, 64, 0.5).eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 64)
        assert LargeEmbedder(8).eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 128)


def test_verification_by_hand():
    """Two of each class, at angles 0 and 60 degrees, and 90 and 100: equal pairs 0.5 and 0.985,
    unequal 0, -0.17, 0.87, 0.77.
    """
    angles = torch.deg2rad(torch.tensor([0.0, 60.0, 90.0, 100.0]))
    found = verify_pairs(
        torch.stack([angles.cos(), angles.sin()], 1) * 7,
        torch.tensor([0, 0, 1, 1]),
        far=(0.0, 0.25, 0.5),
    )
    assert found.tar == (0.5, 0.5, 1.0)  # above 0.87; above 0.77; above 0
    assert found.auc == pytest.approx((4 + 2) / 8) and found.pairs == 6


def test_arcface_without_margin_is_cross_entropy_of_scaled_cosines():
    cosines, target = torch.tensor([[0.5, -0.2], [0.1, 0.3]]), torch.tensor([0, 1])
    plain = torch.nn.functional.cross_entropy(16 * cosines, target)
    torch.testing.assert_close(
        arcface_loss(cosines, target, margin=0.0), plain, atol=1e-4, rtol=1e-4
    )
    assert arcface_loss(cosines, target) > plain
