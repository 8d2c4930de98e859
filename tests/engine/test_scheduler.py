"""The scheduler as a state machine over random sequences, drafts and memory: nothing lost or shared by mistake."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from qdengine._host import BlockPool
from qdengine.engine.scheduler import Scheduler
from qdengine.engine.sequence import Sequence
from qdengine.errors import LimitError
from qdengine.prompt import Prompt
from qdengine.request import Request

STOP = 9
SIZE = 4


def make(pool: BlockPool, ids: list[int], max_new: int, lookahead: int = 8, namespace: str = "") -> Sequence:
    array = np.array(ids, dtype=np.int32)
    document = max(1, len(ids) - 2)
    prompt = Prompt(
        ids=array,
        document_begin=0,
        document_end=document,
        shareable=document,
        ranks=np.zeros(len(ids), np.int32),
        truncated=False,
        part_offsets=np.zeros((document, 2), np.int32),
        head=0,
        indent=0,
    )
    keys = pool.keys(namespace, array[:document])
    return Sequence(Request("q", "d", namespace=namespace), prompt, max_new, lookahead, keys)


class Device:
    """What the arrays on the device say of one running sequence."""

    def __init__(self, s: Sequence) -> None:
        self.tokens = s.tokens[: s.length].tolist()
        self.computed, self.finish_reason = s.computed, ""


class SchedulerMachine(RuleBasedStateMachine):
    """The "model" writes token `length % 10`, so output depends on the position alone; 9 stops. A shadow KV store
    remembers which token each block place was computed for, and every read is checked against it.

    With `lag` the scheduler hears of a step's result after it has planned the next one."""

    @initialize(blocks=st.integers(5, 14), sequences=st.integers(1, 4), budget=st.integers(1, 24), lag=st.booleans())
    def start(self, blocks: int, sequences: int, budget: int, lag: bool) -> None:
        self.pool = BlockPool(blocks, SIZE)
        self.rows = sequences
        self.lag = lag
        self.scheduler = Scheduler(self.pool, sequences, budget)
        self.live: list[Sequence] = []
        self.store: dict[int, int] = {}
        self.device: dict[int, Device] = {}
        self.flights: list[list[tuple]] = []
        self.aborted: list[tuple[Sequence, int]] = []

    @rule(
        document=st.sampled_from([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 1], [2] * 11, [3]]),
        tail=st.lists(st.integers(0, 8), min_size=2, max_size=2),
        max_new=st.integers(1, 12),
    )
    def add(self, document: list[int], tail: list[int], max_new: int) -> None:
        sequence = make(self.pool, document + tail, max_new)
        try:
            self.scheduler.add(sequence)
        except LimitError:
            assert -(-(len(document) + 2 + max_new) // SIZE) > self.pool.blocks
        else:
            self.live.append(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        self.scheduler.abort(sequence)
        self.live.remove(sequence)
        self.aborted.append((sequence, sequence.length))

    @rule(drafted=st.lists(st.integers(0, 8), min_size=4, max_size=4), kept=st.integers(0, 8))
    def step(self, drafted: list[int], kept: int) -> None:
        for s in self.scheduler.admit():
            self.device[s.row] = Device(s)
        most = [max(0, min(drafted[s.row], s.draft_limit)) for s in self.scheduler.running]
        entries = self.scheduler.plan(most, sum(most))
        assert sum(e.new for e in entries) <= self.scheduler.max_step_tokens
        assert not self.scheduler.running or entries or self.flights, "running sequences always advance"
        if entries:
            room = self.scheduler.max_step_tokens - sum(e.new for e in entries)
            self.flights.append([])
            for e in entries:
                used = min(room, e.drafted)
                self.flights[-1].append((e, *self.compute(e, used, kept)))
                room -= used
                self.scheduler.launch(e)
        if len(self.flights) > (1 if self.lag and entries else 0):
            self.collect(self.flights.pop(0))

    def collect(self, flight: list[tuple]) -> None:
        for e, accepted, written, reason in flight:
            if not e.lives:
                continue
            self.scheduler.commit(e, accepted, np.array(written, np.int32), reason)
            if e.sequence.finished:
                self.live.remove(e.sequence)
                assert self.correct(e.sequence)

    def compute(self, e, drafted: int, kept: int) -> tuple[int, list[int], str]:
        """What pack_step, the model, verify_draft and commit_step do: the kept drafted tokens, those written, and how
        the sequence ended."""
        s, d = e.sequence, self.device[e.sequence.row]
        assert d.finish_reason or d.computed >= e.begin or not s.flying
        known = max(0, min(e.new, len(d.tokens) - d.computed, e.reach - d.computed))
        writes = known > 0 and d.computed + known == len(d.tokens)
        drafted = min(drafted, e.reach - len(d.tokens)) if writes else 0
        tokens = d.tokens + [position % 10 for position in range(len(d.tokens), len(d.tokens) + drafted)]
        for position in range(d.computed + known + drafted if known else 0):
            place = s.blocks[position // SIZE] * SIZE + position % SIZE
            if position < d.computed:
                assert self.store[place] == tokens[position], "reads what was computed for this very token"
            else:
                self.store[place] = tokens[position]
        accepted = min(kept, drafted)
        d.computed += known + accepted
        written: list[int] = []
        for position in range(len(d.tokens), len(d.tokens) + (accepted + 1 if writes else 0)):
            if position % 10 == STOP:
                d.finish_reason = "stop"
                break
            written.append(position % 10)
            if position + 1 == len(s.tokens):
                d.finish_reason = "length"
                break
        d.tokens += written
        if d.finish_reason:
            d.computed = len(d.tokens)
        assert writes == e.writes or d.finish_reason
        return accepted, written, d.finish_reason

    @staticmethod
    def correct(s: Sequence) -> bool:
        begin = len(s.prompt.ids)
        want = [p % 10 for p in range(begin, begin + s.max_new_tokens)]
        if STOP in want:
            want = want[: want.index(STOP)]
        return s.output.tolist() == want

    @invariant()
    def accounts(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert all(s.length == length and s.finish_reason == "error" for s, length in self.aborted)
        self.scheduler.receive()
        running = self.scheduler.running
        assert {id(s) for s in running + self.scheduler.waiting} == {id(s) for s in self.live}
        assert [s.order for s in running] == sorted(s.order for s in running)
        assert len({s.row for s in running}) == len(running) <= self.rows
        held = {b for s in running for b in s.blocks}
        assert self.pool.available == self.pool.blocks - len(held)
        for s in running:
            assert len(set(s.blocks)) == len(s.blocks)
            own = set(s.blocks[s.published :])
            others = {b for o in running if o is not s for b in o.blocks}
            assert not own & others, "only published blocks are shared"

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for _ in range(2000):
                if not self.live:
                    break
                self.step([0, 0, 0, 0], 0)
            assert not self.live, "every sequence ends"
            assert self.pool.available == self.pool.blocks


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_too_large_for_the_engine_is_said() -> None:
    with pytest.raises(LimitError, match=r"needs 6 KV blocks and the engine has 5; raise EngineConfig\.kv_bytes"):
        pool = BlockPool(5, SIZE)
        Scheduler(pool, 2, 8).add(make(pool, [1] * 14, 10))


def test_a_document_is_computed_once_for_a_batch() -> None:
    pool = BlockPool(40, SIZE)
    scheduler = Scheduler(pool, 8, 64)
    sequences = [make(pool, [*range(17), i], 2) for i in range(5)]
    for s in sequences:
        scheduler.add(s)
    assert scheduler.admit() == sequences[:1], "the others wait for the first one's blocks"
    for e in scheduler.plan([0], 0):
        scheduler.launch(e)
        scheduler.commit(e, 0, np.array([1], np.int32), "")
    assert scheduler.admit() == sequences[1:]
    assert [s.computed for s in sequences[1:]] == [16] * 4
