"""A recipe of a tiny network, running it, and reading what a run left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from mirabelle.pipeline import without_timings

HERE = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE / "src"), str(HERE)]),
}
STEPS = [
    {"prune": {"macs": 0.5, "align": 4, "samples": 32}},
    {"distill": {"epochs": 3, "lr": 0.01, "ema": 0.5}},
    {"quantize": {"samples": 32}},
    {"export": {"runtimes": ["onnxruntime"]}},
    {"verify": {"samples": 20}},
]
NAMES = ["prune", "distill", "quantize", "export", "verify", "measure"]


def recipe(folder: Path, steps=STEPS, **changes) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "model": "tests.tiny:model",
                "data": "tests.tiny:data",
                "steps": steps,
                **changes,
            },
            sort_keys=False,
        )
    )
    return path


def command(path: Path, folder: Path, *more: str, environment=ENVIRONMENT) -> subprocess.Popen:
    line = [sys.executable, "-m", "mirabelle.cli", "run", str(path), "--folder", str(folder), *more]
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(folder: Path) -> dict[str, Path]:
    return {p.name.split("-")[1]: p for p in (folder / "steps").glob("[0-9]*")}


def ran(folder: Path) -> dict[str, int]:
    """When each step's record was written: it changes if and only if the step was done again."""
    return {n: (p / "step.json").stat().st_mtime_ns for n, p in finished(folder).items()}


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of what a run leaves, and its report without timings."""
    found = {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.name in ("model.safetensors", "model.onnx", "model.json")
    }
    return found | {
        "report": json.dumps(
            without_timings(json.loads((folder / "report.json").read_text())), sort_keys=True
        ).encode()
    }
