"""Scores of predictions against references, with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import QdengineError
from .rouge import METRICS, rouge, tokenize

Row = dict[str, Any] | QdengineError
"""Of a file: what is wrong with a line stands in its place."""

RESAMPLES = 1000
_NAMES = (*METRICS, "exact", "run", "copy4", "length")


def copy_share(summary: list[str], document: list[str], n: int = 4) -> float | None:
    """Percent of the summary's n-grams that the document has; None when empty. A summary of fewer words is one gram."""
    n = min(n, len(summary))
    if not n:
        return None
    known = {tuple(document[i : i + n]) for i in range(len(document) - n + 1)}
    grams = [tuple(summary[i : i + n]) for i in range(len(summary) - n + 1)]
    return 100 * sum(gram in known for gram in grams) / len(grams)


def evaluate(
    predictions: Iterable[Row],
    references: Iterable[Row],
    lang: str = "en",
    seed: int = 0,
    against: Iterable[Row] | None = None,
) -> dict[str, Any]:
    """Score `summary` by `id`. A reference row has `id`, `summary` (or `references`, best of) and `document`.

    exact: the summary is a reference, word for word; run: it is a run of the document, character for character; copy4:
    `copy_share`. run and copy4 are over the rows that have a summary.
    A missing or failed prediction counts as an empty summary. Returns rows, missing, unknown, failed, and `scores`: for
    each metric {mean, low, high}, a 95% bootstrap interval over rows.

    against: other predictions for the same rows. With them also `differences`, how much higher the scores are than
    theirs, row by row, over the rows where both have the metric; and `against`, their missing, unknown and failed.
    Raises `QdengineError` for double ids, no references, predictions `against` for other rows, or a field that is no
    text.
    """
    predicted = _by_id(predictions, "predictions")
    wanted = _by_id(references, "references")
    if not wanted:
        raise QdengineError("references: no rows")
    figures = [_figures(row, predicted.get(key), lang) for key, row in wanted.items()]
    generator = np.random.default_rng(seed)
    result: dict[str, Any] = {
        "rows": len(wanted),
        **_counted(predicted, wanted),
        "first_missing": next((i for i in wanted if i not in predicted), None),
        "lang": lang,
        "scores": _intervals(figures, generator),
    }
    if against is not None:
        others = _by_id(against, "against")
        if others.keys().isdisjoint(wanted):
            raise QdengineError("against: none of its ids is one of the references; give predictions for the same rows")
        result["against"] = _counted(others, wanted)
        pairs = zip(figures, (_figures(row, others.get(key), lang) for key, row in wanted.items()), strict=True)
        apart = [{name: own[name] - other[name] for name in own.keys() & other.keys()} for own, other in pairs]
        result["differences"] = _intervals(apart, generator)
    return result


def _counted(predicted: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {
        "missing": len(wanted.keys() - predicted.keys()),
        "unknown": len(predicted.keys() - wanted.keys()),
        "failed": sum(bool(row.get("error")) for row in predicted.values()),
    }


def _figures(row: dict[str, Any], prediction: dict[str, Any] | None, lang: str) -> dict[str, float]:
    """Each metric that a row has."""
    text = (prediction or {}).get("summary") or ""
    answers = row.get("references") or [row["summary"]]
    tokens = tokenize(text, lang)
    found = rouge(text, answers, lang)
    found["exact"] = 100.0 * (prediction is not None and any(tokens == tokenize(a, lang) for a in answers))
    share = copy_share(tokens, tokenize(row["document"], lang)) if row.get("document") else None
    if share is not None:
        found |= {"run": 100.0 * (text.strip() in row["document"]), "copy4": share}
    return found | {"length": float(len(tokens))}


def _by_id(rows: Iterable[Row], what: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if isinstance(row, QdengineError):
            raise QdengineError(f"{what}: {row}")
        if "id" not in row:
            raise QdengineError(f"{what}: a row has no 'id'")
        if what == "references" and row.get("summary") is None and not row.get("references"):
            raise QdengineError(f"{what}: row {row['id']!r} has no 'summary'")
        _check_texts(row, what)
        if str(row["id"]) in found:
            raise QdengineError(f"{what}: id {row['id']!r} stands twice")
        found[str(row["id"])] = row
    return found


def _check_texts(row: dict[str, Any], what: str) -> None:
    fields: list[tuple[str, Any]] = [("summary", row.get("summary") or "")]
    if what == "references":
        answers = row.get("references") or []
        fields += [("document", row.get("document") or "")]
        fields += [("references", one) for one in answers] if isinstance(answers, list) else [("references", [answers])]
    for name, value in fields:
        if not isinstance(value, str):
            raise QdengineError(f"{what}: row {row['id']!r}: {name} must hold text, not {type(value).__name__}")


def _intervals(figures: list[dict[str, float]], generator: np.random.Generator) -> dict[str, dict[str, float]]:
    columns = {name: [row[name] for row in figures if name in row] for name in _NAMES}
    return {name: _interval(values, generator) for name, values in columns.items() if values}


def _interval(values: list[float], generator: np.random.Generator) -> dict[str, float]:
    array = np.array(values)
    means = [array[generator.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def table(report: dict[str, Any]) -> str:
    """The report as aligned text."""
    differences = report.get("differences", {})
    head = f"{'':10}{'mean':>9}{'95% interval':>20}"
    lines = [head + f"{'difference':>12}{'95% interval':>20}" if differences else head]
    for name, score in report["scores"].items():
        line = f"{name:10}{score['mean']:9.2f}{_range(score):>20}"
        if name in differences:
            line += f"{differences[name]['mean']:+12.2f}{_range(differences[name]):>20}"
        lines.append(line)
    told = f"{report['rows']} rows; predictions: {_told(report)}"
    lines.append(told + (f"; against: {_told(report['against'])}" if differences else ""))
    return "\n".join(lines)


def _told(found: dict[str, Any]) -> str:
    return f"{found['missing']} missing, {found['failed']} failed, {found['unknown']} unknown"


def _range(interval: dict[str, float]) -> str:
    return f"{interval['low']:.2f} .. {interval['high']:.2f}"
