"""What the benchmarks share: devices and backends that run here, and a model of SmolLM2-135M's shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from qdengine import ops
from qdengine.config import ModelConfig
from qdengine.errors import QdengineError

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


def finished(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The call, and on a GPU the wait for its end."""

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run
