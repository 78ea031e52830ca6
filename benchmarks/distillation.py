"""What distillation brings, on Fashion-MNIST: `python -m benchmarks.distillation [--quick] [--only
SECTION ...]`; one thread.

Every run is kept in benchmarks/results/distillation.json as soon as it is finished, and a benchmark
that was killed goes on after the last one. `--quick` is for trying
it out: one seed, few steps, a file of its own. Settings are fixed here and were chosen on the last
5 000 training images; the figures are top-1 on the 10 000 test images after the last epoch.
Differences are paired by seed, with Student's 95 % interval over the seeds. Tables: `--table`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mirabelle as mb
from benchmarks.distillation_table import write_tables
from examples import fashion
from examples.embeddings import (
    UNSEEN,
    ArcFace,
    LargeEmbedder,
    MobileFaceNet,
    arcface_loss,
    verify_pairs,
)
from mirabelle.base.data import cache_folder, seed_everything
from mirabelle.base.files import read_json, read_tensors, write_json, write_tensors
from mirabelle.distillation.api import run as distill
from mirabelle.measurement.accuracy import evaluate, predictor
from mirabelle.measurement.machine import machine, versions

RESULTS = Path(__file__).parent / "results"
PLAIN = {"lr": 0.01, "precision": "float32", "progress": ""}


class Batches:
    """Images, and labels where there are some, in batches of a size, shuffled by torch's
    generator.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        size: int = 128,
        shuffle: bool = True,
    ):
        self.images, self.labels, self.size, self.shuffle = (
            images,
            labels,
            min(size, len(images)),
            shuffle,
        )

    def __len__(self) -> int:
        return len(self.images) // self.size

    def __iter__(self) -> Iterator:
        order = torch.randperm(len(self.images)) if self.shuffle else torch.arange(len(self.images))
        for i in range(len(self)):
            chosen = order[i * self.size : (i + 1) * self.size]
            yield (
                self.images[chosen]
                if self.labels is None
                else (self.images[chosen], self.labels[chosen])
            )


def _stack(channels: list[tuple[int, int, int]], classes: int = 10) -> nn.Sequential:
    """Convolutions 3x3 (inputs, outputs, stride) with BatchNorm and ReLU, the mean over the image,
    a linear layer.
    """
    layers: list[nn.Module] = []
    for inputs, outputs, stride in channels:
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1][1], classes)
    )


def student(seed: int) -> nn.Module:
    """6 282 parameters, 0.15 M MACs."""
    seed_everything(seed)
    return _stack([(1, 8, 2), (8, 16, 2), (16, 32, 2)])


def middle(seed: int) -> nn.Module:
    """56 618 parameters, 2.8 M MACs."""
    seed_everything(seed)
    return _stack([(1, 32, 2), (32, 64, 2), (64, 64, 1)])


class Bench:
    """Data, teachers and the file of results."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.seeds = range(1 if quick else 5)
        self.path = RESULTS / f"distillation{'_quick' if quick else ''}.json"
        self.results: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        self.folder = cache_folder() / f"distillation_benchmark{'_quick' if quick else ''}"
        images, labels = fashion.images_and_labels("train")
        self.x, self.y = images[:55000], labels[:55000]
        self.validation = Batches(images[55000:], labels[55000:], 500, False)
        test_images, test_labels = fashion.images_and_labels("t10k")
        self.test_x, self.test_y = test_images, test_labels
        self.test = Batches(test_images, test_labels, 500, False)
        self.teacher = fashion.resnet()

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept result of `key`, or the one measured now."""
        if key not in self.results:
            begun = time.monotonic()
            self.results[key] = {**measure(), "seconds": round(time.monotonic() - begun, 1)}
            self.results["conditions"] = {
                "machine": machine(),
                "threads": torch.get_num_threads(),
                **versions("torch"),
            }
            write_json(self.path, self.results)
            print(key, self.results[key], flush=True)
        return self.results[key]

    def score(self, model: nn.Module) -> dict[str, float]:
        return {
            "top1": evaluate(predictor(model), self.test).value,
            "validation": evaluate(predictor(model), self.validation).value,
        }

    def some(self, count: int, seed: int) -> torch.Tensor:
        """Indices of `count` training images."""
        return torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))[:count]

    def network(
        self, name: str, build: Callable[[], nn.Module], train: Callable[[nn.Module], nn.Module]
    ) -> nn.Module:
        """A teacher that is trained once and kept in the user's cache."""
        path = self.folder / f"{name}.safetensors"
        model = build()
        if not path.exists():
            write_tensors(path, train(model).state_dict())
        model.load_state_dict(read_tensors(path)[0])
        return model.eval()

    def middles(self) -> list[nn.Module]:
        steps = 40 if self.quick else 860
        data = Batches(self.x, self.y)
        return [
            self.network(
                f"middle{s}",
                lambda s=s: middle(s),
                lambda m, s=s: mb.fit(m, data, steps=steps, seed=s, **PLAIN),
            )
            for s in (100, 101, 102)
        ]

    def novices(self) -> list[nn.Module]:
        """Teachers that know 1 000 labels each."""

        def train(model: nn.Module, k: int) -> nn.Module:
            chosen = self.some(1000, 900 + k)
            return mb.fit(
                model,
                Batches(self.x[chosen], self.y[chosen]),
                steps=40 if self.quick else 600,
                seed=k,
                **PLAIN,
            )

        return [
            self.network(f"novice{k}", lambda k=k: middle(200 + k), lambda m, k=k: train(m, k))
            for k in range(3)
        ]


