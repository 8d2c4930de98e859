"""transformers' `generate`, one request at a time or in padded batches, and its continuous batching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from peers.adapters import Run, cut

# batch: rows of one call. multiple: of tokens, to which a batch is padded. The rest are options of `generate`.
HOW: dict[str, dict[str, Any]] = {
    "plain": {"batch": 1, "multiple": 1},
    "lookup": {"batch": 1, "multiple": 1, "prompt_lookup_num_tokens": 10},
    "batch8": {"batch": 8, "multiple": 1},
    "compiled": {"batch": 1, "multiple": 1024, "cache_implementation": "static"},
    "static": {"batch": 64, "multiple": 1024, "cache_implementation": "static"},
}


def versions() -> dict[str, str]:
    return {"transformers": hf.__version__, "torch": torch.__version__}


def load(model: str, settings: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    torch.set_num_threads(settings["threads"])
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    dtype = settings["dtype"]
    loaded = hf.AutoModelForCausalLM.from_pretrained(Path(model), dtype=getattr(torch, dtype))
    loaded = loaded.to(settings["device"]).eval()
    limits = {
        "max_new_tokens": settings["new_tokens"], "do_sample": False, "eos_token_id": settings["stops"],
        "pad_token_id": settings["stops"][0],
    }  # fmt: skip
    how = settings["how"]
    run = continuous(loaded, limits) if how == "continuous" else generate(loaded, limits, **HOW[how])
    return run, {"precision": dtype}


def generate(model: Any, limits: dict[str, Any], batch: int, multiple: int, **options: Any) -> Run:
    """`generate` over batches of rows of similar length, so that little of a batch is padding, which is on the left."""
    stops, pad = limits["eos_token_id"], limits["pad_token_id"]

    def one(prompts: list[list[int]]) -> list[list[int]]:
        width = -(-max(map(len, prompts)) // multiple) * multiple
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, **limits, **options)
        return [cut(row, stops) for row in out[:, width:].tolist()]

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        prompts = [request["ids"] for request in requests]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: list[list[int]] = [[]] * len(prompts)
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            for i, ids in zip(chosen, one([prompts[i] for i in chosen]), strict=True):
                found[i] = ids
        return found

    return run


def continuous(model: Any, limits: dict[str, Any]) -> Run:
    """Continuous batching over a paged cache; its manager is kept from call to call."""
    chosen = hf.GenerationConfig(**limits)
    # The other engines need memory too.
    config = hf.ContinuousBatchingConfig(max_memory_percent=0.3, allow_block_sharing=False)

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        found = model.generate_batch(
            [request["ids"] for request in requests], generation_config=chosen, continuous_batching_config=config,
            persistent_manager=True,
        )  # fmt: skip
        bad = next((out.error for out in found.values() if out.error), None)
        if bad or len(found) != len(requests):
            raise RuntimeError(bad or f"{len(found)} results of {len(requests)}")
        return [cut(out.generated_tokens, limits["eos_token_id"]) for out in found.values()]

    return run
