"""Files that are either whole or not there: atomic writes, content hashes, tensors without
pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirabelle.base.errors import InputError

LARGEST_JSON = 2**26  # bytes: reports of large networks have a few million
MARK = ".mirabelle-"  # in the names of temporary files and folders
SEAL = "seal"  # the key of the checksum that a JSON file has of itself


def as_path(value: Any, name: str = "folder") -> Path:
    """The path that was given as the argument `name`; `InputError` for what is none."""
    if not isinstance(value, (str, Path)):
        raise InputError(f"{name} is a {type(value).__name__}; expected a path, such as 'out'")
    return Path(value)


def check_folder(path: str | Path) -> None:
    """`InputError` where no folder can be made, or nothing be written into it; makes nothing."""
    path = Path(path)
    place = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "may not be written to" if place.is_dir() else "is no folder"
        raise InputError(f"{path} cannot be made a folder: {place} {why}; choose another place")


def folder_at(path: str | Path) -> Path:
    """The folder, made where it is missing; `InputError` where that cannot be done."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be made a folder: {error.strerror}; choose another place"
        ) from error
    return Path(path)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and takes its place,
    on failure it is gone. A process that was killed leaves a file that `is_temporary` tells.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.name}{MARK}", suffix=path.suffix, dir=folder_at(path.parent)
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: str | Path, target: str | Path) -> Path:
    """Copies a file, whole or not at all; returns the path of the copy."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)
    return Path(target)


def temporary_folder(parent: Path, name: str) -> Path:
    """A new folder in `parent` for what will be called `name`; see `is_temporary`."""
    return Path(tempfile.mkdtemp(prefix=f".{name}{MARK}", dir=parent))


def is_temporary(path: Path, name: str) -> bool:
    """Whether `path` is called exactly as `atomic` and `temporary_folder` call what they make on
    the way to `name`: what people and editors write beside it is not.
    """
    suffix = re.escape(Path(name).suffix)
    pattern = rf"\.{re.escape(name)}{re.escape(MARK)}[a-z0-9_]{{8}}({suffix})?"
    return re.fullmatch(pattern, path.name) is not None


def check_file_name(name: str) -> None:
    """`InputError` for a name that would lead out of its folder, or that no file can have."""
    if not name or name in (".", "..") or re.search(r"[/\\\0]", name) or len(name) > 200:
        raise InputError("expected the name of a file, without a folder")


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, sort_keys: bool = True) -> None:
    """JSON with sorted keys, so that equal values are equal files, or in the order of the value.
    NaN and infinity are refused: they are not JSON.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=sort_keys, allow_nan=False) + "\n")


def read_json(path: str | Path, most: int = LARGEST_JSON) -> Any:
    """The value in a JSON file of at most so many bytes. `InputError` for what is no JSON, for
    numbers that JSON has none of, for keys that are there twice and for values nested too deep.
    """
    path = Path(path)
    try:
        if path.stat().st_size > most:
            raise InputError(f"{path} has {path.stat().st_size} bytes; at most {most} are read")
        return json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_no_number
        )
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is not there") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a file") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # also of integers with thousands of digits
        raise InputError(
            f"{path} is not JSON ({error}); it was damaged or written by something else"
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its own checksum, as it will be read back from JSON."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, SEAL: content_hash(plain)}


def unsealed(content: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """What was sealed; `InputError` where it was changed since."""
    found = dict(content)
    if found.pop(SEAL, None) != content_hash(found):
        raise InputError(
            f"{path} is not as it was written: its checksum does not fit; it was damaged or edited"
        )
    return found


def write_tensors(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file. Tensors that share memory are written once each, contiguous. `OSError`
    where it cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        try:
            save_file(plain, temporary, metadata=dict(metadata or {}))
        except (
            SafetensorError
        ) as error:  # the library wraps what the system says, and is no OSError
            raise OSError(f"{path} could not be written: {error}") from None


def read_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file; `InputError` where it is damaged or is no such
    file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path} is not there")
    try:
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, dict(f.metadata() or {})
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); it was damaged or written by "
            "something else"
        ) from None


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Any]) -> str:
    """The SHA-256 of named tensors: names, shapes, types and values, in their order."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            if tensor.numel()
            else b""
        )
    return digest.hexdigest()


def content_hash(value: Any) -> str:
    """The SHA-256 of a JSON-like value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
