"""Predictions against references: who is matched with whom, what counts, and the intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from qdengine import jsonl
from qdengine._host import sentence_starts
from qdengine.errors import QdengineError
from qdengine.evaluate.report import _interval, copy_share, evaluate, table

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DOCUMENT = "Rain falls on the roof and runs into the barrel. Trains leave at night."
REFERENCES = [
    {"id": "a", "summary": "Trains leave at night.", "document": DOCUMENT},
    {"id": "b", "summary": "x", "references": ["Rain falls on the roof", "into the barrel"], "document": DOCUMENT},
    {"id": 3, "summary": "nothing", "document": DOCUMENT},
    {"id": "d", "summary": "Rain"},
]
PREDICTIONS = [
    {"id": "d", "summary": "Rain", "error": None},
    {"id": "3", "summary": "", "error": {"type": "EmptyInputError", "message": "..."}},
    {"id": "b", "summary": "Into the barrel!"},
    {"id": "z", "summary": "of another file"},
]


def test_rows_are_matched_by_id():
    report = evaluate(PREDICTIONS, REFERENCES)
    assert {name: report[name] for name in ("rows", "missing", "first_missing", "unknown", "failed", "lang")} == {
        "rows": 4, "missing": 1, "first_missing": "a", "unknown": 1, "failed": 1, "lang": "en",
    }  # fmt: skip
    means = {name: score["mean"] for name, score in report["scores"].items()}
    # By row: a missing, b its second reference, 3 empty, d one word, which has no pair.
    assert means == {
        "rouge1": 50, "rouge2": 25, "rougeL": 50, "exact": 50, "run": 0, "length": 1.0, "copy4": 100,
    }  # fmt: skip
    assert json.loads(json.dumps(report)) == report


def test_a_prediction_without_text_counts_as_an_empty_one():
    for rows in ([], [{"id": "a"}], [{"id": "a", "summary": None}], [{"id": "a", "summary": ""}]):
        scores = evaluate(rows, REFERENCES[:1])["scores"]
        assert {name: score["mean"] for name, score in scores.items()} == {
            "rouge1": 0, "rouge2": 0, "rougeL": 0, "exact": 0, "length": 0,
        }  # fmt: skip


def test_chinese_identical_texts_are_a_hundred():
    row = {"id": 1, "summary": "雨水流进桶里。", "document": "今天下雨。雨水流进桶里。"}
    scores = evaluate([row], [row], "zh")["scores"]
    assert {name: score["mean"] for name, score in scores.items()} == {
        "rouge1": 100, "rouge2": 100, "rougeL": 100, "exact": 100, "run": 100, "copy4": 100, "length": 6,
    }  # fmt: skip


def test_copy_share_by_hand():
    document = ["a", "b", "c", "d", "e", "f"]
    assert copy_share(["a", "b", "c", "d", "e"], document) == 100
    assert copy_share(["a", "b", "c", "d", "x"], document) == 50
    assert copy_share(["b", "c", "d", "e", "x", "f"], document) == pytest.approx(100 / 3)
    assert copy_share(["f", "e", "d", "c"], document) == 0
    assert copy_share(["c", "d"], document) == 100, "a short summary is one gram"
    assert copy_share(["d", "c"], document) == 0
    assert copy_share([], document) is None
    assert copy_share(["a"], []) == 0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "references: no rows"),
        ([{"id": 1}, {"id": "1"}], REFERENCES, "predictions: id '1' stands twice"),
        ([], [*REFERENCES, REFERENCES[0]], "references: id 'a' stands twice"),
        ([{"summary": "x"}], REFERENCES, "predictions: a row has no 'id'"),
        ([], [{"id": 1, "document": "x"}], "references: row 1 has no 'summary'"),
        ([], [{"id": 1, "summary": None}], "references: row 1 has no 'summary'"),
        ([], [{"id": 1, "summary": 5}], "references: row 1: summary must hold text, not int"),
        ([], [{"id": 1, "references": "a text"}], "references: row 1: references must hold text, not list"),
        ([], [{"id": 1, "references": ["a", None]}], "references: row 1: references must hold text, not NoneType"),
        ([], [{"id": 1, "summary": "a", "document": ["a"]}], "references: row 1: document must hold text, not list"),
        ([{"id": 1, "summary": {}}, {"id": 2, "summary": ["x"]}], REFERENCES, "predictions: row 2: summary must hold"),
        ([jsonl.JsonlError("line 7 is not JSON: x")], REFERENCES, "predictions: line 7 is not JSON"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(predictions, references, message):
    with pytest.raises(QdengineError, match=message):
        evaluate(predictions, references)


def test_intervals():
    """Around the mean, the same every time, and as wide as the central limit says."""
    values = [0.0, 100.0] * 200
    score = _interval(values, np.random.default_rng(0))
    assert score["low"] < score["mean"] == 50 < score["high"]
    assert score["high"] - score["low"] == pytest.approx(2 * 1.96 * 50 / 400**0.5, rel=0.15)
    assert _interval(values, np.random.default_rng(0)) == score
    assert _interval([7.0], np.random.default_rng(0)) == {"mean": 7, "low": 7, "high": 7}
    first = evaluate(PREDICTIONS, REFERENCES, seed=1)
    assert first == evaluate(PREDICTIONS, REFERENCES, seed=1)
    for score in first["scores"].values():
        assert score["low"] <= score["mean"] <= score["high"]


def test_differences_are_row_by_row():
    """Two students alike but for one row: their own intervals are wide, that of the difference is not."""
    rows = [{"id": i, "summary": "a b c", "document": "a b c d"} for i in range(100)]
    own = [{"id": i, "summary": "a b c" if i % 2 else "x"} for i in range(100)]
    other = [{"id": i, "summary": "d" if i == 1 else row["summary"]} for i, row in enumerate(own)]
    report = evaluate(own, rows, against=other)
    plain, found = report["scores"]["rouge2"], report["differences"]["rouge2"]
    assert plain["high"] - plain["low"] > 15 > 5 > found["high"] - found["low"]
    assert found["mean"] == pytest.approx(1) and found["low"] >= 0
    assert {k: v for k, v in report.items() if k not in ("differences", "against")} == evaluate(own, rows)
    part = [{"id": "z"}, {"id": 0, "error": {"type": "x"}}]
    assert evaluate(own, rows, against=part)["against"] == {"missing": 99, "failed": 1, "unknown": 1}
    assert table(evaluate(own, rows, against=part)).endswith("; against: 99 missing, 1 failed, 1 unknown")
    with pytest.raises(QdengineError, match="against: none of its ids"):
        evaluate(own, rows, against=[{"id": "z"}])
    # Only rows where both have a summary say how much more is copied.
    assert evaluate([], rows, against=other)["differences"].keys() == {"rouge1", "rouge2", "rougeL", "exact", "length"}
    assert all(d["mean"] == 0 for d in evaluate(own, rows, against=own)["differences"].values())
    assert "+1.00" in next(line for line in table(report).splitlines() if line.startswith("rouge2"))
    with pytest.raises(QdengineError, match="against: id 1 stands twice"):
        evaluate(own, rows, against=[{"id": 1}, {"id": 1}])


def test_table():
    lines = table(evaluate(PREDICTIONS, REFERENCES)).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        "rouge1",
        "rouge2",
        "rougeL",
        "exact",
        "run",
        "copy4",
        "length",
    ]
    assert lines[1].split() == ["rouge1", "50.00", "0.00", "..", "100.00"]
    assert lines[-1] == "4 rows; predictions: 1 missing, 1 failed, 1 unknown"


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not here")
def test_the_first_sentence_scores_what_the_data_set_says():
    rows = [row for row in jsonl.read(DATA / "webqa_en.test.jsonl.gz") if isinstance(row, dict)]
    predictions = []
    for row in rows:
        first, end = [*sentence_starts(row["document"]), None][:2]
        predictions.append({"id": row["id"], "summary": row["document"][first:end].strip()})
    report = evaluate(predictions, rows)
    got = [report["scores"][metric]["mean"] for metric in ("rouge1", "rouge2", "rougeL")]
    # The data set's own splitter of sentences differs a little.
    assert got == pytest.approx([26.9, 15.9, 24.0], abs=0.4)
    assert report["rows"] == 2156 and report["missing"] == 0
    assert report["scores"]["copy4"]["mean"] == 100
    assert report["scores"]["rouge1"]["high"] - report["scores"]["rouge1"]["low"] < 3
