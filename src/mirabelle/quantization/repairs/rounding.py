"""Learned rounding: whether each weight goes up or down, layer by layer, so that the layer gives
what it gave in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn
from torch.nn import functional as F

from mirabelle.base.data import Batch
from mirabelle.base.progress import quiet
from mirabelle.fitting.patches import patches
from mirabelle.graph.capture import get_tensor, operator, parameter_name
from mirabelle.graph.layers import Linear, layer_of
from mirabelle.graph.nodes import optional_argument
from mirabelle.quantization.forms.qdq import quantized_weight
from mirabelle.quantization.repairs.side_by_side import Reached, side_by_side
from mirabelle.quantization.simulation.operators import rectifier_bounds, tail
from mirabelle.training.api import train

STRETCH = (-0.1, 1.1)  # of the sigmoid, so that 0 and 1 are reached
STEPS = 1000
WARM_UP = 0.2  # the fraction of the steps before weights are driven to one side
SHARPNESS = (20.0, 2.0)  # beta at the start and at the end
PRESSURE = (
    0.02  # the weight of being undecided, where 1 is the error that rounding to the nearest makes
)
LR = 1e-2
BATCH = 512
MOST_ROWS = 16384
MOST_NUMBERS = 2**25  # in the rows of one layer


class Rounded(nn.Module):
    """A layer on rows, with weights between the two integers around them.

    weight: (groups, outputs, columns) in steps. scale: (groups, outputs, 1) or one for all. bias:
    (outputs,). clip: of the rectifier behind. `up()` is the share of a step that each weight is
    above its lower integer: h(V) of Nagel et al. 2020 (AdaRound), eq. 23. A weight that is an
    integer, as the zeros of a sparse network are, stays what it is.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        limits: tuple[torch.Tensor, torch.Tensor],
        clip: tuple[float, float],
    ):
        super().__init__()
        low, high = STRETCH
        self.floor, self.scale, self.bias, self.limits, self.clip = (
            weight.floor(),
            scale,
            bias,
            limits,
            clip,
        )
        self.open = weight != self.floor
        share = (weight - self.floor - low) / (high - low)
        self.v = nn.Parameter(torch.log(share / (1 - share)))

    def up(self) -> torch.Tensor:
        low, high = STRETCH
        return (torch.sigmoid(self.v) * (high - low) + low).clamp(0, 1) * self.open

    def steps(self, up: torch.Tensor) -> torch.Tensor:
        return torch.maximum(torch.minimum(self.floor + up, self.limits[1]), self.limits[0])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: (R, groups, columns). Returns (R, all outputs)."""
        return self.run(rows, self.up())

    def run(self, rows: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        weight = self.steps(up) * self.scale
        if weight.shape[0] == 1:
            return F.linear(rows[:, 0], weight[0], self.bias).clamp(*self.clip)
        y = torch.bmm(rows.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1).flatten(1)
        return (y if self.bias is None else y + self.bias).clamp(*self.clip)


class _Rows:
    """Rows and what is wanted of them, in batches, in a new order in every pass."""

    def __init__(self, rows: torch.Tensor, targets: torch.Tensor):
        self.rows, self.targets = rows, targets

    def __len__(self) -> int:
        return max(1, len(self.rows) // BATCH)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.rows))
        for i in range(len(self)):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            yield self.rows[chosen], self.targets[chosen]


def learn_rounding(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """Rounds every weight up or down, in place, layer by layer in the order of execution.

    For each layer the squared difference is minimized between what it gives in the float network on
    the float network's values and what it gives with rounded weights on the quantized network's
    values, both after the rectifier if there is one, plus a pressure to decide that grows sharper.
    Weights become values of their grid. Nagel et al. 2020 (AdaRound), eqs. 21 to 25. The error is
    measured in units of that of rounding to the nearest, so that the pressure means the same for
    every layer.
    """
    for layer in side_by_side(network, reference, batches, "learning to round"):
        if operator(layer.node) in ("conv1d", "conv2d", "linear"):
            _learn(layer)


def _learn(layer: Reached) -> None:
    rounded, scale = _rounded(layer)
    rows, targets = gather(layer)
    targets = targets.clamp(*rounded.clip)
    if (worst := _error_of_nearest(rounded, rows, targets)) == 0:
        return
    with torch.enable_grad(), quiet():
        trained = train(
            rounded,
            _Rows(rows, targets),
            _Objective(worst),
            steps=STEPS,
            lr=LR,
            weight_decay=0.0,
            schedule="constant",
            precision="float32",
        ).model
    weight = get_tensor(layer.network, quantized_weight(layer.network, layer.node)[0])
    with torch.no_grad():
        integers = rounded.steps((rounded_module(trained).up() > 0.5).float())
        weight.copy_((integers * scale).reshape(weight.shape))


def _rounded(layer: Reached) -> tuple[Rounded, torch.Tensor]:
    """The layer on rows, with weights that are still free, and the scale of its weights."""
    node, network = layer.node, layer.network
    view = layer_of(node)
    assert view is not None
    name, quantizer = quantized_weight(network, node)
    weight = get_tensor(network, name).detach()
    shape = (view.groups, len(weight) // view.groups, -1)
    spread = [
        t.view(-1, *[1] * (weight.ndim - 1)) if t.numel() > 1 else t
        for t in (quantizer.scale.detach(), quantizer.offset.float())
    ]
    scale, offset = (t.expand_as(weight).reshape(shape)[:, :, :1] for t in spread)
    bias_name = parameter_name(optional_argument(node, 2))
    bias = None if bias_name is None else get_tensor(network, bias_name).detach()
    end = tail(node)
    clip = rectifier_bounds(end) if end is not node else (-torch.inf, torch.inf)
    limits = quantizer.low - offset, quantizer.high - offset
    return Rounded(weight.reshape(shape) / scale, scale, bias, limits, clip), scale


def _error_of_nearest(rounded: Rounded, rows: torch.Tensor, targets: torch.Tensor) -> float:
    """The squared error of a row where every weight is rounded to the nearest."""
    with torch.no_grad():
        nearest = (rounded.v > 0).float()
        return sum(
            float((rounded.run(r, nearest) - t).square().sum())
            for r, t in zip(rows.split(4096), targets.split(4096))
        ) / len(rows)


class _Objective:
    """The error in units of that of rounding to the nearest, and after the warm-up the pressure to
    decide. It counts its own calls: one for each step.
    """

    def __init__(self, worst: float):
        self.worst, self.done = worst, 0

    def __call__(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        progress = self.done / STEPS
        self.done += 1
        rounded = rounded_module(module)
        up = rounded.up()
        off = rounded.run(batch.args[0], up) - batch.target
        error = off.square().sum(1).mean() / self.worst
        if progress < WARM_UP:
            return {"error": error}
        start, end = SHARPNESS
        # Cosine from blunt to sharp, as the authors' code anneals it.
        beta = end + (start - end) * 0.5 * (
            1 + float(torch.cos(torch.tensor((progress - WARM_UP) / (1 - WARM_UP) * torch.pi)))
        )
        return {"error": error, "undecided": PRESSURE * (1 - (2 * up - 1).abs() ** beta).mean()}


def rounded_module(module: nn.Module) -> Rounded:
    assert isinstance(module, Rounded)
    return module


def gather(layer: Reached) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer reads and should give, at random positions: rows (R, groups, columns) and
    targets (R, outputs). At most MOST_ROWS, and MOST_NUMBERS in them.
    """
    view = layer_of(layer.node)
    assert view is not None
    generator = torch.Generator().manual_seed(0)
    weight = get_tensor(layer.network, quantized_weight(layer.network, layer.node)[0])
    columns = weight[0].numel() * view.groups
    samples = sum(len(x) for x in layer.inputs)
    each = max(1, min(MOST_ROWS, MOST_NUMBERS // columns) // samples)
    rows, targets = [], []
    for x, y in zip(layer.inputs, layer.targets):
        if isinstance(view, Linear):
            x, y = x.reshape(len(x), -1, x.shape[-1]), y.reshape(len(y), -1, y.shape[-1])
            picked = torch.randperm(x.shape[1], generator=generator)[:each]
            rows.append(x[:, picked].reshape(-1, 1, x.shape[-1]))
            targets.append(y[:, picked].reshape(-1, y.shape[-1]))
        else:
            picked = torch.randperm(y[0, 0].numel(), generator=generator)[:each]
            settings = view.stride, view.padding, view.dilation, view.groups
            taken, wanted = patches(x, y, weight.shape[2:], *settings, picked)
            rows.append(taken.transpose(0, 1))
            targets.append(wanted.transpose(0, 1).flatten(1))
    return torch.cat(rows), torch.cat(targets)
