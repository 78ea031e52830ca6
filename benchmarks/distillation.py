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
from typing import Any

import torch
from torch import nn

import mirabelle as mb
from benchmarks.distillation_bench import PLAIN, RESULTS, Batches, Bench, student
from benchmarks.distillation_embeddings import embeddings, text
from benchmarks.distillation_table import write_tables
from examples import fashion
from mirabelle.base.data import seed_everything
from mirabelle.distillation.api import run as distill


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
