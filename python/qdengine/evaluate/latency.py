"""Offline throughput and batch-1 latency of an engine on given requests."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..request import Summary


def measure(
    engine: Engine, requests: list[dict[str, Any]], latency_rows: int, warm_up: list[dict[str, Any]]
) -> dict[str, Any]:
    """requests/s with all `requests` given at once, then milliseconds of the first `latency_rows` one by one.

    Every phase has a namespace of its own, so that no document is warm; `warm` repeats the first phase with its
    documents in memory, as far as the KV budget holds them. Requests with an error count in `failed` and nowhere else;
    when all have one, the first is raised.
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
        engine.summarize([{**request, "namespace": f"{stamp}-alone-{i}"}])
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
        "latency_ms": {
            "p50": float(np.percentile(times, 50)),
            "p90": float(np.percentile(times, 90)),
            "p99": float(np.percentile(times, 99)),
            "mean": float(np.mean(times)),
        },
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
