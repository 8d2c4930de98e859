"""What the benchmark reports, with an engine and a clock whose every move is known."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from qdengine.errors import EmptyInputError
from qdengine.evaluate import latency
from qdengine.request import Stats, Summary


class FakeEngine:
    """A request takes 1 s for every x of a document that is new in the namespace and 0.25 s else; one without a query
    fails."""

    def __init__(self, clock):
        self.clock, self.seen, self.calls = clock, set(), []

    def summarize(self, batch):
        self.calls.append(batch)
        return [self._one(**request) for request in batch]

    def _one(self, query, document, namespace):
        if not query:
            return Summary.failed(EmptyInputError("query is empty; give its text"))
        key = (namespace, document)
        known = key in self.seen
        self.seen.add(key)
        self.clock.now += 0.25 if known else document.count("x")
        stats = Stats(prompt_tokens=10 * len(document), reused_tokens=8 * known, steps=2, drafted=7, accepted=5)
        return Summary(text="x", token_ids=[1] * 6, stats=stats)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    clock.perf_counter = lambda: clock.now
    clock.time_ns = lambda: 17
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_figures_by_hand(clock):
    engine = FakeEngine(clock)
    requests = [{"query": "q", "document": "x" * n} for n in (1, 2, 3, 4)]
    result = latency.measure(engine, requests, 3, [{"query": "q", "document": "up"}])
    assert result.pop("peak_rss_bytes") > 1 << 20
    times = result.pop("latency_ms")
    assert result == {
        "rows": 4,
        "failed": 0,
        "requests_per_s": 4 / 10,
        "warm_requests_per_s": 4 / 1,
        "warm_reused_share": 32 / 100,
        "prompt_tokens": 25,
        "output_tokens": 6,
        "tokens_per_step": 3,
        "steps": 2,
        "drafted": 7,
        "accepted": 5,
    }
    assert times == pytest.approx({"p50": 2000, "p90": 2800, "p99": 2980, "mean": 2000})


def test_every_phase_is_cold_but_the_warm_one(clock):
    engine = FakeEngine(clock)
    requests = [{"query": "q", "document": "x"}] * 2
    latency.measure(engine, requests, 9, requests)
    assert [len(call) for call in engine.calls] == [2, 2, 2, 1, 1]
    names = [{request["namespace"] for request in call} for call in engine.calls]
    assert all(len(name) == 1 for name in names)
    assert names[1] == names[2]
    assert len(set.union(*names)) == 4
    alone = [request["document"] for call in engine.calls[3:] for request in call]
    assert len({"x", *alone}) == 3, "not even the text is known"


def test_failed_requests_count_in_no_figure(clock):
    engine = FakeEngine(clock)
    good = [{"query": "q", "document": "x" * n} for n in (1, 2)]
    bad = {"query": "", "document": "x"}
    result = latency.measure(engine, [bad, good[0], bad, good[1]], 1, [])
    alone = latency.measure(FakeEngine(clock), good, 1, [])
    assert result.pop("rows") == 4 and result.pop("failed") == 2
    assert alone.pop("rows") == 2 and alone.pop("failed") == 0
    del result["peak_rss_bytes"], alone["peak_rss_bytes"]
    assert result == alone
    with pytest.raises(EmptyInputError, match="query is empty"):
        latency.measure(engine, [bad, bad], 1, [])


class SlowEngine:
    """Answers one request at a time, in `ms` each, and stops for `pause` seconds at the first."""

    def __init__(self, ms, pause=0.0):
        self.ms, self.pause, self.lock, self.seen = ms, pause, threading.Lock(), []

    def summarize(self, batch):
        (request,) = batch
        with self.lock:
            time.sleep(1e-3 * self.ms + self.pause)
            self.pause = 0.0
            self.seen.append(request)
        if not request["query"]:
            return [Summary.failed(EmptyInputError("query is empty; give its text"))]
        return [Summary(text="x")]


def test_under_load_every_arrival_is_sent_once_and_new():
    engine = SlowEngine(0.1)
    requests = [{"query": "q", "document": "a"}, {"query": "", "document": "b"}]
    result = latency.under_load(engine, requests, rate=200, seconds=0.2, threads=8)
    assert (result["rate"], result["requests"], result["failed"]) == (200, 40, 20)
    assert len({request["document"] for request in engine.seen}) == 40
    assert len({request["namespace"] for request in engine.seen}) == 40
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
    assert 0 < result["served_per_s"] < 200


def test_under_load_a_pause_is_in_every_latency_that_it_caused():
    """Arrivals go on while the engine stands still, whether a thread is free to send them or not."""
    for threads in (1, 64):
        engine = SlowEngine(0.1, pause=0.4)
        result = latency.under_load(engine, [{"query": "q", "document": "a"}], rate=100, seconds=0.6, threads=threads)
        assert result["latency_ms"]["mean"] > 60, "a closed loop would find one slow request in 60: 7 ms"


def test_under_load_raises_what_the_engine_raises():
    class Closed:
        def summarize(self, batch):
            raise RuntimeError("closed")

    with pytest.raises(RuntimeError, match="closed"):
        latency.under_load(Closed(), [{"query": "q", "document": "a"}], rate=1000, seconds=0.01)
