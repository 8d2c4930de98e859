"""The ops on the paged cache: rope_append and paged_attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import triton_kernels as kernels
from .check import Check


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
    check = Check("rope_append", "q", q)
    check("q", q, (-1, -1, -1), dense=True)
    check.caches(q, k_cache, v_cache, k_scales, v_scales)
    tokens, heads, width = q.shape
    check("qkv", qkv, (tokens, (heads + 2 * k_cache.shape[2]) * width))
    check.index("positions", positions, tokens)
    check.index("slots", slots, tokens)
    check.both("cos", "sin", cos is not None, sin is not None)
    check.both("q_weight", "k_weight", q_weight is not None, k_weight is not None)
    if cos is not None and sin is not None:
        if width % 2:
            check.fail("q", "an even head width for a rotation", width)
        check("cos", cos, (-1, width // 2), torch.float32, dense=True)
        check("sin", sin, cos.shape, torch.float32, dense=True)
        if len(cos) == 0:
            check.fail("cos", "at least one position", "none")
    if q_weight is not None and k_weight is not None:
        check("q_weight", q_weight, (width,))
        check("k_weight", k_weight, (width,))
        check.positive("eps", eps)
    with torch.cuda.device_of(q):
        kernels.rope_append(
            q, k_cache, v_cache, k_scales, v_scales, qkv, positions, slots, cos, sin, q_weight, k_weight, eps
        )


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
    check = Check("paged_attention", "out", out)
    check("out", out, (-1, -1, -1), dense=True)
    check("q", q, out.shape, dense=True)
    check.caches(q, k_cache, v_cache, k_scales, v_scales)
    if workspace is not None:
        check("workspace", workspace, (-1,), torch.float32)
    check.index("block_tables", block_tables, -1, -1, dense=False)
    check.index("kv_lens", kv_lens, len(block_tables))
    check.index("q_indptr", q_indptr, len(block_tables) + 1)
    check.positive("scale", scale)
    with torch.cuda.device_of(out):
        kernels.paged_attention(
            out, q, k_cache, v_cache, k_scales, v_scales, workspace, block_tables, kv_lens, q_indptr, scale
        )
