"""Attention as torch writes it into ONNX files."""

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb


class _TrainedMask(nn.Module):
    """Attention with a bias of positions that is trained, as in BEiT and Swin."""

    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(16, 48), nn.Linear(16, 5)
        self.bias = nn.Parameter(torch.randn(2, 6, 6))

    def forward(self, x):
        q, k, v = self.project(x).reshape(len(x), 6, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[None])
        return self.out(y.transpose(1, 2).reshape(len(x), 6, 16))


@pytest.mark.parametrize("grad", [True, False])
def test_attention_whose_mask_is_trained_is_written(tmp_path, grad):
    model, x = _TrainedMask().eval(), torch.randn(2, 6, 16)
    with torch.set_grad_enabled(grad):
        artifact = mb.export(model, tmp_path / "whole", inputs=x)
        small = mb.prune(model, x, macs=0.8, align=1, criterion="l1")
        less = mb.export(small, tmp_path / "small", inputs=x)
    assert model.bias.requires_grad
    for network, file in ((model, artifact), (small, less)):
        assert np.allclose(file(x), network(x).detach().numpy(), atol=1e-5)
