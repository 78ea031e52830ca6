"""Makes `examples/weights/fashion_resnet.safetensors`: `python -m examples.train_fashion`.
Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json

import torch

import mirabelle as mb
from examples.fashion import WEIGHTS, data, untrained
from mirabelle.base.data import cache_folder, seed_everything
from mirabelle.base.files import write_tensors
from mirabelle.measurement.accuracy import evaluate, predictor

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--checkpoint", default=cache_folder() / "train_fashion")
    options = parser.parse_args()
    seed_everything(SEED)
    loaders = data(erase=True)
    model = mb.fit(
        untrained(),
        loaders.train,
        loss=functools.partial(torch.nn.functional.cross_entropy, label_smoothing=0.05),
        epochs=options.epochs,
        optimizer="sgd",
        lr=0.1,
        weight_decay=5e-4,
        warmup=0.05,
        ema=0.999,
        clip=5.0,
        seed=SEED,
        validation=loaders.validation,
        checkpoint=options.checkpoint,
    )
    write_tensors(WEIGHTS, model.state_dict(), {"seed": str(SEED), "epochs": str(options.epochs)})
    scores = {
        part: str(evaluate(predictor(model), getattr(loaders, part)))
        for part in ("validation", "test")
    }
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
