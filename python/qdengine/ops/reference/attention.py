"""Rotation with the cache, and attention over it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .numbers import at_least_float32, in_8_bits

SPLIT_KEYS = 256
"""`paged_attention` may work on this many keys of a row apart from the others."""


def rope_append(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> None:
    """Normalise and rotate q and k of every token, write q, and append k and v to the paged cache.

    q: [T, H, D] out; k_cache, v_cache: [N, P, G, D] out; qkv: [T, (H + 2G) D], the heads of q, then of k, then of v.
    positions: int32 [T]; slots: int32 [T], block * P + place, or -1 for "do not append".
    cos, sin: float32 [C, D/2] (float64 in float64 calls), rows by position; None for no rotation (learned positions).
    The pairs rotated are (i, i + D/2), as in Llama and Qwen checkpoints (arXiv 2104.09864).
    q_weight, k_weight: [D], an RMS norm of each head with eps before the rotation (Qwen 3); None for none.

    The caches have the dtype of q, or are int8 or float8_e4m3fn, and then k_scales, v_scales: float32 [N, P, G] out.
    Each head x of a token, rounded to q's dtype, has a scale of its own, in float32: x is stored as
    round(x * (largest / max |x|)), to nearest, ties to even, with scale max |x| / largest; largest is 127 or 448. A
    head of zeros has zeros and scale 0.
    """
    tokens, heads, width = q.shape
    kv_heads = k_cache.shape[2]
    parts = qkv.view(tokens, heads + 2 * kv_heads, width)
    query, key, value = parts.split([heads, kv_heads, kv_heads], 1)
    query, key = at_least_float32(query), at_least_float32(key)
    if q_weight is not None and k_weight is not None:
        query = query * torch.rsqrt(query.square().mean(-1, keepdim=True) + eps) * at_least_float32(q_weight)
        key = key * torch.rsqrt(key.square().mean(-1, keepdim=True) + eps) * at_least_float32(k_weight)
    if cos is not None and sin is not None:
        c, s = cos[positions.long()].unsqueeze(1), sin[positions.long()].unsqueeze(1)
        query, key = _rotate(query, c, s), _rotate(key, c, s)
    q.copy_(query)
    kept = slots >= 0
    where = slots[kept].long()
    for x, cache, scales in ((key, k_cache, k_scales), (value, v_cache, v_scales)):
        new = x[kept].to(q.dtype)
        if scales is not None:
            new, scale = in_8_bits(new, cache.dtype)
            scales.view(-1, kv_heads)[where] = scale.to(scales.dtype)
        # float8 has no scatter of its own; its bytes do.
        _bytes(cache).view(-1, kv_heads, width)[where] = _bytes(new)


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.itemsize == 1 else x


def _widened(cache: Tensor, scales: Tensor | None, q: Tensor) -> Tensor:
    """The cache's numbers in the type that is computed in."""
    wide = cache.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return wide if scales is None else wide * scales.unsqueeze(-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def paged_attention(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    workspace: Tensor | None,
    block_tables: Tensor,
    kv_lens: Tensor,
    q_indptr: Tensor,
    scale: float,
) -> None:
    """Causal attention of the new tokens of every sequence over its paged keys and values, be it prefill or decode.

    out, q: [T, H, D]; k_cache, v_cache: [N, P, G, D] in the dtype of q, or in 8 bits with k_scales, v_scales: float32
    [N, P, G], as `rope_append` writes them. Query head h reads kv head h // (H / G). scale: positive.
    block_tables: int32 [S, B], block ids in order; entries past ceil(kv_lens / P) are never read.
    kv_lens: int32 [S], tokens of each sequence including the new ones; q_indptr: int32 [S + 1], rows of sequence s
    are q_indptr[s] to q_indptr[s + 1]. Row i of n new ones has position kv_len - n + i and sees the
    positions up to its own.
    workspace: float32 [any] or None, contents of no matter. Where it has `attention_workspace` numbers for this call, a
    backend may work on every SPLIT_KEYS keys apart, for a GPU to be busy with few tokens. No result depends on it.
    """
    group = q.shape[1] // k_cache.shape[2]
    size = k_cache.shape[1]
    bounds = q_indptr.tolist()
    for s, length in enumerate(kv_lens.tolist()):
        begin, end = bounds[s], bounds[s + 1]
        if begin == end:
            continue
        blocks = block_tables[s, : -(-length // size)].long()
        key, value = (
            _widened(cache[blocks], None if scales is None else scales[blocks], q).flatten(0, 1)[:length]
            for cache, scales in ((k_cache, k_scales), (v_cache, v_scales))
        )
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", at_least_float32(q[begin:end]), key) * scale
        position = torch.arange(length - (end - begin), length, device=q.device).unsqueeze(1)
        scores.masked_fill_(torch.arange(length, device=q.device) > position, -math.inf)
        out[begin:end] = torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), value).to(out.dtype)


def attention_workspace(tokens: int, heads: int, head_width: int, keys: int) -> int:
    """float32 numbers of a `paged_attention` workspace, for T = tokens and block tables of `keys` = B P keys: of each
    split and row (token, head) the values' weighted sum, the largest score and the sum of weights."""
    return -(-keys // SPLIT_KEYS) * tokens * heads * (head_width + 2)
