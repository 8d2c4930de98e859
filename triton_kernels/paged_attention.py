"""paged_attention: out = softmax(q k^T scale) v, causal, over the paged keys and values of each sequence, be it
prefill, decode or verification. One pass over the keys with a running maximum (arXiv 2205.14135).

q, out [T, H, D]; k_cache, v_cache [N, P, G, D]. Bound by tensor-core products in a prefill, by reading the keys and
values for a single token. Plan: a program is a tile of new tokens of one sequence with the H/G query heads of one kv
head, so a key tile is read once for all of them. Sequence s owns the programs from q_indptr[s] // TOKENS + s on, as
many as it needs or one more; T // TOKENS + S are enough for any q_indptr, so the host need not know what is in it.

A row's result is the left fold of splits of SPLIT_KEYS keys, each computed from nothing. A program takes all splits of
its tile; where the workspace has room for their partial results, every split has a program, and a second kernel folds
them, in the same order with the same arithmetic: the same bits, and a GPU busy with a single long sequence.

Numbers of 8 bits enter the products as they are, exact in 16 bits; a key's scale multiplies its scores, a value's its
weights. The weights enter the second product as the sum of two numbers of q's type: rounded once, they alone would cost
more accuracy than the output's rounding. Tile sizes follow from D, dtype and H/G, key tiles begin at multiples of
theirs, and one masked loop takes them all: a row's bits do not depend on the batch, on how a prompt was cut, or on
drafts. Limits: D up to 512, H/G up to 16. Measured on an H200: docs/benchmarks.md.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS, factor, narrow
from .eight_bit import numbers, widen

SEQUENCES = tl.constexpr(128)
SPLIT_KEYS = tl.constexpr(256)  # as SPLIT_KEYS of ops/reference
LOG2_E = 1.4426950408889634
# (bytes of a number, padded D): rows of queries, keys, warps, pipeline stages. Compiled for sm_80 to sm_90, these spill
# next to no registers and fit the 99 KiB of shared memory that sm_89 gives a program.
TILES = {
    (2, 64): (64, 32, 4, 3),
    (2, 128): (64, 32, 8, 3),
    (2, 256): (32, 32, 4, 3),
    (2, 512): (32, 16, 8, 3),
    (4, 64): (32, 32, 8, 2),
    (4, 128): (16, 16, 4, 1),
    (4, 256): (16, 16, 4, 1),
    (4, 512): (16, 16, 4, 1),
}


@triton.jit
def _sequence_of(q_indptr, sequences, index, TOKENS: tl.constexpr, APART: tl.constexpr):
    """The last sequence whose programs begin at or before `index`; they are `APART` more than its tokens ask for."""
    found = -1
    for first in range(0, sequences, SEQUENCES):
        s = first + tl.arange(0, SEQUENCES)
        begin = tl.load(q_indptr + s, s < sequences, 0) // TOKENS + s * APART
        found += tl.sum(((s < sequences) & (begin <= index)).to(tl.int32), 0)
    return found


@triton.jit
def _fold(whole_top, whole_total, whole, top, total, part):
    """A split added to all before it, rounded in one way whatever surrounds it."""
    higher = tl.maximum(whole_top, top)
    shift = tl.where(higher > float("-inf"), higher, 0.0)
    kept = tl.exp2(whole_top - shift)
    added = tl.exp2(top - shift)
    whole_total = tl.fma(whole_total, kept, total * added)
    kept, part = tl.broadcast(kept[:, None], part * added[:, None])
    return higher, whole_total, tl.fma(whole, kept, part)


@triton.jit(do_not_specialize=["sequences", "table_stride", "splits", "rows"])
def _attention_kernel(
    out, workspace, q, k_cache, v_cache, k_scales, v_scales, block_tables, kv_lens, q_indptr,
    sequences, table_stride, splits, rows, scale,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = H // G
    dtype: tl.constexpr = q.dtype.element_ty
    index = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tiles see the most keys: they start first
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    s = tl.maximum(_sequence_of(q_indptr, sequences, index, TOKENS, 1), 0)
    begin = tl.load(q_indptr + s)
    new = tl.load(q_indptr + s + 1) - begin
    first = (index - (begin // TOKENS + s)) * TOKENS
    if (first < 0) | (first >= new):
        return
    length = tl.load(kv_lens + s)
    row = tl.arange(0, ROWS)
    token = first + row // GROUP
    live = (token < new) & (row < TOKENS * GROUP)
    # Rows of padding see what the first token sees: any finite result will do, none is stored.
    position = length - new + tl.where(live, token, first)
    end = length - new + tl.minimum(first + TOKENS, new)
    first_key = split * SPLIT_KEYS
    if splits > 1:
        end = tl.minimum(end, first_key + SPLIT_KEYS)
    if first_key >= end:
        return

    d = tl.arange(0, COLS)
    line = (begin + token).to(tl.int64) * H + kv_head * GROUP + row % GROUP
    place = line[:, None] * D + d[None, :]
    stored = live[:, None] & (d < D)[None, :]
    query = factor(tl.load(q + place, stored, 0.0))
    whole_top = tl.full([ROWS], float("-inf"), tl.float32)
    whole_total = tl.zeros([ROWS], tl.float32)
    whole = tl.zeros([ROWS, COLS], tl.float32)
    table = block_tables + s.to(tl.int64) * table_stride
    for split_begin in range(first_key, end, SPLIT_KEYS):
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, COLS], tl.float32)
        for start in range(split_begin, tl.minimum(split_begin + SPLIT_KEYS, end), KEYS):
            at = start + tl.arange(0, KEYS)
            block = tl.load(table + at // P, at < end, 0)
            head = (block.to(tl.int64) * P + at % P) * G + kv_head
            source = head[:, None] * D + d[None, :]
            inside = (at < end)[:, None] & (d < D)[None, :]
            key = tl.load(k_cache + source, inside, 0)
            value = tl.load(v_cache + source, inside, 0)
            if k_scales is not None:
                key = narrow(widen(key), dtype)
                value = narrow(widen(value), dtype)
            key = factor(key)
            value = factor(value)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            if k_scales is not None:
                scores *= tl.load(k_scales + head, at < end, 0.0)[None, :]
            scores = tl.where(at[None, :] <= position[:, None], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            shift = tl.where(higher > float("-inf"), higher, 0.0)
            weights = tl.exp2(scores - shift[:, None])
            decay = tl.exp2(top - shift)
            total = total * decay + tl.sum(weights, 1)
            acc *= decay[:, None]
            if v_scales is not None:
                weights *= tl.load(v_scales + head, at < end, 0.0)[None, :]
            coarse = narrow(weights, dtype)
            acc = tl.dot(factor(coarse), value, acc, input_precision="ieee")
            if dtype != tl.float32:
                fine = narrow(weights - coarse.to(tl.float32), dtype)
                acc = tl.dot(factor(fine), value, acc, input_precision="ieee")
            top = higher
        whole_top, whole_total, whole = _fold(whole_top, whole_total, whole, top, total, acc)
    if splits > 1:
        all_rows = rows.to(tl.int64)
        at = line + split * all_rows
        tl.store(workspace + at[:, None] * D + d[None, :], whole, stored)
        partials = workspace + splits * all_rows * D + 2 * at
        tl.store(partials, whole_top, live)
        tl.store(partials + 1, whole_total, live)
    else:
        tl.store(out + place, narrow(whole / whole_total[:, None], dtype), stored)


@triton.jit(do_not_specialize=["sequences", "splits", "rows"])
def _fold_kernel(
    out, workspace, kv_lens, q_indptr, sequences, splits, rows,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """A program is a token with the query heads of one kv head."""
    GROUP: tl.constexpr = H // G
    token = tl.program_id(0)
    s = _sequence_of(q_indptr, sequences, token, 1, 0)
    if (s < 0) | (token >= tl.load(q_indptr + sequences)):
        return
    length = tl.load(kv_lens + s) - (tl.load(q_indptr + s + 1) - token) + 1
    d = tl.arange(0, COLS)
    row = tl.arange(0, ROWS)
    live = row < GROUP
    all_rows = rows.to(tl.int64)
    line = token.to(tl.int64) * H + tl.program_id(1) * GROUP + row
    stored = live[:, None] & (d < D)[None, :]
    whole_top = tl.full([ROWS], float("-inf"), tl.float32)
    whole_total = tl.zeros([ROWS], tl.float32)
    whole = tl.zeros([ROWS, COLS], tl.float32)
    for split in range(0, tl.cdiv(length, SPLIT_KEYS)):
        at = line + split * all_rows
        part = tl.load(workspace + at[:, None] * D + d[None, :], stored, 0.0)
        partials = workspace + splits * all_rows * D + 2 * at
        top = tl.load(partials, live, 0.0)
        total = tl.load(partials + 1, live, 1.0)
        whole_top, whole_total, whole = _fold(whole_top, whole_total, whole, top, total, part)
    result = narrow(whole / whole_total[:, None], out.dtype.element_ty)
    tl.store(out + line[:, None] * D + d[None, :], result, stored)


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
    tokens, heads, width = q.shape
    sequences = len(kv_lens)
    if tokens == 0 or sequences == 0:
        return
    _, size, kv_heads, _ = k_cache.shape
    cols = max(16, triton.next_power_of_2(width))
    tile, keys, warps, stages = TILES[q.element_size(), max(64, cols)]
    group = heads // kv_heads
    each, rows = tile // group, tokens * heads
    splits = triton.cdiv(block_tables.shape[1] * size, SPLIT_KEYS.value)
    if workspace is None or splits < 2 or len(workspace) < splits * rows * (width + 2):
        # Of the same type, for the kernel to be the same one; nothing is written there.
        workspace, splits = kv_lens.view(torch.float32), 1
    shape = {"H": heads, "G": kv_heads, "D": width, "COLS": cols}
    _attention_kernel[(tokens // each + sequences, kv_heads, splits)](
        out, workspace, q, numbers(k_cache), numbers(v_cache), k_scales, v_scales, block_tables, kv_lens, q_indptr,
        sequences, block_tables.stride(0), splits, rows, scale * LOG2_E,
        P=size, TOKENS=each, ROWS=tile, KEYS=keys, num_warps=warps, num_stages=stages, **shape, **OPTIONS,
    )  # fmt: skip
    if splits > 1:
        _fold_kernel[(tokens, kv_heads)](
            out, workspace, kv_lens, q_indptr, sequences, splits, rows,
            ROWS=triton.next_power_of_2(group), **shape, **OPTIONS,
        )  # fmt: skip
