"""pack_step, commit_step and admit_rows on the device. The contract is ops/reference, the sums are those of csrc's
step.h.

Pack: a program a sequence, and one more for the padding. Every program sums the shares of the sequences before its own
(a few hundred at most, read from L2), so that nothing waits for another program; it then lays its tokens down. Commit:
a program a sequence. Admit: a program a record. All are bound by latency. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS

BLOCK = 256
COMMIT_BLOCK = 128


@triton.jit
def _share(bounds, computed, most, reach, draft_lens, s, valid, capacity, max_draft):
    """Of sequences `s`: tokens computed, known ones to take, drafted ones wanted, 1 where the share writes."""
    length = tl.minimum(tl.maximum(tl.load(bounds + 4 * s + 3, valid, 0), 0), capacity)
    first = tl.minimum(tl.maximum(tl.load(computed + s, valid, 0), 0), length)
    end = tl.maximum(tl.load(reach + s, valid, 0), 0)
    known = tl.maximum(tl.minimum(tl.load(most + s, valid, 0), tl.minimum(length, end) - first), 0)
    writes = ((known > 0) & (known == length - first)).to(tl.int32)
    limit = tl.minimum(end - length, max_draft)
    wanted = tl.maximum(tl.minimum(tl.load(draft_lens + s, valid, 0), limit), 0) * writes
    return first, known, wanted, writes


@triton.jit(do_not_specialize=["sequences", "step", "step_rows", "capacity", "max_draft", "blocks", "block_tokens"])
def _pack_kernel(
    ids, positions, slots, rows, kv_lens, q_indptr, row_indptr, drafted, tokens, bounds, computed, most, reach,
    drafts, draft_lens, block_tables, sequences, step, step_rows, capacity, max_draft, blocks, block_tokens,
    tokens_stride, drafts_stride, tables_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0)
    all_known = 0
    all_writes = 0
    known_before = 0
    wanted_before = 0
    writes_before = 0
    for begin in range(0, sequences, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        _, known, wanted, writes = _share(
            bounds, computed, most, reach, draft_lens, j, j < sequences, capacity, max_draft
        )
        before = (j < s).to(tl.int32)
        all_known += tl.sum(known, 0)
        all_writes += tl.sum(writes, 0)
        known_before += tl.sum(known * before, 0)
        wanted_before += tl.sum(wanted * before, 0)
        writes_before += tl.sum(writes * before, 0)
    room = tl.maximum(tl.minimum(step - all_known, step_rows - all_writes), 0)
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
    first, known, wanted, writes = _share(
        bounds, computed, most, reach, draft_lens, s, s < sequences, capacity, max_draft
    )
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


@triton.jit(do_not_specialize=["capacity", "max_out", "stops"])
def _commit_kernel(
    tokens, bounds, computed, finished, kept, out, out_lens, drafted, q_indptr, ends, stop_ids, capacity, max_out,
    stops, tokens_stride, out_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    share = tl.load(q_indptr + s + 1) - tl.load(q_indptr + s)
    tl.store(kept + s, 0)
    if share <= 0:
        return
    count = tl.minimum(tl.maximum(tl.load(out_lens + s), 0), max_out)
    length = tl.minimum(tl.maximum(tl.load(bounds + 4 * s + 3), 0), capacity)
    end = tl.minimum(tl.maximum(tl.load(ends + s), 0), capacity)
    stop = count
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        token = tl.load(out + s * out_stride + i, i < count, 0)
        for k in range(stops):
            is_stop = (i < count) & (token == tl.load(stop_ids + k))
            stop = tl.minimum(stop, tl.min(tl.where(is_stop, i, 0x7FFFFFFF), 0))
    taken = tl.minimum(stop, tl.maximum(end - length, 0))
    for first in range(0, taken, BLOCK):
        i = first + tl.arange(0, BLOCK)
        token = tl.load(out + s * out_stride + i, i < taken, 0)
        tl.store(tokens + s * tokens_stride + length + i, token, i < taken)
    after = tl.load(computed + s) + share - tl.load(drafted + s) + tl.maximum(count - 1, 0)
    length += taken
    tl.store(kept + s, taken)
    tl.store(bounds + 4 * s + 3, length)
    if (count > 0) & ((length >= end) | (taken < count)):
        tl.store(finished + s, tl.where(length >= end, 2, 1))
        after = length
    tl.store(computed + s, after)


@triton.jit(do_not_specialize=["sequences", "capacity", "staged_size"])
def _admit_kernel(
    tokens, ranks, bounds, computed, finished, ends, admitted, staged, sequences, capacity, staged_size, tokens_stride,
    ranks_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    record = admitted + 8 * tl.program_id(0)
    row = tl.load(record)
    length = tl.load(record + 4)
    at = tl.load(record + 7)
    if (row < 0) | (row >= sequences) | (length < 0) | (length > capacity):
        return
    if (at < 0) | (at > staged_size - 2 * length):
        return
    s = row.to(tl.int64)
    for first in range(0, length, BLOCK):
        i = first + tl.arange(0, BLOCK)
        tl.store(tokens + s * tokens_stride + i, tl.load(staged + at + i, i < length, 0), i < length)
        tl.store(ranks + s * ranks_stride + i, tl.load(staged + at + length + i, i < length, 0), i < length)
    bound = tl.arange(0, 4)
    tl.store(bounds + 4 * s + bound, tl.load(record + 1 + bound))
    tl.store(computed + s, tl.load(record + 5))
    tl.store(ends + s, tl.load(record + 6))
    tl.store(finished + s, 0)


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
    reach: Tensor,
    drafts: Tensor,
    draft_lens: Tensor,
    block_tables: Tensor,
    block_tokens: int,
) -> None:
    sequences = len(computed)
    _pack_kernel[(sequences + 1,)](
        ids, positions, slots, rows, kv_lens, q_indptr, row_indptr, drafted, tokens, bounds, computed, most, reach,
        drafts, draft_lens, block_tables, sequences, len(ids), len(rows), tokens.shape[1], drafts.shape[1],
        block_tables.shape[1], block_tokens, tokens.stride(0), drafts.stride(0), block_tables.stride(0), BLOCK=BLOCK,
        **OPTIONS,
    )  # fmt: skip


def commit_step(
    tokens: Tensor,
    bounds: Tensor,
    computed: Tensor,
    finished: Tensor,
    kept: Tensor,
    out: Tensor,
    out_lens: Tensor,
    drafted: Tensor,
    q_indptr: Tensor,
    ends: Tensor,
    stop_ids: Tensor,
) -> None:
    sequences, capacity = tokens.shape
    if sequences == 0:
        return
    _commit_kernel[(sequences,)](
        tokens, bounds, computed, finished, kept, out, out_lens, drafted, q_indptr, ends, stop_ids, capacity,
        out.shape[1], len(stop_ids), tokens.stride(0), out.stride(0), BLOCK=COMMIT_BLOCK, num_warps=1, **OPTIONS,
    )  # fmt: skip


def admit_rows(
    tokens: Tensor,
    ranks: Tensor,
    bounds: Tensor,
    computed: Tensor,
    finished: Tensor,
    ends: Tensor,
    admitted: Tensor,
    staged: Tensor,
) -> None:
    sequences, capacity = tokens.shape
    if sequences == 0 or len(admitted) == 0:
        return
    _admit_kernel[(len(admitted),)](
        tokens, ranks, bounds, computed, finished, ends, admitted, staged, sequences, capacity, len(staged),
        tokens.stride(0), ranks.stride(0), BLOCK=BLOCK, **OPTIONS,
    )  # fmt: skip
