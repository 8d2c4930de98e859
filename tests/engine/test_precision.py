"""The engine with layers in 8 bits, without loss in every precision, and with a head that writes no logits."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from qdengine import Engine, EngineConfig, errors, ops
from qdengine.checkpoint import load, quantized, save_bundle
from qdengine.model.decoder import Decoder
from qdengine.model.kv_cache import KVCache
from qdengine.model.linear import PackedLinear
from qdengine.ops import native
from safetensors.torch import load_file
from tiny import TEXT, step_inputs, tiny_bundle, tokenizer_json

BATCH = [{"query": query, "document": TEXT * n} for query, n in (("fox", 1), ("When do trains leave?", 3), ("rain", 2))]
FAMILIES = ("llama", "qwen3", "gpt2")
needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or torch.cuda.is_available(), reason="needs TRITON_INTERPRET=1, no GPU"
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {family: tiny_bundle(folder, family) for family in FAMILIES}


def open_engine(bundle, precision="float32", backend=None, **options):
    options = {"kv_bytes": 1 << 23, "max_new_tokens": 40, **options}
    return Engine.from_pretrained(bundle, "cpu", precision, EngineConfig(**options), backend)


def written(engine, batch=BATCH) -> list[list[int]]:
    summaries = engine.summarize(batch)
    assert not any(summary.error for summary in summaries), [s.error for s in summaries]
    return [summary.token_ids for summary in summaries]


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lossless_to_the_bit(bundles, family, precision):
    """On a CPU no bit depends on drafts, batch or chunks: not in 16 bits, and not in 8."""
    with open_engine(bundles[family], precision, lookahead=0) as engine:
        plain = [written(engine, [item])[0] for item in BATCH]
    assert len({*plain[1]}) > 2
    for options in ({}, {"adaptive_lookahead": False}, {"max_step_tokens": 19, "max_sequences": 2, "lookahead": 7}):
        with open_engine(bundles[family], precision, **options) as engine:
            assert written(engine) == plain, options
            assert written(engine) == plain, "a warm document changes nothing"


def logits(bundle, number: torch.dtype | None, backend: str = "cpu", count: int = 80) -> torch.Tensor:
    """Of the first tokens of a text, in float32."""
    checkpoint, table, cpu = load(bundle), ops.load(backend), torch.device("cpu")
    decoder = Decoder(
        checkpoint.config, checkpoint.weights(), table, torch.float32, cpu, number, ready=checkpoint.holds_int8()
    )
    ids = torch.tensor(checkpoint.tokenizer().encode(TEXT * 2).ids[:count], dtype=torch.int32)
    assert len(ids) == count
    inputs = replace(step_inputs([count], list(range(count)), checkpoint.config.vocab_size), ids=ids)
    kept = decoder.forward(inputs, KVCache(checkpoint.config, 1 << 22, 16, torch.float32, cpu))
    return decoder.head.logits(kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_near_the_whole_model(bundles, family):
    whole, small = logits(bundles[family], None), logits(bundles[family], torch.int8)
    paired = native.build_info()["largest_pair"]  # a weight has less than 8 bits
    assert 0 < (small - whole).norm() < (0.08 if paired else 0.05) * whole.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_in_int8_is_what_int8_makes_of_its_weights(bundles, family, tmp_path):
    whole = load(bundles[family])
    small = save_bundle(
        tmp_path / "small",
        whole.config,
        quantized(whole.config, whole.weights()),
        tokenizer_json(),
        whole.prompt,
        (1,),
        "test",
    )
    assert torch.equal(logits(small, torch.int8), logits(bundles[family], torch.int8))
    numbers = load_file(small / "model.safetensors")
    assert numbers["layers.0.down.weight"].dtype == torch.int8 and numbers["embed.weight"].dtype == torch.float32
    with open_engine(small, "float32") as engine:
        assert all(written(engine))


def test_int8_keeps_no_wider_weights(bundles):
    with open_engine(bundles["llama"], "int8") as engine:
        assert engine.precision == "int8"
        parts = engine._runner.decoder.layers.parts
        for layer in parts.layers:
            for linear in (layer.qkv, layer.out, layer.up, layer.down):
                assert isinstance(linear, PackedLinear) and not hasattr(linear, "weight")
        assert engine._runner.decoder.head._linear.packed.nbytes < 1.5 * parts.embed.numel(), "nor the head"


def test_float8_needs_a_gpu(bundles):
    with pytest.raises(errors.BackendError, match="precision 'float8' needs a GPU"):
        open_engine(bundles["llama"], "float8")


@needs_interpreter
def test_fused_head(bundles):
    """The same tokens without logits, and logits for requests that sample or are verbatim."""
    short = {"query": "fox", "document": "The quick brown fox.", "max_new_tokens": 2}
    made = []
    for backend, fused in (("cpu", False), ("triton", True)):
        with open_engine(bundles["llama"], backend=backend, fused_head=fused, lookahead=4) as engine:
            made.append(written(engine, [short, {**short, "temperature": 1.0}, {**short, "verbatim": True}]))
    assert made[0] == made[1]
    long = {"query": "fox", "document": TEXT * 2, "max_new_tokens": 2}
    with open_engine(bundles["llama"], backend="triton", fused_head=True, max_step_tokens=64) as engine:
        assert written(engine, [long]), "a step of a chunk wants no row's logits"


@needs_interpreter
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_int8_in_triton(bundles, family):
    whole, small = (logits(bundles[family], number, "triton", 5) for number in (None, torch.int8))
    assert 0 < (small - whole).norm() < 0.05 * whole.norm()


def test_a_fused_head_needs_triton(bundles):
    with pytest.raises(errors.ConfigError, match=r"fused_head is a Triton kernel for a GPU; backend 'cpu' has none"):
        open_engine(bundles["llama"], fused_head=True)
