"""The labels against an oracle that knows none of our rules: every dimension of every parameter
gets a size of its own, and torch's shape propagation says which sizes had to be equal for the
network to run.

Sizes say less than labels (which channel of a concatenation is which), but they come from torch's
own operators.
"""

import networks
import pytest
import sympy
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from examples import fashion
from mirabelle.base.data import as_batch, example_inputs
from mirabelle.channels.groups import Coupling, Group, analyze

# No sizes or numbers of groups in forward, which hold a size fast that labels may change (nor
# bilinear resizing, in which torch looks at the number of channels).
NAMES = [
    "plain",
    "residual",
    "dense",
    "squeeze-excite",
    "bottlenecks",
    "flatten",
    "prelu",
    "two inputs",
    "two outputs",
    "an intermediate is an output",
    "shared convolution",
    "tied weights",
    "in place",
    "plus its own mean",
    "concatenated with itself",
    "flipped channels",
    "dropout",
    "spatial attention",
    "1d",
    "3d",
    "linear",
]


def sizes(model: nn.Module, x) -> dict[tuple[str, int], sympy.Expr]:
    """(parameter or buffer, dimension) -> its size, written in the sizes that are free once the
    network has run.
    """
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    names: dict[int, str] = {}
    fakes, found = {}, {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        first = names.setdefault(id(tensor), name)
        if first != name:
            fakes[name] = fakes[first]
            continue
        context = StatelessSymbolicContext(
            dynamic_sizes=[
                DimDynamic.DYNAMIC if n > 1 and d < 2 else DimDynamic.STATIC
                for d, n in enumerate(tensor.shape)
            ]
        )
        fakes[name] = mode.from_tensor(
            tensor.detach(),
            symbolic_context=context,
            source=torch._dynamo.source.ConstantSource(name),
        )
    batch = example_inputs(x).map(
        lambda t: mode.from_tensor(
            t, symbolic_context=StatelessSymbolicContext(dynamic_sizes=[DimDynamic.STATIC] * t.ndim)
        )
    )
    model.eval()
    with mode, torch.no_grad():
        torch.func.functional_call(model, fakes, batch.args, batch.kwargs)
    solved: dict[sympy.Symbol, sympy.Expr] = {}
    for guard in (
        env.guards
    ):  # equalities of products stay guards: they are solved for the size that stands alone
        if isinstance(guard.expr, sympy.Eq):
            rest = _known(env, solved, guard.expr.lhs - guard.expr.rhs)
            alone = [
                s
                for s in rest.free_symbols
                if rest.is_polynomial() and abs(sympy.diff(rest, s)) == 1
            ]
            if alone:
                solved[alone[0]] = sympy.expand(sympy.solve(rest, alone[0])[0])
    for name in names.values():
        for dim, size in enumerate(fakes[name].shape):
            found[name, dim] = (
                _known(env, solved, size.node.expr)
                if isinstance(size, torch.SymInt)
                else sympy.Integer(size)
            )
    return found


def _known(env: ShapeEnv, solved: dict[sympy.Symbol, sympy.Expr], expr: sympy.Expr) -> sympy.Expr:
    while (simpler := sympy.expand(env.replace(expr).subs(solved))) != expr:
        expr = simpler
    return expr


def ours(coupling: Coupling) -> dict[tuple[str, int], dict[str, int]]:
    """(parameter, dimension) -> by group, how many of its entries go with one channel; only
    dimensions that groups make up wholly.
    """
    found: dict[tuple[str, int], dict[str, int]] = {}
    covered: dict[tuple[str, int], int] = {}
    for group in coupling.groups:
        for slot in group.slots:
            key = (slot.parameter, slot.dim)
            found.setdefault(key, {})[group.name] = slot.index.shape[1]
            covered[key] = covered.get(key, 0) + slot.index.numel()
    return {
        key: parts
        for key, parts in found.items()
        if covered[key] == coupling.shapes[key[0]][key[1]]
    }


def check(model: nn.Module, x) -> tuple[int, int]:
    """Compares the two; the numbers of groups and of dimensions that were compared."""
    oracle = sizes(model, x)
    coupling = analyze(model, as_batch(x) if isinstance(x, torch.Tensor) else example_inputs(x))
    labels = ours(coupling)
    free: dict[str, sympy.Expr] = {}
    for (name, dim), parts in labels.items():
        if len(parts) == 1 and set(parts.values()) == {1}:
            ((group, _),) = parts.items()
            free.setdefault(group, oracle[name, dim])
    assert set(free) == {g.name for g in coupling.groups}
    # Groups are sizes of their own: free, and different from one another.
    assert all(e.is_Symbol for e in free.values()), free
    assert len(set(free.values())) == len(free)
    # Every dimension is the sum that the labels say.
    for key, parts in labels.items():
        assert (
            sympy.expand(oracle[key] - sum(count * free[group] for group, count in parts.items()))
            == 0
        ), (key, oracle[key], parts)
    # What labels freeze shares no size with a group.
    for f in coupling.frozen:
        if (f.parameter, f.dim) not in labels and f.count == coupling.shapes[f.parameter][f.dim]:
            assert not oracle[f.parameter, f.dim].free_symbols & set(free.values()), f
    return len(free), len(labels)


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_the_sizes_that_torch_had_to_assume_equal(name):
    torch.manual_seed(0)
    model, x = networks.NETWORKS[name]()
    groups, compared = check(model, x)
    assert groups >= 1 and compared >= 2


def test_the_fashion_network():
    groups, compared = check(fashion.untrained(), torch.randn(2, 1, 28, 28))
    assert groups == 7 and compared > 60


def test_the_oracle_sees_a_wrong_coupling(monkeypatch):
    """A test that cannot fail is none: two groups that have exchanged what reads them are found."""
    model, x = networks.NETWORKS["residual"]()
    found = analyze(model, as_batch(x))
    a, b, *rest = found.groups
    wrong = [
        Group(
            g.name,
            g.channels,
            (*(s for s in g.slots if s.role != "in"), *(s for s in other.slots if s.role == "in")),
        )
        for g, other in ((a, b), (b, a))
    ]
    monkeypatch.setitem(
        globals(), "analyze", lambda *arguments: Coupling([*wrong, *rest], [], [], {}, found.shapes)
    )
    with pytest.raises(AssertionError):
        check(model, x)
