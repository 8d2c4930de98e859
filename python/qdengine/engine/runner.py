"""The device side of the engine: the arrays of the running sequences, and the steps over them.

A step is propose, pack, forward, argmax, verify and commit, all ops over arrays that stay on the device. The host says
how much of which sequence a step may compute, and reads its result when it needs it: on a GPU one step behind.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..model.layers import StepInputs
from .graphs import Buckets, Graphs
from .mirror import Mirror, Staging
from .sampling import sample
from .scheduler import Entry
from .sequence import Sequence

FINISH_REASONS = ("", "stop", "length")
_IN_FLIGHT = 2  # steps whose plan or result may be in use at a time
_RECORD = 8  # int32 of a sequence that is admitted, beside its tokens and ranks


Moment = torch.cuda.Event | float


@dataclass(slots=True)
class Flight:
    """A step on its way. copy: the one of plan and result that it uses. tokens: that it computes, padding included.

    began, done: events on the device where that is a GPU, else seconds.
    """

    entries: list[Entry]
    copy: int
    tokens: int
    began: Moment
    done: Moment


class Runner:
    """Owns the arrays. Row r of every array is the running sequence whose `row` is r, or nobody's.

    lag: plan a step before the one in flight is done. Steps then have the size that their plan allows for; without
    it drafting comes first, and a step has just the tokens that it needs.
    graphs: capture the steps of every size, and replay them. break_id, twins: of `allowed_argmax`.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, stop_ids: list[int], break_id: int, twins: np.ndarray, sequences: int,
        draft: int, step_tokens: int, lag: bool, graphs: bool,
    ) -> None:  # fmt: skip
        self.decoder, self.cache, self.lag, self.device = decoder, cache, lag, decoder.device
        self._ops, self._step_tokens = decoder.ops, step_tokens
        capacity = decoder.config.max_positions

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=self.device)

        self._tokens, self._ranks = zeros(sequences, capacity), zeros(sequences, capacity)
        self._bounds, self._computed, self._ends = zeros(sequences, 4), zeros(sequences), zeros(sequences)
        self._drafts, self._draft_lens = zeros(sequences, draft), zeros(sequences)
        self._stop_ids = torch.tensor(stop_ids, dtype=torch.int32, device=self.device)
        self._break_id, self._twins = break_id, torch.from_numpy(twins).to(self.device)
        self._ids, self._positions, self._slots, self._rows = (zeros(step_tokens) for _ in range(4))
        self._kv_lens, self._q_indptr, self._row_indptr = zeros(sequences), zeros(sequences + 1), zeros(sequences + 1)
        self._sampled = zeros(step_tokens)
        row, blocks = (sequences,), -(-capacity // cache.block_tokens)
        self._plan = Mirror(
            {"most": row, "limits": row, "reach": row, "verbatim": row, "block_tables": (sequences, blocks)},
            self.device,
            _IN_FLIGHT,
        )
        self._result = Mirror(
            {"out": (sequences, draft + 1), "out_lens": row, "kept": row, "finished": row, "drafted": row},
            self.device, _IN_FLIGHT,
        )  # fmt: skip
        self._staging = Staging(self.device)
        self._tables = np.zeros((sequences, blocks), np.int32)
        self._filled = [0] * sequences  # blocks of each row in its table
        self._flights = 0
        self._sizes = Buckets(step_tokens)
        self.graphs = Graphs(self._forward, self._finish, self._sizes) if graphs else None

    def admit(self, sequences: list[Sequence]) -> None:
        """Fill the sequences' rows of the arrays."""
        if not sequences:
            return
        header = _RECORD * len(sequences)
        host = self._staging.begin(header + 2 * sum(s.length for s in sequences))
        begin = 0
        for i, sequence in enumerate(sequences):
            prompt, length, row = sequence.prompt, sequence.length, sequence.row
            host[_RECORD * i : _RECORD * (i + 1)] = (
                row, prompt.document_begin, prompt.document_end, len(prompt.ids), length, sequence.computed,
                len(sequence.tokens), begin,
            )  # fmt: skip
            tokens = host[header + begin : header + begin + 2 * length]
            tokens[:length] = sequence.tokens[:length]
            tokens[length : length + len(prompt.ranks)] = prompt.ranks
            tokens[length + len(prompt.ranks) :] = 0
            begin += 2 * length
            self._filled[row] = 0
        moved = self._staging.send()
        self._ops.admit_rows(
            self._tokens, self._ranks, self._bounds, self._computed, self._result.device["finished"], self._ends,
            moved[:header].view(-1, _RECORD), moved[header:],
        )  # fmt: skip

    def propose(self, running: list[Sequence], most: list[int]) -> list[int]:
        """Draft at most `most[i]` tokens for `running[i]` now; returns how many were found."""
        limits = self._plan.device["limits"]
        limits.zero_()
        for sequence, limit in zip(running, most, strict=True):
            limits[sequence.row] = limit
        self._propose()
        lens = self._draft_lens.tolist()
        return [lens[sequence.row] for sequence in running]

    def launch(self, entries: list[Entry], drafts: int) -> Flight:
        """Start a step. drafts: tokens that it has room for beside the known ones, where there is `lag`."""
        copy = self._flights % _IN_FLIGHT
        self._flights += 1
        began = self._now()
        self._lay_plan(entries, copy)
        known, writers = sum(e.new for e in entries), sum(e.writes for e in entries)
        if self.lag:
            drafts = min(drafts, sum(e.drafted for e in entries))
            tokens, rows = self._sizes(min(known + drafts, self._step_tokens), min(writers + drafts, self._step_tokens))
            kept = (self.graphs.forward if self.graphs else self._forward)(tokens, rows)
        else:
            self._pack(self._step_tokens, self._step_tokens)
            tokens, rows = int(self._q_indptr[-1]), int(self._row_indptr[-1])
            kept = self._run(tokens, rows)
        if any(entry.writes and entry.sequence.request.verbatim for entry in entries):
            self._allow(self.decoder.head.logits(kept))
        sample(self._sampled, lambda: self.decoder.head.logits(kept), self._row_indptr, self._drafts, entries)
        (self.graphs.finish if self.graphs else self._finish)()
        self._result.fetch(copy)
        return Flight(entries, copy, tokens, began, self._now())

    def collect(self, flight: Flight) -> tuple[dict[str, np.ndarray], float]:
        """Wait for a step; its result, and the seconds that the device took.

        The result by row, int32, valid until the next but one is launched: out [S, K + 1] and out_lens
        (`verify_draft`), kept and finished (`commit_step`), drafted [S].
        """
        return self._result.host[flight.copy], _seconds(flight.began, flight.done)

    def works(self) -> bool:
        """Whether the device still takes orders: after some errors a CUDA device never does again."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except RuntimeError:
            return False
        return True

    def _now(self) -> Moment:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _lay_plan(self, entries: list[Entry], copy: int) -> None:
        plan = self._plan.host[copy]
        plan["most"][:] = 0
        plan["limits"][:] = 0
        for entry in entries:
            sequence, row = entry.sequence, entry.sequence.row
            plan["most"][row], plan["limits"][row], plan["reach"][row] = entry.new, entry.drafted, entry.reach
            plan["verbatim"][row] = sequence.request.verbatim
            filled, blocks = self._filled[row], sequence.blocks
            if filled < len(blocks):
                self._tables[row, filled : len(blocks)] = blocks[filled:]
                self._filled[row] = len(blocks)
        plan["block_tables"][:] = self._tables
        self._plan.send(copy)

    def _propose(self) -> None:
        self._ops.ngram_propose(
            self._drafts, self._draft_lens, self._tokens, self._ranks, self._bounds, self._plan.device["limits"]
        )

    def _pack(self, tokens: int, rows: int) -> None:
        plan = self._plan.device
        self._ops.pack_step(
            self._ids[:tokens], self._positions[:tokens], self._slots[:tokens], self._rows[:rows], self._kv_lens,
            self._q_indptr, self._row_indptr, self._result.device["drafted"], self._tokens, self._bounds,
            self._computed, plan["most"], plan["reach"], self._drafts, self._draft_lens, plan["block_tables"],
            self.cache.block_tokens,
        )  # fmt: skip

    def _forward(self, tokens: int, rows: int) -> Tensor:
        """Draft, and compute a step of at most so many tokens, and rows wanted. What the head keeps of the rows."""
        self._propose()
        self._pack(tokens, rows)
        return self._run(tokens, rows)

    def _run(self, tokens: int, rows: int) -> Tensor:
        inputs = StepInputs(
            ids=self._ids[:tokens], positions=self._positions[:tokens], slots=self._slots[:tokens],
            block_tables=self._plan.device["block_tables"], kv_lens=self._kv_lens, q_indptr=self._q_indptr,
            rows=self._rows[:rows],
        )  # fmt: skip
        kept = self.decoder.forward(inputs, self.cache)
        self.decoder.head.argmax(self._sampled[:rows], kept)
        return kept

    def _allow(self, logits: Tensor) -> None:
        """The choice of verbatim sequences, among what they may write. Steps without any are spared it."""
        self._ops.allowed_argmax(
            self._sampled[: len(logits)], logits, self._row_indptr, self._tokens, self._ranks, self._bounds,
            self._drafts, self._plan.device["verbatim"], self._twins, self._stop_ids, self._break_id,
        )  # fmt: skip

    def _finish(self) -> None:
        """What the model wrote, to the arrays."""
        result = self._result.device
        self._ops.verify_draft(
            result["out"], result["out_lens"], self._drafts, result["drafted"], self._sampled, self._row_indptr
        )
        self._ops.commit_step(
            self._tokens, self._bounds, self._computed, result["finished"], result["kept"], result["out"],
            result["out_lens"], result["drafted"], self._q_indptr, self._ends, self._stop_ids,
        )  # fmt: skip


def _seconds(began: Moment, done: Moment) -> float:
    """Waits for `done`."""
    if isinstance(began, float) or isinstance(done, float):
        assert isinstance(began, float) and isinstance(done, float)
        return done - began
    done.synchronize()
    return 1e-3 * began.elapsed_time(done)
