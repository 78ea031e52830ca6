"""Products of two tensors: matrix products, einsum, attention. One rule, over the letters of an
einsum.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from mirabelle.channels.flow import Flow
from mirabelle.channels.ids import Parameter, Value, along, varying, vector


def contract(
    flow: Flow,
    node: fx.Node,
    a: Value,
    letters_a: str,
    b: Value,
    letters_b: str,
    letters: str,
    shape: tuple[int, ...],
) -> Value:
    """The labels of einsum("a,b->out"). A channel along a letter that both have is one and the same
    in both.

    Where channels run along a batch letter (heads of attention), the whole of each batch entry is
    one channel: heads are the unit.
    """
    why = f"{flow.place(node)}: meets values that cannot be removed"
    batch = {c for c in letters if c in letters_a and c in letters_b}
    mine, theirs = (
        _by_letter(flow, v, own, batch, letters, why) for v, own in ((a, letters_a), (b, letters_b))
    )
    sizes = dict(zip(letters_b, b.shape, strict=True))
    sizes |= {c: n for c, n in zip(letters_a, a.shape, strict=True) if n > 1 or c not in sizes}
    if batch & (mine.keys() | theirs.keys()):
        for lines in (mine, theirs):
            for letter in lines.keys() - batch:
                # To remove a head and a channel of the rest at once would leave holes.
                flow.labels.fix(
                    lines.pop(letter),
                    f"{flow.place(node)}: channels run along another dimension than the heads",
                )
    vectors: dict[str, torch.Tensor] = {}
    for letter in [c for c in sizes if c in mine or c in theirs]:
        vectors[letter] = mine[letter] if letter in mine else theirs[letter]
        if letter in mine and letter in theirs:
            flow.labels.meet(mine[letter], theirs[letter], why)
            continue
        other, own = (b, letters_b) if letter in mine else (a, letters_a)
        if letter in own and other.shape[own.index(letter)] > 1:
            flow.labels.meet(vectors[letter], torch.full_like(vectors[letter], other.rest), why)
    written, summed = (
        [v for c, v in vectors.items() if (c in letters) is kept] for kept in (True, False)
    )
    flow.work(math.prod(sizes.values()), *written, summed=summed)
    free = [c for c in letters if c in vectors]
    for letter in [c for c in free[1:] if c not in batch]:
        flow.labels.fix(
            vectors[letter], f"{flow.place(node)}: channels run along two dimensions at once"
        )
    return flow.value(
        shape, [along(vectors[c], letters.index(c), shape) for c in free[:1]], a.rest or b.rest
    )


def _by_letter(
    flow: Flow, value: Value, own: str, batch: set[str], letters: str, why: str
) -> dict[str, torch.Tensor]:
    """The labels of an operand by the letter that they run along. A plane along several keeps a
    batch letter, else the one that is summed over.
    """
    found: dict[str, torch.Tensor] = {}
    for plane in value.planes:
        where = [own[d] for d in varying(plane)]
        kept = min(where, key=lambda c: (c not in batch, c in letters))
        labels = vector(
            flow.mix(plane, [own.index(c) for c in where if c != kept], why), own.index(kept)
        )
        if kept in found:
            flow.labels.meet(found[kept], labels, why)
        found.setdefault(kept, labels)
    return found


def matmul(flow: Flow, node: fx.Node, x: Any, y: Any, **options: Any) -> Any:
    a, b = flow.of(x), flow.of(y)
    if min(len(a.shape), len(b.shape)) < 2:
        return flow.give_up(node, [a, b], f"{flow.place(node)}: a product with a vector")
    shape = tuple(node.meta["val"].shape)
    ndim = max(len(a.shape), len(b.shape)) - 2
    letters = "abcdefgh"[:ndim]
    if isinstance(y, Parameter):
        flow.labels.roles(b, {len(b.shape) - 1: "out", len(b.shape) - 2: "in"})
    return contract(
        flow,
        node,
        a,
        letters[ndim - len(a.shape) + 2 :] + "nk",
        b,
        letters[ndim - len(b.shape) + 2 :] + "km",
        letters + "nm",
        shape,
    )


def bmm(flow: Flow, node: fx.Node, x: Any, y: Any, **options: Any) -> Any:
    return matmul(flow, node, x, y)


def einsum(flow: Flow, node: fx.Node, equation: str, operands: Any, **options: Any) -> Any:
    values = [flow.of(v) for v in operands]
    left, _, out = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    plain = (
        len(parts) == 2
        and "->" in equation
        and "." not in equation
        and all(len(set(p)) == len(p) for p in [*parts, out])
    )
    if not plain:
        return flow.give_up(
            node,
            values,
            f"{flow.place(node)}: einsum {equation!r} is not a product of two tensors with "
            "plain letters",
        )
    return contract(
        flow, node, values[0], parts[0], values[1], parts[1], out, tuple(node.meta["val"].shape)
    )


def scaled_dot_product_attention(
    flow: Flow,
    node: fx.Node,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """softmax(Q K' + mask) V. Heads are channels; where there is a single head, the channels of Q
    and K are, and those of V.
    """
    q, k, v = flow.of(query), flow.of(key), flow.of(value)
    shape = tuple(node.meta["val"].shape)
    if options.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        k, v = (_repeat(flow, t, q.shape[-3] // t.shape[-3]) for t in (k, v))
    letters = "abcdefgh"[: len(shape) - 2]
    scores = contract(
        flow, node, q, letters + "nd", k, letters + "md", letters + "nm", (*shape[:-1], k.shape[-2])
    )
    if isinstance(attn_mask, (Value, Parameter)):
        scores = flow.merge(node, scores, flow.of(attn_mask))
    return contract(flow, node, scores, letters + "nm", v, letters + "me", letters + "ne", shape)


def _repeat(flow: Flow, value: Value, times: int) -> Value:
    planes = [p.repeat_interleave(times, -3) for p in value.planes]
    shape = list(value.shape)
    shape[-3] *= times
    return flow.value(shape, planes, value.rest)
