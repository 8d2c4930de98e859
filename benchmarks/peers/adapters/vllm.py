"""vLLM, on a CPU or a GPU, plain and with drafts from the prompt's n-grams."""

from __future__ import annotations

import os
from typing import Any

# Read when vllm is imported. It takes all of its KV memory (in GB) at once, and there are several of it. One process:
# the engine is stopped and ended with its worker.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

import vllm

from peers.adapters import Run, cut

NGRAM = {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 2}


def versions() -> dict[str, str]:
    return {"vllm": vllm.__version__}


def load(model: str, settings: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    options: dict[str, Any] = {"speculative_config": NGRAM} if settings["lookup"] else {}
    if settings["device"] == "cuda":
        options["gpu_memory_utilization"] = 0.15  # the other engines need memory too
    engine = vllm.LLM(
        model=model, dtype=settings["dtype"], max_model_len=settings["context"],
        enable_prefix_caching=settings["prefix_caching"], **options,
    )  # fmt: skip
    stops = settings["stops"]
    sampling = vllm.SamplingParams(temperature=0, max_tokens=settings["new_tokens"], stop_token_ids=stops)

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        prompts = [{"prompt_token_ids": request["ids"]} for request in requests]
        return [
            cut(list(out.outputs[0].token_ids), stops) for out in engine.generate(prompts, sampling, use_tqdm=False)
        ]

    return run, {"precision": settings["dtype"]}
