"""What every engine gets: the rows' texts, and the tokens of their prompts."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from qdengine.checkpoint import load
from qdengine.prompt import Prompt, encode
from qdengine.request import Request
from qdengine.summarize_file import valid_rows

Rows = list[dict[str, Any]]
WARM_UP = 24  # rows of an engine's first call, which are not measured: memory that is new to a machine is slow


class TooLong(ValueError):
    """A document that the model's context does not hold, or the rows do not have."""


class Workload:
    def __init__(self, bundle: Path, data: str, rows: int, latency_rows: int, new_tokens: int) -> None:
        self.checkpoint, self.new_tokens = load(bundle), new_tokens
        self.tokenizer = self.checkpoint.tokenizer()
        found = valid_rows(data, rows + latency_rows + WARM_UP)
        # Another query for a row's document is the next row's.
        self._all = [row | {"other": after["query"]} for row, after in zip(found, found[1:] + found[:1], strict=True)]
        self.rows, rest = self._all[:rows], self._all[rows:] or self._all
        self.latency_rows = rest[:latency_rows]
        self.warm_up = self._all[-WARM_UP:]
        self._calls, self._at = count(), 0

    @property
    def context(self) -> int:
        return self.checkpoint.config.max_positions

    def requests(self, rows: Rows, namespace: str | None = None, other: bool = False) -> Rows:
        """With the rows' own queries, or with the other ones. Only within a namespace of its own are documents known.
        Raises `RequestError` for a row that no prompt can be made of."""
        name = f"call {next(self._calls)}" if namespace is None else namespace
        queries = [row["other" if other else "query"] for row in rows]
        made = [Request(q, row["document"], row.get("title", "")) for q, row in zip(queries, rows, strict=True)]
        return [
            {"query": r.query, "document": r.document, "title": r.title, "namespace": name, "ids": prompt.ids.tolist()}
            for r, prompt in zip(made, self._prompts(made), strict=True)
        ]

    def _prompts(self, requests: list[Request]) -> list[Prompt]:
        prompts = encode(self.tokenizer, self.checkpoint.prompt, requests, self.context - self.new_tokens)
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                raise prompt
        return prompts

    def documents(self, tokens: int, number: int) -> Rows:
        """So many rows with documents of about `tokens` tokens: pages laid end to end and cut, each time another place
        of them. Raises `TooLong`."""
        if tokens + self.new_tokens > self.context:
            raise TooLong(f"the model's context is {self.context} tokens")
        text = "\n".join(row["document"] for row in self._all)
        offsets = self.tokenizer.encode(text).offsets
        if tokens > len(offsets):
            raise TooLong(f"the rows' documents are {len(offsets)} tokens together; give more rows")
        made = []
        for _ in range(number):
            begin = self._at % (len(offsets) - tokens + 1)
            cut = text[offsets[begin, 0] : offsets[begin + tokens - 1, 1]]
            made.append(self._all[0] | {"title": "", "document": cut})
            self._at = begin + tokens
        asked = [Request(query, row["document"]) for row in made for query in (row["query"], row["other"])]
        if any(prompt.truncated for prompt in self._prompts(asked)):
            raise TooLong(f"the model's context is {self.context} tokens")
        return made
