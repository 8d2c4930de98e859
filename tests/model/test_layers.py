"""The layers of a decoder in one call of the extension, beside the same ops one by one."""

from __future__ import annotations

import pytest
import torch
from qdengine import checkpoint, ops
from qdengine.model import layers
from qdengine.model.decoder import Decoder
from qdengine.model.kv_cache import KVCache
from tiny import FAMILIES, step_inputs, tiny_hf_folder

CPU = torch.device("cpu")
NUMBERS = {"float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None), "int8": (torch.float32, torch.int8)}


@pytest.fixture(params=[(family, number) for family in FAMILIES for number in NUMBERS], ids="-".join)
def decoder(request, tmp_path) -> Decoder:
    family, precision = request.param
    loaded = checkpoint.load(tiny_hf_folder(tmp_path, family))
    dtype, number = NUMBERS[precision]
    return Decoder(loaded.config, loaded.weights(), ops.load("cpu"), dtype, CPU, number)


@pytest.mark.parametrize("rows", [[0], [0, 36, 1, 37], []], ids=len)
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("tokens", [[37, 1, 20], [60] * 7], ids=["few", "many"])  # many go through the layers in parts
def test_one_call_is_its_ops_to_the_bit(decoder, rows, kv_dtype, tokens):
    step, made = step_inputs(tokens, rows, decoder.config.vocab_size), []
    for run in (decoder.layers, decoder.layers.parts):
        cache = KVCache(decoder.config, 1 << 20, 16, decoder.dtype, CPU, kv_dtype)
        x, scales = run(step, cache)
        kept = (*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales)
        blocks = [part[:40].flatten(0, 1)[step.slots] for part in kept if part is not None]
        made.append([x, *blocks] + ([] if scales is None else [scales]))
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
    assert decoder.head.logits(decoder.forward(step, cache)).shape == (len(rows), decoder.config.vocab_size)


def test_a_step_of_nothing(decoder):
    nothing = torch.zeros(0, dtype=torch.int32)
    step = step_inputs([3], [], decoder.config.vocab_size)
    step.ids = step.positions = step.slots = step.rows = nothing
    step.block_tables, step.kv_lens, step.q_indptr = torch.zeros(0, 1).int(), nothing, torch.zeros(1).int()
    cache = KVCache(decoder.config, 1 << 20, 16, decoder.dtype, CPU)
    assert decoder.head.logits(decoder.forward(step, cache)).shape == (0, decoder.config.vocab_size)


def test_memory_of_a_long_step_serves_a_short_one(decoder):
    cache = KVCache(decoder.config, 1 << 20, 16, decoder.dtype, CPU)
    short, long = step_inputs([3], [2], decoder.config.vocab_size), step_inputs([60], [59], decoder.config.vocab_size)
    first = decoder.forward(short, cache)
    decoder.forward(long, cache)
    assert torch.equal(decoder.forward(short, cache), first)
    # An activation may be part of the product before it.
    assert all(seconds > 0 for op, seconds in decoder.layers.seconds() if op not in ("quantize", "activation"))


def test_what_it_does_not_take(decoder):
    cache = KVCache(decoder.config, 1 << 20, 16, decoder.dtype, CPU)
    step = step_inputs([3], [2], decoder.config.vocab_size)
    cache.keys.pop()
    with pytest.raises(ValueError, match=r"Layers.forward: keys: expected caches of \d+ layers"):
        decoder.forward(step, cache)
    step.rows = torch.tensor([3], dtype=torch.int32)
    with pytest.raises(ValueError, match="rows of the table"):
        decoder.forward(step, KVCache(decoder.config, 1 << 20, 16, decoder.dtype, CPU))


def test_other_backends_go_op_by_op(tmp_path):
    loaded = checkpoint.load(tiny_hf_folder(tmp_path, "llama"))
    decoder = Decoder(loaded.config, loaded.weights(), ops.load("reference"), torch.float32, CPU)
    assert isinstance(decoder.layers, layers.Layers)
