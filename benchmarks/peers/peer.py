"""An engine while a section measures it, and what a run knows of all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from peers.link import Link, LinkError
from peers.table import Spec
from peers.workload import Rows, Workload

ADAPTERS = "peers.adapters"


@dataclass(slots=True)
class Setup:
    """What is the same for all engines. pythons: interpreters by adapter, where it is not this one. limit: seconds that
    one call may take."""

    pythons: dict[str, str]
    device: str
    dtype: str
    threads: int
    limit: float

    def link(self, adapter: str, python: str | None = None) -> Link:
        return Link(python or self.pythons.get(adapter, sys.executable), f"{ADAPTERS}.{adapter}", self.threads)


@dataclass(slots=True)
class Peer:
    """One engine. facts: of it, for the report; error: it is measured no further."""

    spec: Spec
    model: Path
    setup: Setup
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    _link: Link | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    def start(self, work: Workload, warm_up: Rows) -> None:
        setup = self.setup
        settings = self.spec.options | {
            "device": setup.device, "dtype": setup.dtype, "threads": setup.threads, "new_tokens": work.new_tokens,
            "stops": list(work.checkpoint.stop_ids), "context": work.context,
        }  # fmt: skip
        self._link = setup.link(self.spec.adapter)
        found = self._call("load", model=str(self.model), settings=settings)
        self.facts |= found or {}
        self.run(work.requests(warm_up))

    def run(self, requests: Rows) -> tuple[list[list[int]], float] | None:
        """Token ids and seconds; None when it fails, now or before."""
        found = self._call("run", requests=requests)
        if found is None:
            return None
        self.facts["peak_rss_bytes"] = max(self.facts.get("peak_rss_bytes", 0), found["rss"])
        return found["ids"], found["seconds"]

    def stop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _call(self, do: str, **arguments: Any) -> dict[str, Any] | None:
        if self._link is None:
            return None
        try:
            return self._link.call(do, self.setup.limit, **arguments)
        except LinkError as error:
            if self.spec.ours:
                raise click.ClickException(f"{self.name}: {error}") from None
            self.error = str(error)
            self.stop()
            return None


@contextmanager
def started(peers: list[Peer], work: Workload, slice_rows: int) -> Iterator[list[Peer]]:
    """Those that have not failed, loaded and warmed up."""
    ready = [peer for peer in peers if peer.error is None]
    try:
        for peer in tqdm(ready, desc="load", unit="engine", disable=None):
            peer.start(work, work.rows[:slice_rows] if peer.spec.shapes else work.warm_up)
        yield ready
    finally:
        for peer in ready:
            peer.stop()