def few(bench: Bench) -> None:
    """Bar 1: 500 images, with their labels or with a teacher, large (51.6 M MACs) or small (2.8 M);
    as they are, and flipped and shifted anew each time.
    """
    steps = 60 if bench.quick else 1200
    teachers = {"large teacher": bench.teacher, "small teacher": bench.middles()[0]}
    for seed in bench.seeds:
        chosen = bench.some(500, seed)
        options = {**PLAIN, "steps": steps, "seed": seed}
        x, y = bench.x[chosen], bench.y[chosen]
        moved = torch.utils.data.DataLoader(
            fashion.Augmented(x, y), 125, shuffle=True, collate_fn=lambda b: b
        )

        def teach(teacher, data, loss, temperature=1.0, seed=seed, options=options, **more):
            found = distill(
                student(seed),
                teachers[teacher],
                data,
                losses={loss: 1.0},
                temperature=temperature,
                cache=bench.folder / "outputs",
                **options,
                **more,
            )
            return bench.score(found.model)

        for name, data in (("", Batches(x, y)), ("augmented, ", moved)):
            for rate, lr in (("", 0.01), (", lr 0.03", 0.03)):
                bench.once(
                    f"few/{name}cross-entropy{rate}/{seed}",
                    lambda s=seed, d=data, o={**options, "lr": lr}: bench.score(
                        mb.fit(student(s), d, **o)
                    ),
                )
        for teacher in teachers:
            for name, loss, temperature in (
                ("kd", "kd", 1.0),
                ("kd T=2", "kd", 2.0),
                ("dist", "dist", 1.0),
                ("standardized_kd", "standardized_kd", 1.0),
            ):
                bench.once(
                    f"few/{teacher}, {name}/{seed}",
                    lambda t=teach, w=teacher, x=x, n=loss, k=temperature: t(w, Batches(x), n, k),
                )
            bench.once(
                f"few/augmented, {teacher}, standardized_kd/{seed}",
                lambda t=teach, w=teacher, d=moved: t(w, d, "standardized_kd", views=40),
            )


def labels(bench: Bench) -> None:
    """Bar 1: 10 000 images without labels against all 55 000 labels, for equal steps; for labels
    also at the rate that is best for them.
    """
    steps = 60 if bench.quick else 300
    options = {**PLAIN, "steps": steps, "cache": bench.folder / "outputs"}
    bench.once("labels/teacher", lambda: bench.score(bench.teacher))
    for seed in bench.seeds:
        pool = Batches(bench.x[bench.some(1000 if bench.quick else 10000, 50 + seed)])
        for name, lr in (("", 0.01), (", lr 0.03", 0.03)):
            fit = {**PLAIN, "steps": steps, "seed": seed, "lr": lr}
            bench.once(
                f"labels/all labels, cross-entropy{name}/{seed}",
                lambda s=seed, o=fit: bench.score(
                    mb.fit(student(s), Batches(bench.x, bench.y), **o)
                ),
            )
        ways = (
            *((n, n, 1.0) for n in ("kd", "standardized_kd", "dist", "decoupled_kd", "mse")),
            ("kd T=4", "kd", 4.0),
        )
        for name, loss, temperature in ways:
            bench.once(
                f"labels/10 000 unlabeled, {name}/{seed}",
                lambda p=pool, n=loss, t=temperature, s=seed: bench.score(
                    distill(
                        student(s),
                        bench.teacher,
                        p,
                        losses={n: 1.0},
                        temperature=t,
                        seed=s,
                        **options,
                    ).model
                ),
            )


