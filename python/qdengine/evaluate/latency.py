"""Offline throughput, batch-1 latency, and latency under load, of an engine on given requests."""

from __future__ import annotations

import resource
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..request import Summary


def measure(
    engine: Engine, requests: list[dict[str, Any]], latency_rows: int, warm_up: list[dict[str, Any]]
) -> dict[str, Any]:
    """requests/s with all `requests` given at once, then milliseconds of the first `latency_rows` one by one.

    Every phase has texts and a namespace of its own, so that no document is known; `warm` repeats the first phase with
    its documents in memory, as far as the KV budget holds them. Requests with an error count in `failed` and nowhere
    else; when all have one, the first is raised.
    """
    stamp = time.time_ns()

    def at_once(phase: str) -> tuple[list[Summary], float]:
        begin = time.perf_counter()
        summaries = engine.summarize([{**r, "namespace": f"{stamp}-{phase}"} for r in requests])
        return summaries, time.perf_counter() - begin

    engine.summarize([{**r, "namespace": f"{stamp}-up"} for r in warm_up])
    cold, seconds = at_once("cold")
    warm, warm_seconds = at_once("cold")
    served = [request for request, summary in zip(requests, cold, strict=True) if summary.error is None]
    if not served and cold[0].error is not None:
        raise cold[0].error
    times = []
    for i, request in enumerate(served[:latency_rows]):
        begin = time.perf_counter()
        engine.summarize([_unseen(request, stamp, f"alone-{i}")])
        times.append(1e3 * (time.perf_counter() - begin))
    stats = [s.stats for s in cold if s.error is None]
    warm_stats = [s.stats for s in warm if s.error is None]
    tokens = sum(len(s.token_ids) for s in cold)
    steps = sum(s.steps for s in stats)
    return {
        "rows": len(requests),
        "failed": len(requests) - len(served),
        "requests_per_s": len(served) / seconds,
        "warm_requests_per_s": len(warm_stats) / warm_seconds,
        "warm_reused_share": sum(s.reused_tokens for s in warm_stats)
        / max(1, sum(s.prompt_tokens for s in warm_stats)),
        "prompt_tokens": float(np.mean([s.prompt_tokens for s in stats])),
        "output_tokens": tokens / len(served),
        "tokens_per_step": tokens / max(1, steps),
        "steps": steps / len(served),
        "drafted": float(np.mean([s.drafted for s in stats])),
        "accepted": float(np.mean([s.accepted for s in stats])),
        "latency_ms": _distribution(times),
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def under_load(
    engine: Engine, requests: list[dict[str, Any]], rate: float, seconds: float, threads: int = 256, seed: int = 0
) -> dict[str, Any]:
    """Milliseconds from a request's arrival to its summary, at `rate` arrivals a second for `seconds`.

    Arrivals are a Poisson process, drawn beforehand: they do not wait for the engine (open loop), and a request that no
    thread was free to send yet has been waiting since its arrival. `requests` are taken in turn, every one with a
    document that is new. Sequences in the engine are at most `threads`. served_per_s: those answered, over the time to
    the last answer.
    """
    count = max(1, round(rate * seconds))
    arrivals = np.random.default_rng(seed).exponential(1 / rate, count).cumsum()
    stamp = time.time_ns()
    times, failed = [0.0] * count, [False] * count
    turns = iter(range(count))
    begin = time.perf_counter()

    def send() -> None:
        for i in turns:
            early = begin + arrivals[i] - time.perf_counter()
            if early > 0:
                time.sleep(early)
            summary = engine.summarize([_unseen(requests[i % len(requests)], stamp, f"load-{i}")])[0]
            times[i] = 1e3 * (time.perf_counter() - begin - arrivals[i])
            failed[i] = summary.error is not None

    with ThreadPoolExecutor(min(threads, count)) as pool:
        for sender in [pool.submit(send) for _ in range(min(threads, count))]:
            sender.result()
    took = time.perf_counter() - begin
    good = [ms for ms, bad in zip(times, failed, strict=True) if not bad]
    return {
        "rate": rate,
        "requests": count,
        "failed": count - len(good),
        "served_per_s": len(good) / took,
        "latency_ms": _distribution(good),
    }


def _unseen(request: dict[str, Any], stamp: int, name: str) -> dict[str, Any]:
    """The request with a document that no cache holds, not even that of its tokens: a few characters are added."""
    return {**request, "document": f"{request['document']}\n{stamp % 0xFFFF:x} {name}", "namespace": f"{stamp}-{name}"}


def _distribution(times: list[float]) -> dict[str, float]:
    if not times:
        return {}
    named = {f"p{q}": float(np.percentile(times, q)) for q in (50, 90, 99)}
    return named | {"mean": float(np.mean(times))}
