"""Recipes: YAML -> frozen dataclasses, checked whole before any work starts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from mirabelle.base.errors import InputError, RecipeError, did_you_mean
from mirabelle.base.names import resolve
from mirabelle.distillation.api import check_cache, check_losses, default_ensemble, distill
from mirabelle.distillation.features import FEATURE_LOSSES
from mirabelle.distillation.teachers import check_mixture
from mirabelle.fitting.gradients import LOSSES
from mirabelle.measurement.accuracy import METRICS
from mirabelle.pruning.allocation import ALLOCATIONS
from mirabelle.pruning.api import check_budget, check_steps, prune
from mirabelle.pruning.criteria import AGGREGATIONS, CRITERIA, NORMALIZATIONS
from mirabelle.pruning.repair import REPAIRS
from mirabelle.quantization.api import PLACEMENTS, quantize
from mirabelle.quantization.calibration.thresholds import THRESHOLDS
from mirabelle.quantization.repairs.table import check_repairs
from mirabelle.quantization.targets import TARGETS
from mirabelle.runtimes import RUNTIMES, check_runs_here
from mirabelle.sparsity.allocation import ALLOCATIONS as SPARSE_ALLOCATIONS
from mirabelle.sparsity.api import REPAIRS as SPARSE_REPAIRS
from mirabelle.sparsity.api import check_options, sparsify
from mirabelle.sparsity.criteria import CRITERIA as SPARSE_CRITERIA
from mirabelle.sparsity.gradual import OPTIONS as GRADUAL
from mirabelle.sparsity.gradual import check as check_gradual
from mirabelle.training.loop import train
from mirabelle.training.optimizers import OPTIMIZERS, SCHEDULES

LIMITS = ("accuracy_drop", "speedup", "size_ratio", "macs")


@dataclass(frozen=True)
class Limits:
    """What the result must keep. None: no limit.

    accuracy_drop: at most so much below the original, as a fraction (0.005 is half a point).
    speedup: at least so many times faster than the float original on the same runtime. size_ratio:
    the file at least so many times smaller. macs: at most this fraction of the original's. on_fail:
    `stop` ends the run with an error, `warn` only says so; or one of these for each limit by its
    name, as a speed-up depends on the processor: those not named stop.
    """

    accuracy_drop: float | None = None
    speedup: float | None = None
    size_ratio: float | None = None
    macs: float | None = None
    on_fail: str | Mapping[str, str] = "stop"

    def items(self) -> list[tuple[str, float]]:
        return [(n, getattr(self, n)) for n in LIMITS if getattr(self, n) is not None]

    def stops(self, name: str) -> bool:
        """Whether missing this limit ends the run with an error."""
        return (
            self.on_fail if isinstance(self.on_fail, str) else self.on_fail.get(name, "stop")
        ) == "stop"


@dataclass(frozen=True)
class Step:
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was written; `load_recipe` has checked every key and value."""

    model: str
    data: str
    steps: tuple[Step, ...]
    metric: str = "top1"
    loss: str = "cross_entropy"
    seed: int = 0
    limits: Limits = Limits()
    version: int = 1
    path: str = "recipe.yaml"

    def to_dict(self) -> dict[str, Any]:
        limits = {k: v for k, v in vars(self.limits).items() if v is not None}
        return {
            "version": self.version,
            "model": self.model,
            "data": self.data,
            "metric": self.metric,
            "loss": self.loss,
            "seed": self.seed,
            "limits": limits,
            "steps": [{s.name: dict(s.options)} for s in self.steps],
        }


def _options(function: Callable, *given: str) -> dict[str, Any]:
    """The keyword options of a function with their defaults (None where there is none), without
    those that the pipeline gives.
    """
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: None if p.default is p.empty else p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in given
    }


