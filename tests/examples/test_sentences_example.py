"""The encoder of the text example is BERT's, and what it learns from: by hand, without the packaged
weights.
"""

import pytest
import torch
from torch import nn

import mirabelle as mb
from examples.sentences import LENGTH, Encoder, Layer, Sentences, student
from mirabelle.distillation.losses import LOSSES


def tiny(width=8, words=50):
    torch.manual_seed(0)
    return Encoder(width, 1, 2, 16, words, LENGTH)


def tokens(count=12):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH, (count, 1), generator=generator)).long()
    return {"ids": torch.randint(0, 50, (count, LENGTH), generator=generator) * mask, "mask": mask}


def test_a_layer_is_torchs_own_with_post_normalization():
    torch.manual_seed(0)
    mine, theirs = (
        Layer(8, 2, 16),
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", 1e-12, batch_first=True),
    )
    attention = theirs.self_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(
            torch.cat([mine.query.weight, mine.key.weight, mine.value.weight])
        )
        attention.in_proj_bias.copy_(torch.cat([mine.query.bias, mine.key.bias, mine.value.bias]))
        for here, there in (
            (mine.mix, attention.out_proj),
            (mine.up, theirs.linear1),
            (mine.down, theirs.linear2),
        ):
            there.load_state_dict(here.state_dict())
    x, mask = (
        torch.randn(3, 5, 8),
        torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool(),
    )
    torch.testing.assert_close(mine(x, mask[:, None, None]), theirs(x, src_key_padding_mask=~mask))


def test_padding_changes_nothing():
    network, given = tiny().eval(), tokens(4)
    with torch.no_grad():
        for i in range(4):
            length = int(given["mask"][i].sum())
            short = network(given["ids"][i : i + 1, :length], given["mask"][i : i + 1, :length])
            torch.testing.assert_close(network(**given)[i : i + 1], short, atol=1e-6, rtol=1e-5)


def test_the_students_words_lie_to_one_another_as_the_teachers():
    teacher = tiny(8)
    small = student(teacher, 8, 1)  # all components are kept: a rotation
    words, theirs = (n.words.weight - n.words.weight.mean(0) for n in (small, teacher))
    torch.testing.assert_close(words @ words.T, theirs @ theirs.T, atol=1e-4, rtol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(words, theirs)


def test_dict_batches_of_another_width_distil():
    teacher, data = tiny(16).eval(), Sentences(tokens(32), size=8)
    before = student(teacher, 8, 1)
    losses = {"cosine": 1.0, "similarity": 10.0}
    after = mb.distill(before, teacher, data, losses=losses, steps=40, lr=0.01, precision="float32")
    with torch.no_grad():
        near = [
            float(LOSSES["similarity"](n.eval()(**tokens(32)), teacher(**tokens(32))))
            for n in (before, after)
        ]
    assert near[1] < 0.5 * near[0] and after(**tokens(2)).shape == (2, 8)
