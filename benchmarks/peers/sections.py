"""What is measured. Engines take turns, so that a change of the machine's speed falls on all of them.

Each section gives its figures by engine; those of an engine that failed are its `error`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from peers.peer import Peer
from peers.report import quality
from peers.workload import Rows, TooLong, Workload

Results = dict[str, list[tuple[list[list[int]], float]]]
Figures = dict[str, Any]
SIZES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (256, 512, 1024, 2048, 4096, 7000)


class Section:
    """peers: started. size: rows given at once."""

    def __init__(self, peers: list[Peer], work: Workload, size: int) -> None:
        self.peers, self.work, self.size = peers, work, size

    def turns(self, peers: list[Peer], batches: list[Rows], what: str) -> Results:
        """Every batch by one engine after the other."""
        found: Results = {peer.name: [] for peer in peers}
        for batch in tqdm(batches, desc=what, disable=None):
            for peer in peers:
                if (result := peer.run(batch)) is not None:
                    found[peer.name].append(result)
        return found

    def figures(self, made: dict[str, Figures]) -> dict[str, Figures]:
        errors = {peer.name: {"error": peer.error} for peer in self.peers if peer.error is not None}
        return {peer.name: made.get(peer.name, {}) for peer in self.peers} | errors

    def cold(self) -> dict[str, Figures]:
        """requests/s of whole slices, and latency of other rows one by one; no document is known."""
        work = self.work
        offline = [peer for peer in self.peers if peer.spec.offline]
        batches = [work.requests(part) for part in parts(work.rows, self.size)]
        at_once = self.turns(offline, batches, "cold")
        alone = [peer for peer in self.peers if peer.spec.alone]
        latency = self.turns(alone, [work.requests([row]) for row in work.latency_rows], "latency")
        made = {peer.name: latencies(latency.get(peer.name, [])) for peer in self.peers}
        same_as = next((p.name for p in offline if p.name.startswith("transformers") and not p.error), None)
        for peer in offline:
            if peer.error is None:
                made[peer.name] |= self._answers(at_once[peer.name], at_once.get(same_as or "", []), same_as)
        return self.figures(made)

    def _answers(self, results: Any, others: Any, same_as: str | None) -> Figures:
        ids, expected = ([one for part, _ in found for one in part] for found in (results, others))
        found = rate(results) | {"output_tokens": statistics.mean(map(len, ids))}
        found |= quality([self.work.tokenizer.decode(one).strip() for one in ids], self.work.rows)
        if same_as is not None:
            found[f"rows_equal_to_{same_as}"] = sum(a == b for a, b in zip(ids, expected, strict=True))
        return found

    def batches(self) -> dict[str, Figures]:
        """requests/s with so many requests at once."""
        rows, made = self.work.rows[: SIZES[-1]], {peer.name: Figures() for peer in self.peers}
        for size in (size for size in SIZES if size <= len(rows)):
            whole = rows[: len(rows) // size * size]
            results = self.turns(self.peers, [self.work.requests(p) for p in parts(whole, size)], f"{size} at once")
            for peer in self.peers:
                if peer.error is None:
                    made[peer.name][str(size)] = rate(results[peer.name])["requests_per_s"]
        return self.figures(made)

    def warm(self) -> dict[str, Figures]:
        """Of documents that the engine has just seen, with another query."""
        rows, one_by_one = parts(self.work.rows, self.size), [[row] for row in self.work.latency_rows]
        at_once = self.turns(self.peers, self._twice(rows), "warm")
        alone = self.turns(self.peers, self._twice(one_by_one), "warm latency")
        made = {
            peer.name: rate(at_once[peer.name][1::2]) | latencies(alone[peer.name][1::2])
            for peer in self.peers
            if peer.error is None
        }
        return self.figures(made)

    def _twice(self, groups: list[Rows]) -> list[Rows]:
        return [self.work.requests(part, "warm", other) for part in groups for other in (False, True)]

    def lengths(self, lengths: Sequence[int] = LENGTHS, documents: int = 3) -> dict[str, Figures]:
        """One request alone by its document's tokens; ours also when it knows the document. Medians."""
        found: dict[str, Figures] = {peer.name: Figures() for peer in self.peers}
        for tokens in lengths:
            try:
                rows = self.work.documents(tokens, documents)
            except TooLong as error:
                for figures in found.values():
                    figures[str(tokens)] = {"skipped": str(error)}
                continue
            for other, phase in ((False, "cold_ms"), (True, "warm_ms")):
                peers = [peer for peer in self.peers if peer.spec.ours or not other]
                batches = [self.work.requests([row], f"{tokens} {i}", other) for i, row in enumerate(rows)]
                for name, results in self.turns(peers, batches, f"{tokens} tokens").items():
                    if results:
                        found[name].setdefault(str(tokens), {})[phase] = latencies(results)["latency_p50_ms"]
        return self.figures(found)


def parts(rows: Rows, size: int) -> list[Rows]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def rate(results: list[tuple[list[list[int]], float]]) -> dict[str, float]:
    return {"requests_per_s": sum(len(ids) for ids, _ in results) / sum(seconds for _, seconds in results)}


def latencies(results: list[tuple[list[list[int]], float]]) -> dict[str, float]:
    """Of batches of one."""
    times = [1e3 * seconds for _, seconds in results]
    return {"latency_p50_ms": statistics.median(times), "latency_mean_ms": statistics.mean(times)} if times else {}
