"""Turns: every thread gets what it waits for, by its own steps or by another's, and one at a time runs steps."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine.engine.turns import Turns


class Counter:
    """A step adds one; two at a time, or after every thread has what it wants, are an error."""

    def __init__(self) -> None:
        self.count = 0
        self.inside = threading.Lock()

    def step(self) -> None:
        assert self.inside.acquire(blocking=False), "two threads ran steps at a time"
        time.sleep(0.0002)
        self.count += 1
        self.inside.release()


@settings(max_examples=20, deadline=None)
@given(wanted=st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_everybody_gets_there(wanted):
    turns, counter, reached = Turns(), Counter(), []

    def wait(number):
        turns.run(counter.step, lambda: counter.count >= number)
        reached.append(number)

    threads = [threading.Thread(target=wait, args=(number,), daemon=True) for number in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(reached) == sorted(wanted)
    assert counter.count == max(wanted), "no step more than wanted"
    assert not turns._taken and not turns._waiting


def test_a_broken_step_passes_the_turn_on():
    turns, counter, started = Turns(), Counter(), threading.Event()
    errors = []

    def broken():
        started.set()
        time.sleep(0.05)
        raise KeyboardInterrupt

    def first():
        with pytest.raises(KeyboardInterrupt):
            turns.run(broken, lambda: False)
        errors.append("raised")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    started.wait(10)
    others = (counter.step, lambda: counter.count >= 3)
    threads += [threading.Thread(target=turns.run, args=others, daemon=True) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert errors == ["raised"] and counter.count == 3 and not turns._waiting


def test_what_is_done_needs_no_turn():
    turns = Turns()
    turns.run(lambda: pytest.fail("no step is needed"), lambda: True)
