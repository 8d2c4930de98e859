"""The engine on a GPU: the CPU's tokens in float32 on every backend, and lossless lookahead."""

from __future__ import annotations

import pytest
import torch
from qdengine import Engine, EngineConfig
from tiny import FAMILIES, TEXT, tiny_bundle

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]
BATCH = [
    {"query": query, "document": TEXT * n, "title": title}
    for n, title in ((1, ""), (4, "Fox"), (2, "Rain"))
    for query in ("What jumps over the dog?", "When do trains leave?", "火车")
]


def ids(bundle, device, backend=None, lookahead=64, precision="float32", **options):
    config = EngineConfig(kv_bytes=1 << 24, max_new_tokens=48, **options)
    with Engine.from_pretrained(bundle, device, precision, config, backend) as engine:
        summaries = engine.summarize([{**request, "lookahead": lookahead} for request in BATCH])
    assert all(s.error is None for s in summaries)
    return [s.token_ids for s in summaries]


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request, tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("gpu"), request.param)


@pytest.mark.parametrize("backend", ["cuda", "triton", "reference"])
def test_float32_is_the_cpus(bundle, backend):
    assert ids(bundle, "cuda", backend) == ids(bundle, "cpu", lookahead=0)


@pytest.mark.parametrize("options", [{}, {"adaptive_lookahead": False}, {"max_step_tokens": 50, "max_sequences": 3}])
def test_lossless(bundle, options):
    assert ids(bundle, "cuda", **options) == ids(bundle, "cuda", lookahead=0)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_captured_steps_are_the_eager_ones(bundle, backend):
    assert ids(bundle, "cuda", backend) == ids(bundle, "cuda", backend, cuda_graphs=False)


def test_bfloat16_mostly_begins_alike(bundle):
    half, full = ids(bundle, "cuda", precision="bfloat16"), ids(bundle, "cuda")
    assert sum(a[:1] == b[:1] for a, b in zip(half, full, strict=True)) >= len(BATCH) // 2
