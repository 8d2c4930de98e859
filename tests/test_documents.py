"""Documents by text: tokenised once, kept within a budget, apart by namespace, and the same prompts as without."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine.documents import Document, DocumentCache, DocumentKey
from qdengine.prompt import DOCUMENT_FIRST, QUERY_FIRST, encode
from qdengine.request import Request
from qdengine.tokenizer import Encoding, Tokenizer
from tiny import TEXT, tokenizer_json


class Counting:
    """A tokenizer that notes what it is asked for."""

    def __init__(self, tokenizer):
        self.tokenizer, self.texts = tokenizer, []

    def encode_batch(self, texts):
        self.texts += texts
        return self.tokenizer.encode_batch(texts)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Tokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(tokenizer_json(), encoding="utf-8")
    return Tokenizer.from_file(file)


@pytest.fixture
def tokenizer(plain):
    return Counting(plain)


def document(name: str, size: int) -> Document:
    ids = np.zeros(size, np.int32)
    made = Document(DocumentKey("", name, 0))
    made.encoding = Encoding(ids, np.zeros((size, 2), np.int32))
    return made


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 20)), max_size=40), st.integers(0, 800))
def test_least_recently_used_first_out(calls, capacity):
    cache, model = DocumentCache(capacity), list[Document]()
    for name, size in calls:
        made = document(name, size)
        found = cache.get(made.key)
        held = next((d for d in model if d.key == made.key), None)
        assert found is held
        if held is not None:
            model.remove(held)
            model.append(held)
        elif made.nbytes <= capacity:
            cache.put(made)
            model.append(made)
            while sum(d.nbytes for d in model) > capacity:
                model.pop(0)
        else:
            cache.put(made)
        assert cache.nbytes == sum(d.nbytes for d in model) <= capacity


def test_a_document_is_tokenised_once(tokenizer):
    cache = DocumentCache(1 << 20)
    requests = [Request(f"query {i}", TEXT, "Title") for i in range(3)]
    encode(tokenizer, DOCUMENT_FIRST, requests, 500, cache)
    encode(tokenizer, DOCUMENT_FIRST, requests, 500, cache)
    assert sum(TEXT in text for text in tokenizer.texts) == 1


def test_namespaces_and_titles_keep_documents_apart(tokenizer):
    cache = DocumentCache(1 << 20)
    requests = [Request("q", TEXT, title, namespace=name) for title in ("", "T") for name in ("", "a")]
    encode(tokenizer, DOCUMENT_FIRST, requests, 500, cache)
    assert sum(TEXT in text for text in tokenizer.texts) == 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fox dog", "rain?", "x"]),
            st.sampled_from([TEXT, TEXT * 3, "Rain. What is rain? Water!", "火车出发！雨水。"]),
            st.sampled_from(["", "Fox"]),
            st.integers(20, 300),
        ),
        max_size=6,
    )
)
def test_the_same_prompts_as_without_a_cache(plain, calls):
    cache = DocumentCache(1 << 13)
    for style in (DOCUMENT_FIRST, QUERY_FIRST):
        for query, text, title, most in calls:
            request = Request(query, text, title)
            (a,), (b,) = (encode(plain, style, [request], most, c) for c in (cache, None))
            assert type(a) is type(b)
            if not isinstance(a, Exception):
                for field in ("ids", "ranks", "offsets", "document_begin", "document_end", "truncated"):
                    assert np.array_equal(getattr(a, field), getattr(b, field))
