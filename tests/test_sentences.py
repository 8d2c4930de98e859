"""Where sentences begin, and which one a query is likely to want."""

from __future__ import annotations

import time

import numpy as np
import pytest
from qdengine._host import sentence_starts
from qdengine.sentences import Sentences, query_terms


def sentences(text: str) -> list[str]:
    starts = sentence_starts(text)
    return [text[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("  It costs 3.50 at e.g.com. So", ["It costs 3.50 at e.g.com.", "So"]),
        ('He said "go." Then (he left.) Gone', ['He said "go."', "Then (he left.)", "Gone"]),
        ("“Go.” He went", ["“Go.”", "He went"]),
        ("Title\n\n- item\nlast", ["Title", "- item", "last"]),
        ("雨水流进桶里。火车出发！“走吧。”他说？是", ["雨水流进桶里。", "火车出发！", "“走吧。”", "他说？", "是"]),
        ("Wait... What", ["Wait...", "What"]),
    ],
)
def test_sentence_starts(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize("piece", ["!", "?)", ".", "\n", ". ", "。", '!"', "a", " ", "x?"])
def test_time_is_linear_in_any_text(piece):
    text = (piece * 200_000)[:200_000]
    begin = time.perf_counter()
    Sentences(text).ranks("a b", np.array([[0, 1]]))
    assert time.perf_counter() - begin < 5  # a quadratic search takes minutes


def test_query_terms():
    assert query_terms("What is the Absorption of 水 in 3 soils?") == {"absor", "水", "3", "soils"}


def best(text: str, query: str) -> str:
    return sentences(text)[int(np.argmax(Sentences(text).scores(query)))]


def test_a_rare_term_says_more_than_a_common_one():
    text = "Rain fills barrels. Rain is wet. Rain wets moss. Moss is old."
    assert best(text, "moss in the rain") == "Rain wets moss."
    assert best(text, "rain barrel") == "Rain fills barrels."


def test_a_question_hands_its_overlap_on():
    text = "Bread is baked. What causes rickets? A lack of vitamin D does. Rickets is rare."
    assert best(text, "what causes rickets") == "A lack of vitamin D does."


@pytest.mark.parametrize(
    ("heading", "answer"),
    [("Causes of rickets", "A lack of vitamin D does."), ("佝偻病的原因", "A lack of vitamin D does.")],
)
def test_a_heading_hands_its_overlap_on(heading, answer):
    text = f"Bread is baked.\n{heading}\n{answer} It is rare.\nRickets was named long ago."
    assert best(text, heading) == answer
    # A line with a stop, or a long one, is a sentence like others.
    assert best(text.replace(heading, f"{heading}!"), heading) == f"{heading}!"
    long = f"{heading} " + "and many other things " * 4
    assert best(text.replace(heading, long), heading) == long.strip()


def test_of_equal_sentences_that_in_the_better_section_wins():
    text = "Bread is baked. Trains leave at noon. Salt is white.\nIt is dark. Trains leave at nine. Night falls."
    assert best(text, "when do night trains leave") == "Trains leave at nine."


def test_without_overlap_the_first_sentence_is_best():
    assert best("One day. Two days. Three days.", "who is it") == "One day."


def test_scores_fit_the_ops_packing():
    query = " ".join(f"q{i:x}" for i in range(3000))
    assert Sentences(f"{query}. x.").scores(query).max() <= 0xFFFF


def test_ranks():
    text = "A fox. Moss is old."
    offsets = np.array([[-6, -1], [-1, 0], [0, 1], [1, 5], [5, 6], [6, 11], [11, 14], [14, 18], [18, 19]])
    ranks = Sentences(text).ranks("old moss", offsets)
    assert ranks[:2].tolist() == [0, 0]  # the title
    assert (ranks & 1).tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0]  # " Moss" begins with the space
    assert set(ranks[2:5] >> 1) == {0} and len(set(ranks[5:] >> 1)) == 1 and ranks[5] >> 1 > 0
    assert Sentences("").ranks("q", np.zeros((0, 2), np.int32)).tolist() == []
