"""The engine on a GPU: the CPU's tokens in float32, lossless lookahead, captured steps, threads, a lost device."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from lossless import NEAR_TIE, margins
from qdengine import Engine, EngineConfig
from qdengine.checkpoint import load
from tiny import FAMILIES, TEXT, tiny_bundle

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]
NEW = 48
BATCH = [
    {"query": query, "document": TEXT * n, "title": title}
    for n, title in ((1, ""), (4, "Fox"), (2, "Rain"))
    for query in ("What jumps over the dog?", "When do trains leave?", "火车")
]
LOST = """
import os, sys, torch
from qdengine import Engine, EngineConfig
from qdengine.errors import EngineError
request = {"query": "fox?", "document": "The quick brown fox jumps over the lazy dog."}
config = EngineConfig(kv_bytes=1 << 24, max_new_tokens=8, max_step_tokens=64, max_sequences=2)
engine = Engine.from_pretrained(sys.argv[1], "cuda", "float32", config)
assert engine.summarize([request])[0].error is None
torch.zeros(4, device="cuda")[torch.tensor([10**6], device="cuda")]  # an assertion on the device: it is lost
for summary in engine.summarize([request, request]):
    print(type(summary.error).__name__, summary.error)
try:
    engine.summarize([request])
except EngineError as error:
    print("raised", error)
sys.stdout.flush()
os._exit(0)  # nothing of the device can be freed
"""


@cache
def ids(bundle, device, backend=None, lookahead=64, precision="float32", **options):
    config = EngineConfig(kv_bytes=1 << 24, max_new_tokens=NEW, **options)
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


OPTIONS = [{}, {"adaptive_lookahead": False}, {"max_step_tokens": 50, "max_sequences": 3}]


@pytest.mark.parametrize("kv_dtype", ["int8", "float8"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_lossless_in_8_bits(bundle, backend, kv_dtype):
    want = ids(bundle, "cuda", backend, lookahead=0, kv_dtype=kv_dtype)
    assert ids(bundle, "cuda", backend, kv_dtype=kv_dtype) == want


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_lossless(bundle, backend, options):
    assert ids(bundle, "cuda", backend, **options) == ids(bundle, "cuda", backend, lookahead=0)


@pytest.mark.parametrize("options", OPTIONS)
def test_lossless_in_bfloat16_but_for_near_ties(bundle, options):
    """A library's product may round a row differently in another batch: then the two most likely tokens are a near tie
    where the summaries part."""
    drafted = ids(bundle, "cuda", precision="bfloat16", **options)
    plain = ids(bundle, "cuda", precision="bfloat16", lookahead=0)
    pairs = list(zip(drafted, plain, strict=True))
    assert max(margins(load(bundle), BATCH, pairs, NEW, "cuda"), default=0.0) <= NEAR_TIE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_captured_steps_are_the_eager_ones(bundle, backend, precision):
    eager = ids(bundle, "cuda", backend, precision=precision, cuda_graphs=False)
    assert ids(bundle, "cuda", backend, precision=precision) == eager


def test_threads_and_known_documents(bundle):
    """Calls of many threads share steps, and a second time their documents are known: the same tokens."""
    plain = ids(bundle, "cpu", lookahead=0)
    config = EngineConfig(kv_bytes=1 << 24, max_new_tokens=NEW)
    with Engine.from_pretrained(bundle, "cuda", "float32", config) as engine, ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            summaries = list(pool.map(lambda request: engine.summarize([request])[0], BATCH))
            assert [s.token_ids for s in summaries] == plain
        assert sum(s.stats.reused_tokens for s in summaries) > 0


def test_bfloat16_mostly_begins_alike(bundle):
    half, full = ids(bundle, "cuda", precision="bfloat16"), ids(bundle, "cuda")
    assert sum(a[:1] == b[:1] for a, b in zip(half, full, strict=True)) >= len(BATCH) // 2


def test_a_lost_device_is_said(tmp_path):
    """After an assertion on the device no kernel runs in this process any more: every request is told so."""
    bundle = tiny_bundle(tmp_path, "llama")
    done = subprocess.run([sys.executable, "-c", LOST, bundle], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stderr[-2000:]
    assert all(line.startswith("EngineError the device failed") for line in lines[:2])
    assert lines[2].startswith("raised the device failed") and "start a new process" in lines[2]
