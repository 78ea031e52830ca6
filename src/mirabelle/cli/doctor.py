"""`mirabelle doctor`: what is installed, and what each runtime can do on this processor."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mirabelle.base.data import cache_folder
from mirabelle.base.errors import MirabelleError
from mirabelle.base.version import __version__
from mirabelle.cli.common import FLAG, Common, say, target_for
from mirabelle.measurement.machine import machine
from mirabelle.quantization.targets import resolve_target
from mirabelle.runtimes import RUNTIMES, Runtime
from mirabelle.runtimes.clipping import kernels_with_pairs

SOURCES = {
    "pillow": ("images", "folders of pictures"),
    "torchvision": ("torchvision", "torchvision:NAME"),
    "timm": ("timm", "timm:NAME"),
    "transformers": ("transformers", "hf:ORG/NAME"),
    "datasets": ("datasets", "folders of saved datasets"),
}
CUDA = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def doctor(
    *,
    check: Annotated[
        bool,
        FLAG,
        Parameter(help="also write a small int8 network for each runtime and run it, a minute"),
    ] = False,
    common: Common = Common(),  # noqa: B008
) -> int:
    """What is installed, which kernels this processor has, what each runtime can do here."""
    found = examined(check)
    return say(found, common.json, _text(found))


def examined(check: bool = False) -> dict[str, Any]:
    import torch

    runtimes = {name: _runtime(runtime) for name, runtime in RUNTIMES.items()}
    if check:
        for name, seen in runtimes.items():
            if seen["runs"]:
                seen["checked"] = _checked(name, RUNTIMES[name].int8)
    return {
        "mirabelle": __version__,
        "python": sys.version.split()[0],
        "torch": {"version": torch.__version__, "cuda": torch.cuda.is_available()},
        "machine": machine(),
        "kernels": _kernels(),
        "runtimes": runtimes,
        "sources": {name: _source(name) for name in SOURCES},
        "cache": str(cache_folder()),
    }


def _asked(question: Callable[[], Any]) -> tuple[Any, str | None]:
    """(the answer, None), or (None, why there is none)."""
    try:
        return question(), None
    except (MirabelleError, OSError) as error:
        return None, str(error)


def _runtime(runtime: Runtime) -> dict[str, Any]:
    version, missing = _asked(runtime.version)
    absent = None if missing else runtime.absent()
    return {
        "version": version,
        "runs": version is not None and absent is None,
        "why": absent if missing is None else missing.rpartition("; ")[2],
        "int8": runtime.int8,
        "profiles": runtime.profile is not None,
        "from": "ONNX" if runtime.save is not None else "the captured network",
    }


def _kernels() -> dict[str, Any]:
    """What the kernels do with sums of pairs of products, asked of them."""
    found: dict[str, Any] = {}
    for name in ("onnxruntime", "openvino"):
        pairs, why = _asked(lambda name=name: kernels_with_pairs(name))
        if why is None:
            found[name] = "clips pairs at 16 bits" if pairs else "adds in 32 bits"
    target, _ = _asked(lambda: resolve_target("auto").name)
    return {**found, "target": target}


def _source(package: str) -> dict[str, Any]:
    extra, use = SOURCES[package]
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        version = None
    pip = None if version else f"pip install 'mirabelle[{extra}]'"
    return {"version": version, "for": use, "install": pip}


def _checked(name: str, int8: bool) -> str:
    """Writes, opens and runs a small network; in int8 where the runtime has that."""
    import torch
    from torch import nn

    import mirabelle as mb

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(4, 3, 16, 16)
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4)]
        network: nn.Module = nn.Sequential(*layers).eval()
    try:
        if int8:
            network = mb.quantize(network, [x], repair=None, target=target_for([name]) or "auto")
        with tempfile.TemporaryDirectory() as folder:
            file = mb.export(network, Path(folder), runtime=name, inputs=x[:1])
            file(x[:1].numpy())
        return "int8 runs" if int8 else "float runs"
    except Exception as error:  # of whatever the runtime brings
        return f"fails: {str(error).splitlines()[0][:120]}"


def _text(found: dict[str, Any]) -> str:
    here, kernels = found["machine"], found["kernels"]
    torch = found["torch"]
    lines = [
        f"mirabelle {found['mirabelle']}, Python {found['python']}, torch {torch['version']}",
        f"{here['cpu']}, {here['cores']} cores, {', '.join(here['features']) or 'no vector units'}",
        f"int8 target {kernels['target']}"
        + "".join(f"; {n} {t}" for n, t in kernels.items() if n != "target"),
    ]
    if "+cu" in torch["version"] and not torch["cuda"]:
        lines.append(f"torch is built for CUDA and there is none; the smaller one: {CUDA}")
    lines += ["", "runtimes:"]
    for name, seen in found["runtimes"].items():
        lines.append(f"  {name:<21}{seen['version'] or '-':<15}{_ability(seen)}")
    lines += ["", "networks and data:"]
    for name, seen in found["sources"].items():
        what = seen["for"] if seen["version"] else f"{seen['for']}: {seen['install']}"
        lines.append(f"  {name:<21}{seen['version'] or '-':<15}{what}")
    return "\n".join([*lines, "", f"cache: {found['cache']}"])


def _ability(seen: dict[str, Any]) -> str:
    if seen["version"] is None:
        return f"not installed: {seen['why']}"
    if not seen["runs"]:
        return f"files can be written, not run: {seen['why']}"
    able = ["float", *(["int8"] if seen["int8"] else []), *(["profile"] * seen["profiles"])]
    return f"{', '.join(able)}{'; ' + seen['checked'] if seen.get('checked') else ''}"
