"""Labels: which channel each element of each tensor belongs to.

A label is a number. The label tensor of a value has the value's shape; the label of an element names the channel whose removal would
remove that element, and 0 (`FIXED`) says that nothing may remove it. Along dimensions in which the channel does not change (batch,
space) label tensors are expanded views, so they cost no memory. Edges say "these two labels are one channel". They are collected while
the labels flow through the graph (`rules.py`) and solved once at the end, so the order of the network does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

FIXED = 0


@dataclass
class Parameter:
    """A parameter or buffer that the graph reads; rules attach labels to its dimensions."""

    name: str
    tensor: torch.Tensor
    editable: bool = True


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
    bare: dict[str, torch.Tensor] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    _edges: list[np.ndarray] = field(default_factory=list)

    def fresh(self, n: int) -> torch.Tensor:
        """(n,) new labels."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def unite(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Label a[i] and label b[i] are one channel, for every i. A label that meets `FIXED` is fixed (by whoever knows the reason)."""
        pairs = np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()], 1)
        self._edges.append(np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0))

    def meet(self, a: torch.Tensor, b: torch.Tensor, reason: str) -> None:
        """Unites a[i] with b[i]; where one of the two is `FIXED` the other becomes so, for `reason`."""
        self.unite(a, b)
        self.fix(a[b == FIXED], reason)
        self.fix(b[a == FIXED], reason)

    def fix(self, labels: torch.Tensor, reason: str) -> None:
        """Nothing may remove these labels; the first reason given is the one that is shown."""
        for label in np.unique(compact(labels).numpy()):
            if label != FIXED:
                self.reasons.setdefault(int(label), reason)

    def link(self, parameter: Parameter | None, dim: int, labels: torch.Tensor, role: str) -> None:
        """Attaches (size of the dimension,) labels to a dimension of a parameter; None (no bias) is nothing to do.

        What a parameter that is used twice is attached to is one channel each time.
        """
        if parameter is None:
            return
        if not parameter.editable:
            self.fix(labels, f"{parameter.name} is a constant written into forward")
        elif parameter.tensor.shape[dim] != len(labels):
            raise AssertionError(f"{parameter.name} has {parameter.tensor.shape[dim]} entries along {dim}, got {len(labels)} labels")
        elif (known := self.links.setdefault((parameter.name, dim), Link(parameter.name, dim, labels.clone(), role))).role == role:
            self.meet(known.labels, labels, f"{parameter.name} is used twice, once with values that cannot be removed")
        else:
            self.fix(torch.cat([known.labels, labels]), f"{parameter.name} is used twice, in different ways")

    def of(self, value: Parameter | torch.Tensor) -> torch.Tensor:
        """The label tensor of a value. A parameter that is used bare gets one label an element; what they unite with tells its dimension."""
        if isinstance(value, torch.Tensor):
            return value
        if value.name not in self.bare:
            shape = tuple(value.tensor.shape)
            self.bare[value.name] = self.fresh(value.tensor.numel()).reshape(shape) if value.editable else torch.zeros(shape, dtype=torch.int64)
        return self.bare[value.name]

    def attach_bare(self, parameters: dict[str, Parameter]) -> None:
        """Finds, for each parameter used like an activation, the one dimension along which its channels run, and links it."""
        roots = self.solve()
        used_elsewhere = {name for name, _ in self.links}
        for name, labels in self.bare.items():
            found = roots[labels]
            dims = varying(found)
            if name in used_elsewhere:
                for link in [v for (parameter, _), v in self.links.items() if parameter == name]:
                    self.fix(link.labels, f"{name} is used twice, in different ways")
                self.fix(labels, f"{name} is used twice, in different ways")
            elif len(dims) == 1:
                self.link(parameters[name], dims[0], found.movedim(dims[0], 0).reshape(found.shape[dims[0]], -1)[:, 0], "along")
            else:
                self.fix(labels, f"{name} is used so that its channels run along no single dimension")

    def solve(self) -> torch.Tensor:
        """(count,) the representative of each label: the smallest label that is the same channel."""
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
    return [d for d in range(labels.ndim) if labels.shape[d] > 1 and not bool((labels == labels.narrow(d, 0, 1)).all())]


def collapse(labels: torch.Tensor) -> torch.Tensor:
    """The labels with every dimension that does not vary expanded: equal values, least memory."""
    shape, dims = labels.shape, set(varying(labels))
    for d in range(labels.ndim):
        if d not in dims and labels.shape[d] > 1:
            labels = labels.narrow(d, 0, 1)
    return labels.expand(shape)


def vector(labels: torch.Tensor, dim: int) -> torch.Tensor | None:
    """(size,) labels along `dim`, or None where they vary along another dimension too."""
    if any(d != dim % labels.ndim for d in varying(labels)):
        return None
    return labels.movedim(dim, 0).reshape(labels.shape[dim], -1)[:, 0] if labels.numel() else None


def along(labels: torch.Tensor, dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    """A label tensor of `shape` whose channels run along `dim`."""
    view = [1] * len(shape)
    view[dim] = -1
    return labels.view(view).expand(shape)
