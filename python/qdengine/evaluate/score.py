"""How well an engine's student answers the rows of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import jsonl
from ..jsonl import JsonlError
from ..summarize_file import summarize_file, valid_rows
from .report import evaluate

if TYPE_CHECKING:
    from ..engine.engine import Engine

_BATCH = 256


def score(
    engine: Engine, references: Path, rows: int | None, lang: str, predictions: Path, against: Path | None = None
) -> dict[str, Any]:
    """The report of `evaluate` over the first `rows` of a file, and `steps`, their mean for a summary.

    The summaries are written to `predictions`, which is gone on with where it was interrupted, and the rows beside it.
    against: a file of predictions to compare them with. Raises `JsonlError` for a line that is no row, or where there
    are none.
    """
    if not (wanted := valid_rows(references, rows)):
        raise JsonlError(f"{references} has no rows")
    source = predictions.with_suffix(".rows.jsonl")
    source.write_bytes(b"".join(map(jsonl.dumps, wanted)))
    summarize_file(engine, str(source), str(predictions), _BATCH)
    written = [row for row in jsonl.read(predictions) if isinstance(row, dict)]
    steps = [row["stats"]["steps"] for row in written if not row["error"]]
    others = None if against is None else jsonl.read(against)
    return evaluate(written, wanted, lang, against=others) | {"steps": sum(steps) / max(1, len(steps))}
