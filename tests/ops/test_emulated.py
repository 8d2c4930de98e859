"""The CUDA kernels of attention on a CPU: their own sources, compiled over an emulator of warps and tensor cores.

It shows that indices, masks, fragments, the swizzle and the fold of splits are right. It does not show what needs the
hardware: races between asynchronous copies and the reads of them, speed.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from cases import EIGHT_BIT, Case, cases, kv_cache, paged
from ops.test_ops import expected, run, slack
from qdengine.ops import reference
from tolerances import TOLERANCES
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc")
KERNELS = ("paged_attention.cu", "rope_append.cu")
LAUNCH = re.compile(r"(\w+<[\w, ]+>)<<<(.*?), (\w+), \w+, stream>>>\((.*?)\);")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")]


def sources(folder: Path) -> list[Path]:
    """The kernels with launches as calls, beside their headers; the instructions of tensor cores are the emulator's."""
    for path in [*(ROOT / "csrc" / "cuda").glob("*.cuh"), *(ROOT / "tests" / "emulated").iterdir()]:
        text = path.read_text(encoding="utf-8").replace("extern __shared__", "extern")
        (folder / path.name).write_text(text, encoding="utf-8")
    for name in KERNELS:
        text = (ROOT / "csrc" / "cuda" / name).read_text(encoding="utf-8")
        text, found = LAUNCH.subn(r"emulator::launch(\2, \3, [=] { \1(\4); });", text)
        assert found and "<<<" not in text
        (folder / name).with_suffix(".cpp").write_text(text, encoding="utf-8")
    return [
        *folder.glob("*.cpp"),
        *(ROOT / "csrc" / "ops").glob("*.cpp"),
        *(ROOT / "csrc" / part for part in ("cpu/pool.cpp", "bindings/module.cpp")),
    ]


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> ModuleType:
    folder = tmp_path_factory.mktemp("emulated")
    includes = [*include_paths(), ROOT / "csrc" / "include", ROOT / "csrc" / "third_party"]
    command = [NVCC, "-x", "c++", "-std=c++20", "-O1", "-shared", "--threads=2", '-DQDENGINE_VERSION=""']
    command += ["-Xcompiler=-fPIC,-w,-fno-strict-aliasing,-ffp-contract=off", "-include", folder / "emulator.h"]
    command += [f"-I{path}" for path in (*includes, sysconfig.get_paths()["include"])]
    library = folder / "_native.so"
    done = subprocess.run([*command, *sources(folder), "-o", library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("_native", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(native: ModuleType, case: Case) -> torch.Tensor:
    relative, absolute = TOLERANCES[case.args[1].dtype] if case.op == "paged_attention" else TOLERANCES[torch.bfloat16]
    outputs = run(SimpleNamespace(**vars(native)), case, "cpu")
    for got, want in zip(outputs, expected(case), strict=True):
        if got.itemsize == 1:
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8)), case.name
            continue
        allowed = relative * want.abs() + absolute + slack(case, "cuda")
        assert ((got.double() - want).abs() <= allowed).all(), case.name
    return outputs[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ["rope_append", "paged_attention"])
def test_against_float64(native, op, dtype):
    """Some of the shared cases with few tokens: with many, emulation takes seconds each."""
    few = [c for c in cases(dtype) if c.op == op and len(c.args[5 if op == "rope_append" else 1]) <= 60]
    for case in few[:: 2 if dtype == torch.bfloat16 else 5]:
        check(native, case)


@pytest.mark.parametrize("cached", [torch.bfloat16, *EIGHT_BIT], ids=str)
@pytest.mark.parametrize("width", [64, 128])
def test_splits_and_chunks_change_no_bit(native, width, cached):
    """Prefill, verification and decode in one batch, whole, split over the keys, alone and in chunks."""
    g = torch.Generator().manual_seed(8)
    p = paged(((70, 70), (600, 3), (300, 0), (257, 1)), 16, 1)
    tables, tokens, heads = (p["table"], p["kv_lens"], p["q_indptr"]), len(p["positions"]), 6
    cache = kv_cache(g, cached, int(p["blocks"]), 16, 2, width)
    q = torch.randn(tokens, heads, width, generator=g).bfloat16()
    space = reference.attention_workspace(tokens, heads, width, p["table"].shape[1] * 16)
    got = [
        check(
            native, Case("paged_attention", str(w), (torch.empty_like(q), q, *cache, workspace, *tables, width**-0.5))
        )
        for w, workspace in (("whole", None), ("split", torch.full((space,), torch.nan)))
    ]
    assert torch.equal(*got)
    for s, cut in ((0, 33), (1, 1)):
        begin, end = p["q_indptr"][s].item(), p["q_indptr"][s + 1].item()
        for first, last in ((begin, begin + cut), (begin + cut, end)):
            part, bounds = torch.empty_like(q[first:last]), torch.tensor([0, last - first], dtype=torch.int32)
            lens = p["kv_lens"][s : s + 1] - (end - last)
            rows = (q[first:last].clone(), *cache, None, p["table"][s : s + 1], lens, bounds, width**-0.5)
            native.paged_attention(part, *rows)
            assert torch.equal(part, got[0][first:last])
