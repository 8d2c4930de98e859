"""Keys and values: how many blocks a budget gives, in the model's precision and in 8 bits."""

from __future__ import annotations

import pytest
import torch
from qdengine.config import ModelConfig
from qdengine.errors import ConfigError
from qdengine.model.kv_cache import KVCache

CONFIG = ModelConfig(
    family="llama",
    vocab_size=50,
    width=32,
    ffn_width=48,
    layers=3,
    heads=4,
    kv_heads=2,
    head_width=16,
    max_positions=64,
)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kv_dtype", "dtype", "head_bytes"),
    [
        ("auto", torch.float32, 64),
        ("auto", torch.bfloat16, 32),
        ("int8", torch.bfloat16, 20),
        ("float8", torch.float32, 20),
    ],
)
def test_all_tensors_fit_the_budget(kv_dtype, dtype, head_bytes):
    block = 2 * 3 * 2 * head_bytes * 8
    cache = KVCache(CONFIG, 10 * block + 5, 8, dtype, CPU, kv_dtype)
    assert (cache.block_bytes, cache.blocks) == (block, 10)
    stored = [x for x in (*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales) if x is not None]
    assert sum(x.numel() * x.element_size() for x in stored) == 10 * block
    assert cache.keys[0].shape == cache.values[2].shape == (10, 8, 2, 16)
    assert cache.workspace is None
    if kv_dtype == "auto":
        assert cache.keys[0].dtype == dtype and cache.key_scales == cache.value_scales == [None] * 3
    else:
        assert cache.key_scales[0].shape == (10, 8, 2) and cache.value_scales[0].dtype == torch.float32


def test_too_little():
    with pytest.raises(
        ConfigError, match=r"less than one block of 8 tokens \(1920 bytes for this model in torch.int8\)"
    ):
        KVCache(CONFIG, 1919, 8, torch.float32, CPU, "int8")
