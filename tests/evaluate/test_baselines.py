"""Summaries that cost no model: which sentences they are."""

from __future__ import annotations

import math

import pytest
from qdengine.errors import ConfigError
from qdengine.evaluate.baselines import baseline, bm25, split

DOCUMENT = "Rain falls on the roof. Trains leave at night and arrive in the morning.\n\nNight trains have berths. End."


def summary(name: str, sentences: int = 1, **row: str) -> str:
    return next(baseline(name, [{"id": 1, "document": DOCUMENT, **row}], sentences=sentences))["summary"]


def test_lead():
    assert summary("lead") == "Rain falls on the roof."
    assert summary("lead", 2) == "Rain falls on the roof. Trains leave at night and arrive in the morning."
    assert summary("lead", 9).endswith("Night trains have berths. End.")


def test_query_match():
    assert summary("query-match", query="night trains?") == "Night trains have berths."
    assert summary("query-match", query="rain") == "Rain falls on the roof."
    # In the document's order, not in that of the scores; where nothing matches, the first.
    assert summary("query-match", 2, query="night trains").startswith("Trains leave at night")
    assert summary("query-match", query="giraffes") == "Rain falls on the roof."


def test_ranked():
    faq = "Bread. What causes rickets? A lack of vitamin D does. Rickets is rare."
    assert summary("ranked", document=faq, query="what causes rickets") == "A lack of vitamin D does."
    assert summary("query-match", document=faq, query="what causes rickets") == "What causes rickets?"
    assert summary("ranked", 9, document=faq, query="rickets") == faq


def test_oracle():
    assert summary("oracle", summary="They have berths") == "Night trains have berths."
    assert summary("oracle", summary="roof") == "Rain falls on the roof."


def test_bm25_by_hand():
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    long = 1 * 2.5 / (1 + 1.5 * (1 - 0.75 + 0.75 * 3 / 2))
    assert bm25(["a", "a", "z"], [["a", "b", "c"], ["b"]]) == pytest.approx([idf * long, 0])
    assert bm25(["a"], []) == [] and bm25(["a"], [[]]) == [0]


@pytest.mark.parametrize("name", ["lead", "query-match", "ranked", "oracle"])
def test_a_document_without_sentences(name):
    assert list(baseline(name, [{"id": 2, "document": " \n", "query": "q", "summary": "s"}])) == [
        {"id": 2, "summary": ""}
    ]


def test_unknown_name():
    with pytest.raises(ConfigError, match="lead, query-match, ranked, oracle"):
        list(baseline("best", []))


def test_split():
    assert split(DOCUMENT)[1:3] == ["Trains leave at night and arrive in the morning.", "Night trains have berths."]
