"""The arrays of the running sequences, and one step over them: propose, forward, verify."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..model.decoder import Decoder, StepInputs
from ..model.kv_cache import KVCache
from ..ops import OpTable
from .sampling import sample
from .scheduler import Entry
from .sequence import Sequence


class Runner:
    """Owns the device side of the engine. Row r of every array is the running sequence whose `row` is r."""

    def __init__(self, decoder: Decoder, cache: KVCache, host_ops: OpTable, max_sequences: int, max_draft: int) -> None:
        self.decoder, self.cache = decoder, cache
        capacity = decoder.config.max_positions

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32)

        self._tokens, self._ranks = zeros(max_sequences, capacity), zeros(max_sequences, capacity)
        self._bounds, self._limits = zeros(max_sequences, 4), zeros(max_sequences)
        self._drafts, self._draft_lens = zeros(max_sequences, max_draft), zeros(max_sequences)
        # Drafting and verification read and write token ids that the host needs at once: they stay on the host.
        self._host_ops = host_ops

    def admit(self, sequence: Sequence) -> None:
        """Fill the sequence's row of the arrays."""
        row, prompt = sequence.row, sequence.prompt
        self._tokens[row, : sequence.length] = torch.from_numpy(sequence.tokens[: sequence.length])
        self._ranks[row, : len(prompt.ranks)] = torch.from_numpy(prompt.ranks)
        self._bounds[row] = torch.tensor(
            [prompt.document_begin, prompt.document_end, len(prompt.ids), sequence.length], dtype=torch.int32
        )

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
        inputs, row_counts = self._inputs(entries)
        logits = self.decoder.forward(inputs, self.cache)
        sampled = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
        self.decoder.ops.greedy_argmax(sampled, logits)
        sampled = sampled.cpu()
        indptr = np.zeros(len(entries) + 1, dtype=np.int32)
        np.cumsum(row_counts, out=indptr[1:])
        sample(sampled.numpy(), logits, entries, indptr)
        rows = [entry.sequence.row for entry in entries]
        drafted = torch.tensor([entry.drafted for entry in entries], dtype=torch.int32)
        out = torch.zeros(len(entries), self._drafts.shape[1] + 1, dtype=torch.int32)
        out_lens = torch.zeros(len(entries), dtype=torch.int32)
        self._host_ops.verify_draft(out, out_lens, self._drafts[rows], drafted, sampled, torch.from_numpy(indptr))
        return [tokens[:count] for tokens, count in zip(out.numpy(), out_lens.tolist(), strict=True)]

    def append(self, sequence: Sequence, kept: int) -> None:
        """Copy the newest `kept` tokens of a running sequence to its row."""
        begin = sequence.length - kept
        self._tokens[sequence.row, begin : sequence.length] = torch.from_numpy(sequence.tokens[begin : sequence.length])
        self._bounds[sequence.row, 3] = sequence.length

    def _inputs(self, entries: list[Entry]) -> tuple[StepInputs, list[int]]:
        size = self.cache.block_tokens
        drafts = self._drafts.numpy()
        width = max(len(entry.sequence.blocks) for entry in entries)
        tables = np.zeros((len(entries), width), dtype=np.int32)
        ids, positions, slots, rows, row_counts = [], [], [], [], []
        kv_lens = np.zeros(len(entries), dtype=np.int32)
        q_indptr = np.zeros(len(entries) + 1, dtype=np.int32)
        for i, entry in enumerate(entries):
            sequence = entry.sequence
            begin, count = sequence.computed, entry.new + entry.drafted
            tables[i, : len(sequence.blocks)] = sequence.blocks
            ids += [sequence.tokens[begin : begin + entry.new], drafts[sequence.row, : entry.drafted]]
            position = np.arange(begin, begin + count, dtype=np.int32)
            positions.append(position)
            slots.append(tables[i, position // size] * size + position % size)
            kv_lens[i] = begin + count
            q_indptr[i + 1] = q_indptr[i] + count
            row_counts.append(entry.drafted + 1 if entry.writes else 0)
            rows.append(np.arange(q_indptr[i + 1] - row_counts[-1], q_indptr[i + 1]))

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.decoder.device)

        inputs = StepInputs(
            ids=tensor(np.concatenate(ids)),
            positions=tensor(np.concatenate(positions)),
            slots=tensor(np.concatenate(slots)),
            block_tables=tensor(tables),
            kv_lens=tensor(kv_lens),
            q_indptr=tensor(q_indptr),
            rows=tensor(np.concatenate(rows).astype(np.int64)),
        )
        return inputs, row_counts
