"""Scores of an engine over a file."""

from __future__ import annotations

import pytest
import synthetic
from commands import write_rows
from qdengine import Engine, jsonl
from qdengine.evaluate.score import score
from qdengine.jsonl import JsonlError
from tiny import tiny_bundle


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with Engine.from_pretrained(tiny_bundle(tmp_path_factory.mktemp("score")), "cpu", "float32") as opened:
        yield opened


def test_rows_are_scored_once(engine, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", synthetic.rows(6))
    found = score(engine, path, 4, "en", tmp_path / "predictions.jsonl")
    written = list(jsonl.read(tmp_path / "predictions.jsonl"))
    assert found["rows"] == len(written) == 4 and found["missing"] == found["failed"] == 0
    assert found["steps"] == sum(row["stats"]["steps"] for row in written) / 4
    monkeypatch.setattr(Engine, "summarize", None)  # what is there is gone on with
    assert score(engine, path, 4, "en", tmp_path / "predictions.jsonl") == found


def test_a_file_without_rows_is_named(engine, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(JsonlError, match=r"empty\.jsonl has no rows"):
        score(engine, tmp_path / "empty.jsonl", None, "en", tmp_path / "predictions.jsonl")
