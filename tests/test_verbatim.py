"""Spans read off tokens, without a model."""

from __future__ import annotations

import numpy as np
import pytest
from qdengine import verbatim
from qdengine.prompt import DOCUMENT_FIRST, Prompt, encode
from qdengine.request import Request
from qdengine.sentences import Sentences
from qdengine.tokenizer import Tokenizer
from tiny import tokenizer_json


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(tokenizer_json(), encoding="utf-8")
    return Tokenizer.from_file(file)


def read(tokenizer: Tokenizer, document: str, *written: tuple[int, int] | str) -> list[tuple[int, int]]:
    """The spans of an output that is breaks ("\\n") and tokens of the document: those of these characters."""
    prompt = encode(tokenizer, DOCUMENT_FIRST, [Request("fox", document, "Title")], 10_000)[0]
    ids, ends = prompt.ids[prompt.document_begin : prompt.document_end], prompt.offsets[:, 1]
    parts = [
        tokenizer.encode(part).ids if isinstance(part, str) else ids[(ends > part[0]) & (ends <= part[1])]
        for part in written
    ]
    return verbatim.spans(prompt, document, np.concatenate([ids[:0], *parts]), verbatim.break_id(tokenizer))


def likeliest(document: str) -> int:
    """Where the sentence of the highest rank begins, for the query of `read`."""
    return Sentences(document).best("fox", 1)[0][0]


def test_lines_in_a_row_are_one_span(tokenizer):
    """The break's own token, written where it stands in the document, parts nothing."""
    document = "One.\nTwo."
    assert read(tokenizer, document, (0, 9)) == [(0, 9)]
    assert read(tokenizer, document, (5, 9), "\n", (0, 5)) == [(5, 9), (0, 4)]
    assert read(tokenizer, document, (5, 9), "\n", (0, 3)) == [(5, 9), (0, 3)]
    assert read(tokenizer, document) == []


def test_white_space_is_left_out(tokenizer):
    document = " \n One.  Two. \r\n\tThree."
    assert read(tokenizer, document, (3, 9), "\n", (17, 23)) == [(3, 7), (17, 23)]
    assert read(tokenizer, document, (9, 15), "\n") == [(9, 13)]


def test_which_of_several_places(tokenizer):
    """One where the sentence ends, of these the one behind the span before, else that of the highest rank."""
    document = "Dogs. The fox sleeps. The fox. Rain. The fox."
    assert likeliest(document) == 22, "neither the first place nor the last"
    assert read(tokenizer, document, (6, 13)) == [(22, 29)], "not the end of a sentence anywhere"
    assert read(tokenizer, document, (37, 45)) == [(22, 30)]
    assert read(tokenizer, document, (31, 36), "\n", (22, 30)) == [(31, 36), (22, 30)]
    document = "The fox sleeps.\nThe fox\nRain."
    assert likeliest(document) == 0
    assert read(tokenizer, document, (0, 7)) == [(16, 23)], "a sentence ends here alone"
    document = "Dogs.\nRain.\nOwls.\nRain."
    scores = Sentences(document).scores("fox")
    assert scores[1] > scores[3]
    assert read(tokenizer, document, (18, 23)) == [(6, 11)]
    assert read(tokenizer, document, (12, 23)) == [(12, 23)], "a break alone is between them"


def folded(document: str) -> Prompt:
    """What a tokenizer makes of "A x. A X." that knows no capitals: tokens 5 6 7, twice."""
    offsets = [(0, 1), (1, 3), (3, 4), (4, 6), (6, 8), (8, 9)]
    return Prompt(
        ids=np.array([5, 6, 7, 5, 6, 7, 1], np.int32), document_begin=0, document_end=6, shareable=6,
        ranks=np.array([1, 0, 0, 1, 0, 0, 0], np.int32), truncated=False,
        part_offsets=np.array(offsets, np.int32), head=0, indent=0,
    )  # fmt: skip


def test_settled_text_stays_as_it_is():
    """Only what every place agrees on is settled, and it begins the text whatever follows."""
    document = "A x. A X."
    prompt = folded(document)
    texts = [verbatim.settled(prompt, document, np.array([5, 6, 7, 0][:n], np.int32), 0) for n in range(5)]
    assert texts == ["", "A", "A ", "A ", "A X."]
    assert verbatim.spans(prompt, document, np.array([5, 6, 7], np.int32), 0) == [(5, 9)]


def test_a_vocabulary_without_a_line_end():
    class Letters:
        def encode(self, text):
            return type("Encoding", (), {"ids": np.array([3], np.int32)})

        def decode(self, ids):
            return "?"

    assert verbatim.break_id(Letters()) == -1
