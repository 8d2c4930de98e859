"""The engines that compare.py measures.

qdengine, qdengine_no_lookahead
transformers_plain, transformers_lookup   `generate` one request at a time, as it is commonly run; the second with
                                          prompt lookup of 10 tokens.
transformers_compiled                     one at a time with a static cache, which `generate` compiles on a GPU.
transformers_static                       the same over padded batches of 64; rows are sorted by length, so that
                                          little of a batch is padding.
transformers_continuous                   its continuous batching over a paged cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from qdengine import Engine
from qdengine.prompt import encode
from qdengine.request import Request

Rows = list[dict[str, Any]]
Run = Callable[[Rows], list[list[int]]]
ALL = ("plain", "lookup", "compiled", "static", "continuous")
PEERS = {"cpu": ALL[:2], "cuda": ALL}
BATCH = 64  # of transformers_static


@dataclass(slots=True)
class Peer:
    """One engine. run: requests to token ids. offline: it has requests/s; alone: it has a latency of single requests.
    warm_up: rows of its first call."""

    name: str
    run: Run
    offline: bool = True
    alone: bool = True
    warm_up: int = 1
    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    error: str | None = None

    def timed(self, rows: Rows) -> tuple[list[list[int]], float]:
        """Token ids and seconds; none when it fails, now or before."""
        if self.error is not None:
            return [], 0.0
        begin = time.perf_counter()
        try:
            ids = self.run(rows)
        except Exception as error:  # another engine may fail in any way: it is reported
            if self.name.startswith("qdengine"):
                raise
            self.error = f"{type(error).__name__}: {error}"[:300]
            return [], 0.0
        return ids, time.perf_counter() - begin


def ours(engine: Engine, lookahead: int | None, calls: list[int]) -> Run:
    def run(rows: Rows) -> list[list[int]]:
        calls[0] += 1  # a namespace of its own: nothing is warm
        extra = {"namespace": f"call-{calls[0]}"} | ({} if lookahead is None else {"lookahead": lookahead})
        summaries = engine.summarize(
            [{k: r[k] for k in ("query", "title", "document") if k in r} | extra for r in rows]
        )
        failed = next((s.error for s in summaries if s.error), None)
        if failed:
            raise failed
        return [s.token_ids for s in summaries]

    return run


def prompts_of(engine: Engine, rows: Rows, max_new_tokens: int) -> list[list[int]]:
    requests = [Request(r["query"], r["document"], r.get("title", "")) for r in rows]
    room = engine.checkpoint.config.max_positions - max_new_tokens
    return [p.ids.tolist() for p in encode(engine.tokenizer, engine.checkpoint.prompt, requests, room)]


def generate(model: Any, engine: Engine, max_new_tokens: int, batch: int, multiple: int, **options: Any) -> Run:
    """`generate` over batches of rows of similar length, padded on the left to a multiple of `multiple` tokens."""
    stops = list(engine.checkpoint.stop_ids)

    def one(prompts: list[list[int]]) -> list[list[int]]:
        width = -(-max(map(len, prompts)) // multiple) * multiple
        ids = torch.tensor([[stops[0]] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
                eos_token_id=stops, pad_token_id=stops[0], **options,
            )  # fmt: skip
        return [cut(row, stops) for row in out[:, width:].tolist()]

    def run(rows: Rows) -> list[list[int]]:
        prompts = prompts_of(engine, rows, max_new_tokens)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: list[list[int]] = [[]] * len(prompts)
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            for i, ids in zip(chosen, one([prompts[i] for i in chosen]), strict=True):
                found[i] = ids
        return found

    return run


def continuous(model: Any, engine: Engine, max_new_tokens: int) -> Run:
    """Continuous batching; its manager is kept from call to call."""
    import transformers as hf

    stops = list(engine.checkpoint.stop_ids)
    chosen = hf.GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
    )
    # The other engines need memory too.
    config = hf.ContinuousBatchingConfig(max_memory_percent=0.5, allow_block_sharing=False)

    def run(rows: Rows) -> list[list[int]]:
        found = model.generate_batch(
            prompts_of(engine, rows, max_new_tokens), generation_config=chosen, continuous_batching_config=config,
            persistent_manager=True,
        )  # fmt: skip
        bad = next((out.error for out in found.values() if out.error), None)
        if bad or len(found) != len(rows):
            raise RuntimeError(bad or f"{len(found)} results of {len(rows)}")
        return [cut(out.generated_tokens, stops) for out in found.values()]

    return run


def cut(ids: list[int], stops: list[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def theirs(names: tuple[str, ...], folder: Path, engine: Engine, new: int, slice_rows: int) -> list[Peer]:
    import transformers as hf

    def load() -> Any:
        dtype = getattr(torch, engine.precision)
        return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(engine.device).eval()

    on_cpu, model = engine.device.type == "cpu", load()
    static = {"cache_implementation": "static"}
    made = {
        "plain": lambda: Peer("", generate(model, engine, new, 1, 1), offline=on_cpu),
        "lookup": lambda: Peer("", generate(model, engine, new, 1, 1, prompt_lookup_num_tokens=10), offline=on_cpu),
        "compiled": lambda: Peer("", generate(model, engine, new, 1, 1024, **static), offline=False),
        "static": lambda: Peer(
            "", generate(model, engine, new, BATCH, 1024, **static), alone=False, warm_up=slice_rows
        ),
        # A model of its own: it changes how the model attends.
        "continuous": lambda: Peer("", continuous(load(), engine, new), warm_up=slice_rows),
    }  # fmt: skip
    peers = [(name, made[name]()) for name in names]
    for name, peer in peers:
        peer.name = f"transformers_{name}"
    return [peer for _, peer in peers]
