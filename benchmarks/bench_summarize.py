"""The whole engine with the default student on the pages of examples/.

Batch 1 and batch 8, cold and warm documents, with and without lookahead. Skipped where the student is not installed
(qdengine student install qd-135m).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from qdengine import Engine, EngineConfig
from qdengine.config import DEFAULT_STUDENT
from qdengine.errors import StudentError

PAGES = sorted((Path(__file__).parent.parent / "examples" / "pages").glob("*.txt"))
QUERIES = ("What should I know about this?", "When is the best time?", "How much does it cost?", "What can go wrong?")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request):
    try:
        with Engine.from_pretrained(
            DEFAULT_STUDENT, precision=request.param, config=EngineConfig(max_new_tokens=48)
        ) as engine:
            yield engine
    except StudentError as error:
        pytest.skip(str(error))


def requests(count: int, namespace: str, lookahead: int) -> list[dict]:
    pairs = itertools.islice(itertools.cycle(itertools.product(PAGES, QUERIES)), count)
    return [
        {"query": query, "document": page.read_text(encoding="utf-8"), "namespace": namespace, "lookahead": lookahead}
        for page, query in pairs
    ]


@pytest.mark.parametrize("lookahead", [0, 64])
@pytest.mark.parametrize("documents", ["cold", "warm"])
@pytest.mark.parametrize("batch", [1, 8])
def test_summarize(benchmark, engine, batch, documents, lookahead):
    calls = itertools.count()

    def run():
        namespace = f"{documents}-{next(calls)}" if documents == "cold" else "warm"
        summaries = engine.summarize(requests(batch, namespace, lookahead))
        assert all(s.error is None for s in summaries)
        return summaries

    benchmark.group = f"batch {batch}, {documents}, {engine.precision}"
    summaries = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    benchmark.extra_info |= {
        "requests": batch,
        "output_tokens": sum(len(s.token_ids) for s in summaries),
        "steps": sum(s.stats.steps for s in summaries),
        "reused_tokens": sum(s.stats.reused_tokens for s in summaries),
    }