_TRAINING = _options(
    train,
    "seed",
    "validation",
    "metric",
    "patience",
    "checkpoint",
    "checkpoint_seconds",
    "extra",
    "progress",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "prune": _options(prune, "data", "loss", "seed", "checkpoint"),
    "sparsify": _options(sparsify, "data", "loss", "seed"),
    "distill": {"teacher": None, **_options(distill, "label_loss", "head"), **_TRAINING},
    "fit": dict(_TRAINING),
    "quantize": _options(quantize, "validation", "metric"),
    "export": {"runtimes": ["onnxruntime"], "threads": 1},
    "verify": {"samples": 256},
}
# Values that are names, and the dicts that hold them; a `module:function` is taken where the
# function itself takes one.
_NAMES: dict[str, tuple[dict, bool]] = {
    "normalize": (NORMALIZATIONS, False),
    "aggregate": (AGGREGATIONS, False),
    "criterion": (CRITERIA, True),
    "allocation": (ALLOCATIONS, False),
    "repair": (REPAIRS, False),
    "threshold": (THRESHOLDS, True),
    "weight_threshold": (THRESHOLDS, True),
    "target": ({**TARGETS, "auto": None}, False),
    "optimizer": (OPTIMIZERS, False),
    "schedule": (SCHEDULES, False),
    "runtime": (RUNTIMES, False),
    "placement": (PLACEMENTS, False),
    "precision": (dict.fromkeys(("auto", "float32", "bfloat16", "float16")), False),
}
# Those that are other names in a certain step.
_NAMES_OF: dict[str, dict[str, tuple[dict, bool]]] = {
    "sparsify": {
        "criterion": (SPARSE_CRITERIA, True),
        "allocation": (SPARSE_ALLOCATIONS, False),
        "repair": (dict.fromkeys(SPARSE_REPAIRS), False),
    }
}
OWN = ("original", "float")  # teachers that are the run's own networks
_POSITIVE = {
    "batches",
    "align",
    "epochs",
    "steps",
    "lr",
    "samples",
    "threads",
    "accumulate",
    "temperature",
    "clip",
    "views",
    "cache_top",
    "rounds",
}
_WHOLE = {
    "batches",
    "align",
    "epochs",
    "steps",
    "samples",
    "threads",
    "accumulate",
    "views",
    "cache_top",
    "rounds",
}
_FRACTIONS = {"least", "warmup", "ema"}


