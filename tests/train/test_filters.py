"""Filters: each reason, where it ends, and what must pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdengine.train import config, label_config
from qdengine.train.filters import REASONS, duplicates, query_share, reason
from qdengine.train.rows import Row
from qdengine.train.teachers import Answer

FILLER = "Trains leave the northern station at night and arrive in the morning. " * 6
DOCUMENT = (
    "Sourdough is bread made by the fermentation of dough with wild yeast. It keeps for four to five days at room "
    "temperature. I can't say it better: wrapped in cloth it stays fresh longest.\n\n"
    f"{FILLER}The sea is cold and grey up there. {FILLER}\n\n"
    "Unfortunately, there is no cure for a stale crust. A warm oven helps a little."
)
ROW = Row("1", "How long does sourdough keep?", "Bread", DOCUMENT, "")
GOOD = "It keeps for four to five days at room temperature."
ZH = "雨水流进桶里。火车晚上出发，早上到达海边的车站。"


def why(text: str, row: Row = ROW, whole: bool = True, **settings) -> str | None:
    return reason(row, Answer(text, whole), label_config.Filters(**settings))


CASES = {
    "empty": ("", {"empty": False}),
    "refusal": ("I'm sorry, but I cannot answer that.", {"refusal": False, "verbatim": None, "query": None}),
    "long": (DOCUMENT, {"words": None}),
    "abstractive": ("Sourdough stays good for almost a week if it is left on a shelf.", {"verbatim": None}),
    "off-query": ("The sea is cold and grey up there.", {"query": None}),
}


def test_a_good_answer_is_a_label():
    assert why(GOOD) is None


@pytest.mark.parametrize("name", CASES)
def test_each_reason_and_its_switch(name):
    text, off = CASES[name]
    assert why(text) == name
    assert why(text, **off) is None


def test_every_reason_is_here():
    assert {*CASES, "duplicate"} == set(REASONS)


@pytest.mark.parametrize(
    "text",
    [
        config.ABSENT,
        "I’m sorry, the text is about bread.",
        "Sorry, no.",
        "I cannot answer this.",
        "As an AI language model, I have no access.",
        "The provided text does not mention it.",
        "The document doesn't say.",
        "There is no information about that.",
        "Unfortunately, I do not know.",
        "抱歉，我无法回答这个问题。",
        "文档中没有提到。",
    ],
)
def test_refusals(text):
    assert why(text) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "I can't say it better: wrapped in cloth it stays fresh longest.",
        "Unfortunately, there is no cure for a stale crust.",
        "The document is a bread.",
        "Sorrytown bakes sourdough.",
    ],
)
def test_openings_that_are_the_documents_own_are_no_refusals(text):
    assert why(text) != "refusal"


def test_where_a_threshold_is():
    words = [f"w{i}" for i in range(30)]
    row = Row("1", "w3 zebra", "", " ".join(words), "")
    assert why(" ".join(words[:20]), row, words=20) is None
    assert why(" ".join(words[:21]), row, words=20) == "long"
    assert why(" ".join(words[:5]), row, whole=False) == "long", "cut"
    assert why(" ".join(words[:5]), row, whole=False, words=None) is None
    mixed = " ".join([*words[:7], "x"])  # 4 of 5 4-grams
    assert why(mixed, row, verbatim=0.8) is None
    assert why(mixed, row, verbatim=0.81) == "abstractive"
    assert why(" ".join(words[:5]), row, query=0.5) is None  # one of two terms
    assert why(" ".join(words[:5]), row, query=0.51) == "off-query"
    assert why("!?", row) == "abstractive", "no word at all"


def test_a_query_is_looked_for_near_the_answer():
    words = [f"w{i}" for i in range(200)]
    for term, share in ((100, 1.0), (97, 1.0), (63, 1.0), (59, 0.0), (140, 1.0), (150, 0.0)):
        assert query_share(f"what is w{term}", words[100:105], words) == share, term
    assert query_share("who is it?", words[:5], words) == 1.0, "it has no terms"
    assert query_share("w3", [], words) == 0.0


def test_chinese():
    row = Row("1", "火车什么时候出发？", "", ZH, "")
    assert why("火车晚上出发", row, language="zh") is None
    assert why("火车晚上出发", row, language="zh", words=5) == "long"
    assert why("汽车在白天从城里开走", row, language="zh") == "abstractive"


@given(st.data())
def test_what_is_copied_is_verbatim(data):
    """Any run of a document's words, in any case and with any punctuation, and none that it does not have."""
    words = data.draw(st.lists(st.sampled_from(["rain", "falls", "on", "the", "roof", "7"]), min_size=1, max_size=30))
    begin = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(begin + 1, len(words)))
    text = data.draw(st.sampled_from([" ", ", ", "-"])).join(words[begin:end])
    row = Row("1", "rain", "", " ".join(words), "")
    settings = {"query": None, "words": None, "refusal": False, "verbatim": 1.0}
    assert why(text.upper(), row, **settings) is None
    assert why(f"{text} zebra", row, **settings) == "abstractive"


@given(
    st.lists(
        st.tuples(st.sampled_from(["a b", "A  B ", "c"]), st.sampled_from("xy"), st.sampled_from("de")), max_size=12
    )
)
def test_duplicates_are_all_but_the_first(keys):
    rows = [Row(str(i), *key, "") for i, key in enumerate(keys)]
    left = [row for row in rows if row.id not in duplicates(rows)]
    plain = [(" ".join(row.query.lower().split()), row.title, row.document) for row in rows]
    assert [row.id for row in left] == [str(i) for i, key in enumerate(plain) if key not in plain[:i]]
