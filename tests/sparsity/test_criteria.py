"""Criteria of sparsity against numbers worked out by hand."""

import math

import torch
from torch import nn

import mirabelle as mb
from mirabelle.fitting.gram import RIDGE, Gram, ridge
from mirabelle.sparsity import CRITERIA, masks
from mirabelle.sparsity.criteria import NEEDS_GRADIENTS
from mirabelle.sparsity.layers import ScoredLayer
from tests.sparsity.nets import WEIGHT, close, layer
from tests.tiny import model


def test_magnitude():
    close(CRITERIA["magnitude"](layer(WEIGHT)), [[3.0, 1.0], [4.0, 2.0], [0.0, 5.0]])
    # Blocks of two outputs: |3| + |-4| and |-1| + |2|; the last block has one output.
    close(CRITERIA["l1"](layer(WEIGHT, 2)), [[7.0, 3.0], [0.0, 5.0]])


def test_l2():
    close(CRITERIA["l2"](layer(WEIGHT)), [[3.0, 1.0], [4.0, 2.0], [0.0, 5.0]])
    close(CRITERIA["l2"](layer(WEIGHT, 2)), [[5.0, math.sqrt(5)], [0.0, 5.0]])


def test_taylor():
    # y = w · x without a bias, loss y: the gradient is x. Two batches, x = (1, 2) and x = (3, 0), w
    # = (2, 5): changes (2, 10) and (6, 0).
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[2.0, 5.0]])
    batches = [
        (torch.tensor([[1.0, 2.0]]), torch.zeros(1)),
        (torch.tensor([[3.0, 0.0]]), torch.zeros(1)),
    ]
    seen = {}

    def spy(of):
        seen["scores"] = CRITERIA["taylor"](of)
        return seen["scores"]

    CRITERIA["spy"] = spy
    NEEDS_GRADIENTS.add("spy")
    try:
        sparse = mb.sparsify(
            net,
            sparsity=0.5,
            criterion="spy",
            data=batches,
            loss=lambda y, target: y.mean(),
            repair=None,
        )
    finally:
        del CRITERIA["spy"]
        NEEDS_GRADIENTS.discard("spy")
    close(seen["scores"], [[math.sqrt((4 + 36) / 2), math.sqrt((100 + 0) / 2)]])
    assert sparse.weight.tolist() == [[0.0, 5.0]]


def test_taylor_of_a_block_adds_before_it_squares():
    # Two outputs, loss y1 - y2: the gradients of w1 and w2 are x and -x. With w1 = w2 the block
    # changes nothing.
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.tensor([[3.0, 3.0], [3.0, 1.0]])
    batches = [(torch.tensor([[1.0, 1.0]]), torch.zeros(1))]
    sparse = mb.sparsify(
        net,
        sparsity=0.5,
        block=(2, 1),
        criterion="taylor",
        data=batches,
        loss=lambda y, t: (y[:, 0] - y[:, 1]).mean(),
        repair=None,
    )
    assert sparse.weight.tolist() == [[0.0, 3.0], [0.0, 1.0]]


# Rows (1, 0), (1, 2) and (1, 4), a column of ones behind: A'A, with sums over three rows.
GRAM = [[3.0, 6.0, 3.0], [6.0, 20.0, 6.0], [3.0, 6.0, 3.0]]


def test_wanda():
    # Norms of the inputs: sqrt(3) and sqrt(20). Outputs for w = (2, 1): 2, 4, 6; their energy about
    # the mean 4 is 8.
    close(
        CRITERIA["wanda"](layer([[2.0, 1.0]], gram=GRAM)),
        [[2 * math.sqrt(3 / 8), math.sqrt(20 / 8)]],
    )
    # Two equal outputs in a block: twice the squares, twice the energy.
    close(
        CRITERIA["wanda"](layer([[2.0, 1.0], [2.0, 1.0]], 2, GRAM)),
        [[2 * math.sqrt(3 / 8), math.sqrt(20 / 8)]],
    )
    # No rows: the share of the squared weights.
    close(CRITERIA["wanda"](layer([[3.0, -4.0]])), [[3 / 5, 4 / 5]])


def test_obs():
    gram = [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
    r = (
        RIDGE * 10 * (2 + 2 + 3) / 3
    )  # three rows for three columns: ten times as much as with thirty rows
    a = 2 + r
    inverse = a / (a * a - 1)  # of the diagonal of [[a, 1], [1, a]]⁻¹, both
    energy = 2 * 9 + 2 * 3 * 1 * 1 + 2 * 1  # w'Gw with w = (3, 1); the mean of the inputs is zero
    close(
        CRITERIA["obs"](layer([[3.0, 1.0]], gram=gram)),
        [[math.sqrt(9 / inverse / energy), math.sqrt(1 / inverse / energy)]],
    )
    # What depends on the outputs is known: the first counts twice, the second half. In blocks of
    # two, the sums.
    two = [[3.0, 1.0], [2.0, 4.0]]
    close(
        CRITERIA["obs"](layer(two, 1, gram, [2.0, 0.5]))[1],
        [math.sqrt(0.5 * 4 / inverse), math.sqrt(0.5 * 16 / inverse)],
    )
    close(
        CRITERIA["obs"](layer(two, 2, gram, [2.0, 0.5])),
        [[math.sqrt((2 * 9 + 0.5 * 4) / inverse), math.sqrt((2 * 1 + 0.5 * 16) / inverse)]],
    )


def test_obs_is_the_least_error_without_the_weight():
    """Against its definition: the error that is left when all other weights of the row are fitted
    again.
    """
    torch.manual_seed(0)
    rows = torch.cat(
        [torch.randn(50, 4, dtype=torch.float64), torch.ones(50, 1, dtype=torch.float64)], 1
    )
    weight = torch.randn(1, 4, dtype=torch.float64)
    gram = rows.T @ rows
    full = torch.cat([weight, torch.zeros(1, 1, dtype=torch.float64)], 1)
    h = gram + ridge(gram, 50)
    found = CRITERIA["obs"](ScoredLayer("w", "", weight, 1, Gram(gram[None])))
    errors = []
    for j in range(4):
        rest = [i for i in range(5) if i != j]
        # min over d with d_j = -w_j of d'Hd
        d = torch.zeros(5, dtype=torch.float64)
        d[j] = -full[0, j]
        d[rest] = torch.linalg.solve(h[rest][:, rest], -h[rest, j] * d[j])
        errors.append(d @ h @ d)
    torch.testing.assert_close(
        found[0] / found[0, 0], torch.stack(errors).sqrt() / errors[0].sqrt()
    )


def test_random_is_drawn_from_the_seed():
    nets = [mb.sparsify(model(), sparsity=0.5, criterion="random", seed=s) for s in (1, 1, 2)]
    zeros = [torch.cat([m.flatten() for m in masks.zeros(n).values()]) for n in nets]
    assert torch.equal(zeros[0], zeros[1]) and not torch.equal(zeros[0], zeros[2])
