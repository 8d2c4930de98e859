"""A file of rows through the engine, in order, resumable."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from . import jsonl
from .errors import EngineError, QdengineError
from .jsonl import JsonlError
from .request import Summary

if TYPE_CHECKING:
    from .engine.engine import Engine

_BEGIN = b'{"id": '
_FIELDS = (
    "query", "document", "title", "max_new_tokens", "lookahead", "temperature", "top_p", "seed", "namespace",
    "verbatim",
)  # fmt: skip

Row = dict[str, Any] | JsonlError


def to_request(row: dict[str, Any]) -> dict[str, Any]:
    """The request in a row; its other keys (id, summary, source ...) are the file's own."""
    return {name: row[name] for name in _FIELDS if name in row}


def to_row(identity: Any, summary: Summary) -> dict[str, Any]:
    error = summary.error
    return {
        "id": identity,
        "summary": summary.text,
        "spans": summary.spans,
        "finish_reason": summary.finish_reason,
        "truncated": summary.truncated,
        "stats": summary.stats.to_dict(),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
    }


def valid_rows(path: str | os.PathLike[str], most: int | None) -> list[dict[str, Any]]:
    """The first `most` rows, or all. Raises `JsonlError` for a line that is none."""
    rows = []
    for row in islice(jsonl.read(path), most):
        if isinstance(row, JsonlError):
            raise JsonlError(f"{path}: {row}")
        rows.append(row)
    return rows


def summarize_file(engine: Engine, source: str, output: str, batch_size: int, verbatim: bool = False) -> int:
    """Write a row for every row of `source`, after those that `output` has from an interrupted run. `verbatim` is for
    rows that do not say. Returns how many rows of the output have an error. Raises `JsonlError`, and leaves `output` as
    it is, when that is not the beginning of this run's output."""
    if os.path.exists(output) and os.path.samefile(source, output):
        raise QdengineError("--output is the --input file; choose another name")
    total = sum(1 for _ in jsonl.read(source)) if os.path.isfile(source) else None
    said = {"verbatim": True} if verbatim else {}
    rows: Iterator[tuple[int, Row]] = enumerate(
        (said | row if isinstance(row, dict) else row for row in jsonl.read(source)), 1
    )
    done = failed = 0
    if os.path.isfile(output):  # a pipe or a device has no rows to go on from
        rows, done, failed = _resume(engine, rows, output)
    if done:
        print(f"{output} has {done} of {total or 'the'} rows already", file=sys.stderr)
    if done and done == total:
        return failed
    bar = tqdm(total=total, initial=done, unit="row", disable=not sys.stderr.isatty())
    with jsonl.open_binary(output, "ab") as file, bar:
        while batch := list(islice(rows, batch_size)):
            good = [row for _, row in batch if isinstance(row, dict)]
            summaries = iter(engine.summarize([to_request(row) for row in good]))
            for number, row in batch:
                summary = next(summaries) if isinstance(row, dict) else Summary.failed(row)
                failed += summary.error is not None
                digest = {"digest": _digest(engine, row)}
                file.write(jsonl.dumps(to_row(_identity(number, row), summary) | digest))
            file.flush()
            bar.update(len(batch))
    return failed


def _identity(number: int, row: Row) -> Any:
    """The row's id where that is a text or a number, else its place."""
    identity = row.get("id") if isinstance(row, dict) else None
    plain = isinstance(identity, (str, int)) or (isinstance(identity, float) and math.isfinite(identity))
    return identity if plain else number


def _digest(engine: Engine, row: Row) -> str | None:
    """What the tokens of a row depend on, in 16 hex digits; None for a line that is no row."""
    if isinstance(row, JsonlError):
        return None
    request = {"max_new_tokens": engine.config.max_new_tokens} | to_request(row)
    request.pop("lookahead", None)
    # What is neither a text nor a number is an error whatever it holds, and may be nested too deeply to be written.
    plain = {k: v if isinstance(v, (str, int, float)) else type(v).__name__ for k, v in request.items()}
    facts = [engine.checkpoint.digest, engine.precision, engine.config.kv_dtype, plain]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _resume(engine: Engine, rows: Iterator[tuple[int, Row]], output: str) -> tuple[Iterator[tuple[int, Row]], int, int]:
    """Match `rows` with those that `output` has, and cut off it what is torn, and all from a failure of the engine on,
    which is no result. Returns the rows that are left, how many rows `output` has, and how many of those have an error.
    """
    done = failed = size = 0
    for old, end in jsonl.written(output, _BEGIN):
        number, row = next(rows, (0, None))
        if row is None:
            raise JsonlError(f"{output} has more rows than the input; remove it or choose another --output")
        for name, own in (("id", _identity(number, row)), ("digest", _digest(engine, row))):
            if old.get(name, output) != own:
                raise JsonlError(
                    f"{output}: row {number} has {name} {old.get(name)!r}, and this run gives it {own!r}: it is from "
                    "another input, model, precision, kv dtype or number of new tokens; remove it or choose another "
                    "--output"
                )
        if (old.get("error") or {}).get("type") == EngineError.__name__:
            rows = chain([(number, row)], rows)
            break
        done, failed, size = done + 1, failed + bool(old.get("error")), end
    jsonl.cut(output, size)
    return rows, done, failed
