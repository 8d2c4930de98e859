"""paged_attention: out = softmax(q k^T scale) v, causal, over the paged keys and values of each sequence, be it
prefill, decode or verification. One pass over the keys with a running maximum (arXiv 2205.14135).

q, out [T, H, D]; k_cache, v_cache [N, P, G, D]. Bound by tensor-core products in a prefill, by reading the keys and
values for a single token. Plan: a program is a tile of new tokens of one sequence with the H/G query heads of one kv
head, so a key tile is read once for all of them. Sequence s owns the programs from q_indptr[s] // TOKENS + s on, as
many as it needs or one more; T // TOKENS + S are enough for any q_indptr, so the host need not know what is in it.

The weights enter the second product as the sum of two numbers of v's type: rounded once, they alone would cost more
accuracy than the output's rounding. Tile sizes follow from D, dtype and H/G, key tiles begin at multiples of theirs,
and one masked loop takes them all: a row's bits do not depend on the batch, on how a prompt was cut, or on drafts.
Limits: D up to 512, H/G up to 16. One program reads all keys of its tile, so one long sequence alone leaves most of a
GPU idle. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS, factor, narrow

SEQUENCES = tl.constexpr(128)
LOG2_E = 1.4426950408889634
# (bytes of a number, padded D): rows of queries, keys, warps, pipeline stages. Compiled for sm_80 to sm_90, these spill
# next to no registers and fit the 99 KiB of shared memory that sm_89 gives a program.
TILES = {
    (2, 64): (64, 64, 4, 3),
    (2, 128): (64, 32, 4, 3),
    (2, 256): (32, 32, 4, 3),
    (2, 512): (32, 16, 8, 3),
    (4, 64): (32, 32, 4, 2),
    (4, 128): (32, 16, 4, 2),
    (4, 256): (16, 16, 4, 1),
    (4, 512): (16, 16, 4, 1),
}


@triton.jit
def _sequence_of(q_indptr, sequences, index, TOKENS: tl.constexpr):
    """The last sequence whose programs begin at or before `index`."""
    found = -1
    for first in range(0, sequences, SEQUENCES):
        s = first + tl.arange(0, SEQUENCES)
        begin = tl.load(q_indptr + s, s < sequences, 0) // TOKENS + s
        found += tl.sum(((s < sequences) & (begin <= index)).to(tl.int32), 0)
    return found


@triton.jit(do_not_specialize=["sequences", "table_stride"])
def _attention_kernel(
    out, q, k_cache, v_cache, block_tables, kv_lens, q_indptr, sequences, table_stride, scale,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = H // G
    index = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tiles see the most keys: they start first
    kv_head = tl.program_id(1)
    s = tl.maximum(_sequence_of(q_indptr, sequences, index, TOKENS), 0)
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

    d = tl.arange(0, COLS)
    place = ((begin + token).to(tl.int64) * H + kv_head * GROUP + row % GROUP)[:, None] * D + d[None, :]
    query = factor(tl.load(q + place, live[:, None] & (d < D)[None, :], 0.0))
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLS], tl.float32)
    table = block_tables + s.to(tl.int64) * table_stride
    for start in range(0, end, KEYS):
        at = start + tl.arange(0, KEYS)
        block = tl.load(table + at // P, at < end, 0)
        source = ((block.to(tl.int64) * P + at % P) * G + kv_head)[:, None] * D + d[None, :]
        inside = (at < end)[:, None] & (d < D)[None, :]
        key = factor(tl.load(k_cache + source, inside, 0.0))
        value = factor(tl.load(v_cache + source, inside, 0.0))
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(at[None, :] <= position[:, None], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        decay = tl.exp2(top - higher)
        total = total * decay + tl.sum(weights, 1)
        acc *= decay[:, None]
        coarse = narrow(weights, v_cache.dtype.element_ty)
        acc = tl.dot(factor(coarse), value, acc, input_precision="ieee")
        if v_cache.dtype.element_ty != tl.float32:
            fine = narrow(weights - coarse.to(tl.float32), v_cache.dtype.element_ty)
            acc = tl.dot(factor(fine), value, acc, input_precision="ieee")
        top = higher
    acc /= total[:, None]
    tl.store(out + place, narrow(acc, out.dtype.element_ty), live[:, None] & (d < D)[None, :])


def paged_attention(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
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
    rows, keys, warps, stages = TILES[q.element_size(), max(64, cols)]
    each = rows // (heads // kv_heads)
    _attention_kernel[(tokens // each + sequences, kv_heads)](
        out, q, k_cache, v_cache, block_tables, kv_lens, q_indptr, sequences, block_tables.stride(0), scale * LOG2_E,
        H=heads, G=kv_heads, D=width, P=size, TOKENS=each, ROWS=rows, KEYS=keys, COLS=cols,
        num_warps=warps, num_stages=stages, **OPTIONS,
    )  # fmt: skip
