"""What the next step computes: prefill chunks, drafts and plain decode of many sequences under one token budget.

Oldest first. When KV memory runs out, drafts are shed, then the youngest sequence is preempted: its blocks are released
and its tokens computed again later. Nothing here touches a tensor.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

import numpy as np

from ..errors import LimitError, QdengineError
from .block_pool import BlockPool
from .sequence import Sequence


@dataclass(slots=True)
class Entry:
    """One sequence's share of a step: `new` known tokens from `sequence.computed` on, then `drafted` drafted ones.

    `writes` is whether the share reaches the newest token, so that the step yields tokens.
    """

    sequence: Sequence
    new: int
    drafted: int
    writes: bool


class Scheduler:
    """Holds every sequence from `add` until it finishes or is aborted."""

    def __init__(self, pool: BlockPool, block_tokens: int, max_sequences: int, max_step_tokens: int) -> None:
        self.pool = pool
        self.block_tokens = block_tokens
        self.max_step_tokens = max_step_tokens
        self.waiting: list[Sequence] = []  # by order
        self.running: list[Sequence] = []  # by order
        self._all_rows = range(max_sequences - 1, -1, -1)
        self._rows = list(self._all_rows)
        self._arrivals = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises `LimitError` for one that could not run even alone."""
        needed = self._blocks_for(len(sequence.tokens))
        if needed > self.pool.blocks:
            raise LimitError(
                f"the request needs {needed} KV blocks and the engine has {self.pool.blocks}; "
                "raise EngineConfig.kv_bytes, or shorten the document or max_new_tokens"
            )
        sequence.order = self._arrivals
        self._arrivals += 1
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to the running ones while rows and blocks last; returns those moved.

        A sequence whose document a running one is just computing stays, and later takes the finished blocks.
        """
        admitted = []
        computing = {key for s in self.running for key in s.keys[s.published :]}
        held_back = []
        room = self.pool.available - sum(self._missing(s) for s in self.running)
        for i, sequence in enumerate(self.waiting):
            known = self._known_blocks(sequence)
            if known < len(sequence.keys) and sequence.keys[known] in computing:
                held_back.append(sequence)
                continue
            needed = self._blocks_for(sequence.length) - known
            if not self._rows or (needed > room and self.running):
                held_back += self.waiting[i:]
                break
            room -= needed
            self._start(sequence, known)
            computing.update(sequence.keys[sequence.published :])
            admitted.append(sequence)
        self.waiting = held_back
        return admitted

    def plan(self, draft_lens: np.ndarray) -> list[Entry]:
        """The next step's entries; `draft_lens` (int32, by row): the tokens drafted for each running sequence."""
        budget = self.max_step_tokens
        entries: list[Entry] = []
        for sequence in list(self.running):
            if budget == 0 or sequence.row < 0:
                continue
            new = min(sequence.pending, budget)
            writes = new == sequence.pending
            drafted = min(int(draft_lens[sequence.row]), budget - new) if writes else 0
            entry = self._fit(Entry(sequence, new, drafted, writes))
            if entry is not None:
                entries.append(entry)
                budget -= entry.new + entry.drafted
        return entries

    def commit(self, entry: Entry, written: np.ndarray, stop_ids: frozenset[int]) -> int:
        """Take a step's result for one entry: `written` are the kept draft tokens and the model's next one (empty
        when the entry does not write). Returns how many tokens the sequence kept; a finished
        one leaves the scheduler."""
        sequence = entry.sequence
        accepted = max(len(written) - 1, 0)
        sequence.computed += entry.new + accepted
        self._publish(sequence)
        kept = sequence.append(written, stop_ids)
        if sequence.finished:
            self._stop(sequence)
        return kept

    def abort(self, sequence: Sequence, error: QdengineError | None = None) -> None:
        """Take a sequence out, wherever it is."""
        sequence.finish_reason, sequence.error = sequence.finish_reason or "error", error
        if sequence in self.running:
            self._stop(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def restart(self) -> None:
        """After a step that was cut short anywhere: give everything back, and compute what is unfinished again."""
        sequences = dict.fromkeys(self.running + self.waiting)  # one on its way between the lists is in both
        for sequence in sequences:
            self.pool.release(sequence.blocks)
            sequence.blocks, sequence.row = [], -1
            sequence.computed = sequence.published = 0
        self.running, self._rows = [], list(self._all_rows)
        self.waiting = sorted((s for s in sequences if not s.finished), key=lambda s: s.order)

    def _start(self, sequence: Sequence, known: int) -> None:
        for key in sequence.keys[:known]:
            block = self.pool.acquire(key)
            if block is None:  # cannot be: _known_blocks has just seen it
                break
            sequence.blocks.append(block)
        sequence.published = len(sequence.blocks)
        sequence.computed = len(sequence.blocks) * self.block_tokens
        sequence.row = self._rows.pop()
        insort(self.running, sequence, key=lambda s: s.order)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._rows.append(sequence.row)
        sequence.row = -1
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.computed = sequence.published = 0
        insort(self.waiting, sequence, key=lambda s: s.order)

    def _fit(self, entry: Entry) -> Entry | None:
        """The entry with blocks under it, with fewer drafts if need be; None when its sequence had to give way."""
        sequence = entry.sequence
        while True:
            missing = self._blocks_for(sequence.computed + entry.new + entry.drafted) - len(sequence.blocks)
            while missing > 0 and (block := self.pool.allocate()) is not None:
                sequence.blocks.append(block)
                missing -= 1
            if missing <= 0:
                return entry
            if entry.drafted:
                entry.drafted = max(0, len(sequence.blocks) * self.block_tokens - sequence.computed - entry.new)
                if sequence.computed + entry.new <= len(sequence.blocks) * self.block_tokens:
                    return entry
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return None

    def _publish(self, sequence: Sequence) -> None:
        whole = min(sequence.computed // self.block_tokens, len(sequence.keys))
        for i in range(sequence.published, whole):
            self.pool.publish(sequence.blocks[i], sequence.keys[i])
        sequence.published = max(sequence.published, whole)

    def _known_blocks(self, sequence: Sequence) -> int:
        """Leading blocks that are in memory; one token at least is left to compute, since its logits are wanted."""
        most = min(len(sequence.keys), (sequence.length - 1) // self.block_tokens)
        for i in range(most):
            if not self.pool.holds(sequence.keys[i]):
                return i
        return most

    def _missing(self, sequence: Sequence) -> int:
        return max(0, self._blocks_for(sequence.length) - len(sequence.blocks))

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)
