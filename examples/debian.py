"""Data that Debian packages: downloaded by package name and unpacked, without root and without
installing anything.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from mirabelle.base.errors import InputError


def unpacked(package: str, folder: Path) -> Path:
    """The root of the unpacked package in `folder`, which must be empty. `InputError` where there
    is no apt, or it does not get the package.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise InputError(f"the Debian package {package}: there is no apt-get here")
    # Lists of its own: those of the system may be missing, and writing them takes root.
    apt = [
        "apt-get",
        "-qq",
        "-o",
        f"Dir::State={folder}",
        "-o",
        f"Dir::State::lists={folder}/lists",
        "-o",
        f"Dir::Cache={folder}/cache",
    ]
    apt += ["-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "APT::Sandbox::User="]
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    try:
        subprocess.run([*apt, "update"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        subprocess.run(
            [*apt, "download", package], check=True, cwd=folder, stdout=subprocess.DEVNULL
        )
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / "root")], check=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise InputError(f"the Debian package {package}: {error}") from error
    return folder / "root"
