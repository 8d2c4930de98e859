"""Scores of predictions against references, with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import QdengineError
from .rouge import METRICS, rouge, tokenize

RESAMPLES = 1000


def copy_share(summary: list[str], document: list[str], n: int = 4) -> float | None:
    """Percent of the summary's n-grams that the document has; None when empty. A summary of fewer words is one gram."""
    n = min(n, len(summary))
    if not n:
        return None
    known = {tuple(document[i : i + n]) for i in range(len(document) - n + 1)}
    grams = [tuple(summary[i : i + n]) for i in range(len(summary) - n + 1)]
    return 100 * sum(gram in known for gram in grams) / len(grams)


def evaluate(
    predictions: Iterable[dict[str, Any]], references: Iterable[dict[str, Any]], lang: str = "en", seed: int = 0
) -> dict[str, Any]:
    """Score `summary` by `id`. A reference row has `id`, `summary` (or `references`, best of) and `document`.

    exact: the summary is a reference, word for word; run: it is a run of the document, character for character; copy4:
    `copy_share`. run and copy4 are over the rows that have a summary.
    A missing or failed prediction counts as an empty summary. Returns rows, missing, unknown, failed, and `scores`: for
    each metric {mean, low, high}, a 95% bootstrap interval over rows. Raises `QdengineError` for double ids, no
    references, or a field that is no text.
    """
    predicted = _by_id(predictions, "predictions")
    wanted = _by_id(references, "references")
    if not wanted:
        raise QdengineError("references: no rows")
    missing = [i for i in wanted if i not in predicted]
    columns: dict[str, list[float]] = {name: [] for name in (*METRICS, "exact", "run", "copy4", "length")}
    for key, row in wanted.items():
        text = predicted[key].get("summary") or "" if key in predicted else ""
        answers = row.get("references") or [row["summary"]]
        for metric, value in rouge(text, answers, lang).items():
            columns[metric].append(value)
        tokens = tokenize(text, lang)
        columns["exact"].append(100.0 * (key in predicted and any(tokens == tokenize(a, lang) for a in answers)))
        columns["length"].append(len(tokens))
        share = copy_share(tokens, tokenize(row["document"], lang)) if row.get("document") else None
        if share is not None:
            columns["copy4"].append(share)
            columns["run"].append(100.0 * (text.strip() in row["document"]))
    generator = np.random.default_rng(seed)
    return {
        "rows": len(wanted),
        "missing": len(missing),
        "first_missing": missing[0] if missing else None,
        "unknown": sum(i not in wanted for i in predicted),
        "failed": sum(bool(row.get("error")) for row in predicted.values()),
        "lang": lang,
        "scores": {name: _interval(values, generator) for name, values in columns.items() if values},
    }


def _by_id(rows: Iterable[dict[str, Any]], what: str) -> dict[str, dict[str, Any]]:
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


def _interval(values: list[float], generator: np.random.Generator) -> dict[str, float]:
    array = np.array(values)
    means = [array[generator.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def table(report: dict[str, Any]) -> str:
    """The report as aligned text."""
    lines = [f"{'':10}{'mean':>9}{'95% interval':>20}"]
    for name, score in report["scores"].items():
        interval = f"{score['low']:.2f} .. {score['high']:.2f}"
        lines.append(f"{name:10}{score['mean']:9.2f}{interval:>20}")
    lines.append(
        f"{report['rows']} rows; predictions: {report['missing']} missing, {report['failed']} failed, "
        f"{report['unknown']} unknown"
    )
    return "\n".join(lines)
