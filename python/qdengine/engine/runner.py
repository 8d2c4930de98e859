"""The arrays of the running sequences, and one step over them: propose, pack, forward, verify."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..ops import OpTable
from .graphs import Forward, Graphs
from .sampling import sample
from .scheduler import Entry
from .sequence import Sequence
from .step_buffers import StepBuffers


class Runner:
    """Owns the device side of the engine. Row r of every array is the running sequence whose `row` is r, or nobody's.

    Drafting, packing and verification read and write token ids that the host needs at once: they run on the host.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, host_ops: OpTable, sequences: int, draft: int, step_tokens: int,
        graphs: bool,
    ) -> None:  # fmt: skip
        self.decoder, self.cache, self._host_ops = decoder, cache, host_ops
        capacity = decoder.config.max_positions

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32)

        self._tokens, self._ranks = zeros(sequences, capacity), zeros(sequences, capacity)
        self._bounds, self._limits = zeros(sequences, 4), zeros(sequences)
        self._drafts, self._draft_lens = zeros(sequences, draft), zeros(sequences)
        self._computed, self._most = zeros(sequences), zeros(sequences)
        self._out, self._out_lens = zeros(sequences, draft + 1), zeros(sequences)
        self._buffers = StepBuffers(step_tokens, sequences, -(-capacity // cache.block_tokens), decoder.device)
        self._blocks = [0] * sequences  # of each row, in the block table
        self._forward: Forward = Graphs(self._eager, step_tokens) if graphs else self._eager

    def admit(self, sequence: Sequence) -> None:
        """Fill the sequence's row of the arrays."""
        row, prompt = sequence.row, sequence.prompt
        self._tokens[row, : sequence.length] = torch.from_numpy(sequence.tokens[: sequence.length])
        self._ranks[row, : len(prompt.ranks)] = torch.from_numpy(prompt.ranks)
        self._bounds[row] = torch.tensor(
            [prompt.document_begin, prompt.document_end, len(prompt.ids), sequence.length], dtype=torch.int32
        )
        self._blocks[row] = 0

    def propose(self, running: list[Sequence], most: list[int]) -> np.ndarray:
        """Draft at most `most[i]` tokens for `running[i]`. int32 by row: tokens drafted."""
        limits = self._limits.numpy()
        limits[:] = 0
        for sequence, limit in zip(running, most, strict=True):
            limits[sequence.row] = limit
        self._host_ops.ngram_propose(
            self._drafts, self._draft_lens, self._tokens, self._ranks, self._bounds, self._limits
        )
        return self._draft_lens.numpy()

    def run(self, entries: list[Entry]) -> list[np.ndarray]:
        """One forward pass. For each entry the tokens it wrote: accepted drafts and the model's next one, int32."""
        self._pack(entries)
        buffers = self._buffers
        buffers.send()
        sampled, logits = self._forward(int(buffers.q_indptr[-1]), int(buffers.row_indptr[-1]))
        sampled = sampled.cpu()
        sample(sampled.numpy(), logits, entries, buffers.row_indptr.numpy())
        self._host_ops.verify_draft(
            self._out, self._out_lens, self._drafts, buffers.drafted, sampled, buffers.row_indptr
        )
        out, lens = self._out.numpy(), self._out_lens.tolist()
        rows = [entry.sequence.row for entry in entries]
        return [out[row, : lens[row]] for row in rows]

    def _eager(self, tokens: int, rows: int) -> tuple[Tensor, Tensor]:
        """The model's tokens (int32 [rows]) and logits for a step of `tokens` in the buffers."""
        logits = self.decoder.forward(self._buffers.inputs(tokens, rows), self.cache)
        sampled = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
        self.decoder.ops.greedy_argmax(sampled, logits)
        return sampled, logits

    def append(self, sequence: Sequence, kept: int) -> None:
        """Copy the newest `kept` tokens of a running sequence to its row."""
        begin = sequence.length - kept
        self._tokens[sequence.row, begin : sequence.length] = torch.from_numpy(sequence.tokens[begin : sequence.length])
        self._bounds[sequence.row, 3] = sequence.length

    def _pack(self, entries: list[Entry]) -> None:
        """The entries' tokens into the step's buffers."""
        buffers = self._buffers
        computed, most, draft_lens = self._computed.numpy(), self._most.numpy(), self._draft_lens.numpy()
        tables = buffers.block_tables.numpy()
        most[:] = 0
        for entry in entries:
            sequence, row = entry.sequence, entry.sequence.row
            computed[row], most[row], draft_lens[row] = sequence.computed, entry.new, entry.drafted
            tables[row, self._blocks[row] : len(sequence.blocks)] = sequence.blocks[self._blocks[row] :]
            self._blocks[row] = len(sequence.blocks)
        self._host_ops.pack_step(
            buffers.ids, buffers.positions, buffers.slots, buffers.rows, buffers.kv_lens, buffers.q_indptr,
            buffers.row_indptr, buffers.drafted, self._tokens, self._bounds, self._computed, self._most, self._drafts,
            self._draft_lens, buffers.block_tables, self.cache.block_tokens,
        )  # fmt: skip
