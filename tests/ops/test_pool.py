"""The threads of a CPU's ops: any number of them, callers at the same time, forks, what the process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from qdengine import Engine, EngineConfig
from qdengine.ops import native
from tiny import TEXT, tiny_bundle

GENERATOR = torch.Generator().manual_seed(5)
X, WEIGHT = (torch.randn(shape, generator=GENERATOR) for shape in ((300, 64), (200, 64)))
PACKED = torch.empty(native.packed_bytes(WEIGHT), dtype=torch.uint8)
native.pack_linear(PACKED, WEIGHT, None)


def product() -> torch.Tensor:
    out = torch.empty(len(X), len(WEIGHT))
    native.linear(out, X, None, PACKED, None, False)
    return out


def test_any_number_of_threads_gives_the_same():
    want = product()
    try:
        for limit in (1, 2, 3, 7, 2, 1, 0):
            native.set_thread_limit(limit)
            assert all(torch.equal(product(), want) for _ in range(20)), limit
    finally:
        native.set_thread_limit(0)


def test_callers_at_the_same_time():
    want = product()
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: all(torch.equal(product(), want) for _ in range(50)), range(8)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_workers_of_its_own():
    code = """
import os, torch
from ops.test_pool import product
want = product()
child = os.fork()
if child == 0:
    os._exit(0 if all(torch.equal(product(), want) for _ in range(20)) else 1)
assert os.waitpid(child, 0)[1] == 0 and torch.equal(product(), want)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_and_the_environment_are_respected():
    code = "import os, sys, torch; exec(sys.argv[1]); from qdengine.ops import native; print(native.usable_threads())"

    def usable(first: str, **env: str) -> int:
        command = [sys.executable, "-c", code, first]
        return int(subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True).stdout)

    cores = sorted(os.sched_getaffinity(0))
    assert usable(f"os.sched_setaffinity(0, [{cores[0]}])") == 1
    assert usable("", OMP_NUM_THREADS="1") == 1
    assert 1 <= usable("", OMP_NUM_THREADS="") <= len(cores)


def test_an_engine_takes_as_many_as_it_is_told(tmp_path):
    batch = [{"query": "fox", "document": TEXT}]
    written = []
    for threads in (None, 1):
        config = EngineConfig(kv_bytes=1 << 22, max_new_tokens=8, threads=threads)
        with Engine.from_pretrained(tiny_bundle(tmp_path / str(threads)), "cpu", config=config) as engine:
            assert engine.threads == min(threads or native.usable_threads(), native.usable_threads())
            written.append(engine.summarize(batch)[0].token_ids)
    assert written[0] == written[1] and written[0]
