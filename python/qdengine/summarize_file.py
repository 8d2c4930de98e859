"""A file of rows through the engine, in order, resumable."""

from __future__ import annotations

import os
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from . import jsonl
from .errors import QdengineError
from .jsonl import JsonlError
from .request import Summary

if TYPE_CHECKING:
    from .engine.engine import Engine

_FIELDS = ("query", "document", "title", "max_new_tokens", "lookahead", "temperature", "top_p", "seed", "namespace")


def to_request(row: dict[str, Any]) -> dict[str, Any]:
    """The request in a row; its other keys (id, summary, source ...) are the file's own."""
    return {name: row[name] for name in _FIELDS if name in row}


def to_row(identity: Any, summary: Summary) -> dict[str, Any]:
    error = summary.error
    return {
        "id": identity,
        "summary": summary.text,
        "finish_reason": summary.finish_reason,
        "truncated": summary.truncated,
        "stats": summary.stats.to_dict(),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
    }


def valid_rows(path: str | os.PathLike[str], most: int) -> list[dict[str, Any]]:
    """The first `most` rows. Raises `JsonlError` for a line that is none."""
    rows = []
    for row in islice(jsonl.read(path), most):
        if isinstance(row, JsonlError):
            raise JsonlError(f"{path}: {row}")
        rows.append(row)
    return rows


def summarize_file(engine: Engine, source: str, output: str, batch_size: int) -> int:
    """Write a row for every row of `source`, after those that `output` has from an interrupted run. Returns how many
    rows of the output have an error. Raises `JsonlError` when `output` is not the beginning of this run's output."""
    if os.path.exists(output) and os.path.samefile(source, output):
        raise QdengineError("--output is the --input file; choose another name")
    rows = list(enumerate(jsonl.read(source), 1))
    done = jsonl.recover(output)
    _check_resumed(rows, done, output)
    failed = sum(bool(row.get("error")) for row in done)
    if done and len(done) < len(rows):
        print(f"{output} has {len(done)} of {len(rows)} rows; going on from there", file=sys.stderr)
    bar = tqdm(total=len(rows), initial=len(done), unit="row", disable=not sys.stderr.isatty())
    with jsonl.open_binary(output, "ab") as file, bar:
        for begin in range(len(done), len(rows), batch_size):
            batch = rows[begin : begin + batch_size]
            good = [row for _, row in batch if isinstance(row, dict)]
            summaries = iter(engine.summarize([to_request(row) for row in good]))
            for number, row in batch:
                summary = next(summaries) if isinstance(row, dict) else Summary.failed(row)
                failed += summary.error is not None
                file.write(jsonl.dumps(to_row(_identity(number, row), summary)))
            file.flush()
            bar.update(len(batch))
    return failed


def _identity(number: int, row: dict[str, Any] | JsonlError) -> Any:
    return row["id"] if isinstance(row, dict) and "id" in row else number


def _check_resumed(rows: list[tuple[int, Any]], done: list[dict[str, Any]], output: str) -> None:
    if len(done) > len(rows):
        raise JsonlError(
            f"{output} has {len(done)} rows and the input {len(rows)}; remove it or choose another --output"
        )
    for (number, row), old in zip(rows, done, strict=False):
        if old.get("id") != _identity(number, row):
            raise JsonlError(
                f"{output}: row {number} has id {old.get('id')!r}, the input's is {_identity(number, row)!r}: "
                "it is not from this input; remove it or choose another --output"
            )
