"""The state of one request in the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from .._host import Keys
from ..errors import QdengineError
from ..prompt import Prompt
from ..request import Request, Stats
from .draft_cost import Acceptance


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt, output so far, and how much of both is in the KV cache.

    tokens: int32 [prompt + max_new_tokens], filled up to `length`. keys: of the prompt's shareable whole blocks.
    row: its place in the engine's arrays, -1 unless it runs; life: how often it was taken out of there.
    computed: tokens whose keys and values are in `blocks`, or will be when the steps on their way are done.
    flying: steps on their way that will write; ahead: most tokens they can write.
    """

    request: Request
    prompt: Prompt
    max_new_tokens: int
    lookahead: int
    keys: Keys
    tokens: np.ndarray = field(init=False)
    length: int = field(init=False)
    order: int = -1
    row: int = -1
    life: int = 0
    computed: int = 0
    flying: int = 0
    ahead: int = 0
    published: int = 0
    blocks: list[int] = field(default_factory=list)
    finish_reason: str = ""
    error: QdengineError | None = None
    stats: Stats = field(default_factory=Stats)
    acceptance: Acceptance = field(default_factory=Acceptance)
    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0

    def __post_init__(self) -> None:
        ids = self.prompt.ids
        self.length = len(ids)
        self.tokens = np.zeros(self.length + self.max_new_tokens, dtype=np.int32)
        self.tokens[: self.length] = ids
        self.stats.prompt_tokens = self.length

    @property
    def output(self) -> np.ndarray:
        """int32: the tokens written so far."""
        return self.tokens[len(self.prompt.ids) : self.length]

    @property
    def pending(self) -> int:
        """Known tokens that are not in the KV cache yet; at least 1, since the newest one never is."""
        return self.length - self.computed + self.flying

    @property
    def draft_limit(self) -> int:
        """Most tokens worth drafting: the model adds one after the last one kept."""
        return min(self.lookahead, len(self.tokens) - self.length - self.flying - 1)

    @property
    def ending(self) -> bool:
        """Whether the steps on their way reach the limit, whatever they write."""
        return self.length + self.flying >= len(self.tokens)

    @property
    def finished(self) -> bool:
        return bool(self.finish_reason)

    def append(self, written: np.ndarray, finish_reason: str) -> None:
        """Append tokens (int32); an empty `finish_reason` is none."""
        self.tokens[self.length : self.length + len(written)] = written
        self.length += len(written)
        self.finish_reason = finish_reason

    def leave(self) -> None:
        """Forget the row and what is on its way to it."""
        self.row, self.blocks = -1, []
        self.life += 1
        self.flying = self.ahead = 0
