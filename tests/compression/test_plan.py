"""Plans on a small network, in multiply-accumulates and bytes, which need no clock."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mirabelle.base.data import Batch
from mirabelle.channels.groups import analyze
from mirabelle.channels.skipping import skip, skipped_blocks
from mirabelle.compression.limits import Goal
from mirabelle.compression.losses import output_loss
from mirabelle.compression.page import _plan
from mirabelle.compression.plan import Plan, cut, table
from mirabelle.compression.prices import FLOAT, INT8, edges, prices
from mirabelle.graph.structure import Skipped
from mirabelle.measurement.accuracy import predictor
from mirabelle.measurement.macs import count_macs
from tests.networks import plain
from tests.pruning.test_depth import network

ALIGN = 2


@pytest.fixture(scope="module")
def found(one_thread):
    model = plain().float().eval()
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = [Batch((x[:32],), {}, None), Batch((x[32:],), {}, None)]
    coupling = analyze(model, data[0].head(1), any_batch=True)
    known = {q: prices(q, model, coupling, "onnxruntime", True, data) for q in ("macs", "size")}
    return table(model, data, known, coupling, ALIGN), data


def test_prices_are_those_of_the_network(found):
    known, data = found
    layers = dict.fromkeys(range(len(known.coupling.costs)), FLOAT)
    assert known.prices["macs"].network({}, layers) == count_macs(known.model, data[0].head(1))
    weights = sum(p.numel() for p in known.model.parameters() if p.ndim > 1)
    assert known.prices["size"].network({}, layers) == pytest.approx(4 * weights, rel=0.05)
    integers = dict.fromkeys(range(len(known.coupling.costs)), INT8)
    assert known.prices["size"].network({}, integers) == pytest.approx(weights, rel=0.4)


def test_layers_in_another_form_cost_conversions(found):
    known, _ = found
    assert next((e.before, e.after) for e in edges(known.coupling)) == (0, 1)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_plan_holds_its_limit_and_is_near_the_best(found, share):
    known, _ = found
    plan = known.plan({"macs": share})
    assert plan.costs["macs"] <= share
    names = list(known.widths)
    losses = {}
    for widths in product(*(known.widths[n] for n in names)):
        kept = {n: int(w) for n, w in zip(names, widths)}
        forms = dict.fromkeys(range(len(known.coupling.costs)), FLOAT)
        cost = known.prices["macs"].network(kept, forms) / known.whole("macs")
        if cost <= share:
            lost = 0.0
            for n, w in kept.items():
                lost += float(known.scores[n].sort().values[: len(known.scores[n]) - w].sum())
            losses[widths] = lost
    assert plan.loss <= 1.02 * min(losses.values()) + 1e-9


def test_deeper_plans_lose_more_and_the_cut_is_the_plan(found):
    known, data = found
    wanted = [predictor(known.model)(b) for b in data]
    measured, predicted = [], []
    for share in (0.7, 0.45, 0.2):
        plan = known.plan({"macs": share}, mixed=False)
        small = cut(known, plan, data)
        share_left = count_macs(small, data[0].head(1)) / count_macs(known.model, data[0].head(1))
        assert share_left == pytest.approx(plan.costs["macs"], rel=0.01)
        measured.append(output_loss(small, wanted, data))
        predicted.append(plan.loss)
    assert measured == sorted(measured) and predicted == sorted(predicted)
    assert 0.1 < predicted[-1] / measured[-1] < 10


def test_integers_are_chosen_where_bytes_count(found):
    """Four bytes become one: at a third of the bytes no channel needs to go."""
    known, _ = found
    plan = known.plan({"size": 0.45})
    assert plan.floats is not None
    free = known.plan({"size": 1.0})
    assert free.floats is None and free.loss == 0.0
    assert plan.loss < known.plan({"macs": 0.45}).loss


def test_two_limits_at_once(found):
    known, _ = found
    plan = known.plan({"macs": 0.5, "size": 0.2})
    assert plan.costs["macs"] <= 0.505 and plan.costs["size"] <= 0.205


def test_a_plan_survives_json(found):
    import json

    plan = found[0].plan({"size": 0.3})
    assert Plan.of(json.loads(json.dumps(plan.to_dict()))) == plan
    assert all(isinstance(v, int) and not isinstance(v, np.integer) for v in plan.kept.values())


@pytest.fixture(scope="module")
def residual(one_thread):
    """Two blocks, the first of which gives a thousandth of what it gave."""
    model = network(1e-3)
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = [Batch((x[:32],), {}, None), Batch((x[32:],), {}, None)]
    coupling = analyze(model, data[0].head(1), any_batch=True)
    known = {q: prices(q, model, coupling, "onnxruntime", True, data) for q in ("macs", "size")}
    return table(model, data, known, coupling, ALIGN), data


def test_a_block_that_does_nothing_is_skipped_first(residual):
    known, data = residual
    example = data[0].head(1)
    plan = known.plan({"macs": 0.6})
    assert plan.skipped == ("2.b.0",) and plan.loss < 1e-3
    small = cut(known, plan, data)
    assert skipped_blocks(small) == ("2",) and isinstance(small[2], Skipped)
    share = count_macs(small, example) / count_macs(known.model, example)
    assert share == pytest.approx(plan.costs["macs"], rel=0.01)
    wanted = [predictor(known.model)(b) for b in data]
    assert output_loss(small, wanted, data) < 1e-3
    # Bytes and widths, too, count for what is left; no layer of the block is named.
    deep = known.plan({"macs": 0.3, "size": 0.2})
    assert deep.skipped == ("2.b.0",) and deep.costs["size"] <= 0.205
    assert deep.floats is not None and not any(w.startswith("2.") for w in deep.floats)
    small = cut(known, deep, data)
    share = count_macs(small, example) / count_macs(known.model, example)
    assert share == pytest.approx(deep.costs["macs"], rel=0.01)


def test_what_a_block_loses_is_measured(residual):
    known, data = residual
    wanted = [predictor(known.model)(b) for b in data]
    small = skip(known.model, data[0].head(1), ["3.b.0"])
    assert known.blocks["3.b.0"] == pytest.approx(output_loss(small, wanted, data), rel=1e-3)
    found = table(known.model, data, known.prices, known.coupling, ALIGN, keep=["2", "3"])
    assert found.blocks == {} and found.plan({"macs": 0.6}).skipped == ()


def test_the_page_names_what_was_skipped(residual):
    known, _ = residual
    setting = SimpleNamespace(table=known, goal=Goal({"macs": 0.6}, "accuracy_drop"))
    best = SimpleNamespace(plan=known.plan({"macs": 0.6}).to_dict())
    rows = {r["layer"]: r for r in _plan(setting, best)}
    assert rows["2.a.0"]["form"] == rows["2.b.0"]["form"] == "skipped"
    assert rows["2.b.0"]["after"] == 0 and rows["2.b.0"]["cost_after"] == 0
    assert rows["2.b.0"]["loss_of_blocks"] == known.blocks["2.b.0"] > 0
    assert rows["3.b.0"]["form"] == "float" and rows["2.a.0"]["loss_of_blocks"] == 0
