"""A model made ready for 8 bits: width moved from activations to weights (SmoothQuant, arXiv 2211.10438).

A few columns of what a linear layer takes are far wider than the rest, and set the scale of whole rows. Column j is
divided by s[j], and column j of the weight multiplied by it: s = sqrt(widest x / widest weight) of the column,
relative to their mean, as the nearest power of two, so that in floating point every result keeps its bits. The division
goes into what makes the column: a norm, the values' part of qkv, the ungated half of gate_up. How wide a column gets is
seen on random tokens, in a pass by the library: it depends little on the text, and where the library rounds otherwise
another power of two may come out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import linear
from .kv_cache import KVCache
from .layers import Build, Layers, StepInputs

_TOKENS, _BLOCK, _LEAST = 128, 16, 1e-5
_PRODUCTS = ("qkv", "out", "up", "down")


@torch.inference_mode()
def smoothed(build: Build) -> dict[str, Tensor]:
    """Weights of the same function that lose less in 8 bits."""
    config, widest, made = build.config, _widest(build), dict(build.weights)
    up = "gate_up" if config.family == "llama" else "up"
    for i in range(config.layers):
        layer = f"layers.{i}."
        _move(made, layer + "norm1", layer + "qkv", widest[i, "qkv"])
        _move(made, layer + "norm2", layer + up, widest[i, "up"])
        # The heads of a group take the same values.
        shape = config.kv_heads, config.heads // config.kv_heads, config.head_width
        _move(made, layer + "qkv", layer + "out", widest[i, "out"].view(shape))
        if config.family == "llama":  # gelu lets no factor through
            _move(made, layer + up, layer + "down", widest[i, "down"])
    return made


class _Watched:
    """A library's product of a weight as the file has it, and the widest number in every column of what it took."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        self.widest = x.abs().amax(0).float()
        return linear.Linear(self._weight.to(x.dtype), self._bias)(x)


class _Watching(Build):
    def linear(self, name: str) -> linear.Layer:
        return _Watched(self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))


def _widest(build: Build) -> dict[tuple[int, str], Tensor]:
    """Of every layer's products, in a pass over random tokens in floating point."""
    config, embed = build.config, build.weights["embed.weight"]
    layers = Layers(_Watching(build.ops, config, build.weights, build.dtype, None, False), None)
    tokens = min(_TOKENS, config.max_positions)
    blocks = -(-tokens // _BLOCK)
    ids = torch.randint(config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    places = torch.arange(tokens, dtype=torch.int32)
    table, ends = torch.arange(blocks, dtype=torch.int32)[None], torch.tensor([0, tokens], dtype=torch.int32)
    step = StepInputs(*(t.to(embed.device) for t in (ids, places, places, table, ends[1:], ends, places)))
    size = 2 * config.layers * config.kv_heads * config.head_width * build.dtype.itemsize * blocks * _BLOCK
    layers(step, KVCache(config, size, _BLOCK, build.dtype, embed.device))
    watched = {(i, name): getattr(layer, name) for i, layer in enumerate(layers.layers) for name in _PRODUCTS}
    return {key: product.widest for key, product in watched.items()}


def _move(weights: dict[str, Tensor], maker: str, taker: str, widest: Tensor) -> None:
    """widest: of taker's columns; [groups, heads, width] where the heads of a group take the same."""
    weight = weights[f"{taker}.weight"]
    if weight.dtype == torch.float16:  # whose small numbers a power of two could round
        weight = weight.float()
    shared = widest if widest.dim() == 3 else widest[None, None]
    columns = weight.abs().amax(0).float().view_as(shared)
    factors = (shared.amax(1, keepdim=True).clamp(min=_LEAST) / columns.amax(1, keepdim=True).clamp(min=_LEAST)).sqrt()
    factors = (factors / factors.log().mean().exp()).log2().round().exp2()
    weights[f"{taker}.weight"] = weight * factors.expand_as(shared).flatten().to(weight.dtype)
    for name in (f"{maker}.weight", f"{maker}.bias"):
        if name in weights:  # of a matrix, its last rows
            made = weights[name].clone()
            made[-factors.numel() :] /= factors.flatten().to(made.dtype).view(-1, *[1] * (made.dim() - 1))
            weights[name] = made
