"""The prompt: tokens, places in the document, cutting, and errors."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine.errors import ConfigError, LimitError
from qdengine.prompt import DOCUMENT_FIRST, QUERY_FIRST, SENTENCE_CHARACTERS, SENTENCES, Prompt, PromptFormat, encode
from qdengine.request import Request
from qdengine.tokenizer import Tokenizer
from tiny import TEXT, tokenizer_json

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(tokenizer_json(), encoding="utf-8")
    return Tokenizer.from_file(file)


def one(tokenizer, request: Request, max_tokens: int = 10_000, format: PromptFormat = DOCUMENT_FIRST) -> Prompt:
    made = encode(tokenizer, format, [request], max_tokens)[0]
    if isinstance(made, Exception):
        raise made
    return made


def document_ids(prompt: Prompt) -> list[int]:
    return prompt.ids[prompt.document_begin : prompt.document_end].tolist()


def test_document_first(tokenizer):
    prompt = one(tokenizer, Request(" what? ", "\n" + TEXT + " ", " Fox\t"))
    assert tokenizer.decode(prompt.ids.tolist()) == f"Fox\n{TEXT}\n\nQuery: what?\nSummary:"
    assert tokenizer.decode(document_ids(prompt)) == f"Fox\n{TEXT}"
    assert prompt.document_begin == 0 and prompt.shareable == prompt.document_end and not prompt.truncated
    assert prompt.ids.dtype == prompt.ranks.dtype == prompt.offsets.dtype == np.int32
    assert len(prompt.ranks) == len(prompt.ids) and not prompt.ranks[prompt.document_end :].any()


def test_query_first_and_bos(tokenizer):
    prompt = one(tokenizer, Request("what?", TEXT), format=PromptFormat(QUERY_FIRST.parts, bos_id=0))
    assert prompt.ids[0] == 0
    assert tokenizer.decode(prompt.ids[1:].tolist()) == f"Query: what?\n\n{TEXT}\n\nSummary:"
    assert tokenizer.decode(document_ids(prompt)) == "\n" + TEXT


def test_a_documents_ids_do_not_depend_on_the_query(tokenizer):
    prompts = [one(tokenizer, Request(query, TEXT, "Fox")) for query in ("a", "\n\n b?")]
    assert document_ids(prompts[0]) == document_ids(prompts[1])


def test_user_text_is_no_template_and_no_command(tokenizer):
    document = "{query} {document} {title} {0} \\1 <|im_end|>"
    prompt = one(tokenizer, Request("{title}{document}", document, "{query}"))
    assert tokenizer.decode(prompt.ids.tolist()) == f"{{query}}\n{document}\n\nQuery: {{title}}{{document}}\nSummary:"
    assert 1 not in prompt.ids


@settings(max_examples=200, deadline=None)
@given(document=ANY_TEXT.filter(str.strip), title=ANY_TEXT, query=ANY_TEXT.filter(str.strip), most=st.integers(-1, 400))
def test_any_text_fits_or_is_refused(tokenizer, document, title, query, most):
    request = Request(query, document, title)
    whole = one(tokenizer, request)
    made = encode(tokenizer, DOCUMENT_FIRST, [request], [most])[0]
    if isinstance(made, LimitError):
        assert str(most) in str(made) and "shorten" in str(made)
        return
    assert len(made.ids) <= most and made.truncated == (len(made.ids) < len(whole.ids))
    # A cut document's ids are the first ones of the whole document's.
    assert document_ids(made) == document_ids(whole)[: len(document_ids(made))]
    own = made.offsets[made.offsets[:, 0] >= 0]
    assert len(own) and len(made.offsets) == made.document_end - made.document_begin
    begin = len(document) - len(document.lstrip())
    assert own[0, 0] == begin and own[-1, 1] <= len(document)
    text = document[begin : own[-1, 1]]
    ids = document_ids(made)[len(made.offsets) - len(own) :]
    assert tokenizer.decode(ids) == text


def test_cut_at_a_sentence_end(tokenizer):
    document = " ".join(f"Sentence number {i} is here." for i in range(100))
    for most in range(150, 190):
        prompt = one(tokenizer, Request("q", document, "T"), most)
        assert prompt.truncated and len(prompt.ids) <= most
        kept = document[: prompt.offsets[-1, 1]].rstrip()
        assert kept.endswith(" is here.") and len(prompt.ids) > most - 30
    assert not one(tokenizer, Request("q", document, "T")).truncated


def test_without_a_sentence_end_the_cut_is_between_characters(tokenizer):
    for most in range(40, 60):
        prompt = one(tokenizer, Request("q", "龘" * 500), most)
        assert prompt.truncated and set(tokenizer.decode(document_ids(prompt)).strip()) == {"龘"}


@pytest.mark.parametrize(
    "request_", [Request("q " * 5000, "x"), Request("q", "x", "t " * 5000), Request("q" + " " * 10**6 + "q", "x")]
)
def test_no_room_for_the_document(tokenizer, request_):
    made = encode(tokenizer, DOCUMENT_FIRST, [request_, Request("q", "x")], 400)
    assert isinstance(made[0], LimitError) and "in 400; shorten the query or the title" in str(made[0])
    assert isinstance(made[1], Prompt)


@pytest.mark.parametrize("text", ["a" * 10**6, " " * 10**6 + "x", "x\0\u202e" * 333_333, "好" * 10**6, "x. " * 333_333])
def test_hostile_documents_take_bounded_time(tokenizer, text):
    begin = time.perf_counter()
    prompt = one(tokenizer, Request("q", text, ""), 8000)
    assert time.perf_counter() - begin < 2 and len(prompt.ids) <= 8000


def test_a_batch_is_what_its_items_are_alone(tokenizer):
    requests = [Request("rain", TEXT * n, f"Title {n}") for n in range(1, 6)] + [Request("q " * 900, "x")]
    for request, together in zip(requests, encode(tokenizer, DOCUMENT_FIRST, requests, 300), strict=True):
        alone = encode(tokenizer, DOCUMENT_FIRST, [request], [300])[0]
        assert type(alone) is type(together)
        if isinstance(alone, Prompt) and isinstance(together, Prompt):
            assert np.array_equal(alone.ids, together.ids) and np.array_equal(alone.ranks, together.ranks)
    assert encode(tokenizer, DOCUMENT_FIRST, [], 300) == []


def test_ranks_lead_to_the_answer(tokenizer):
    prompt = one(tokenizer, Request("Where does the rain run?", TEXT, "Where the rain runs"))
    starts = np.flatnonzero(prompt.ranks & 1)
    best = starts[np.argmax(prompt.ranks[starts])]
    assert TEXT[prompt.offsets[best, 0] :].lstrip().startswith("Rain falls on the roof")
    assert (prompt.offsets[starts] >= 0).all()  # none in the title


def test_sentences_that_may_answer_stand_behind_the_query(tokenizer):
    document = "Bread is good. Rain falls on the roof. Trains leave at night. We like it."
    prompt = one(tokenizer, Request("When do trains leave?", document, "T"), format=SENTENCES)
    behind = tokenizer.decode(prompt.ids[prompt.shareable :].tolist())
    assert behind.startswith("\n\nQuery: When do trains leave?\nSentences:\n Trains leave at night.\n Bread is good.\n")
    assert behind.endswith(".\nSummary:") and behind.count("\n") == 8
    plain = one(tokenizer, Request("When do trains leave?", document, "T"))
    assert document_ids(prompt) == document_ids(plain)
    assert np.array_equal(prompt.ranks[: prompt.document_end], plain.ranks[: plain.document_end])


@given(ANY_TEXT.filter(str.strip), ANY_TEXT.filter(str.strip), st.integers(1, 4), st.integers(200, 2000))
@settings(deadline=None, max_examples=50)
def test_sentences_are_pieces_of_any_document(tokenizer, query, document, count, most):
    format = PromptFormat(("{document}", "\n{query}\0{sentences}"), sentences=count)
    made = encode(tokenizer, format, [Request(query, document)], most)[0]
    if isinstance(made, Prompt):
        assert len(made.ids) <= most
        behind = tokenizer.decode(made.ids[made.shareable :].tolist()).rpartition("\0")[2]
        if "\0" not in document and "\n" not in document:
            lines = [line.strip() for line in behind.split("\n ")]
            assert len(lines) <= count and all(line in document for line in lines)


def test_a_text_without_stops_leaves_room(tokenizer):
    prompt = one(tokenizer, Request("fox", "the fox jumps " * 900), 2000, SENTENCES)
    assert prompt.truncated
    assert len(prompt.ids) - prompt.shareable < SENTENCE_CHARACTERS + 40


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"parts": []},
        {"parts": ["{document}"]},
        {"parts": ["{query}{document}"]},
        {"parts": ["{document}{document}", "{query}"]},
        {"parts": ["{document}", "{query}", "{query}"]},
        {"parts": ["{document}!", "{query}"]},
        {"parts": [1, "{document}", "{query}"]},
        {"parts": ["{document}", "{query}"], "bos_id": "0"},
        {"parts": ["{document}", "{query}"], "output_prefix": None},
        {"parts": ["{document}", "{query}"], "suffix": ""},
        {"parts": ["{document}", "{query} {sentences}"]},
        {"parts": ["{document}", "{query}"], "sentences": 2},
        {"parts": ["{sentences}{document}", "{query}"], "sentences": 2},
        {"parts": ["{document}", "{query} {sentences}"], "sentences": True},
    ],
)
def test_a_bad_format_is_refused(data):
    with pytest.raises(ConfigError, match="prompt format"):
        PromptFormat.from_dict(data)


@pytest.mark.parametrize(
    "format", [DOCUMENT_FIRST, QUERY_FIRST, SENTENCES, PromptFormat(("{document}", "{query}"), 3, "")]
)
def test_formats_survive_storage(format):
    assert PromptFormat.from_dict(format.to_dict()) == format
