"""Verbatim mode on a tiny random model: the promise for any text, lossless, and plain neighbours unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdengine import Engine, EngineConfig, errors
from qdengine._host import sentence_starts
from tiny import TEXT, tiny_bundle

WRITTEN = [
    "Rain falls on the roof.", "Trains leave at night!", "雨水流进桶里。", "Is it a fox?", "🦊👩‍👩‍👧 jumps",
    "e\u0301a\u0308 Ångström",
    "the dog", "\u202eright to left", "ends with white space \u3000", "Rain falls again.", "\x00\ufffd", "İstanbul ǅ ﬁ",
]  # fmt: skip
BETWEEN = [" ", "  ", "\n", "\n\n", "\r\n", " \n ", "", "\t", "\u2028", " … ", "。", ". "]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
pieces = st.tuples(st.sampled_from(WRITTEN) | any_text, st.sampled_from(BETWEEN)).map("".join)
documents = st.tuples(
    st.sampled_from(["", " ", "\n \u3000"]), st.lists(pieces, min_size=1, max_size=9).map("".join)
).map("".join)
requests = st.builds(
    lambda document, query, title, new: {
        "document": document, "query": query, "title": title, "max_new_tokens": new, "verbatim": True,
    },
    documents.filter(lambda text: bool(text.strip())),
    st.sampled_from(["fox dog", "When do trains leave?", "雨水"]),
    st.sampled_from(["", "A title.", "Rain"]),
    st.integers(1, 40),
)  # fmt: skip
PER_TOKEN = 2 * 2 * 2 * 16 * 4
quietly = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


def open_engine(bundle, **options):
    options = {"kv_bytes": 1 << 22, "max_new_tokens": 40, **options}
    return Engine.from_pretrained(bundle, device="cpu", precision="float32", config=EngineConfig(**options))


@pytest.fixture(scope="module")
def engine(bundle):
    with open_engine(bundle) as engine:
        yield engine


def bare(text: str) -> str:
    """Without white space, and without characters of which bytes are missing."""
    return "".join(text.split()).replace("\ufffd", "")


def check(engine, request, summary):
    """The promise; that the spans are what the model wrote; and that they are whole sentences."""
    document, spans = request["document"], summary.spans
    assert summary.error is None
    assert summary.text == "\n".join(document[a:b] for a, b in spans)
    assert all(0 <= a < b <= len(document) and document[a:b] == document[a:b].strip() for a, b in spans)
    assert bare(engine.tokenizer.decode(summary.token_ids)) == bare(summary.text)
    starts = {*sentence_starts(document), len(document)}
    for i, (a, b) in enumerate(spans):
        behind = b + len(document[b:]) - len(document[b:].lstrip())
        cut = i == len(spans) - 1 and (summary.finish_reason == "length" or summary.truncated)
        assert a in starts and (behind in starts or cut), (a, b)


@settings(max_examples=40, **quietly)
@given(request=requests)
def test_text_is_the_spans_for_any_document(engine, request):
    summary = engine.summarize([request])[0]
    check(engine, request, summary)
    assert "".join(engine.stream(request)) == summary.text


@settings(max_examples=12, **quietly)
@given(
    batch=st.lists(st.tuples(requests, st.booleans()), min_size=1, max_size=4),
    lookahead=st.integers(0, 70),
    step_tokens=st.sampled_from([1, 7, 64, 1024]),
    sequences=st.integers(1, 5),
    blocks=st.sampled_from([40, 400]),
    adaptive=st.booleans(),
)
def test_lossless_beside_plain_neighbours(bundle, engine, batch, lookahead, step_tokens, sequences, blocks, adaptive):
    """Any draft length, batch and chunking, and memory short enough to preempt: what each request gives alone."""
    asked = [{**request, "verbatim": mode} for request, mode in batch]
    alone = [engine.summarize([{**request, "lookahead": 0, "namespace": "alone"}])[0] for request in asked]
    config = {
        "kv_bytes": blocks * 16 * PER_TOKEN, "max_step_tokens": step_tokens, "max_sequences": sequences,
        "lookahead": 80, "adaptive_lookahead": adaptive,
    }  # fmt: skip
    with open_engine(bundle, **config) as other:
        together = other.summarize([{**request, "lookahead": lookahead} for request in asked])
    assert [(s.token_ids, s.text, s.spans) for s in together] == [(s.token_ids, s.text, s.spans) for s in alone]
    assert all((s.spans is not None) == request["verbatim"] for s, request in zip(together, asked, strict=True))


@pytest.mark.parametrize("new", range(1, 12))
def test_the_limit_in_the_middle_of_a_character(engine, new):
    """A fox takes four tokens here; of one that was not finished nothing is shown."""
    request = {"query": "fox", "document": "🦊🦊🦊🦊", "max_new_tokens": new, "verbatim": True}
    summary = engine.summarize([request])[0]
    assert summary.finish_reason == "length" and len(summary.token_ids) == new
    assert (summary.text, summary.spans) == (("🦊" * (new // 4), [(0, new // 4)]) if new >= 4 else ("", []))
    assert "".join(engine.stream(request)) == summary.text


def test_a_document_that_is_cut(engine):
    request = {"query": "rain", "document": " " + "".join(f"Rain {i} falls. " for i in range(300)), "verbatim": True}
    summary = engine.summarize([request])[0]
    assert summary.truncated
    check(engine, request, summary)


def test_no_sentence_is_written_twice(engine):
    request = {
        "query": "fox",
        "document": "One fox.\nTwo dogs.\nThree owls. Four.",
        "max_new_tokens": 200,
        "verbatim": True,
    }
    summary = engine.summarize([request])[0]
    check(engine, request, summary)
    assert summary.finish_reason == "stop", "all there is was written, or less"
    covered = [i for a, b in summary.spans for i in range(a, b)]
    assert len(covered) == len(set(covered))


def test_requests_are_checked(engine):
    good = {"query": "rain", "document": TEXT, "verbatim": True}
    wrong, warm, right = engine.summarize([{**good, "verbatim": 1}, {**good, "temperature": 0.5}, good])
    assert isinstance(wrong.error, errors.InvalidTypeError) and "verbatim must be True or False" in str(wrong.error)
    assert isinstance(warm.error, errors.LimitError) and "verbatim requests are greedy" in str(warm.error)
    assert right.error is None and right.spans and warm.spans is None


def test_a_model_that_cannot_stop(bundle):
    with open_engine(bundle) as engine:
        engine.checkpoint = replace(engine.checkpoint, stop_ids=())
        summary = engine.summarize([{"query": "rain", "document": TEXT, "verbatim": True}])[0]
    assert isinstance(summary.error, errors.RequestError) and "no stop token" in str(summary.error)
