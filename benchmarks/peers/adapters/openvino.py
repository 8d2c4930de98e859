"""OpenVINO GenAI: its LLMPipeline for one request at a time, and its continuous batching."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from peers.adapters import Run, cut


def versions() -> dict[str, str]:
    return {"openvino_genai": genai.__version__, "openvino": openvino.__version__}


def convert(source: str, destination: str, kind: str) -> None:
    """kind: fp16, fp32 or int8, of the weights."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig, OVModelForCausalLM, OVWeightQuantizationConfig

    if kind == "int8":  # main_export leaves out what it is told of quantisation
        weights = OVWeightQuantizationConfig(bits=8, sym=False)
        OVModelForCausalLM.from_pretrained(source, export=True, quantization_config=weights).save_pretrained(
            destination
        )
    else:
        main_export(source, destination, task="text-generation-with-past", ov_config=OVConfig(dtype=kind))


def load(model: str, settings: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": settings["threads"]}
    config = generation(settings)
    if settings["lookup"]:
        options["prompt_lookup"] = True
    batching = settings["batching"]
    run = at_once(model, config, settings, options) if batching else one_by_one(model, config, options)
    return (lambda requests: [cut(ids, settings["stops"]) for ids in run(requests)]), {"precision": settings["weights"]}


def generation(settings: dict[str, Any]) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens = settings["new_tokens"]
    config.do_sample = False
    config.apply_chat_template = False
    config.stop_token_ids = set(settings["stops"])
    if settings["lookup"]:
        config.num_assistant_tokens, config.max_ngram_size = 8, 3
    return config


def one_by_one(model: str, config: Any, options: dict[str, Any]) -> Run:
    pipeline = genai.LLMPipeline(model, "CPU", **options)
    return lambda requests: [list(pipeline.generate(tensor(r["ids"]), config).tokens[0]) for r in requests]


def at_once(model: str, config: Any, settings: dict[str, Any], options: dict[str, Any]) -> Run:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 4  # GB
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = settings["prefix_caching"]
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties=options)

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        found = pipeline.generate([tensor(r["ids"]) for r in requests], [config] * len(requests))
        return [list(result.m_generation_ids[0]) for result in found]

    return run


def tensor(ids: list[int]) -> Any:
    return openvino.Tensor(np.array([ids], dtype=np.int64))
