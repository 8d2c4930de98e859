"""The gate on a CPU's speed: ratios of what is measured in turns in one run, never times.

A ratio is the median over rounds, each of which measures both sides one after the other. The least that is wanted lies
far below what was measured (in brackets: two cores with AVX2), for noise not to cross it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from itertools import count

import pytest
import torch
from qdengine import Engine, EngineConfig, checkpoint, ops
from qdengine.config import ModelConfig
from qdengine.model.linear import PackedLinear
from qdengine.model.reference import ReferenceModel
from qdengine.prompt import DOCUMENT_FIRST
from tiny import TEXT, tokenizer_json, vocab_size

pytestmark = pytest.mark.slow
SHAPE = ModelConfig("llama", vocab_size(), 576, 1536, 6, 9, 3, 64, 2048)  # six layers of SmolLM2-135M
ROUNDS = 5
FRESH = count()


@pytest.fixture(scope="module")
def weights():
    g = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=g) * 0.05 for name, shape in checkpoint.shapes(SHAPE).items()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, weights):
    path = tmp_path_factory.mktemp("speed") / "model"
    return checkpoint.save_bundle(path, SHAPE, weights, tokenizer_json(), DOCUMENT_FIRST, (1,), "test")


@pytest.fixture(scope="module")
def engine(bundle):
    config = EngineConfig(kv_bytes=1 << 28, max_new_tokens=48, adaptive_lookahead=False)
    with Engine.from_pretrained(bundle, "cpu", "int8", config) as opened:
        yield opened


def requests(documents: int = 2, **options) -> list[dict]:
    """Verbatim, on documents of about 600 tokens in long sentences: whatever the weights are, sentences are copied."""
    words = [word.strip(".") for word in TEXT.split() if word.isascii()]
    made = []
    for seed in range(documents):
        chosen = random.Random(seed)
        sentences = [" ".join(chosen.choices(words, k=40)).capitalize() + "." for _ in range(13)]
        made.append({"query": "fox", "document": " ".join(sentences), "verbatim": True, **options})
    return made


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def ratio(slow: Callable[[], object], fast: Callable[[], object]) -> float:
    slow(), fast()
    return statistics.median(seconds(slow) / seconds(fast) for _ in range(ROUNDS))


def summarize(engine: Engine, batch: list[dict]) -> Callable[[], None]:
    def call() -> None:
        assert not any(summary.error for summary in engine.summarize(batch))

    return call


def cold(engine: Engine, batch: list[dict]) -> Callable[[], None]:
    return lambda: summarize(engine, [{**item, "namespace": str(next(FRESH))} for item in batch])()


def test_int8_against_bfloat16():
    """[1.7]"""
    table = ops.load("cpu")
    weight, x = torch.randn(3072, 576), torch.randn(192, 576)
    numbers, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x))
    table.quantize(numbers, scales, x)
    whole = PackedLinear(table, weight.bfloat16(), None, torch.bfloat16)
    small = PackedLinear(table, weight, None, torch.bfloat16, torch.int8)
    rows = x.bfloat16()
    assert ratio(lambda: [whole(rows) for _ in range(8)], lambda: [small(numbers, scales) for _ in range(8)]) > 1.05


def test_lookahead_on_against_off(engine):
    """[3.5]"""
    warm = summarize(engine, requests())
    assert ratio(summarize(engine, requests(lookahead=0)), warm) > 1.5


def test_warm_against_cold(engine):
    """[7.3]"""
    short = requests(max_new_tokens=4)
    assert ratio(cold(engine, short), summarize(engine, short)) > 2


def test_against_plain_torch(engine, weights):
    """Prompts of documents that are new, by the engine in int8, and by the model's definition in float32. [1.7]"""
    batch = requests(max_new_tokens=1)
    model = ReferenceModel.from_weights(SHAPE, weights).eval()
    prompts = [torch.tensor([engine.tokenizer.encode(item["document"]).ids.tolist()]) for item in batch]

    @torch.inference_mode()
    def plain() -> None:
        for prompt in prompts:
            model(prompt, rows=torch.tensor([-1]))

    assert ratio(plain, cold(engine, batch)) > 1.1
