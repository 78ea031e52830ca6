"""Labels: which channel each element of each tensor belongs to.

A label is a number that names a channel; 0 (`FIXED`) says that nothing may remove the element. The
labels of a value are a few *planes*: label tensors of the value's shape, of which each follows one
kind of channel (the weight of a convolution has one along its outputs and one along its inputs; an
activation nearly always has one). An element goes when the channel of any plane goes. Along
dimensions in which the channel does not change (batch, space) planes are expanded views, so they
cost no memory. Edges say "these two labels are one channel". They are collected while the labels
flow through the graph (`flow.py`, `rules.py`) and solved once at the end, so the order of the
network does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

FIXED = 0
ROLES = ("along", "in", "out")


@dataclass
class Parameter:
    """A parameter or buffer that the graph reads; rules attach labels to its dimensions."""

    name: str
    tensor: torch.Tensor
    editable: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


@dataclass(frozen=True)
class Value:
    """The labels of a tensor. planes: label tensors of its shape. rest: the label of what no plane
    covers: `FIXED`, or one that is fixed with a reason.
    """

    shape: tuple[int, ...]
    planes: tuple[torch.Tensor, ...] = ()
    rest: int = FIXED

    def along(self, dim: int) -> list[torch.Tensor]:
        """The planes in which the channel changes along `dim`."""
        return [p for p in self.planes if dim % len(self.shape) in varying(p)]


@dataclass(frozen=True)
class Link:
    """Index i of dimension `dim` of `parameter` belongs to channel `labels[i]`.

    role: `out` makes the channel, `in` reads it, `along` accompanies it.
    """

    parameter: str
    dim: int
    labels: torch.Tensor
    role: str


@dataclass
class Labels:
    """The labels handed out so far, what unites them, and what fixes them."""

    count: int = 1
    links: dict[tuple[str, int], Link] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    _edges: list[np.ndarray] = field(default_factory=list)
    _bare: dict[str, Value] = field(default_factory=dict)

    def fresh(self, n: int) -> torch.Tensor:
        """(n,) new labels."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def unite(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Label a[i] and label b[i] are one channel, for every i. A label that meets `FIXED` is
        fixed (by whoever knows the reason).
        """
        pairs = np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()], 1)
        self._edges.append(np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0))

    def meet(self, a: torch.Tensor, b: torch.Tensor, reason: str) -> None:
        """Unites a[i] with b[i]; where one of the two is `FIXED` the other becomes so, for
        `reason`.
        """
        self.unite(a, b)
        self.fix(a[b == FIXED], reason)
        self.fix(b[a == FIXED], reason)

    def fix(self, labels: torch.Tensor, reason: str) -> None:
        """Nothing may remove these labels; the first reason given is the one that is shown."""
        for label in np.unique(compact(labels).numpy()):
            if label != FIXED:
                self.reasons.setdefault(int(label), reason)

    def fix_all(self, planes: Iterable[torch.Tensor], reason: str) -> None:
        for plane in planes:
            self.fix(plane, reason)

    def lost(self, reason: str) -> int:
        """A label for values that cannot be followed: what meets it is fixed, for `reason`."""
        label = self.fresh(1)
        self.fix(label, reason)
        return int(label)

    def link(self, parameter: Parameter | None, dim: int, labels: torch.Tensor, role: str) -> None:
        """Attaches (size of the dimension,) labels to a dimension of a parameter; None (no bias) is
        nothing to do.

        What a parameter that is used twice is attached to is one channel each time.
        """
        if parameter is None:
            return
        if not parameter.editable:
            self.fix(labels, f"{parameter.name} is a constant written into forward")
            return
        if parameter.tensor.shape[dim] != len(labels):
            raise AssertionError(
                f"{parameter.name} has {parameter.tensor.shape[dim]} entries along {dim}, got "
                f"{len(labels)} labels"
            )
        key = (parameter.name, dim)
        known = self.links.setdefault(key, Link(parameter.name, dim, labels.clone(), role))
        if known.labels is not labels:
            self.meet(
                known.labels,
                labels,
                f"{parameter.name} is used twice, once with values that cannot be removed",
            )
        if ROLES.index(role) > ROLES.index(known.role):
            self.links[key] = Link(parameter.name, dim, known.labels, role)

    def of(self, parameter: Parameter) -> Value:
        """The labels of a parameter that is used like an activation: one plane for each
        dimension.
        """
        if parameter.name not in self._bare:
            tensor = parameter.tensor
            shape = tuple(tensor.shape)
            planes = []
            if parameter.editable and tensor.is_floating_point():
                for dim in (d for d, size in enumerate(shape) if size > 1):
                    labels = self.fresh(shape[dim])
                    self.link(parameter, dim, labels, "along")
                    planes.append(along(labels, dim, shape))
            self._bare[parameter.name] = Value(shape, tuple(planes))
        return self._bare[parameter.name]

    def roles(self, value: Value, roles: dict[int, str]) -> None:
        """Says of a computed weight that its dimension d has the role `roles[d]`, for the
        parameters that it was computed from by element.
        """
        for dim, role in roles.items():
            for plane in value.along(dim):
                mine = set(np.unique(compact(plane).numpy()).tolist())
                for key, link in list(self.links.items()):
                    if (
                        link.role == "along"
                        and link.dim == dim
                        and mine & set(link.labels.tolist())
                    ):
                        self.links[key] = Link(link.parameter, link.dim, link.labels, role)

    def solve(self) -> torch.Tensor:
        """(count,) the representative of each label: the smallest label that is the same
        channel.
        """
        root = np.arange(self.count)
        if self._edges:
            edges = np.unique(np.concatenate(self._edges), axis=0)
            edges = edges[(edges != FIXED).all(1)]
            self._edges = [edges]
            while True:
                a, b = root[edges[:, 0]], root[edges[:, 1]]
                low, high = np.minimum(a, b), np.maximum(a, b)
                if (low == high).all():
                    break
                np.minimum.at(root, high, low)
                while (root != root[root]).any():
                    root = root[root]
        return torch.from_numpy(root)


def compact(labels: torch.Tensor) -> torch.Tensor:
    """The labels without the repetition of expanded dimensions (each shrinks to size 1)."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varying(labels: torch.Tensor) -> list[int]:
    """The dimensions along which the channel changes."""
    labels = compact(labels)
    return [
        d
        for d in range(labels.ndim)
        if labels.shape[d] > 1 and not bool((labels == labels.narrow(d, 0, 1)).all())
    ]


def thin(labels: torch.Tensor, keep: Iterable[int]) -> torch.Tensor:
    """The labels with size 1 along every dimension that is not in `keep`."""
    keep = set(keep)
    for d in range(labels.ndim):
        if d not in keep and labels.shape[d] > 1:
            labels = labels.narrow(d, 0, 1)
    return labels


def collapse(labels: torch.Tensor) -> torch.Tensor:
    """The labels with every dimension that does not vary expanded: equal values, least memory."""
    return thin(labels, varying(labels)).expand(labels.shape)


def vector(labels: torch.Tensor, dim: int) -> torch.Tensor:
    """(size,) labels along `dim` of a plane that changes along no other dimension."""
    return thin(labels, [dim % labels.ndim]).reshape(-1)


def along(labels: torch.Tensor, dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    """A label tensor of `shape` whose channels run along `dim`."""
    view = [1] * len(shape)
    view[dim] = -1
    return labels.view(view).expand(shape)
