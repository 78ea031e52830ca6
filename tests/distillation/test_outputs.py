"""What the cache is made of: fingerprints, their index, and the classes that are kept."""

import numpy as np
import pytest
import torch

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError, MirabelleError
from mirabelle.distillation.outputs import Encoding, Index, fingerprints


def test_top_classes_by_hand():
    """(0.5, 0.1, 0.3, 0.1): the two largest are kept, the others share 0.2."""
    p = torch.tensor([[0.5, 0.12, 0.3, 0.08]])
    encoding = Encoding(top=2)
    back = encoding.decode(encoding.encode(p.log() + 5), (4,)).exp()
    torch.testing.assert_close(back, torch.tensor([[0.5, 0.1, 0.3, 0.1]]))
    with pytest.raises(InputError, match="more than 4 classes"):
        Encoding(top=4).encode(p)
    with pytest.raises(InputError, match="float16"):
        Encoding("float16").encode(p * 1e6)
    with pytest.raises(MirabelleError, match="NaN"):
        Encoding().encode(p * float("nan"))


def test_fingerprints():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 4, 4, generator=g)
    keys = fingerprints(as_batch(x))
    assert keys.shape == (6, 2) and keys.dtype == np.int64 and len(np.unique(keys, axis=0)) == 6
    order = [4, 0, 5]
    assert np.array_equal(fingerprints(as_batch(x[order])), keys[order]), (
        "of the sample, not of its place"
    )
    assert np.array_equal(fingerprints(as_batch(x.to(memory_format=torch.channels_last))), keys)
    near = x.clone()
    near[2, 1, 1, 1] = torch.nextafter(near[2, 1, 1, 1], torch.tensor(9.0))
    assert (fingerprints(as_batch(near)) != keys).all(1).tolist() == [
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    swapped = x[:, :, [1, 0, 2, 3]]
    assert not (fingerprints(as_batch(swapped)) == keys).any()
    zeros = [
        torch.zeros(1, 4),
        torch.zeros(1, 2, 2),
        torch.zeros(1, 5),
        torch.zeros(1, 4, dtype=torch.int64),
        torch.zeros(1, 4, dtype=torch.bool),
    ]
    assert len({tuple(fingerprints(as_batch(z))[0]) for z in zeros}) == 5
    named = [fingerprints(as_batch({"a": a, "b": b})) for a, b in ((x, -x), (-x, x))]
    assert not (named[0] == named[1]).any()
    for kind in (torch.float64, torch.bfloat16, torch.uint8):
        assert len(np.unique(fingerprints(as_batch((x * 50).abs().to(kind))), axis=0)) == 6
    with pytest.raises(InputError, match="one row for each"):
        fingerprints(as_batch({"x": x, "scale": torch.ones(1)}))


def test_index():
    index, g = Index(), np.random.default_rng(0)
    keys = g.integers(-(2**63), 2**63, (500, 2), dtype=np.int64)
    assert index.find(keys).tolist() == [-1] * 500
    index.add(keys[:200], np.arange(200))
    index.add(keys[200:400], np.arange(200, 400))
    assert index.find(keys).tolist() == [*range(400), *[-1] * 100]
