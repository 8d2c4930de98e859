"""The reference model as training uses it; its logits are compared with transformers in test_parity."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qdengine import checkpoint
from qdengine.config import ModelConfig, RopeScaling
from qdengine.model.reference import ReferenceModel, Tree
from qdengine.model.rope import rope_tables
from tiny import FAMILIES, tiny_bundle

SHAPE = dict(
    vocab_size=50, width=32, ffn_width=48, layers=1, heads=2, kv_heads=1, head_width=16, max_positions=64
)  # fmt: skip
TREES = ("llama", "qwen3", "gpt2")
SHARES = {torch.float32: 1e-4, torch.float64: 1e-10}  # what rounding may change, of the largest value


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


def branched(model: ReferenceModel, beginning: torch.Tensor, branches: list[torch.Tensor]) -> torch.Tensor:
    """Logits of all tokens of the tree, [T, V]."""
    tree = Tree.of([(len(beginning), [len(branch) for branch in branches])])
    return model(torch.cat([beginning, *branches]).unsqueeze(0), tree)[0]


def alone(model: ReferenceModel, beginning: torch.Tensor, branches: list[torch.Tensor]) -> torch.Tensor:
    """The same, each branch behind the beginning by itself."""
    whole = [model(torch.cat([beginning, branch]).unsqueeze(0))[0] for branch in branches]
    return torch.cat([whole[0][: len(beginning)], *(logits[len(beginning) :] for logits in whole)])


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Models whose branches are compared with plain forward passes."""
    loaded = {family: checkpoint.load(tiny_bundle(tmp_path_factory.mktemp(family), family)) for family in TREES}
    return {family: ReferenceModel.from_weights(one.config, one.weights()) for family, one in loaded.items()}


@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(TREES),
    dtype=st.sampled_from(list(SHARES)),
    prefix=st.integers(1, 40),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
@example(family="llama", dtype=torch.float64, prefix=1, lengths=[1], seed=0)
@example(family="gpt2", dtype=torch.float64, prefix=1, lengths=[1] * 40, seed=0)
def test_branches_are_as_if_alone(trees, family, dtype, prefix, lengths, seed):
    model = copy.deepcopy(trees[family]).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    beginning, *branches = (
        torch.randint(0, model.config.vocab_size, (n,), generator=generator) for n in (prefix, *lengths)
    )
    found, wanted = branched(model, beginning, branches), alone(model, beginning, branches)
    assert torch.allclose(found, wanted, rtol=0, atol=SHARES[dtype] * wanted.abs().max().item())
    rows = torch.randperm(len(found), generator=generator)[:5]
    ids, tree = torch.cat([beginning, *branches]).unsqueeze(0), Tree.of([(prefix, lengths)])
    some = model(ids, tree, rows)
    assert some.shape == (1, len(rows), model.config.vocab_size)
    assert torch.allclose(some[0], found[rows], rtol=0, atol=SHARES[dtype] * wanted.abs().max().item())


@pytest.mark.parametrize("family", TREES)
def test_gradients_of_branches_are_as_if_alone(trees, family):
    generator = torch.Generator().manual_seed(1)
    gradients = []
    for forward in (branched, alone):
        model = copy.deepcopy(trees[family]).double()
        generator.manual_seed(1)
        beginning, *branches = (
            torch.randint(0, model.config.vocab_size, (n,), generator=generator) for n in (20, 7, 1, 12)
        )
        logits = forward(model, beginning, branches)
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, wanted in gradients[1].items():
        assert torch.allclose(gradients[0][name], wanted, rtol=0, atol=1e-9 * wanted.abs().max().item()), name


SEVERAL = [(20, [7, 1, 12]), (5, []), (3, [4])]


def test_trees_in_a_row_are_as_if_alone(trees):
    """One of them without branches, as what fills a row up."""
    model = trees["llama"]
    ids = torch.randint(0, model.config.vocab_size, (52,), generator=torch.Generator().manual_seed(2))
    together = model(ids.unsqueeze(0), Tree.of(SEVERAL))[0]
    for shape, own, found in zip(SEVERAL, ids.split([40, 5, 7]), together.split([40, 5, 7]), strict=True):
        wanted = model(own.unsqueeze(0), Tree.of([shape]))[0]
        assert torch.allclose(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item()), shape


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", TREES)
def test_one_kernel_for_all_branches(trees, family):
    """Forwards; with gradients, which it has on a GPU alone, in tests/train/test_gpu.py."""
    model = trees[family]
    ids = torch.randint(0, model.config.vocab_size, (1, 52), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted, found = (model(ids, Tree.of(SEVERAL, fused=fused)) for fused in (False, True))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_branches_do_not_see_each_other(trees):
    """Another neighbour, of another length, changes its own logits alone."""
    model, ids = trees["llama"], torch.arange(30)
    with torch.no_grad():
        one = branched(model, ids[:10], [ids[10:15], ids[15:18]])
        other = branched(model, ids[:10], [ids[10:15], ids[20:30]])
    assert torch.allclose(one[:15], other[:15], rtol=0, atol=1e-4 * one.abs().max().item())
    assert not torch.allclose(one[15:18], other[15:18], rtol=0, atol=0.1)
