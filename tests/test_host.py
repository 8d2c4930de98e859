"""What the host does in the extension: the block pool against a simple model, keys, and the hash behind them."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from qdengine._host import BlockPool, Sentences, siphash

BLOCKS = 6
KEYS = 5  # of one document, one for a block


class PoolMachine(RuleBasedStateMachine):
    """Model: `held` maps a block to its number of holders, `known` a key to its block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, 2)
        self.keys = self.pool.keys("", np.arange(2 * KEYS, dtype=np.int32))
        self.held: dict[int, int] = {}
        self.known: dict[int, int] = {}
        self.idle: list[int] = []  # oldest first
        self.expecting: list[int] = []  # where each expectation begins

    def leading(self) -> int:
        return next(i for i in range(KEYS + 1) if i not in self.known)

    @rule(count=st.integers(0, 4))
    def allocate(self, count: int) -> None:
        blocks = self.pool.allocate(count)
        if len(self.held) + count > BLOCKS:
            assert blocks is None
            return
        assert blocks is not None and len(set(blocks)) == count and not set(blocks) & set(self.held)
        for block in blocks:
            if len(self.held) + len(self.idle) == BLOCKS:
                assert block == self.idle.pop(0), "the least recently used idle block goes first"
                self.known = {key: b for key, b in self.known.items() if b != block}
            self.held[block] = 1

    @rule(most=st.integers(0, KEYS + 2))
    def acquire(self, most: int) -> None:
        assert self.pool.known(self.keys, most) == min(most, self.leading())
        blocks = self.pool.acquire(self.keys, most)
        assert blocks == [self.known[i] for i in range(min(most, self.leading()))]
        for block in blocks:
            self.held[block] = self.held.get(block, 0) + 1
            if block in self.idle:
                self.idle.remove(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), begin=st.integers(0, KEYS - 1))
    def publish(self, data: st.DataObject, begin: int) -> None:
        fresh = sorted(block for block in self.held if block not in self.known.values())
        blocks = data.draw(st.permutations(fresh))[: data.draw(st.integers(0, KEYS - begin))]
        self.pool.publish(self.keys, begin, blocks)
        for key, block in enumerate(blocks, begin):
            self.known.setdefault(key, block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=1, unique=True))
        self.pool.release(blocks)
        for block in reversed(blocks):
            self.held[block] -= 1
            if not self.held[block]:
                self.leave(block)

    @rule()
    def release_all(self) -> None:
        self.pool.release_all()
        for block in sorted(self.held):
            self.leave(block)

    def leave(self, block: int) -> None:
        del self.held[block]
        if block in self.known.values():
            self.idle.append(block)

    @invariant()
    def agrees(self) -> None:
        assert self.pool.available == BLOCKS - len(self.held)
        assert self.pool.known(self.keys, KEYS) == self.leading()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_expectations_are_counted() -> None:
    pool = BlockPool(8, 1)
    keys = pool.keys("", np.arange(4, dtype=np.int32))
    pool.expect(keys, 1)
    pool.expect(keys, 2)
    pool.expect(keys, 2)
    pool.expect(keys, 4)
    assert [pool.expected(keys, i) for i in range(5)] == [False, True, True, False, False]
    pool.give_up(keys, 1)
    pool.give_up(keys, 2)
    pool.give_up(keys, 3)
    assert [pool.expected(keys, i) for i in range(5)] == [False, False, True, False, False]
    pool.allocate(3)
    pool.release_all()
    assert not pool.expected(keys, 2) and pool.available == 8


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        BlockPool(0, 16)
    pool = BlockPool(2, 1)
    with pytest.raises(RuntimeError, match="nobody holds block 0"):
        pool.release([0])
    with pytest.raises(IndexError, match="more blocks than keys"):
        pool.publish(pool.keys("", np.zeros(1, np.int32)), 0, [0, 1])
    with pytest.raises(ValueError, match="of one length"):
        Sentences("ab", "a")
    with pytest.raises(ValueError, match=r"shape \[T, 2\]"):
        Sentences("a", "a").ranks(np.zeros(1), np.zeros((3, 3)), 0)
    with pytest.raises(ValueError, match="a score for each sentence"):
        Sentences("a", "a").ranks(np.zeros(2), np.zeros((3, 2)), 0)


def test_keys_cover_everything_before_them() -> None:
    pool = BlockPool(1, 16)
    tokens = np.arange(40, dtype=np.int32)
    keys = list(pool.keys("", tokens))
    assert len(keys) == 2 and len(set(keys)) == 2
    assert list(pool.keys("", tokens[:32])) == keys
    assert pool.keys("other", tokens)[0] != keys[0]
    changed = tokens.copy()
    changed[0] = 99
    assert pool.keys("", changed)[1] != keys[1], "the second block's key depends on the first"
    assert list(pool.keys("", tokens[:15])) == []
    assert BlockPool(1, 16).keys("", tokens)[0] != keys[0], "the hash is secret to its pool"


@pytest.mark.parametrize(
    ("size", "want"),
    [  # of the authors' vectors
        (0, "a3817f04ba25a8e66df67214c7550293"),
        (1, "da87c1d86b99af44347659119b22fc45"),
        (8, "3b62a9ba6258f5610f83e264f31497b4"),
        (15, "5493e99933b0a8117e08ec0f97cfc3d9"),
    ],
)
def test_siphash(size: int, want: str) -> None:
    assert siphash(bytes(range(16)), bytes(range(size))).hex() == want
