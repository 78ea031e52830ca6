"""What a buyer can check of a run without running anything: `certificate.json`.

It holds the SHA-256 of every file of the run's folder, and what the report says of inputs,
machine, figures and verification. `certificate.sha256` beside it lists the same hashes, and the
certificate's own, as `sha256sum -c` reads them: a check that needs no Mirabelle.

Neither is signed. Who wants to know that the maker wrote them compares the certificate's own
SHA-256 with one that came another way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mirabelle.base.errors import CertificateError, InputError
from mirabelle.base.files import (
    content_hash,
    read_json,
    sealed,
    sha256,
    unsealed,
    write_json,
    write_text,
)
from mirabelle.base.progress import track

FORMAT = 1
NAME, SUMS = "certificate.json", "certificate.sha256"
STEPS = "steps"  # the cache of the run: who delivers the result may leave it out as a whole
APART = ("work", ".lock", NAME, SUMS)  # what a run needs only while it runs, and the proof itself
UNDER_WAY = re.compile(r"\..+\.mirabelle-[a-z0-9_]{8}(\.\w+)?")  # see base.files.is_temporary
LAYER = ("layer", "max_off_by", "exact", "sqnr_db", "cause")
SAID = 5  # so many files are named where many differ


@dataclass(frozen=True)
class Certified:
    """folder: the run's. files: how many it has by its certificate. sha256: the certificate's own.
    left_out: how many files of `steps/` are not there, because the folder came without it.
    unlisted: files that the certificate does not know.
    """

    folder: Path
    files: int
    sha256: str
    left_out: int = 0
    unlisted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder), "unlisted": list(self.unlisted)}

    def __str__(self) -> str:
        lines = [f"{self.folder / NAME}: {self.files} files", f"SHA-256 {self.sha256}"]
        if self.left_out:
            lines.append(f"{STEPS}/ is not there: {self.left_out} of these files were not checked")
        if self.unlisted:
            lines.append(f"not in the certificate: {_listed(self.unlisted)}")
        return "\n".join(lines)


def certify(folder: str | Path) -> Certified:
    """Writes the certificate of a finished run's folder.

    Raises `InputError` where the folder holds no report of a run, or a link: its bytes could change
    without the folder.
    """
    folder = Path(folder)
    report = _report(folder)
    content = {**_claims(report), "files": _hashes(folder)}
    write_json(folder / NAME, sealed(content))
    own = sha256(folder / NAME)
    write_text(folder / SUMS, _sums(content["files"], own))
    return Certified(folder, len(content["files"]), own)


def check(folder: str | Path, expect: str | None = None) -> Certified:
    """Compares every file of a folder with its certificate.

    expect: the SHA-256 that the certificate itself must have. A folder without any `steps/` is
    allowed, for that is the run's cache; files that the certificate does not list are named in the
    result. Raises `CertificateError` that names what differs, `InputError` where there is no
    certificate.
    """
    folder = Path(folder)
    if not (folder / NAME).is_file():
        raise InputError(f"{folder} has no {NAME}; write one with `mirabelle certify {folder}`")
    content, own = _read(folder), sha256(folder / NAME)
    if expect is not None and own != expect.strip().lower():
        raise CertificateError(f"{folder / NAME} has the SHA-256 {own}; expected {expect}")
    files: Mapping[str, str] = content["files"]
    whole = (folder / STEPS).is_dir()
    wanted = {n: h for n, h in files.items() if whole or not n.startswith(f"{STEPS}/")}
    wrong = [n for n, h in track(wanted.items(), "hashing", len(wanted)) if not _is(folder, n, h)]
    sums = folder / SUMS
    if not sums.is_file() or sums.read_bytes() != _sums(files, own).encode():
        wrong.append(SUMS)
    if wrong:
        raise CertificateError(
            f"{_listed([str(folder / n) for n in wrong])} of {len(wanted) + 2} files "
            "changed since the certificate was written; take the maker's copy again"
        )
    unlisted = tuple(n for n in _names(folder) if n not in files)
    return Certified(folder, len(files), own, len(files) - len(wanted), unlisted)


def _claims(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the certificate repeats of the report: who reads it needs no other file."""
    known = ("mirabelle", "title", "inputs", "network", "machine", "versions", "result", "limits")
    return {
        "format": FORMAT,
        **{name: report.get(name) for name in known},
        "recipe": {"sha256": content_hash(report.get("recipe")), "content": report.get("recipe")},
        "stages": report.get("stages", []),
        "verification": [
            {
                **{k: v for k, v in checked.items() if k != "layers"},
                "layers": [{k: c.get(k) for k in LAYER} for c in checked.get("layers", [])],
            }
            for checked in report.get("verification") or []
        ],
    }


def _report(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the folder of a finished run")
    found = read_json(folder / "report.json")
    if not isinstance(found, dict) or not isinstance(found.get("stages"), list):
        raise InputError(
            f"{folder / 'report.json'} is no report of a run; give the folder of a finished run"
        )
    return found


def _names(folder: Path) -> list[str]:
    """The files that a certificate lists, with `/` between folders."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir())
    names = [p.relative_to(folder) for p in found]
    kept = [n for n in names if n.parts[0] not in APART and not UNDER_WAY.fullmatch(n.name)]
    return [n.as_posix() for n in kept]


def _hashes(folder: Path) -> dict[str, str]:
    names = _names(folder)
    for name in names:
        if (folder / name).is_symlink():
            raise InputError(f"{folder / name} is a link; put the file itself in its place")
        if "\n" in name or "\\" in name:
            raise InputError(f"{name!r} in {folder} is no name that every system can have")
    return {n: sha256(folder / n) for n in track(names, "hashing")}


def _is(folder: Path, name: str, expected: str) -> bool:
    path = folder / name
    return not path.is_symlink() and path.is_file() and sha256(path) == expected


def _read(folder: Path) -> dict[str, Any]:
    """The certificate, if it is one, is whole and names files of its own folder only."""
    path = folder / NAME
    try:
        content = unsealed(read_json(path), path)
        files = content["files"]
        sound = content["format"] == FORMAT and all(
            re.fullmatch(r"[0-9a-f]{64}", h) and not _leads_out(n) for n, h in files.items()
        )
    except (InputError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CertificateError(f"{path}: {error}") from None
    if not sound:
        raise CertificateError(f"{path} lists what no certificate of this version lists")
    return content


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts


def _sums(files: Mapping[str, str], own: str) -> str:
    return "".join(f"{h}  {n}\n" for n, h in sorted({**files, NAME: own}.items()))


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = len(names) - SAID
    return ", ".join(names[:SAID]) + (f" and {more} more" if more > 0 else "")