class _Loader(yaml.SafeLoader):
    """PyYAML's, which takes 1e-3 for text and the second of two equal keys for the only one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file. Everything that can be known to be wrong without running it raises
    `RecipeError` with the place in the file.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return parse(content, str(path))
    except InputError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse(content: Any, path: str = "recipe.yaml") -> Recipe:
    """A `Recipe` from what `yaml.safe_load` gives; see `load_recipe`."""
    if not isinstance(content, dict):
        raise RecipeError(f"a recipe is a mapping of keys, got {type(content).__name__}")
    known = ["version", "model", "data", "metric", "loss", "seed", "limits", "steps"]
    _known_keys(content, known, "the recipe")
    for key in ("version", "model", "data", "steps"):
        if key not in content:
            raise RecipeError(f"the recipe has no {key!r}")
    if content["version"] != 1 or isinstance(content["version"], bool):
        raise RecipeError(f"version is {content['version']!r}; this Mirabelle reads version 1")
    for key in ("model", "data"):
        if not isinstance(content[key], str) or (
            ":" not in content[key] and not content[key].endswith(".onnx")
        ):
            raise RecipeError(f"{key} is {content[key]!r}; expected 'module:callable'")
    if content["model"].endswith(".onnx"):
        raise RecipeError(
            f"model is {content['model']!r}; ONNX files cannot be pruned or trained yet: give "
            "'module:callable' that builds the PyTorch network"
        )
    seed = content.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise RecipeError(f"seed is {seed!r}; expected an integer of at least 0 and below 2**32")
    metric, loss = content.get("metric", "top1"), content.get("loss", "cross_entropy")
    resolve(metric, METRICS, "metric")
    resolve(loss, LOSSES, "loss")
    steps = _steps(content["steps"])
    limits = _limits({} if content.get("limits") is None else content["limits"])
    _check_order(steps)
    _check_limits(limits, steps)
    return Recipe(content["model"], content["data"], steps, metric, loss, seed, limits, 1, path)


def _known_keys(given: Mapping, known: Any, where: str) -> None:
    for key in given:
        if key not in known:
            raise RecipeError(f"{where} has an unknown key {key!r}{did_you_mean(str(key), known)}")


def _steps(content: Any) -> tuple[Step, ...]:
    if not isinstance(content, list) or not content:
        raise RecipeError(
            "steps is a list of steps with at least one, such as '- prune: {macs: 0.5}'"
        )
    steps = []
    for number, item in enumerate(content, 1):
        if isinstance(item, str):
            item = {item: {}}
        if not isinstance(item, dict) or len(item) != 1:
            raise RecipeError(
                f"step {number} is {item!r}; expected one name with its options, such as "
                "'prune: {macs: 0.5}'"
            )
        (name, options), where = next(iter(item.items())), f"step {number}"
        if name not in OPTIONS:
            raise RecipeError(f"{where} is {name!r}{did_you_mean(str(name), OPTIONS)}")
        options = {} if options is None else options
        if not isinstance(options, dict):
            raise RecipeError(f"{where} ({name}) has options {options!r}; expected a mapping")
        _known_keys(options, OPTIONS[name], f"{where} ({name})")
        for key, value in options.items():
            try:
                _check_value(name, key, value, OPTIONS[name][key])
            except InputError as error:
                raise RecipeError(f"{where} ({name}), {key}: {error}") from None
        try:
            _CHECKS.get(name, lambda options: None)(options)
        except InputError as error:
            raise RecipeError(f"{where} ({name}): {error}") from None
        steps.append(Step(name, options))
    return tuple(steps)


def _check_value(step: str, key: str, value: Any, default: Any) -> None:
    names = {**_NAMES, **_NAMES_OF.get(step, {})}
    if step == "quantize" and key == "repair":
        check_repairs(value)
    elif key in names:
        table, references = names[key]
        if (value is None and default is None) or (key == "repair" and value is None):
            return
        if references and isinstance(value, str):
            resolve(value, table, key)
        elif not isinstance(value, str) or value not in table:
            raise InputError(f"unknown {value!r}{did_you_mean(str(value), table)}")
    number = (
        float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    )
    if key in _POSITIVE and value is not None and (number is None or not 0 < number < float("inf")):
        raise InputError(f"got {value!r}; expected a positive number")
    if key in _FRACTIONS and value is not None and (number is None or not 0 <= number <= 1):
        raise InputError(f"got {value!r}; expected a number between 0 and 1")
    if key in ("weight_decay",) and (number is None or not 0 <= number < float("inf")):
        raise InputError(f"got {value!r}; expected a number of at least 0")
    if key == "keep" and (
        not isinstance(value, list) or not all(isinstance(v, str) for v in value)
    ):
        raise InputError(f"got {value!r}; expected a list of modules or parameters, such as [fc]")
    if key == "features" and value is not None:
        if not isinstance(value, dict) or not all(
            isinstance(v, str) for pair in value.items() for v in pair
        ):
            raise InputError(
                f"got {value!r}; expected student layers and their teacher layers, such as "
                "{layer3: layer3}"
            )
    if key == "device" and value is not None:
        try:
            torch.device(str(value))
        except (RuntimeError, TypeError):
            raise InputError(f"got {value!r}; expected a device such as cpu or cuda") from None
    if key == "sparsify" and value is not None:
        _check_gradual(value)
    if value is None and default is not None and key not in names:
        raise InputError(f"has no value; leave the key out for its default, {default!r}")
    if key in _WHOLE and value is not None and isinstance(value, float):
        raise InputError(f"got {value!r}; expected an integer")


def _check_gradual(options: Any) -> None:
    if isinstance(options, dict):
        _known_keys(options, [k for k in GRADUAL if k not in ("data", "loss")], "sparsify")
    check_gradual(options)


def _check_sparsify(options: Mapping[str, Any]) -> None:
    given = {**OPTIONS["sparsify"], **options}
    if "sparsity" not in options:
        raise InputError("it needs sparsity: the share of weights that become zero")
    check_options(
        *(
            given[k]
            for k in (
                "sparsity",
                "block",
                "criterion",
                "allocation",
                "least",
                "repair",
                "rounds",
                "batches",
            )
        )
    )


def _check_runtimes(options: Mapping[str, Any]) -> None:
    runtimes = options.get("runtimes", ["onnxruntime"])
    if not isinstance(runtimes, list) or not runtimes:
        raise InputError(
            f"runtimes is {runtimes!r}; expected a list such as [onnxruntime, openvino]"
        )
    for name in runtimes:
        if not isinstance(name, str) or name not in RUNTIMES:
            raise InputError(f"runtimes has {name!r}{did_you_mean(str(name), RUNTIMES)}")
        if runtimes.count(name) > 1:
            raise InputError(f"runtimes has {name!r} twice")
        check_runs_here(name)


def _check_prune(options: Mapping[str, Any]) -> None:
    check_budget(options.get("macs"), options.get("params"), options.get("latency"))
    training = options.get("train")
    if training is not None and not isinstance(training, dict):
        raise InputError(
            f"train is {training!r}; expected options of training, such as {{epochs: 1}}"
        )
    check_steps(options.get("steps", 1), training, (), options.get("part"))
    known = {
        k: v for k, v in _TRAINING.items() if k != "sparsify"
    }  # whose zeros the next cut would fill
    for key, value in (training or {}).items():
        if key not in known:
            raise InputError(f"train has an unknown key {key!r}{did_you_mean(str(key), known)}")
        _check_value("fit", key, value, known[key])


def _check_distill(options: Mapping[str, Any]) -> None:
    losses = options.get("losses") or {"dist": 1.0}
    if not isinstance(losses, dict):
        raise InputError(f"losses is {losses!r}; expected weights by name, such as {{dist: 1.0}}")
    features = options.get("features")
    if features and not set(FEATURE_LOSSES) & set(losses):
        losses = {**losses, "features": 1.0}
    check_losses(losses, options.get("temperature", 1.0), features)
    check_cache(
        losses,
        options.get("cache"),
        options.get("cache_precision", "float32"),
        options.get("cache_top"),
    )
    teachers = options.get("teacher")
    teachers = "original" if teachers is None else teachers
    if teachers == []:
        raise InputError("teacher is an empty list; name at least one, such as 'original'")
    names = _listed(teachers)
    if len(names) > 1 and features:
        raise InputError(
            "features needs a single teacher; of an ensemble it is not clear which layer is meant"
        )
    for teacher in names:
        if teacher not in OWN and (
            not isinstance(teacher, str)
            or not (":" in teacher or teacher.endswith((".onnx", ".safetensors")))
        ):
            raise InputError(
                f"teacher is {teacher!r}; expected 'original', 'float', 'module:callable', a "
                "file (.onnx, .safetensors), or a list of these"
            )
    check_mixture(
        len(names),
        options.get("ensemble") or default_ensemble(losses),
        options.get("weights"),
        options.get("teacher_temperatures"),
    )


def _check_quantize(options: Mapping[str, Any]) -> None:
    for key in ("bits", "weight_bits"):
        bits = options.get(key)
        if bits is not None and (
            isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16
        ):
            raise InputError(f"{key} is {bits!r}; expected 2 to 16")
    drop, fallback = options.get("accuracy_drop"), options.get("fallback", "float")
    if drop is not None and (
        isinstance(drop, bool) or not isinstance(drop, (int, float)) or not 0 <= drop < 1
    ):
        raise InputError(
            f"accuracy_drop is {drop!r}; expected a fraction of at least 0 and below 1, such as "
            "0.005 for half a point"
        )
    if fallback not in ("float", 16):
        raise InputError(f"fallback is {fallback!r}; expected float or 16")
    for key in ("symmetric", "weight_symmetric", "per_channel"):
        if not isinstance(options.get(key, True), bool):
            raise InputError(f"{key} is {options[key]!r}; expected true or false")


_CHECKS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "prune": _check_prune,
    "sparsify": _check_sparsify,
    "distill": _check_distill,
    "quantize": _check_quantize,
    "export": _check_runtimes,
}


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _makes_sparse(step: Step) -> bool:
    return step.name == "sparsify" or step.options.get("sparsify") is not None


def _check_order(steps: tuple[Step, ...]) -> None:
    """Orders that cannot work."""
    names = [s.name for s in steps]
    for name in ("quantize", "export", "verify"):
        if names.count(name) > 1:
            raise RecipeError(f"the recipe has {names.count(name)} {name} steps; one is enough")
    positions = {n: i for i, n in enumerate(names)}
    sparse = min((i for i, s in enumerate(steps) if _makes_sparse(s)), default=len(steps))
    for i, name in enumerate(names):
        if name == "prune" and i > positions.get("quantize", i):
            raise RecipeError(
                f"step {i + 1} prunes a quantised network; prune first, then quantize"
            )
        if name == "prune" and i > sparse:
            raise RecipeError(
                f"step {i + 1} prunes channels of a sparse network, whose zeros would not stay; "
                "prune first, then sparsify"
            )
        if _makes_sparse(steps[i]) and i > positions.get("quantize", i):
            raise RecipeError(
                f"step {i + 1} ({name}) makes a quantised network sparse; sparsify first, then "
                "quantize"
            )
        if name in ("prune", "sparsify", "distill", "fit", "quantize") and i > positions.get(
            "export", i
        ):
            raise RecipeError(
                f"step {i + 1} ({name}) comes after export and would not be in the files; move "
                "export behind it"
            )
    if "verify" in positions and (
        "quantize" not in positions or positions.get("export", len(names)) > positions["verify"]
    ):
        raise RecipeError(
            "verify compares a quantised network with its exported files: put quantize and "
            "export before it"
        )
    options = next((s.options for s in steps if s.name == "quantize"), {})
    for key, bits in (
        ("bits", options.get("bits", 8)),
        ("weight_bits", options.get("weight_bits") or 8),
    ):
        if "export" in positions and (bits > 8 or (key == "bits" and bits < 8)):
            raise RecipeError(
                f"quantize has {key}: {bits} and export writes files for runtimes, which take "
                "8; drop one of them"
            )
    if (
        "export" in positions
        and options.get("accuracy_drop") is not None
        and options.get("fallback") == 16
    ):
        raise RecipeError(
            "quantize has fallback: 16 and export writes files for runtimes, which take 8 bits; "
            "let layers fall back to float"
        )
    if "quantize" in positions:
        for runtime in next(
            (s.options.get("runtimes", []) for s in steps if s.name == "export"), []
        ):
            if not RUNTIMES[runtime].int8:
                raise RecipeError(
                    f"export has {runtime!r}, which does not run quantised networks; drop it, "
                    "or the quantize step"
                )
    for i, step in enumerate(steps):
        if (
            step.name == "distill"
            and "float" in _listed(step.options.get("teacher"))
            and i < positions.get("quantize", len(names))
        ):
            raise RecipeError(
                f"step {i + 1} (distill) has the teacher 'float', the network before it was "
                "quantised, and nothing is quantised before it"
            )


def _limits(content: Any) -> Limits:
    if not isinstance(content, dict):
        raise RecipeError(
            f"limits is {content!r}; expected a mapping such as {{accuracy_drop: 0.005}}"
        )
    _known_keys(content, list(Limits.__dataclass_fields__), "limits")
    for key, value in content.items():
        if key == "on_fail":
            _check_on_fail(value)
            continue
        low, high = {"accuracy_drop": (-1, 1), "macs": (0, 1)}.get(key, (0, float("inf")))
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low < value <= high
            or value == float("inf")
        ):
            raise RecipeError(
                f"limits.{key} is {value!r}; expected a number above {low}"
                + (f" and at most {high}" if high != float("inf") else "")
            )
    return Limits(**content)


def _check_on_fail(value: Any) -> None:
    if isinstance(value, dict):
        _known_keys(value, LIMITS, "limits.on_fail")
    for word in value.values() if isinstance(value, dict) else [value]:
        if word not in ("stop", "warn"):
            raise RecipeError(
                f"limits.on_fail is {value!r}; expected 'stop' or 'warn', or one of these for "
                "each limit, such as {speedup: warn}"
            )


def _check_limits(limits: Limits, steps: tuple[Step, ...]) -> None:
    """Limits that no run of these steps can meet."""
    names = {s.name for s in steps}
    for key in ("accuracy_drop", "speedup", "size_ratio"):
        if getattr(limits, key) is not None and "export" not in names:
            raise RecipeError(
                f"limits.{key} is measured on a runtime, and no step exports: add '- export: "
                "{runtimes: [onnxruntime]}'"
            )
    kept = 1.0
    for step in steps:
        if step.name == "prune":
            kept *= step.options.get("macs") or 1.0
    # The cut ends just under its target: far below it would be another recipe.
    if limits.macs is not None and limits.macs < kept:
        raise RecipeError(
            f"limits.macs is {limits.macs:g} and the prune steps keep {kept:g}: the limit "
            "contradicts them; lower macs in the step"
        )
    if (
        limits.size_ratio is not None
        and "prune" not in names
        and not any(_makes_sparse(s) for s in steps)
    ):
        most = 4.0 if "quantize" in names else 1.0
        if limits.size_ratio > most:
            raise RecipeError(
                f"limits.size_ratio is {limits.size_ratio:g}; without a prune step the file can "
                f"shrink at most {most:g} times"
            )
