"""JSON Lines, plain or gzip: reading with errors by line, and writing that an interruption cannot spoil."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import QdengineError


class JsonlError(QdengineError, ValueError):
    """A line that holds no JSON object, or a file that does not continue what it is asked to."""


def open_binary(path: str | os.PathLike[str], mode: str) -> BinaryIO:
    """`mode` is "rb", "wb" or "ab"; a name that ends in .gz is gzip."""
    return gzip.open(path, mode) if str(path).endswith(".gz") else open(path, mode)  # type: ignore[return-value]


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, Any] | JsonlError]:
    """Every line's object, or the error of a line that has none. Blank lines are passed over."""
    with open_binary(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line, number)


def _parse(line: bytes, number: int) -> dict[str, Any] | JsonlError:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return JsonlError(f"line {number} is not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return JsonlError(f"line {number} is not JSON: {error}")
    return row if isinstance(row, dict) else JsonlError(f"line {number} is not a JSON object but {type(row).__name__}")


def recover(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The whole rows of a file whose writer may have been killed; what follows them (a torn line) is cut off the file.

    An absent file has no rows. A gzip file is written again, since its torn end cannot be cut in place.
    """
    rows: list[dict[str, Any]] = []
    whole = bytearray()
    if not Path(path).exists():
        return rows
    try:
        with open_binary(path, "rb") as file:
            for line in file:
                row = _parse(line, 0) if line.endswith(b"\n") else None
                if not isinstance(row, dict):
                    break
                rows.append(row)
                whole += line
    except (EOFError, gzip.BadGzipFile):
        pass
    part = Path(f"{path}.part")
    with gzip.open(part, "wb") if str(path).endswith(".gz") else open(part, "wb") as file:
        file.write(whole)
    os.replace(part, path)
    return rows


def dumps(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
