"""ROUGE by hand, in both languages."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine.errors import ConfigError
from qdengine.evaluate.rouge import METRICS, _scorer, rouge, tokenize


@pytest.mark.parametrize(
    ("summary", "reference", "expected"),
    [
        # 2 of 3 and 2 of 4 words, 1 of 2 and 1 of 3 pairs, a common subsequence of 2
        ("The cat sat.", "the cat ran fast", [400 / 7, 40, 400 / 7]),
        ("b a", "a b", [100, 0, 50]),
        ("a a a", "a", [50, 0, 50]),  # a word counts as often as the reference has it
        ("x y", "a b", [0, 0, 0]),
        ("word", "word", [100, 0, 100]),  # one word has no pair
        ("Trains leave", "train leaves", [0, 0, 0]),  # no stemming
        ("don't stop", "don t stop", [100, 100, 100]),
        ("", "a b", [0, 0, 0]),
        ("a b", "", [0, 0, 0]),
        ("...", "?!", [0, 0, 0]),
    ],
)
def test_english_by_hand(summary, reference, expected):
    assert list(rouge(summary, [reference], "en").values()) == [pytest.approx(value) for value in expected]


def test_chinese_characters_count():
    text = "雨水流进桶里，火车晚上出发。"
    assert rouge(text, [text], "zh") == dict.fromkeys(METRICS, 100.0)
    assert rouge(text, [text], "en") == dict.fromkeys(METRICS, 0.0), "English words are Latin: name the language"
    # 3 of 4 and 3 of 5 characters, 2 of 3 and 2 of 4 pairs
    expected = [600 / 9, 400 / 7, 600 / 9]
    assert list(rouge("雨水流走", ["雨水流进桶"], "zh").values()) == [pytest.approx(value) for value in expected]


def test_tokens():
    assert tokenize("GPT-2 于2019年发布。OpenAI公司!", "zh") == [
        *("gpt", "2", "于", "2019", "年", "发", "布", "openai"),
        "公",
        "司",
    ]
    assert tokenize("It's 3.5_m — Übung", "en") == ["it", "s", "3", "5", "m", "bung"]
    assert tokenize("，。！？「」 \n", "zh") == []
    with pytest.raises(ConfigError, match="language 'de'; expected en or zh"):
        tokenize("x", "de")


def test_the_best_reference_counts_for_each_metric():
    # The first has all words in another order, the second one pair in order.
    got = rouge("a b c", ["c b a", "a b x y"], "en")
    assert got == {"rouge1": pytest.approx(100), "rouge2": pytest.approx(40), "rougeL": pytest.approx(400 / 7)}
    alone = [rouge("a b c", [one], "en") for one in ("c b a", "a b x y")]
    assert got == {metric: max(one[metric] for one in alone) for metric in METRICS}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_unigrams_and_order(summary, reference):
    one, other = " ".join(summary), " ".join(reference)
    got, back = rouge(one, [other], "en"), rouge(other, [one], "en")
    common = sum(min(summary.count(x), reference.count(x)) for x in "abcd")
    f1 = 200 * common / max(1, len(summary) + len(reference))
    assert got["rouge1"] == pytest.approx(f1)
    assert got["rougeL"] <= got["rouge1"] + 1e-9
    assert {name: pytest.approx(value) for name, value in back.items()} == got


def test_without_the_package_the_remedy_is_named(monkeypatch):
    _scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ConfigError, match=r"pip install 'qdengine\[eval\]'"):
        rouge("a", ["a"], "en")
    monkeypatch.undo()
    assert rouge("a", ["a"], "en")["rouge1"] == 100
