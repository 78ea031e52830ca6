"""Makes `examples/weights/scenes_detector.safetensors` and `scenes_segmenter.safetensors`:
`python -m examples.train_scenes`, two minutes on one core.
"""

from __future__ import annotations

import json

from torch import nn

import mirabelle as mb
from examples.scenes import (
    HERE,
    Detector,
    MeanAP,
    MeanIoU,
    Segmenter,
    detection_data,
    detection_loss,
    pixel_loss,
    segmentation_data,
)
from mirabelle.base.data import seeded
from mirabelle.base.files import write_tensors
from mirabelle.measurement.accuracy import evaluate, predictor

SEED = 0
TASKS = {
    "detector": (Detector, detection_data, detection_loss, MeanAP, 8),
    "segmenter": (Segmenter, segmentation_data, pixel_loss, MeanIoU, 6),
}


def trained(name: str, epochs: int | None = None, **counts: int) -> tuple[nn.Module, dict]:
    """The network of a task from its seed, and its data. counts: images of each part."""
    network, data, loss, metric, usual = TASKS[name]
    loaders = data(**counts)
    with seeded(SEED):
        start = network()
    model = mb.fit(
        start,
        loaders["train"],
        loss,
        epochs=epochs or usual,
        lr=4e-3,
        warmup=0.05,
        seed=SEED,
        validation=loaders["validation"],
        holdout=0.0,
        metric=metric,
    )
    return model, loaders


def main() -> None:
    scores = {}
    for name, (_, _, _, metric, epochs) in TASKS.items():
        model, loaders = trained(name)
        state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
        about = {"seed": str(SEED), "epochs": str(epochs)}
        write_tensors(HERE / f"scenes_{name}.safetensors", model.state_dict(), about)
        scores[name] = {
            "parameters": sum(t.numel() for t in state.values()),
            **{
                part: str(evaluate(predictor(model), loaders[part], metric))
                for part in ("validation", "test")
            },
        }
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
