"""Smoothing: no bit of a result changes, and 8 bits lose less."""

from __future__ import annotations

import pytest
import torch
from qdengine import checkpoint, ops
from qdengine.model.decoder import Decoder
from qdengine.model.kv_cache import KVCache
from qdengine.model.layers import Build
from qdengine.model.smooth import smoothed
from qdengine.ops import native
from tiny import FAMILIES, step_inputs, tiny_hf_folder

CPU = torch.device("cpu")
PAIR = native.build_info()["largest_pair"]  # where a weight has less than 8 bits


def outliers(loaded: checkpoint.Checkpoint) -> dict[str, torch.Tensor]:
    """Weights of which two columns of every norm are 40 times as wide as the others, as trained models have them."""
    weights = {name: tensor.float() for name, tensor in loaded.weights().items()}
    for name in weights:
        if "norm1.weight" in name or "norm2.weight" in name:
            weights[name] = weights[name].clone()
            weights[name][3:5] *= 40
    return weights


def logits(loaded, weights, number=None, ready=False, dtype=torch.float32):
    decoder = Decoder(loaded.config, weights, ops.load("cpu"), dtype, CPU, number, ready=ready)
    step = step_inputs([50], list(range(50)), loaded.config.vocab_size)
    return decoder.head.logits(decoder.forward(step, KVCache(loaded.config, 1 << 20, 16, dtype, CPU))).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_bit_changes(family, dtype, tmp_path):
    loaded = checkpoint.load(tiny_hf_folder(tmp_path, family))
    weights = {name: tensor.to(dtype) for name, tensor in outliers(loaded).items()}
    moved = smoothed(Build(ops.load("cpu"), loaded.config, weights, dtype, None, False))
    changed = {name.split(".")[2] for name in weights if not torch.equal(moved[name], weights[name])}
    assert changed >= {"norm1", "norm2", "qkv", "out"} and ("down" in changed) == (family != "gpt2")
    assert all(moved[name].dtype == dtype and moved[name].shape == weights[name].shape for name in weights)
    assert torch.equal(logits(loaded, moved, dtype=dtype), logits(loaded, weights, dtype=dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_8_bits_lose_less(family, tmp_path):
    loaded = checkpoint.load(tiny_hf_folder(tmp_path, family))
    weights = outliers(loaded)
    whole = logits(loaded, weights)
    plain, smooth = (logits(loaded, weights, torch.int8, ready) - whole for ready in (True, False))
    assert 0 < smooth.norm() < (0.92 if PAIR else 0.6) * plain.norm()  # without smoothing 1
