"""The state of one request in the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from ..errors import QdengineError
from ..prompt import Prompt
from ..request import Request, Stats
from .draft_cost import Acceptance


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt, output so far, and how much of both is in the KV cache.

    tokens: int32 [prompt + max_new_tokens], filled up to `length`. keys: of the prompt's shareable whole blocks.
    computed: tokens whose keys and values are in `blocks`; row: its place in the engine's arrays, -1 unless it runs.
    """

    request: Request
    prompt: Prompt
    max_new_tokens: int
    lookahead: int
    keys: list[bytes]
    tokens: np.ndarray = field(init=False)
    length: int = field(init=False)
    order: int = -1
    row: int = -1
    computed: int = 0
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
        return self.length - self.computed

    @property
    def draft_limit(self) -> int:
        """Most tokens worth drafting: the model adds one after the last one kept."""
        return min(self.lookahead, len(self.tokens) - self.length - 1)

    @property
    def finished(self) -> bool:
        return bool(self.finish_reason)

    def append(self, new: np.ndarray, stop_ids: frozenset[int]) -> int:
        """Append tokens up to a stop token (not kept) or the limit, set `finish_reason`, return how many were kept."""
        for count, token in enumerate(new.tolist()):
            if token in stop_ids:
                self.finish_reason = "stop"
                return count
            self.tokens[self.length] = token
            self.length += 1
            if self.length == len(self.tokens):
                self.finish_reason = "length"
                return count + 1
        return len(new)
