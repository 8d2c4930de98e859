"""The other end of a worker: a process group that runs while it is asked for something, and is stopped between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "worker.py"


class LinkError(Exception):
    """The engine failed. missing: a module is not installed."""

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class Link:
    def __init__(self, python: str, module: str, threads: int) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        limits = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [python, str(WORKER), module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=os.environ | limits, start_new_session=True,
        )  # fmt: skip

    def call(self, do: str, limit: float, **arguments: Any) -> dict[str, Any]:
        """The worker's answer. Raises `LinkError` where that is an error, none comes within `limit` seconds, or the
        process ends."""
        late = threading.Event()
        timer = threading.Timer(limit, lambda: (late.set(), self.close()))
        timer.start()
        self._signal(signal.SIGCONT)
        try:
            line = self._exchange(json.dumps({"do": do} | arguments))
        finally:
            timer.cancel()
        if late.is_set():
            raise LinkError(f"{do} took more than {limit:g} s")
        if not line:
            raise LinkError(f"the process ended with {self._process.wait()}: {self._last_words()}")
        # Threads that spin while they wait would slow the engine whose turn it is.
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise LinkError(answer["error"], answer["missing"])
        return answer

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _exchange(self, line: str) -> str:
        """Nothing where the process has ended."""
        assert self._process.stdin and self._process.stdout
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")
