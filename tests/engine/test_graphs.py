"""What a captured step needs that can be shown without a GPU: sizes that hold every step, and harmless padding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdengine import Engine, EngineConfig
from qdengine.engine.graphs import Buckets
from tiny import FAMILIES, TEXT, tiny_bundle

BATCH = [
    {"query": query, "document": TEXT * n, "temperature": n - 1.0}
    for n in (1, 2)
    for query in ("What jumps over the dog?", "When do trains leave?", "火车")
]


@given(st.integers(1, 20_000), st.data())
def test_buckets_hold_every_step(step_tokens, data):
    buckets = Buckets(step_tokens)
    tokens = data.draw(st.integers(1, step_tokens))
    rows = data.draw(st.integers(0, tokens))
    size, wanted = buckets(tokens, rows)
    assert tokens <= size <= min(step_tokens, max(1, tokens * 3 // 2))
    assert rows <= wanted <= size
    assert (size, wanted) in buckets.all() and len(buckets.all()) < 120


@pytest.mark.parametrize("family", FAMILIES)
def test_planning_ahead_and_padding_change_no_token(family, tmp_path):
    bundle = tiny_bundle(tmp_path, family)
    config = EngineConfig(kv_bytes=1 << 24, max_new_tokens=24, max_step_tokens=100, max_sequences=4)

    def ids(lag: bool) -> list[list[int]]:
        with Engine.from_pretrained(bundle, "cpu", "float32", config) as engine:
            engine._runner.lag = lag  # steps that are planned ahead are padded to the sizes of captured ones
            summaries = engine.summarize(BATCH)
        assert all(s.error is None for s in summaries)
        return [s.token_ids for s in summaries]

    assert ids(lag=True) == ids(lag=False)


def test_drafts_leave_every_sequence_its_row(tmp_path):
    """A step has room for more drafts than it has rows for, where a prefill makes it large and few drafts were
    expected: those that are too many are dropped, and no sequence goes without its next token."""
    config = EngineConfig(max_new_tokens=24, max_step_tokens=1024, max_sequences=32, adaptive_lookahead=False)
    batch = [{"query": "fox", "document": f"{i}. {TEXT}"} for i in range(64)]

    def ids(lag: bool) -> list[list[int]]:
        full = []
        with Engine.from_pretrained(tiny_bundle(tmp_path / str(lag)), "cpu", "float32", config) as engine:
            runner = engine._runner
            runner.lag, launch = lag, runner.launch

            def launched(entries, drafts):
                assert runner._flights < 500, "it goes on for ever"
                flight = launch(entries, 0 if lag else drafts)
                full.append(int(runner._row_indptr[-1]))
                return flight

            runner.launch = launched
            summaries = engine.summarize(batch)
        assert [s.error for s in summaries] == [None] * len(batch)
        assert not lag or 64 in full, "the rows were never all taken"
        return [s.token_ids for s in summaries]

    assert ids(lag=True) == ids(lag=False)
