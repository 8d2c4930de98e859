"""One forward pass of a model of SmolLM2-135M's shape (random weights), by tokens in the step.

A step of one sequence with 640 tokens in the cache: what a decoded or drafted token costs, and a prefill.
"""

from __future__ import annotations

import pytest
import torch
from common import SHAPE, device_of, finished
from qdengine import ops
from qdengine.model.decoder import Decoder, StepInputs
from qdengine.model.kv_cache import KVCache
from qdengine.model.reference import ReferenceModel

TOKENS = (1, 8, 16, 33, 65, 256, 1024)
CONTEXT = 640
PRECISIONS = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: 0.02 * torch.randn_like(tensor) for name, tensor in ReferenceModel(SHAPE).state_dict().items()}


@pytest.fixture(scope="module")
def decoders(weights):
    made = {}

    def decoder(backend: str, precision: str) -> tuple[Decoder, KVCache]:
        if (backend, precision) not in made:
            device, dtype = device_of(backend), getattr(torch, precision)
            cache = KVCache(SHAPE, 1 << 28, 16, dtype, device)
            made[backend, precision] = Decoder(SHAPE, weights, ops.load(backend), dtype, device), cache
        return made[backend, precision]

    return decoder


def step(tokens: int, device: torch.device) -> StepInputs:
    length = max(tokens, CONTEXT)
    places = torch.arange(length - tokens, length, dtype=torch.int32, device=device)

    def int32(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return StepInputs(
        ids=places % 1000,
        positions=places,
        slots=places,
        block_tables=torch.arange(-(-length // 16), dtype=torch.int32, device=device)[None],
        kv_lens=int32(length),
        q_indptr=int32(0, tokens),
        rows=torch.arange(0 if tokens <= 65 else tokens - 1, tokens, device=device),
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_step(benchmark, backend, decoders, tokens, precision):
    decoder, cache = decoders(backend, precision)
    inputs = step(tokens, decoder.device)
    parameters = sum(layer.numel() for layer in decoder_matrices())
    benchmark.extra_info |= {"tokens": tokens, "linear_flops": 2 * parameters * tokens}
    benchmark.group = f"step of {tokens} {precision}"
    run = finished(lambda: decoder.forward(inputs, cache), decoder.device)
    benchmark.pedantic(run, rounds=10 if tokens <= 65 else 3, warmup_rounds=2)


def decoder_matrices() -> list[torch.Tensor]:
    """The matrices of every layer, without the head."""
    with torch.device("meta"):
        model = ReferenceModel(SHAPE)
    return [p for name, p in model.named_parameters() if name.startswith("layers.") and p.ndim == 2]
