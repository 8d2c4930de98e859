"""Preference pairs from the student itself: samples of its summaries, the best and the worst by what a summary is
for."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .. import jsonl
from ..errors import ConfigError, TrainingError
from ..evaluate.report import copy_share
from ..evaluate.rouge import rouge, tokenize
from ..files import aside
from . import config, rows
from .rows import Row

if TYPE_CHECKING:
    from ..engine.engine import Engine

_BATCH = 32
"""Rows given to the engine at a time."""


def make_pairs(settings: config.Pairs) -> Path:
    """Write `settings.output`, whole or not at all: for each row whose samples differ by `margin` the row with the best
    sample as `chosen`, the worst as `rejected`, and the figures of both. Rows without a summary, which says what is
    good, are left out. The same settings give the same file. Raises `TrainingError` where there is no pair."""
    from .. import Engine

    _check_new(settings.output)
    config.check_output(settings.output)
    found = [row for row in rows.read(settings.train, settings.rows) if row.summary]
    if not found:
        raise TrainingError("train has no row with a summary, which says what a good sample is")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    made = compared = 0
    opened = Engine.from_pretrained(settings.student, precision=settings.precision)
    lock = settings.output.with_name(f".{settings.output.name}.lock")
    with opened as engine, config.alone(lock, settings.output), aside(settings.output) as part, part.open("wb") as file:
        _check_new(settings.output)  # by a run that has ended since
        for row, texts in _sampled(engine, found, settings):
            compared += 1
            if pair := choose(row, texts, settings):
                file.write(jsonl.dumps(pair))
                made += 1
        if not compared:
            raise TrainingError(f"the engine answered none of {len(found)} rows; their errors stand above")
        if not made:
            raise TrainingError(f"no two samples of {compared} rows differ by margin ({settings.margin}); lower it")
    print(f"{made} pairs of {len(found)} rows", file=sys.stderr)
    return settings.output


def _check_new(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output} exists; choose another output")


def choose(row: Row, texts: list[str], settings: config.Pairs) -> dict[str, Any] | None:
    """The pair of a row's samples that hold text, or None where they are alike. Of equals the first is taken."""
    if not (texts := [text for text in texts if text.strip()]):
        return None
    figures = [measure(row, text, settings.language) for text in texts]
    scores = [score(one, settings.weights) for one in figures]
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if texts[best] == texts[worst] or scores[best] - scores[worst] < settings.margin:
        return None
    pair: dict[str, Any] = {"id": row.id, "query": row.query, "title": row.title, "document": row.document}
    for name, i in (("chosen", best), ("rejected", worst)):
        pair |= {name: texts[i], f"{name}_figures": figures[i] | {"score": scores[i]}}
    return pair


def measure(row: Row, text: str, language: str) -> dict[str, float]:
    """Figures of a summary, each in [0, 1]: rouge, ROUGE-L against the row's own; verbatim, its 4-grams that the
    document has; coverage, the row's words that it has; length, 1 up to the row's length in words, then less by the
    share that is too many, and 0 from twice the length."""
    wanted, words = tokenize(row.summary, language), tokenize(text, language)
    share = copy_share(words, tokenize(row.document, language))
    excess = len(words) / max(1, len(wanted)) - 1
    return {
        "rouge": rouge(text, [row.summary], language)["rougeL"] / 100,
        "verbatim": (share or 0.0) / 100,
        "coverage": len(set(wanted) & set(words)) / max(1, len(set(wanted))),
        "length": min(1.0, max(0.0, 1 - excess)) if words else 0.0,
    }


def score(figures: dict[str, float], weights: config.Weights) -> float:
    """Their weighted mean."""
    given = weights.model_dump()
    return sum(given[name] * figures[name] for name in given) / sum(given.values())


def _sampled(engine: Engine, found: list[Row], settings: config.Pairs) -> Iterator[tuple[Row, list[str]]]:
    bar = tqdm(total=len(found), unit="row", disable=not sys.stderr.isatty())
    with bar:
        for begin in range(0, len(found), _BATCH):
            batch = found[begin : begin + _BATCH]
            summaries = engine.summarize([_request(row, i, settings) for row in batch for i in range(settings.samples)])
            for j, row in enumerate(batch):
                own = summaries[j * settings.samples : (j + 1) * settings.samples]
                if failed := next((summary.error for summary in own if summary.error), None):
                    print(f"row {row.id}: {failed}", file=sys.stderr)
                    continue
                yield row, [summary.text for summary in own]
            bar.update(len(batch))


def _request(row: Row, sample: int, settings: config.Pairs) -> dict[str, Any]:
    digest = hashlib.sha256(f"{settings.seed} {row.id} {sample}".encode()).digest()
    return {
        "query": row.query,
        "title": row.title,
        "document": row.document,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
        "seed": int.from_bytes(digest[:8], "little"),
    }
