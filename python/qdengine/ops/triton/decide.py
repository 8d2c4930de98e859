"""The ops that choose tokens: argmax, drafts, and which of them are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import triton_kernels as kernels
from .check import Check


def greedy_argmax(out: Tensor, logits: Tensor) -> None:
    check = Check("greedy_argmax", "logits", logits)
    check("logits", logits, (-1, -1))
    check.index("out", out, len(logits))
    if logits.shape[1] == 0:
        check.fail("logits", "at least one column", "none")
    with torch.cuda.device_of(out):
        kernels.greedy_argmax(out, logits)


def allowed_argmax(
    chosen: Tensor,
    logits: Tensor,
    row_indptr: Tensor,
    tokens: Tensor,
    ranks: Tensor,
    bounds: Tensor,
    drafts: Tensor,
    verbatim: Tensor,
    twins: Tensor,
    stop_ids: Tensor,
    break_id: int,
) -> None:
    check = Check("allowed_argmax", "logits", logits)
    check("logits", logits, (-1, -1))
    check.index("chosen", chosen, len(logits))
    check.index("verbatim", verbatim, -1)
    sequences = len(verbatim)
    check.index("row_indptr", row_indptr, sequences + 1)
    check.index("tokens", tokens, sequences, -1, dense=False)
    check.index("ranks", ranks, *tokens.shape, dense=False)
    check.index("bounds", bounds, sequences, 4)
    check.index("drafts", drafts, sequences, -1, dense=False)
    check.index("twins", twins, logits.shape[1])
    check.index("stop_ids", stop_ids, -1)
    if len(stop_ids) == 0:
        check.fail("stop_ids", "at least one id", "none")
    with torch.cuda.device_of(chosen):
        kernels.allowed_argmax(
            chosen, logits, row_indptr, tokens, ranks, bounds, drafts, verbatim, twins, stop_ids, break_id
        )


def ngram_propose(
    drafts: Tensor, draft_lens: Tensor, tokens: Tensor, ranks: Tensor, bounds: Tensor, limits: Tensor
) -> None:
    check = Check("ngram_propose", "drafts", drafts, floating=False)
    check.index("drafts", drafts, -1, -1, dense=False)
    sequences = len(drafts)
    check.index("draft_lens", draft_lens, sequences)
    check.index("tokens", tokens, sequences, -1, dense=False)
    check.index("ranks", ranks, *tokens.shape, dense=False)
    check.index("bounds", bounds, sequences, 4)
    check.index("limits", limits, sequences)
    with torch.cuda.device_of(drafts):
        kernels.ngram_propose(drafts, draft_lens, tokens, ranks, bounds, limits)


def verify_draft(
    out: Tensor, out_lens: Tensor, drafts: Tensor, draft_lens: Tensor, sampled: Tensor, row_indptr: Tensor
) -> None:
    check = Check("verify_draft", "drafts", drafts, floating=False)
    check.index("drafts", drafts, -1, -1, dense=False)
    sequences = len(drafts)
    check.index("out", out, sequences, drafts.shape[1] + 1, dense=False)
    check.index("out_lens", out_lens, sequences)
    check.index("draft_lens", draft_lens, sequences)
    check.index("sampled", sampled, -1)
    check.index("row_indptr", row_indptr, sequences + 1)
    with torch.cuda.device_of(drafts):
        kernels.verify_draft(out, out_lens, drafts, draft_lens, sampled, row_indptr)
