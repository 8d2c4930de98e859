"""Labels: a teacher answers rows, and its good answers become rows to train on.

A run's folder has `answers.jsonl`, to which every answer is added as it comes, and what is made of it at each run's
end: `labels/part-00000.jsonl` and so on, `rejected.jsonl` and `counts.json`, in the order of the requests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import jsonl
from ..errors import QdengineError
from ..files import aside
from ..jsonl import JsonlError
from . import config, filters, label_config, rows
from .rows import Row
from .teachers import Answer, Teacher, TeacherError, open_teacher

ANSWERS = "answers.jsonl"
ERRORS = "errors.jsonl"
LABELS = "labels"
REJECTED = "rejected.jsonl"
COUNTS = "counts.json"
_BEGIN = b'{"id": '
_MAY_CHANGE: dict[str, Any] = {
    "output": True,
    "requests": True,
    "rows": True,
    "filters": True,
    "shard": True,
    "teacher": {"device", "batch", "base_url", "api_key", "concurrency", "requests_per_minute", "retries", "timeout"},
}
"""Settings that change no answer, and so may be others when a run is gone on with."""

Answers = dict[str, dict[str, Any]]


def make_labels(settings: label_config.Label) -> Path:
    """Ask for what has no answer yet, and sort all answers. Returns the folder of the labels, which
    `rows.read` takes. Raises `TeacherError` where rows are left without an answer: the same call asks them again."""
    found = rows.read_requests(settings.requests, settings.rows)
    twice = [identity for identity, count in Counter(row.id for row in found).items() if count > 1]
    if twice:
        raise JsonlError(f"id {twice[0]!r} stands twice in the requests; give every row an id of its own")
    teacher = open_teacher(settings)
    folder = settings.output
    duplicates = filters.duplicates(found) if settings.filters.duplicate else set()
    with config.claim(folder, settings, _MAY_CHANGE):
        answers = _answered(folder / ANSWERS, found, teacher)
        waiting = [row for row in found if row.id not in answers and row.id not in duplicates]
        try:
            errors = _ask(folder, teacher, waiting, len(found) - len(waiting), answers)
        finally:
            _sort(settings, found, answers, duplicates)
    if errors:
        raise TeacherError(
            f"{len(errors)} rows have no answer (see {folder / ERRORS}; the first: {errors[0]}); "
            "give the same command again to ask them again"
        )
    return folder / LABELS


def prompt_hash(teacher: Teacher, row: Row) -> str:
    """Of the whole text that the row is asked with, 16 hex digits."""
    return hashlib.sha256(teacher.prompt(row).encode()).hexdigest()[:16]


def _answered(path: Path, found: Sequence[Row], teacher: Teacher) -> Answers:
    """What earlier runs wrote, by id; a torn end is cut off. Raises `JsonlError` where it belongs to other rows."""
    answers: Answers = {}
    if not path.exists():
        return answers
    size = 0
    for answer, end in jsonl.written(path, _BEGIN):
        answers[answer["id"]], size = answer, end
    for row in found:
        if row.id in answers and answers[row.id]["prompt_hash"] != prompt_hash(teacher, row):
            raise JsonlError(
                f"{path} has the answer to another row {row.id!r}: requests or student changed; choose another output"
            )
    jsonl.cut(path, size)
    return answers


def _ask(folder: Path, teacher: Teacher, waiting: list[Row], done: int, answers: Answers) -> list[str]:
    """Ask, and add what is answered to the file and to `answers`. Returns the errors of rows that are not."""
    errors = []
    bar = tqdm(total=done + len(waiting), initial=done, unit="row", disable=not sys.stderr.isatty())
    with (folder / ANSWERS).open("ab") as good, (folder / ERRORS).open("wb") as bad, bar:

        def tell(row: Row, answer: Answer | QdengineError) -> None:
            if isinstance(answer, Answer):
                answers[row.id] = entry = _entry(teacher, row, answer)
                good.write(jsonl.dumps(entry))
                good.flush()
                bar.update()
            else:
                errors.append(f"row {row.id}: {answer}")
                bad.write(jsonl.dumps({"id": row.id, "type": type(answer).__name__, "message": str(answer)}))
                bad.flush()

        if waiting:
            teacher.ask(waiting, tell)
    return errors


def _entry(teacher: Teacher, row: Row, answer: Answer) -> dict[str, Any]:
    return {
        "id": row.id,
        "summary": answer.text,
        "whole": answer.whole,
        "teacher": teacher.name,
        "prompt_hash": prompt_hash(teacher, row),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _sort(settings: label_config.Label, found: list[Row], answers: Answers, duplicates: set[str]) -> None:
    """Write the labels, the rejected answers and how many there are of each kind."""
    kept, rejected = [], []
    for row in found:
        line: dict[str, Any] = {"id": row.id, "query": row.query, "title": row.title, "document": row.document}
        line |= answers.get(row.id, {"summary": ""})
        if row.id in duplicates:
            rejected.append(line | {"reason": "duplicate"})
        elif row.id not in answers:
            continue
        elif reason := filters.reason(row, Answer(line["summary"], line["whole"]), settings.filters):
            rejected.append(line | {"reason": reason})
        else:
            kept.append(line)
    reasons = Counter(line["reason"] for line in rejected)
    counts = {
        "rows": len(found),
        "kept": len(kept),
        "rejected": {reason: reasons[reason] for reason in filters.REASONS},
        "unanswered": len(found) - len(kept) - len(rejected),
    }
    folder = settings.output
    _write_shards(folder / LABELS, kept, settings.shard)
    with aside(folder / REJECTED) as part:
        part.write_bytes(b"".join(map(jsonl.dumps, rejected)))
    with aside(folder / COUNTS) as part:
        part.write_bytes(json.dumps(counts, indent=2).encode() + b"\n")
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"
    print(
        f"{len(kept)} of {len(found)} rows are labels; rejected: {told}; unanswered: {counts['unanswered']}",
        file=sys.stderr,
    )


def _write_shards(folder: Path, lines: list[dict[str, Any]], size: int) -> None:
    """In place of the folder that was there."""
    made = folder.with_name(f".{folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for shard in range(max(1, -(-len(lines) // size))):
        text = b"".join(map(jsonl.dumps, lines[shard * size : (shard + 1) * size]))
        (made / f"part-{shard:05}.jsonl").write_bytes(text)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(made, folder)
