"""The ops on the arrays of the running sequences: what they put into a step, and what they take from it."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import triton_kernels as kernels
from .check import Check


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
    check = Check("pack_step", "ids", ids, floating=False)
    check.index("ids", ids, -1)
    check.index("computed", computed, -1)
    step, sequences = len(ids), len(computed)
    check.index("positions", positions, step)
    check.index("slots", slots, step)
    check.index("rows", rows, -1)
    check.index("kv_lens", kv_lens, sequences)
    check.index("q_indptr", q_indptr, sequences + 1)
    check.index("row_indptr", row_indptr, sequences + 1)
    check.index("drafted", drafted, sequences)
    check.index("tokens", tokens, sequences, -1, dense=False)
    check.index("bounds", bounds, sequences, 4)
    check.index("most", most, sequences)
    check.index("reach", reach, sequences)
    check.index("drafts", drafts, sequences, -1, dense=False)
    check.index("draft_lens", draft_lens, sequences)
    check.index("block_tables", block_tables, sequences, -1, dense=False)
    check.positive("block_tokens", block_tokens)
    with torch.cuda.device_of(ids):
        kernels.pack_step(
            ids, positions, slots, rows, kv_lens, q_indptr, row_indptr, drafted,
            tokens, bounds, computed, most, reach, drafts, draft_lens, block_tables, block_tokens,
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
    check = Check("commit_step", "tokens", tokens, floating=False)
    check.index("tokens", tokens, -1, -1, dense=False)
    sequences = len(tokens)
    check.index("bounds", bounds, sequences, 4)
    check.index("computed", computed, sequences)
    check.index("finished", finished, sequences)
    check.index("kept", kept, sequences)
    check.index("out", out, sequences, -1, dense=False)
    check.index("out_lens", out_lens, sequences)
    check.index("drafted", drafted, sequences)
    check.index("q_indptr", q_indptr, sequences + 1)
    check.index("ends", ends, sequences)
    check.index("stop_ids", stop_ids, -1)
    with torch.cuda.device_of(tokens):
        kernels.commit_step(
            tokens, bounds, computed, finished, kept, out, out_lens, drafted, q_indptr, ends, stop_ids
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
    check = Check("admit_rows", "tokens", tokens, floating=False)
    check.index("tokens", tokens, -1, -1, dense=False)
    sequences = len(tokens)
    check.index("ranks", ranks, *tokens.shape, dense=False)
    check.index("bounds", bounds, sequences, 4)
    check.index("computed", computed, sequences)
    check.index("finished", finished, sequences)
    check.index("ends", ends, sequences)
    check.index("admitted", admitted, -1, 8)
    check.index("staged", staged, -1)
    with torch.cuda.device_of(tokens):
        kernels.admit_rows(tokens, ranks, bounds, computed, finished, ends, admitted, staged)
