"""Windows of documents, as properties of any text."""

from __future__ import annotations

from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st
from qdengine._host import sentence_starts
from qdengine.tokenizer import Tokenizer
from qdengine.train.windows import windows, with_answer, without_answer
from tiny import TEXT, tokenizer_json
from tokenizers import Tokenizer as Loaded

SENTENCES = [
    "Rain falls on the roof. ", "It runs into the barrel!\n", "雨水流进桶里。", "火车晚上出发。", "Zażółć gęślą jaźń? ",
    "😀🏽 emoji. ", "The document, in the words of the quick brown fox, jumps over the lazy dog at night. ", "One. ",
]  # fmt: skip
SEAM = 8
"""Tokens by which a window alone may differ from the same text inside its document: at its first and last word."""


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(Loaded.from_str(tokenizer_json()))


def counted(text: str) -> int:
    return len(tokenizer().encode(text).ids)


texts = st.one_of(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=20).map("".join), st.text(max_size=200))


@settings(max_examples=150, deadline=None)
@given(texts, st.integers(1, 60))
@example(TEXT, 20)
@example("雨" * 100, 10)
@example("   Rain falls. It runs.   ", 5)
def test_windows(text, tokens):
    found = windows(tokenizer(), text, tokens)
    if counted(text) <= tokens:
        assert found == [(0, len(text))]
        return
    starts = [0, *(start for start in sentence_starts(text) if start)]
    ends = [*starts[1:], len(text)]
    assert [begin for begin, _ in found] == starts[: len(found)], "one for each sentence, none left out"
    assert sorted(end for _, end in found) == [end for _, end in found]
    for i, (begin, end) in enumerate(found):
        assert begin < end and counted(text[begin:end].strip()) <= tokens + SEAM
        if end in ends and ends.index(end) >= i:
            continue
        assert begin < end < ends[i], "a sentence is cut only where it alone is too long"
        assert counted(text[begin : ends[i]]) + SEAM > tokens
    assert all(end < len(text) for _, end in found[:-1]), "the first to reach the end is the last"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), min_size=2, max_size=20).map("".join), st.integers(20, 60))
def test_a_window_is_as_long_as_can_be(text, tokens):
    starts = [*sentence_starts(text), len(text)]
    for begin, end in windows(tokenizer(), text, tokens)[:-1]:
        if end in starts:
            more = starts[starts.index(end) + 1]
            assert counted(text[begin:more]) + SEAM > tokens


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_windows_by_their_answer(data):
    text = data.draw(st.lists(st.sampled_from(SENTENCES), min_size=5, max_size=20).map("".join))
    found = windows(tokenizer(), text, 30)
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    inside, outside = with_answer(found, begin, end), without_answer(found, begin, end)
    whole = {window for window in found if set(range(begin, end)) <= set(range(*window))}
    none = {window for window in found if not set(range(begin, end)) & set(range(*window))}
    assert set(inside) == whole and set(outside) == none and not whole & none


def test_an_answer_of_two_sentences():
    text = "".join(SENTENCES[:4])
    found = windows(tokenizer(), text, counted(text) - 1)
    begin, end = text.index("It runs"), text.index("火车")
    assert found[0][0] == 0 and with_answer(found, begin, end) == found
    assert without_answer(found, begin, end) == []
    assert without_answer([(0, begin), (begin, end), (end, len(text))], begin, end) == [(0, begin), (end, len(text))]
