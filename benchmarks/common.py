"""What the benchmarks share: devices and backends that run here, timing, and a model of SmolLM2-135M's shape."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from qdengine import doctor, ops
from qdengine.config import ModelConfig
from qdengine.errors import QdengineError

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from cases import paged  # noqa: F401 (shared with the tests)

SHAPE = ModelConfig(
    family="llama",
    vocab_size=49152,
    width=576,
    ffn_width=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_width=64,
    max_positions=8192,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Arguments = tuple[Any, ...]

_ROTATED_BYTES = 256 << 20  # more than any L2 cache holds twice
_MOST_COPIES, _LEAST_CALLS = 64, 16


def usable(backend: str) -> bool:
    try:
        ops.load(backend)
    except QdengineError:
        return False
    # The interpreter of Triton is for tests: what it takes says nothing.
    return backend != "triton" or torch.cuda.is_available()


BACKENDS = [name for name in ops.BACKENDS if usable(name)]


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend in ("cuda", "triton") else "cpu")


def on_device(args: Arguments, device: torch.device) -> Arguments:
    """A copy of the arguments with every tensor on `device`."""
    return tuple(a.to(device, copy=True) if isinstance(a, torch.Tensor) else a for a in args)


def timed(
    call: Callable[..., object], args: Arguments, device: torch.device, budget: float = 0.2, capture: bool = True
) -> float:
    """Median seconds of `call(*args)`, measured for about `budget` seconds.

    On a GPU: calls over copies of the arguments, which together exceed its caches (at most 64, so small arguments stay
    in a cache, as between the kernels of a step), captured as a graph where `capture` says so, and timed by events. A
    call without arguments is long enough to be timed alone. On a CPU: one call after the other over the same arguments.
    """
    if device.type == "cuda":
        return _timed_on_gpu(call, args, device, budget, capture)
    call(*args)
    times = []
    end = time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call(*args)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _timed_on_gpu(
    call: Callable[..., object], args: Arguments, device: torch.device, budget: float, capture: bool
) -> float:
    size = sum(a.numel() * a.element_size() for a in args if isinstance(a, torch.Tensor))
    wanted = min(_MOST_COPIES, -(-_ROTATED_BYTES // size)) if size else 1
    copies = [on_device(args, device) for _ in range(wanted)]
    if size:
        copies *= -(-_LEAST_CALLS // wanted)

    def run() -> None:
        for copy in copies:
            call(*copy)

    run()  # what is made at a first call is made
    torch.cuda.synchronize()
    again: Callable[[], None] = run
    if capture:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        again = graph.replay
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 5 or time.perf_counter() < end:
        begin, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        again()
        done.record()
        done.synchronize()
        times.append(1e-3 * begin.elapsed_time(done) / len(copies))
    return statistics.median(times[1:])


def facts() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    found = doctor.examine()
    kept = ("qdengine", "python", "torch", "cpu", "isa", "amx", "cores_usable", "gpu", "compute_capability")
    return {name: found[name] for name in kept} | {"driver": _driver(), "date": time.strftime("%Y-%m-%d")}


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def write(result: dict[str, Any], out: str | None) -> None:
    if out:
        Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(facts(), sys.argv[1])
