"""The process of one engine: `PYTHON worker.py MODULE`, told what to do by link.py in lines of JSON.

A line names a method of Worker and its arguments, {"do": "run", "requests": [...]}; the answer is what it returns, or
{"error": "...", "missing": ...}, missing where a module is. What libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

# This package last, and not this folder: an engine's own modules are looked up first.
sys.path[:] = [*sys.path[1:], str(Path(__file__).parent.parent)]


PR_SET_PDEATHSIG = 1


class Worker:
    def __init__(self, module: str) -> None:
        self._module = module
        self._run: Any = None

    @property
    def _engine(self) -> Any:
        return importlib.import_module(self._module)

    def versions(self, **arguments: Any) -> dict[str, Any]:
        return {"versions": self._engine.versions(**arguments)}

    def convert(self, source: str, destination: str, kind: str) -> dict[str, Any]:
        """Whole or not at all."""
        made = Path(f"{destination}.part")
        shutil.rmtree(made, ignore_errors=True)
        self._engine.convert(source, str(made), kind)
        made.rename(destination)
        return {}

    def load(self, model: str, settings: dict[str, Any]) -> dict[str, Any]:
        self._run, facts = self._engine.load(model, settings)
        return facts

    def run(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        begin = time.perf_counter()
        ids = self._run(requests)
        seconds = time.perf_counter() - begin
        rss = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"ids": [list(map(int, one)) for one in ids], "seconds": seconds, "rss": rss}


def answer(worker: Worker, line: str) -> dict[str, Any]:
    told = json.loads(line)
    try:
        return getattr(worker, told.pop("do"))(**told)
    except Exception as error:  # an engine may fail in any way: it is reported
        missing = isinstance(error, ModuleNotFoundError)
        return {"error": f"{type(error).__name__}: {error}"[:300], "missing": missing}


def main() -> None:
    # A worker that is stopped would not see that nobody asks any more: it ends with the process that started it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The library and its children have neither end of the pipes: what they print or read corrupts nothing.
    told, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    for line in told:
        print(json.dumps(answer(worker, line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
