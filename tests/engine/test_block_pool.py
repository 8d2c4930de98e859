"""The block pool against a simple model: who holds what, what is remembered, what may be handed out."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from qdengine.engine.block_pool import BlockPool, prefix_keys

BLOCKS = 6
KEYS = [bytes([i]) for i in range(8)]


class PoolMachine(RuleBasedStateMachine):
    """Model: `held` maps a block to its number of holders, `known` a key to its block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.held: dict[int, int] = {}
        self.known: dict[bytes, int] = {}
        self.idle: list[int] = []  # oldest first

    @rule()
    def allocate(self) -> None:
        block = self.pool.allocate()
        if len(self.held) == BLOCKS:
            assert block is None
            return
        assert block is not None and block not in self.held
        if len(self.held) + len(self.idle) == BLOCKS:
            assert block == self.idle.pop(0), "the least recently used idle block goes first"
            self.known = {key: b for key, b in self.known.items() if b != block}
        self.held[block] = 1

    @rule(key=st.sampled_from(KEYS))
    def acquire(self, key: bytes) -> None:
        block = self.pool.acquire(key)
        assert block == self.known.get(key)
        if block is not None:
            self.held[block] = self.held.get(block, 0) + 1
            if block in self.idle:
                self.idle.remove(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        block = data.draw(st.sampled_from(sorted(self.held)))
        if block in self.known.values():
            return  # a sequence publishes each of its blocks once
        self.pool.publish(block, key)
        self.known.setdefault(key, block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=1, unique=True))
        self.pool.release(blocks)
        for block in reversed(blocks):
            self.held[block] -= 1
            if not self.held[block]:
                del self.held[block]
                if block in self.known.values():
                    self.idle.append(block)

    @invariant()
    def agrees(self) -> None:
        assert self.pool.available == BLOCKS - len(self.held)
        assert all(self.pool.holds(key) == (key in self.known) for key in KEYS)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_keys_cover_everything_before_them() -> None:
    tokens = np.arange(40, dtype=np.int32)
    keys = prefix_keys("", tokens, 16)
    assert len(keys) == 2 and len(set(keys)) == 2
    assert prefix_keys("", tokens[:32], 16) == keys
    assert prefix_keys("other", tokens, 16)[0] != keys[0]
    changed = tokens.copy()
    changed[0] = 99
    assert prefix_keys("", changed, 16)[1] != keys[1], "the second block's key depends on the first"
    assert prefix_keys("", tokens[:15], 16) == []
