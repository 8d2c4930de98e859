"""The reference model as training uses it; its logits are compared with transformers in test_parity."""

from __future__ import annotations

import math

import pytest
import torch
from qdengine import checkpoint
from qdengine.config import ModelConfig, RopeScaling
from qdengine.model.reference import ReferenceModel
from qdengine.model.rope import rope_tables
from tiny import FAMILIES, tiny_bundle

SHAPE = dict(
    vocab_size=50, width=32, ffn_width=48, layers=1, heads=2, kv_heads=1, head_width=16, max_positions=64
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_is_the_checkpoint(family, tmp_path):
    loaded = checkpoint.load(tiny_bundle(tmp_path, family))
    weights = loaded.weights()
    state = ReferenceModel.from_weights(loaded.config, weights).state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_learns(family):
    torch.manual_seed(0)
    heads = {} if family == "llama" else {"kv_heads": 2}
    model = ReferenceModel(ModelConfig(family=family, **{**SHAPE, **heads}))
    ids = torch.randint(0, 50, (4, 20))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_later_tokens_do_not_reach_earlier_ones(family, tmp_path):
    loaded = checkpoint.load(tiny_bundle(tmp_path, family))
    model = ReferenceModel.from_weights(loaded.config, loaded.weights())
    ids = torch.randint(0, loaded.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        short, long = model(ids[:, :25]), model(ids)[:, :25]
    assert torch.allclose(short, long, rtol=0, atol=1e-4 * long.abs().max().item())


def test_bfloat16_stays_bfloat16(tmp_path):
    loaded = checkpoint.load(tiny_bundle(tmp_path))
    model = ReferenceModel.from_weights(loaded.config, {k: v.bfloat16() for k, v in loaded.weights().items()})
    assert model(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.bfloat16


def test_rope_tables():
    config = ModelConfig(family="llama", **SHAPE)
    cos, sin = rope_tables(config, 64)
    assert cos.shape == sin.shape == (64, 8) and cos.dtype == torch.float32
    for position, i in ((0, 0), (1, 0), (63, 0), (63, 7), (17, 3)):
        angle = position * 10000.0 ** (-2 * i / 16)
        assert cos[position, i] == pytest.approx(math.cos(angle), abs=1e-5)
        assert sin[position, i] == pytest.approx(math.sin(angle), abs=1e-5)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64)
    plain = ModelConfig(family="llama", **SHAPE)
    scaled = ModelConfig(family="llama", **SHAPE, rope_scaling=scaling)
    angle, other = (torch.atan2(sin[1], cos[1]) for cos, sin in (rope_tables(c, 2) for c in (plain, scaled)))
    # Of wavelengths from 6 to 19,869 positions: below 16 kept, above 64 divided by 8.
    assert other[0] == angle[0] and torch.allclose(other[3:], angle[3:] / 8, rtol=1e-4)