def full(bench: Bench) -> None:
    """Bar 1: all labels, with a teacher beside them."""
    options = {**PLAIN, "steps": 60 if bench.quick else 300, "cache": bench.folder / "outputs"}
    everything = (
        Batches(bench.x, bench.y) if not bench.quick else Batches(bench.x[:1000], bench.y[:1000])
    )
    for seed in bench.seeds:
        for name, losses, temperature in (
            ("dist", {"dist": 1.0, "labels": 1.0}, 1.0),
            ("kd", {"kd": 0.5, "labels": 0.5}, 1.0),
            ("kd T=4", {"kd": 0.5, "labels": 0.5}, 4.0),
        ):
            bench.once(
                f"labels/all labels, {name} + cross-entropy/{seed}",
                lambda w=losses, t=temperature, s=seed: bench.score(
                    distill(
                        student(s),
                        bench.teacher,
                        everything,
                        losses=w,
                        temperature=t,
                        seed=s,
                        **options,
                    ).model
                ),
            )


def ensemble(bench: Bench) -> None:
    """Bar 1: three teachers of one kind, and each of them alone: with 55 000 labels each, and with
    1 000 each, where they know less and differ more.
    """
    for name, teachers in (("55 000", bench.middles()), ("1 000", bench.novices())):
        for i, one in enumerate(teachers):
            bench.once(f"ensemble/{name}, teacher {i}", lambda t=one: bench.score(t))
        bench.once(f"ensemble/{name}, all three", lambda t=teachers: bench.score(_Mean(t)))
        for seed in bench.seeds:
            pool = Batches(bench.x[bench.some(1000 if bench.quick else 10000, 50 + seed)])
            for who, taught in (
                *((f"teacher {i}", t) for i, t in enumerate(teachers)),
                ("all three", teachers),
            ):
                bench.once(
                    f"ensemble/{name}, student of {who}/{seed}",
                    lambda t=taught, s=seed, p=pool: bench.score(
                        distill(
                            student(s),
                            t,
                            p,
                            losses={"dist": 1.0},
                            steps=60 if bench.quick else 300,
                            seed=s,
                            cache=bench.folder / "outputs",
                            **PLAIN,
                        ).model
                    ),
                )


class _Mean(nn.Module):
    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([n(x).softmax(1) for n in self.networks]).mean(0).log()


MISSING = 3  # dress; Hinton et al. left out the digit 3


def missing(bench: Bench) -> None:
    """Bar 2: no image of one class in training; then its bias is raised by what gives the best
    top-1 on the validation images, as Hinton et al. did on test images.
    """
    for seed in bench.seeds:

        def measure(
            losses: dict[str, float], temperature: float, seed: int = seed
        ) -> dict[str, Any]:
            pool = bench.some(1500 if bench.quick else 12000, 50 + seed)
            pool = pool[bench.y[pool] != MISSING]
            options = {
                **PLAIN,
                "steps": 60 if bench.quick else 1000,
                "cache": bench.folder / "outputs",
            }
            taught = distill(
                student(seed),
                bench.teacher,
                Batches(bench.x[pool]),
                losses=losses,
                temperature=temperature,
                seed=seed,
                **options,
            ).model
            with torch.no_grad():
                scores, test = taught(bench.validation.images), taught(bench.test_x)
            shift = _best_shift(scores, bench.validation.labels)
            own = bench.test_y == MISSING
            before = (test.argmax(1) == MISSING)[own].float().mean().item()
            test[:, MISSING] += shift
            right = test.argmax(1) == bench.test_y
            return {
                "recall before": before,
                "recall": right[own].float().mean().item(),
                "top1": right.float().mean().item(),
                "shift": shift,
            }

        for name, losses, temperature in (("dist", {"dist": 1.0}, 1.0),):
            bench.once(f"missing/{name}/{seed}", lambda w=losses, t=temperature, m=measure: m(w, t))


