"""pack_step on the device. The contract is ops/reference.py, the sums are those of csrc's step.h.

A program a sequence, and one more for the padding. Every program sums the shares of the sequences before its own (a few
hundred at most, read from L2), so that nothing waits for another program; it then lays its tokens down. Bound by
latency. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS

BLOCK = 256


@triton.jit
def _share(bounds, computed, most, draft_lens, s, valid, capacity, max_draft):
    """Of sequences `s`: tokens computed, known ones to take, drafted ones wanted, 1 where the share writes."""
    length = tl.minimum(tl.maximum(tl.load(bounds + 4 * s + 3, valid, 0), 0), capacity)
    first = tl.minimum(tl.maximum(tl.load(computed + s, valid, 0), 0), length)
    known = tl.minimum(tl.maximum(tl.load(most + s, valid, 0), 0), length - first)
    writes = ((known > 0) & (known == length - first)).to(tl.int32)
    wanted = tl.minimum(tl.maximum(tl.load(draft_lens + s, valid, 0), 0), max_draft) * writes
    return first, known, wanted, writes


@triton.jit(do_not_specialize=["sequences", "step", "step_rows", "capacity", "max_draft", "blocks", "block_tokens"])
def _pack_kernel(
    ids, positions, slots, rows, kv_lens, q_indptr, row_indptr, drafted, tokens, bounds, computed, most, drafts,
    draft_lens, block_tables, sequences, step, step_rows, capacity, max_draft, blocks, block_tokens, tokens_stride,
    drafts_stride, tables_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0)
    all_known = 0
    known_before = 0
    wanted_before = 0
    writes_before = 0
    for begin in range(0, sequences, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        _, known, wanted, writes = _share(bounds, computed, most, draft_lens, j, j < sequences, capacity, max_draft)
        before = (j < s).to(tl.int32)
        all_known += tl.sum(known, 0)
        known_before += tl.sum(known * before, 0)
        wanted_before += tl.sum(wanted * before, 0)
        writes_before += tl.sum(writes * before, 0)
    room = tl.maximum(step - all_known, 0)
    drafted_before = tl.minimum(wanted_before, room)
    first_token = tl.minimum(known_before + drafted_before, step)
    first_row = tl.minimum(writes_before + drafted_before, step_rows)
    tl.store(q_indptr + s, first_token)
    tl.store(row_indptr + s, first_row)
    if s == sequences:
        for begin in range(first_token, step, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            tl.store(ids + i, 0, i < step)
            tl.store(positions + i, 0, i < step)
            tl.store(slots + i, -1, i < step)
        for begin in range(first_row, step_rows, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            tl.store(rows + i, 0, i < step_rows)
        return
    first, known, wanted, writes = _share(bounds, computed, most, draft_lens, s, s < sequences, capacity, max_draft)
    drafted_after = tl.minimum(wanted_before + wanted, room)
    end = tl.minimum(known_before + known + drafted_after, step)
    last_row = tl.minimum(writes_before + writes + drafted_after, step_rows)
    count = end - first_token
    tl.store(drafted + s, drafted_after - drafted_before)
    tl.store(kv_lens + s, tl.where(count > 0, first + count, 0))
    row = s.to(tl.int64)
    for begin in range(0, count, BLOCK):
        n = begin + tl.arange(0, BLOCK)
        mine = n < count
        taken = tl.load(tokens + row * tokens_stride + first + n, mine & (n < known), 0)
        draft = tl.load(drafts + row * drafts_stride + n - known, mine & (n >= known), 0)
        position = first + n
        block = position // block_tokens
        inside = block < blocks
        table = tl.load(block_tables + row * tables_stride + block, mine & inside, 0)
        tl.store(ids + first_token + n, tl.where(n < known, taken, draft), mine)
        tl.store(positions + first_token + n, position, mine)
        slot = table * block_tokens + position % block_tokens
        tl.store(slots + first_token + n, tl.where(inside, slot, -1), mine)
    for begin in range(first_row, last_row, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        token = tl.minimum(tl.maximum(end - last_row + i, 0), tl.maximum(end - 1, 0))
        tl.store(rows + i, token, i < last_row)


def pack_step(
    ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    rows: Tensor,
    kv_lens: Tensor,
    q_indptr: Tensor,
    row_indptr: Tensor,
    drafted: Tensor,
    tokens: Tensor,
    bounds: Tensor,
    computed: Tensor,
    most: Tensor,
    drafts: Tensor,
    draft_lens: Tensor,
    block_tables: Tensor,
    block_tokens: int,
) -> None:
    sequences = len(computed)
    _pack_kernel[(sequences + 1,)](
        ids, positions, slots, rows, kv_lens, q_indptr, row_indptr, drafted, tokens, bounds, computed, most, drafts,
        draft_lens, block_tables, sequences, len(ids), len(rows), tokens.shape[1], drafts.shape[1],
        block_tables.shape[1], block_tokens, tokens.stride(0), drafts.stride(0), block_tables.stride(0), BLOCK=BLOCK,
        **OPTIONS,
    )  # fmt: skip
