"""What the next step computes: prefill chunks, drafts and plain decode of many sequences under one token budget.

Oldest first. When KV memory runs out, drafts are shed, then the youngest sequence is preempted: its blocks are released
and its tokens computed again later. Nothing here touches a tensor.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass

import numpy as np

from .._host import BlockPool
from ..errors import LimitError, QdengineError
from .sequence import Sequence


@dataclass(slots=True)
class Entry:
    """One sequence's share of a step: `new` known tokens from position `begin` on, then at most `drafted` drafted ones.

    writes: the share reaches the newest token, so that the step yields tokens. reach: no position from here on has KV
    memory, or is wanted. life: the sequence's when the step was planned; a later one means that it was taken out since.
    """

    sequence: Sequence
    begin: int
    new: int
    drafted: int
    writes: bool
    reach: int
    life: int

    @property
    def lives(self) -> bool:
        """Whether the sequence was not taken out since."""
        return self.life == self.sequence.life


class Scheduler:
    """Holds every sequence from `add` until it finishes or is aborted."""

    def __init__(self, pool: BlockPool, max_sequences: int, max_step_tokens: int) -> None:
        self.pool = pool
        self.block_tokens = pool.block_tokens
        self.max_step_tokens = max_step_tokens
        self.waiting: list[Sequence] = []  # by order
        self.running: list[Sequence] = []  # by order
        self._all_rows = range(max_sequences - 1, -1, -1)
        self._rows = list(self._all_rows)
        self._arrivals: deque[Sequence] = deque()
        self._received = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; any thread may, at any time. Raises `LimitError` for one that could not run even alone."""
        needed = self._blocks_for(len(sequence.tokens))
        if needed > self.pool.blocks:
            raise LimitError(
                f"the request needs {needed} KV blocks and the engine has {self.pool.blocks}; "
                "raise EngineConfig.kv_bytes, or shorten the document or max_new_tokens"
            )
        self._arrivals.append(sequence)

    def receive(self) -> None:
        """Take in what was queued."""
        while self._arrivals:
            sequence = self._arrivals.popleft()
            if not sequence.finished:  # it may have been aborted meanwhile
                sequence.order = self._received
                self._received += 1
                self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to the running ones while rows and blocks last; returns those moved.

        A sequence whose document a running one is just computing stays, and later takes the finished blocks.
        """
        self.receive()
        if not self.waiting or not self._rows:
            return []
        admitted: list[Sequence] = []
        held_back: list[Sequence] = []
        room = self.pool.available - sum(self._missing(s) for s in self.running)
        for i, sequence in enumerate(self.waiting):
            if not self._rows:
                held_back += self.waiting[i:]
                break
            known = self._known_blocks(sequence)
            if self.pool.expected(sequence.keys, known):
                held_back.append(sequence)
                continue
            needed = self._blocks_for(sequence.length) - known
            if needed > room and self.running:
                held_back += self.waiting[i:]
                break
            room -= needed
            self._start(sequence, known)
            admitted.append(sequence)
        self.waiting = held_back
        return admitted

    def plan(self, most_drafted: list[int], drafts: int) -> list[Entry]:
        """The next step's entries, while the results of earlier ones may still be on their way.

        most_drafted: for each of `running`. drafts: tokens of the step that are left to the drafts of all; where those
        turn out longer, the step drops what has no room.
        """
        budget = self.max_step_tokens - min(drafts, self.max_step_tokens // 2)
        entries: list[Entry] = []
        for sequence, most in list(zip(self.running, most_drafted, strict=True)):
            if budget == 0:
                break
            if sequence.row < 0 or sequence.ending:
                continue
            new = min(sequence.pending, budget)
            entry = self._fit(sequence, new, most if new == sequence.pending else 0)
            if entry is not None:
                entries.append(entry)
                budget -= new
        return entries

    def launch(self, entry: Entry) -> None:
        """Count a planned share as on its way."""
        sequence = entry.sequence
        sequence.computed += entry.new
        if entry.writes:
            sequence.flying += 1
            sequence.ahead += entry.drafted + 1

    def commit(self, entry: Entry, accepted: int, written: np.ndarray, finish_reason: str) -> None:
        """Take a step's result for an entry that lives: drafted tokens that were kept, and the tokens written (int32).
        A finished sequence leaves the scheduler."""
        sequence = entry.sequence
        if entry.writes:
            sequence.flying -= 1
            sequence.ahead -= entry.drafted + 1
        sequence.computed += accepted
        self._publish(sequence, entry.begin + entry.new)
        sequence.append(written, finish_reason)
        if sequence.finished:
            self._stop(sequence)

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
            sequence.leave()
            sequence.computed = sequence.published = 0
        self.pool.release_all()
        self.running, self._rows = [], list(self._all_rows)
        self.waiting = sorted((s for s in sequences if not s.finished), key=lambda s: s.order)

    def _start(self, sequence: Sequence, known: int) -> None:
        sequence.blocks = self.pool.acquire(sequence.keys, known)
        sequence.published = known
        sequence.computed = known * self.block_tokens
        self.pool.expect(sequence.keys, known)
        sequence.row = self._rows.pop()
        insort(self.running, sequence, key=lambda s: s.order)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._rows.append(sequence.row)
        self.pool.give_up(sequence.keys, sequence.published)
        self.pool.release(sequence.blocks)
        sequence.leave()

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.computed = sequence.published = 0
        insort(self.waiting, sequence, key=lambda s: s.order)

    def _fit(self, sequence: Sequence, new: int, drafted: int) -> Entry | None:
        """The entry with blocks under it, with fewer drafts if need be; None when the sequence had to give way."""
        writes, size = new == sequence.pending, self.block_tokens
        # What steps on their way may still write comes first.
        known = sequence.computed + sequence.ahead - sequence.flying + new
        last = len(sequence.tokens) - 1  # the last token is never computed
        while True:
            missing = self._blocks_for(min(known + drafted, last)) - len(sequence.blocks)
            if missing > self.pool.available and drafted:
                drafted = max(0, (len(sequence.blocks) + self.pool.available) * size - known)
                continue
            if missing > 0:
                blocks = self.pool.allocate(missing)
                if blocks is None:
                    youngest = self.running[-1]
                    self._preempt(youngest)
                    if youngest is sequence:
                        return None
                    continue
                sequence.blocks += blocks
            reach = min(len(sequence.blocks) * size, last)
            return Entry(sequence, sequence.computed, new, drafted, writes, reach, sequence.life)

    def _publish(self, sequence: Sequence, computed: int) -> None:
        begin, whole = sequence.published, min(computed // self.block_tokens, len(sequence.keys))
        if whole > begin:
            self.pool.publish(sequence.keys, begin, sequence.blocks[begin:whole])
            self.pool.give_up(sequence.keys, begin)
            self.pool.expect(sequence.keys, whole)
            sequence.published = whole

    def _known_blocks(self, sequence: Sequence) -> int:
        """Leading blocks that are in memory; one token at least is left to compute, since its logits are wanted."""
        return self.pool.known(sequence.keys, (sequence.length - 1) // self.block_tokens)

    def _missing(self, sequence: Sequence) -> int:
        return max(0, self._blocks_for(sequence.length) - len(sequence.blocks))

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)
