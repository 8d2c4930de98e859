"""ngram_propose and verify_draft on the device. The contract is ops/reference, the worth that of csrc's ngram.h:

    worth = match length << 49 | sentence start << 48 | overlap << 32 | place

so "longest, then sentence start, then overlap, then latest" is a plain maximum, whatever order it is taken in.
Both are bound by latency. Plan: a program a sequence. Propose weighs BLOCK places at a time and compares further back
only while some place still matches; almost all end at the first token. Verify takes the first token that disagrees.
Limits: overlaps above 65535 count as that. Bounds and limits may be anything: no read is outside the row.
Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS

BLOCK = 1024
VERIFY_BLOCK = 128
MAX_MATCH = tl.constexpr(32)  # as MAX_MATCH of ops/reference
MAX_OVERLAP = tl.constexpr(0xFFFF)


@triton.jit
def _best(tokens, ranks, low, high, length, most, DOCUMENT: tl.constexpr, BLOCK: tl.constexpr):
    """The highest worth of a place in [low, high), -1 for none. `most`: the longest match that counts."""
    best = tl.full([BLOCK], -1, tl.int64)
    for begin in range(low, high, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        alive = place < high
        match = tl.zeros([BLOCK], tl.int32)
        back = 0
        going = most
        while going > back:
            alive = alive & (place - back > low)
            theirs = tl.load(tokens + place - 1 - back, alive, 0)
            alive = alive & (theirs == tl.load(tokens + length - 1 - back))
            match += alive.to(tl.int32)
            back += 1
            going = tl.where(tl.max(alive.to(tl.int32), 0) > 0, most, 0)
        rank = tl.zeros([BLOCK], tl.int32)
        if DOCUMENT:
            rank = tl.load(ranks + place - match, place < high, 0)
        start = rank & 1
        overlap = tl.minimum(tl.maximum(rank >> 1, 0), MAX_OVERLAP)
        worth = (match.to(tl.int64) << 49) | (start.to(tl.int64) << 48) | (overlap.to(tl.int64) << 32) | place
        fits = (place < high) & ((match > 0) | ((most == 0) & (start > 0)))
        best = tl.maximum(best, tl.where(fits, worth, -1))
    return tl.max(best, 0)


@triton.jit
def _clamped(pointer, high):
    return tl.minimum(tl.maximum(tl.load(pointer), 0), high)


@triton.jit(do_not_specialize=["capacity", "max_draft"])
def _propose_kernel(
    drafts, draft_lens, tokens, ranks, bounds, limits, capacity, max_draft, drafts_stride, tokens_stride, ranks_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    limit = _clamped(limits + s, max_draft)
    tl.store(draft_lens + s, 0)
    if limit == 0:
        return
    document_begin = _clamped(bounds + 4 * s, capacity)
    document_end = _clamped(bounds + 4 * s + 1, capacity)
    output_begin = _clamped(bounds + 4 * s + 2, capacity)
    length = _clamped(bounds + 4 * s + 3, capacity)
    row = tokens + s * tokens_stride
    rank = ranks + s * ranks_stride
    most = tl.minimum(tl.maximum(length - output_begin, 0), MAX_MATCH)
    document = _best(row, rank, document_begin, document_end, length, most, True, BLOCK)
    output = _best(row, rank, output_begin, length, length, most, False, BLOCK)
    best = tl.maximum(document, output)
    if best < 0:
        return
    place = (best & 0x7FFFFFFF).to(tl.int32)
    end = tl.where(document >= output, document_end, length)
    count = tl.minimum(end - place, limit)
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        tl.store(drafts + s * drafts_stride + i, tl.load(row + place + i, i < count, 0), i < count)
    tl.store(draft_lens + s, count)


@triton.jit(do_not_specialize=["max_draft", "rows"])
def _verify_kernel(
    out, out_lens, drafts, draft_lens, sampled, row_indptr, max_draft, rows, out_stride, drafts_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    begin = tl.maximum(tl.load(row_indptr + s), 0)
    mine = tl.minimum(tl.load(row_indptr + s + 1), rows) - begin
    tl.store(out_lens + s, 0)
    if mine <= 0:
        return
    drafted = _clamped(draft_lens + s, max_draft)
    # A row is left for the model's own token after the last one kept.
    kept = tl.minimum(drafted, mine - 1)
    for first in range(0, kept, BLOCK):
        i = first + tl.arange(0, BLOCK)
        given = tl.load(drafts + s * drafts_stride + i, i < drafted, 0)
        wrong = (i < drafted) & (given != tl.load(sampled + begin + i, i < mine, 0))
        kept = tl.minimum(kept, tl.min(tl.where(wrong, i, 0x7FFFFFFF), 0))
    for first in range(0, kept + 1, BLOCK):
        i = first + tl.arange(0, BLOCK)
        tl.store(out + s * out_stride + i, tl.load(sampled + begin + i, i <= kept, 0), i <= kept)
    tl.store(out_lens + s, kept + 1)


def ngram_propose(
    drafts: Tensor, draft_lens: Tensor, tokens: Tensor, ranks: Tensor, bounds: Tensor, limits: Tensor
) -> None:
    sequences, max_draft = drafts.shape
    if sequences == 0:
        return
    _propose_kernel[(sequences,)](
        drafts, draft_lens, tokens, ranks, bounds, limits,
        tokens.shape[1], max_draft, drafts.stride(0), tokens.stride(0), ranks.stride(0), BLOCK=BLOCK, **OPTIONS,
    )  # fmt: skip


def verify_draft(
    out: Tensor, out_lens: Tensor, drafts: Tensor, draft_lens: Tensor, sampled: Tensor, row_indptr: Tensor
) -> None:
    sequences, max_draft = drafts.shape
    if sequences == 0:
        return
    _verify_kernel[(sequences,)](
        out, out_lens, drafts, draft_lens, sampled, row_indptr,
        max_draft, len(sampled), out.stride(0), drafts.stride(0), BLOCK=VERIFY_BLOCK, num_warps=1, **OPTIONS,
    )  # fmt: skip
