"""JSON Lines, plain or gzip: reading with errors by line, and taking up a file whose writer was killed."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from .errors import QdengineError

_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


class JsonlError(QdengineError, ValueError):
    """A line that holds no JSON object, a damaged file, or one that does not continue what it is asked to."""


def open_binary(path: str | os.PathLike[str], mode: str) -> BinaryIO:
    """`mode` is "rb", "wb" or "ab"; a name that ends in .gz is gzip."""
    return gzip.open(path, mode) if _is_gzip(path) else open(path, mode)  # type: ignore[return-value]


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, Any] | JsonlError]:
    """Every line's object, or the error of a line that has none. Blank lines are passed over.

    Raises `JsonlError` where a gzip file ends too early or is damaged, after the rows before that place.
    """
    try:
        with open_binary(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield _parse(line, number)
    except _DAMAGE as error:
        raise JsonlError(f"{path} is no whole gzip file: {error}") from None


def _parse(line: bytes, number: int) -> dict[str, Any] | JsonlError:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return JsonlError(f"line {number} is not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return JsonlError(f"line {number} is not JSON: {error}")
    return row if isinstance(row, dict) else JsonlError(f"line {number} is not a JSON object but {type(row).__name__}")


def written(path: str | os.PathLike[str], begin: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a file whose writer may have been killed, each with the size of the text up to its end.

    A torn row at the end, which begins with `begin` as every row does, is passed over; `cut` takes it off. Raises
    `JsonlError` for a file that no such writer leaves behind: it is somebody's, and not to be written to.
    """
    size = 0
    try:
        with open_binary(path, "rb") as file:
            for number, line in enumerate(file, 1):
                row = _parse(line, number)
                size += len(line)
                if isinstance(row, dict):
                    yield row, size
                elif line.endswith(b"\n") or line[: len(begin)] != begin[: len(line)]:
                    raise JsonlError(f"{path} is not an output to go on with: {row}; choose another name")
    except EOFError:
        return  # a torn gzip file
    except _DAMAGE as error:
        raise JsonlError(f"{path} is not an output to go on with: {error}; choose another name") from None


def cut(path: str | os.PathLike[str], size: int) -> None:
    """Keep the rows in the first `size` bytes of the text, and end the last one with a newline if it has none.

    A gzip file is written again beside itself, for its torn end cannot be cut in place.
    """
    if not _is_gzip(path):
        with open(path, "r+b") as file:
            file.truncate(size)
            file.seek(max(0, size - 1))
            if file.read(1) not in (b"", b"\n"):
                file.write(b"\n")
        return
    path = os.path.realpath(path)  # a link stays one
    part = f"{path}.part"
    with gzip.open(path, "rb") as old, gzip.open(part, "wb") as new:
        while size:
            line = old.readline()
            size -= len(line)
            new.write(line if line.endswith(b"\n") else line + b"\n")
    shutil.copymode(path, part)
    os.replace(part, path)


def dumps(row: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold and UTF-8 cannot
        return (json.dumps(row) + "\n").encode("ascii")


def _is_gzip(path: str | os.PathLike[str]) -> bool:
    return str(path).endswith(".gz")
