"""The models, defined in plain torch: what the decoder must compute, and what training trains.

`state_dict` has the canonical weight names of `qdengine.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ..config import ModelConfig
from .rope import rope_tables

_attention = F.scaled_dot_product_attention

Shape = tuple[int, Sequence[int]]
"""Tokens of a beginning, and of each of its branches."""


def _norm(config: ModelConfig, width: int) -> nn.Module:
    make = nn.RMSNorm if config.family == "llama" else nn.LayerNorm
    return make(width, eps=config.norm_eps)


@dataclass(frozen=True, slots=True)
class Tree:
    """Beginnings, each with branches that continue it, one after another in one row of T tokens.

    shapes: of each, the tokens of the beginning, which attend causally, and those of its branches, which attend to it
    and to themselves up to each token. positions: int64 [T]. masks: of each, bool [n, prefix + n], what its longest
    branch of n tokens attends to. blocks: instead of them, a sparse mask over all T, where one kernel is to do it
    (`fused`).
    """

    shapes: tuple[Shape, ...]
    positions: Tensor
    masks: tuple[Tensor, ...]
    blocks: BlockMask | None

    @classmethod
    def of(cls, shapes: Sequence[Shape], device: torch.device | str = "cpu", fused: bool = False) -> Tree:
        spans = [span for prefix, lengths in shapes for span in ((0, prefix), *((prefix, prefix + n) for n in lengths))]
        positions = torch.cat([torch.arange(*span) for span in spans]).to(device)
        if fused:
            return cls(tuple(shapes), positions, (), _blocks(shapes, device))
        return cls(tuple(shapes), positions, tuple(_mask(shape, device) for shape in shapes), None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, gqa: bool) -> Tensor:
        """[S, heads, T, width]."""
        if self.blocks is not None:
            # Contiguous: compiled for a CPU with what comes before it, it reads other layouts wrongly (torch 2.13).
            q, k, v = (x.to(v.dtype).contiguous() for x in (q, k, v))
            found = flex_attention(q, k, v, block_mask=self.blocks, enable_gqa=gqa)
            assert isinstance(found, Tensor)  # no log-sums were asked for
            return found
        sizes = [prefix + sum(lengths) for prefix, lengths in self.shapes]
        parts = zip(self.shapes, self.masks, q.split(sizes, 2), k.split(sizes, 2), v.split(sizes, 2), strict=True)
        return torch.cat([_by_branch(*part, gqa) for part in parts], 2)


def _mask(shape: Shape, device: torch.device | str) -> Tensor:
    prefix, lengths = shape
    longest = max(lengths, default=0)
    return torch.ones(longest, prefix + longest, dtype=torch.bool, device=device).tril(prefix)


def _by_branch(shape: Shape, mask: Tensor, q: Tensor, k: Tensor, v: Tensor, gqa: bool) -> Tensor:
    """A branch at a time: together, most of what they would compute is masked."""
    prefix, lengths = shape
    begin = prefix
    mixed = [_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], is_causal=True, enable_gqa=gqa)]
    for n in lengths:
        own = slice(begin, begin + n)
        keys, values = (torch.cat([x[:, :, :prefix], x[:, :, own]], 2) for x in (k, v))
        mixed.append(_attention(q[:, :, own], keys, values, attn_mask=mask[:n, : prefix + n], enable_gqa=gqa))
        begin = own.stop
    return torch.cat(mixed, 2)


def _blocks(shapes: Sequence[Shape], device: torch.device | str) -> BlockMask:
    counts = torch.tensor([n for prefix, lengths in shapes for n in (prefix, *lengths)])
    tree = torch.tensor([i for i, (_, lengths) in enumerate(shapes) for _ in range(1 + len(lengths))])
    branch = torch.tensor([j for _, lengths in shapes for j in range(1 + len(lengths))])
    trees, branches = (x.repeat_interleave(counts).to(device) for x in (tree, branch))

    def attends(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ancestor = (branches[k] == 0) | (branches[k] == branches[q])
        return (trees[q] == trees[k]) & ancestor & (k <= q)

    tokens = int(counts.sum())
    return create_block_mask(attends, None, None, tokens, tokens, device=device)


class Layer(nn.Module):
    """x + out(attention(norm1(x))), then + down(activation(up(norm2(x))))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        gpt2 = config.family == "gpt2"
        heads_width = config.heads * config.head_width
        qkv_width = (config.heads + 2 * config.kv_heads) * config.head_width
        self.norm1, self.norm2 = _norm(config, config.width), _norm(config, config.width)
        self.qkv = nn.Linear(config.width, qkv_width, bias=gpt2 or config.qkv_bias)
        self.out = nn.Linear(heads_width, config.width, bias=gpt2)
        if config.qk_norm:
            self.q_norm, self.k_norm = _norm(config, config.head_width), _norm(config, config.head_width)
        if gpt2:
            self.up = nn.Linear(config.width, config.ffn_width)
        else:
            self.gate_up = nn.Linear(config.width, 2 * config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=gpt2)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, tree: Tree | None) -> Tensor:
        x = x + self.out(self._attend(self.norm1(x), rotation, tree))
        return x + self.down(self._activate(self.norm2(x)))

    def _attend(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, tree: Tree | None) -> Tensor:
        c = self.config
        heads = self.qkv(x).unflatten(-1, (-1, c.head_width)).transpose(1, 2)
        q, k, v = heads.split([c.heads, c.kv_heads, c.kv_heads], 1)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        gqa = c.kv_heads != c.heads
        mixed = _attention(q, k, v, is_causal=True, enable_gqa=gqa) if tree is None else tree.attend(q, k, v, gqa)
        return mixed.transpose(1, 2).flatten(2)

    def _activate(self, x: Tensor) -> Tensor:
        if self.config.family == "gpt2":
            return F.gelu(self.up(x), approximate="tanh")
        gate, up = self.gate_up(x).chunk(2, -1)
        return F.silu(gate) * up


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


class ReferenceModel(nn.Module):
    """ids: int64 [S, T] to logits [S, T, V], causal, positions from 0."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        if config.family == "gpt2":
            self.positions = nn.Embedding(config.max_positions, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = _norm(config, config.width)
        if not config.tied_head:
            self.head = nn.Linear(config.width, config.vocab_size, bias=False)

    @classmethod
    def from_weights(cls, config: ModelConfig, weights: dict[str, Tensor]) -> ReferenceModel:
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        return model

    def forward(self, ids: Tensor, tree: Tree | None = None, rows: Tensor | None = None) -> Tensor:
        """tree: how the tokens of the one row of `ids` follow each other, if not one after another. rows: int64 [R],
        the tokens whose logits are wanted, [S, R, V]: the head is most of the work for a few of them."""
        x = self.embed(ids)
        positions = torch.arange(ids.shape[1], device=ids.device) if tree is None else tree.positions
        rotation = None
        if self.config.family == "gpt2":
            x = x + self.positions(positions)
        else:
            cos, sin = rope_tables(self.config, ids.shape[1])
            rotation = cos.to(ids.device)[positions], sin.to(ids.device)[positions]
        for layer in self.layers:
            x = layer(x, rotation, tree)
        x = self.norm(x if rows is None else x[:, rows])
        return F.linear(x, self.embed.weight if self.config.tied_head else self.head.weight)
