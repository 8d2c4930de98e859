"""Whose turn it is to run steps: one of the threads that wait for something, until it has it; then the next one's.

A step serves every thread's sequences, so one thread at a time runs steps, and the others sleep until they have what
they wait for or it is their turn. Nobody polls, and nobody is woken for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Waiter:
    """called: the event that ends its sleep; leads: because it is its turn."""

    done: Callable[[], bool]
    called: threading.Event = field(default_factory=threading.Event)
    leads: bool = False


class Turns:
    """`run(step, done)` from any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Waiter] = []
        self._taken = False

    def run(self, step: Callable[[], None], done: Callable[[], bool]) -> None:
        """Return when `done()`, after steps of this thread's or of others'. `done` may be called from any thread.
        Raises what `step` raises, in the thread that ran it."""
        waiter = _Waiter(done)
        try:
            if self._sleeps(waiter):
                waiter.called.wait()
            while waiter.leads and not done():
                step()
                self._call_the_done()
        finally:
            self._leave(waiter)

    def _sleeps(self, waiter: _Waiter) -> bool:
        with self._lock:
            if waiter.done():
                return False
            if self._taken:
                self._waiting.append(waiter)
                return True
            self._taken = waiter.leads = True
            return False

    def _call_the_done(self) -> None:
        if not self._waiting:
            return
        with self._lock:
            ready = [waiter for waiter in self._waiting if waiter.done()]
            for waiter in ready:
                self._waiting.remove(waiter)
                waiter.called.set()

    def _leave(self, waiter: _Waiter) -> None:
        """Out of the waiting, and the turn to the next one. Whoever is done already is called for that."""
        self._call_the_done()
        with self._lock:
            if waiter in self._waiting:  # its sleep was interrupted
                self._waiting.remove(waiter)
            if not waiter.leads:
                return
            waiter.leads = self._taken = False
            if self._waiting:
                following = self._waiting.pop(0)
                self._taken = following.leads = True
                following.called.set()