def _best_shift(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """What, added to the missing class's logit, makes most predictions right."""
    others = scores.clone()
    others[:, MISSING] = -torch.inf
    best, predicted = others.max(1)
    needed, order = (best - scores[:, MISSING]).sort()
    # With each further image that falls to the class, one more is right, or one that was right is
    # lost.
    gains = ((labels == MISSING).int() - (predicted == labels).int())[order].cumsum(0)
    return float(needed[gains.argmax()]) + 1e-4


def shrunk(bench: Bench) -> None:
    """Bar 3: a pruned and quantized network, taught by what it was."""
    whole = bench.middles()[0]
    bench.once("shrunk/original", lambda: bench.score(whole))
    for seed in bench.seeds:
        few = bench.some(1000, seed)
        labeled, bare = Batches(bench.x[few], bench.y[few], 64), Batches(bench.x[few], size=64)
        options = {**PLAIN, "lr": 0.002, "steps": 20 if bench.quick else 200, "seed": seed}
        small = mb.prune(whole, bench.x[:2], macs=0.4, data=labeled, seed=seed)
        bench.once(f"shrunk/pruned/{seed}", lambda m=small: bench.score(m))
        bench.once(
            f"shrunk/pruned, cross-entropy/{seed}",
            lambda m=small, d=labeled, o=options: bench.score(mb.fit(m, d, **o)),
        )
        for name in ("kd", "dist"):
            bench.once(
                f"shrunk/pruned, {name}/{seed}",
                lambda m=small, d=bare, n=name, o=options: bench.score(
                    mb.distill(m, whole, d, losses={n: 1.0}, **o)
                ),
            )
        for bits in (3, 4, 8):
            q = mb.quantize(whole, bare, bits=bits)
            bench.once(f"shrunk/{bits} bits/{seed}", lambda m=q: bench.score(m))
            bench.once(
                f"shrunk/{bits} bits, cross-entropy/{seed}",
                lambda m=q, d=labeled, o=options: bench.score(mb.fit(m, d, **o)),
            )
            bench.once(
                f"shrunk/{bits} bits, kd/{seed}",
                lambda m=q, d=bare, o=options: bench.score(
                    mb.distill(m, whole, d, losses={"kd": 1.0}, **o)
                ),
            )


def cache(bench: Bench) -> None:
    """Bar 4: epochs on known views, with a teacher of ten times the student's MACs (51.6 M and 5.1
    M).
    """
    import shutil

    for seed in bench.seeds:

        def measure(seed=seed) -> dict[str, Any]:
            seed_everything(seed)
            small = fashion.ResNet(10, (1, 1, 1))
            folder = bench.folder / "timing"
            shutil.rmtree(folder, ignore_errors=True)
            few = bench.some(512 if bench.quick else 1024, seed)
            loader = torch.utils.data.DataLoader(
                fashion.Augmented(bench.x[few], bench.y[few]),
                128,
                shuffle=True,
                collate_fn=lambda b: b,
            )
            options = {**PLAIN, "losses": {"dist": 1.0}, "views": 2, "seed": seed}
            distill(
                small, bench.teacher, loader, epochs=2, cache=folder, **options
            )  # both views are known now
            seconds: dict[str, list[float]] = {"cached": [], "uncached": []}
            ends = {}
            for _ in range(
                1 if bench.quick else 2
            ):  # in turn, so that what else the machine does hits both
                for name, more in (("cached", {"cache": folder}), ("uncached", {})):
                    done = distill(small, bench.teacher, loader, epochs=2, **options, **more)
                    seconds[name].append(done.seconds)
                    ends[name] = done.model.state_dict()
            equal = all(torch.equal(ends["cached"][k], ends["uncached"][k]) for k in ends["cached"])
            return {
                "ratio": min(seconds["uncached"]) / min(seconds["cached"]),
                "same weights": float(equal),
                **{k: min(v) for k, v in seconds.items()},
            }

        bench.once(f"cache/{seed}", measure)


def embeddings(bench: Bench) -> None:
    """Bar 5: verification of pairs of classes that neither teacher nor student has seen; labels are
    those of the seven seen classes.
    """
    seen = torch.tensor([c not in UNSEEN for c in bench.y.tolist()])
    place = torch.tensor(
        [
            sorted(set(range(10)) - set(UNSEEN)).index(c) if c not in UNSEEN else -1
            for c in range(10)
        ]
    )
    x, y = bench.x[seen], place[bench.y[seen]]
    test = torch.isin(bench.test_y, torch.tensor(UNSEEN))
    images, classes = bench.test_x[test][:1500], bench.test_y[test][:1500]

    def judge(network: nn.Module) -> dict[str, Any]:
        predict = predictor(network)
        found = torch.cat([predict(mb_batch) for mb_batch in map(_batch, images.split(250))])
        verified = verify_pairs(found, classes)
        return {
            "auc": verified.auc,
            **{f"tar at far {f:g}": t for f, t in zip(verified.far, verified.tar, strict=True)},
        }

    steps = 10 if bench.quick else 400
    data = Batches(x, y)

    def train(network: nn.Module) -> nn.Module:
        wrapped = ArcFace(network, 7)
        return mb.fit(
            wrapped,
            data,
            loss=arcface_loss,
            steps=steps,
            **{**PLAIN, "lr": 0.003, "precision": "auto"},
        ).network

    def build() -> nn.Module:
        seed_everything(200)
        return LargeEmbedder(32)

    teacher = bench.network("embedder", build, train)
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


def text(bench: Bench) -> None:
    """Bar 5 for text: MiniLM teaches an encoder of 2 layers; verification of pairs of WordNet's
    glosses from categories that no student has seen.
    """
    from examples import sentences

    found = sentences.glosses()
    seen, unseen = (
        [g for g in found if (g.category in sentences.UNSEEN) == side] for side in (False, True)
    )
    generator = torch.Generator().manual_seed(0)
    learn = [
        seen[i]
        for i in torch.randperm(len(seen), generator=generator)[: 640 if bench.quick else 25_600]
    ]
    ask = [unseen[i] for i in torch.randperm(len(unseen), generator=generator)[:1500]]
    categories = sorted({g.category for g in learn})
    classes = torch.tensor([categories.index(g.category) for g in learn])
    judged = torch.tensor([sentences.UNSEEN.index(g.category) for g in ask])
    tokens, questions = (
        sentences.tokenize([g.text for g in learn]),
        sentences.tokenize([g.text for g in ask]),
    )
    teacher = sentences.minilm()

    def judge(network: nn.Module) -> dict[str, Any]:
        with torch.no_grad():
            embeddings = torch.cat(
                [
                    network.eval()(*part)
                    for part in zip(
                        *(questions[k].split(100) for k in ("ids", "mask")), strict=True
                    )
                ]
            )
        verified = verify_pairs(embeddings, judged)
        return {
            "auc": verified.auc,
            **{f"tar at far {f:g}": t for f, t in zip(verified.far, verified.tar, strict=True)},
        }

    bench.once("text/teacher", lambda: judge(teacher))
    for seed in bench.seeds:
        options = {**PLAIN, "steps": 10 if bench.quick else 1600, "seed": seed}

        def new(seed=seed) -> nn.Module:
            seed_everything(seed)
            return sentences.student(teacher)

        labeled = sentences.Sentences(tokens, classes)
        bench.once(
            f"text/student alone/{seed}",
            lambda n=new, d=labeled, o={**options, "lr": 3e-4}: judge(
                mb.fit(ArcFace(n(), len(categories)), d, loss=arcface_loss, **o).network
            ),
        )
        bench.once(
            f"text/student of the teacher, cosine + similarity/{seed}",
            lambda n=new, o={**options, "lr": 2e-3}: judge(
                mb.distill(
                    n(),
                    teacher,
                    sentences.Sentences(tokens),
                    losses={"cosine": 1.0, "similarity": 100.0},
                    cache=bench.folder / "outputs",
                    **o,
                )
            ),
        )


def _batch(images: torch.Tensor) -> Any:
    from mirabelle.base.data import as_batch

    return as_batch(images)


SECTIONS = {
    "few": few,
    "labels": labels,
    "missing": missing,
    "ensemble": ensemble,
    "shrunk": shrunk,
    "full": full,
    "embeddings": embeddings,
    "text": text,
    "cache": cache,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--table",
        action="store_true",
        help="only write the tables of docs/results/distillation.md from the results",
    )
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        bench = Bench(options.quick)
        for name in options.only:
            SECTIONS[name](bench)
    if not options.quick:
        write_tables(RESULTS / "distillation.json")


if __name__ == "__main__":
    main()
