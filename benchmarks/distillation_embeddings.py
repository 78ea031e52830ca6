"""The sections of `benchmarks.distillation` on embeddings, of images and of text."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

import mirabelle as mb
from benchmarks.distillation_bench import PLAIN, Batches, Bench
from examples.embeddings import (
    UNSEEN,
    ArcFace,
    LargeEmbedder,
    MobileFaceNet,
    arcface_loss,
    verify_pairs,
)
from mirabelle.base.data import seed_everything
from mirabelle.measurement.accuracy import predictor


def embeddings(bench: Bench) -> None:
    """Bar 5: verification of pairs of classes that neither teacher nor student has seen; labels are
    those of the seven seen classes.
    """
    x, y = _seen_images(bench)
    test = torch.isin(bench.test_y, torch.tensor(UNSEEN))
    images, classes = bench.test_x[test][:1500], bench.test_y[test][:1500]

    def judge(network: nn.Module) -> dict[str, Any]:
        predict = predictor(network)
        return _figures(torch.cat([predict(_batch(part)) for part in images.split(250)]), classes)

    data = Batches(x, y)
    teacher = _large_embedder(bench, data)
    bench.once("embeddings/teacher", lambda: judge(teacher))
    pool = Batches(
        x[bench.some(len(x), 7)[:500] % len(x)]
        if bench.quick
        else x[torch.randperm(len(x), generator=torch.Generator().manual_seed(7))[:6400]]
    )
    for seed in bench.seeds:
        options = {**PLAIN, "lr": 0.003, "steps": 10 if bench.quick else 250, "seed": seed}

        def new(seed=seed) -> nn.Module:
            seed_everything(seed)
            return MobileFaceNet(28, 1, width=0.25)

        for rate, o in (("", options), (", lr 0.01", {**options, "lr": 0.01})):
            bench.once(
                f"embeddings/student alone{rate}/{seed}",
                lambda n=new, o=o: judge(
                    mb.fit(ArcFace(n(), 7), data, loss=arcface_loss, **o).network
                ),
            )
            for name, losses in (
                ("cosine", {"cosine": 1.0}),
                ("rkd", {"rkd_distance": 1.0, "rkd_angle": 2.0}),
            ):
                bench.once(
                    f"embeddings/student of the teacher, {name}{rate}/{seed}",
                    lambda n=new, w=losses, o=o: judge(
                        mb.distill(
                            n(), teacher, pool, losses=w, cache=bench.folder / "outputs", **o
                        )
                    ),
                )


def _seen_images(bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
    """Training images of the classes that may be seen, and their places among these."""
    known = sorted(set(range(10)) - set(UNSEEN))
    seen = torch.tensor([c in known for c in bench.y.tolist()])
    place = torch.tensor([known.index(c) if c in known else -1 for c in range(10)])
    return bench.x[seen], place[bench.y[seen]]


def _large_embedder(bench: Bench, data: Batches) -> nn.Module:
    """The teacher of images."""

    def train(network: nn.Module) -> nn.Module:
        trained = mb.fit(
            ArcFace(network, 7),
            data,
            loss=arcface_loss,
            steps=10 if bench.quick else 400,
            **{**PLAIN, "lr": 0.003, "precision": "auto"},
        )
        return trained.get_submodule("network")

    def build() -> nn.Module:
        seed_everything(200)
        return LargeEmbedder(32)

    return bench.network("embedder", build, train)


def _figures(embeddings: torch.Tensor, classes: torch.Tensor) -> dict[str, Any]:
    """How well pairs of one class are told from others."""
    verified = verify_pairs(embeddings, classes)
    rates = zip(verified.far, verified.tar, strict=True)
    return {"auc": verified.auc, **{f"tar at far {far:g}": tar for far, tar in rates}}


class Glosses(NamedTuple):
    """tokens: what is learnt from, with its classes; questions: what is asked, with theirs."""

    tokens: Any
    classes: torch.Tensor
    questions: Any
    judged: torch.Tensor


def _glosses(quick: bool) -> Glosses:
    from examples import sentences

    found = sentences.glosses()
    seen, unseen = (
        [g for g in found if (g.category in sentences.UNSEEN) == side] for side in (False, True)
    )
    generator = torch.Generator().manual_seed(0)
    most = 640 if quick else 25_600
    learn = [seen[i] for i in torch.randperm(len(seen), generator=generator)[:most]]
    ask = [unseen[i] for i in torch.randperm(len(unseen), generator=generator)[:1500]]
    categories = sorted({g.category for g in learn})
    return Glosses(
        sentences.tokenize([g.text for g in learn]),
        torch.tensor([categories.index(g.category) for g in learn]),
        sentences.tokenize([g.text for g in ask]),
        torch.tensor([sentences.UNSEEN.index(g.category) for g in ask]),
    )


def text(bench: Bench) -> None:
    """Bar 5 for text: MiniLM teaches an encoder of 2 layers; verification of pairs of WordNet's
    glosses from categories that no student has seen.
    """
    from examples import sentences

    glosses, teacher = _glosses(bench.quick), sentences.minilm()
    categories = int(glosses.classes.max()) + 1

    def judge(network: nn.Module) -> dict[str, Any]:
        parts = zip(*(glosses.questions[k].split(100) for k in ("ids", "mask")), strict=True)
        with torch.no_grad():
            return _figures(torch.cat([network.eval()(*p) for p in parts]), glosses.judged)

    bench.once("text/teacher", lambda: judge(teacher))
    for seed in bench.seeds:
        options = {**PLAIN, "steps": 10 if bench.quick else 1600, "seed": seed}

        def new(seed=seed) -> nn.Module:
            seed_everything(seed)
            return sentences.student(teacher)

        labeled = sentences.Sentences(glosses.tokens, glosses.classes)
        bench.once(
            f"text/student alone/{seed}",
            lambda n=new, d=labeled, o={**options, "lr": 3e-4}: judge(
                mb.fit(ArcFace(n(), categories), d, loss=arcface_loss, **o).network
            ),
        )
        bench.once(
            f"text/student of the teacher, cosine + similarity/{seed}",
            lambda n=new, o={**options, "lr": 2e-3}: judge(
                mb.distill(
                    n(),
                    teacher,
                    sentences.Sentences(glosses.tokens),
                    losses={"cosine": 1.0, "similarity": 100.0},
                    cache=bench.folder / "outputs",
                    **o,
                )
            ),
        )


def _batch(images: torch.Tensor) -> Any:
    from mirabelle.base.data import as_batch

    return as_batch(images)
