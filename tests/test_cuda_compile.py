"""Every CUDA source compiles for the three architectures, and no kernel spills registers to memory.

What each kernel takes is kept in build/registers/, a table a source.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import registers
import torch
from qdengine import _native

ROOT = Path(__file__).parent.parent
NVCC = shutil.which("nvcc")
REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8qdengine4cuda1kIfLi2EEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN8qdengine4cuda1kIfLi2EEEvPT_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 2064 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 5.1 ms
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 360 bytes cmem[0]
"""


def test_report_is_read() -> None:
    first, second = registers.parse(REPORT)
    assert (first.arch, first.registers, first.shared, first.stack, first.spills) == ("80", 255, 2064, 16, 20)
    assert (second.name, second.arch, second.registers, second.shared, second.spills) == ("plain", "90", 10, 0, 0)
    if shutil.which("c++filt"):
        assert first.name == "k<float, 2>"
    lines = registers.table([first, second]).splitlines()
    assert lines[0].split() == ["kernel", "sm_80", "sm_90", "shared", "stack", "spills"]
    assert lines[2].split() == ["plain", "-", "10", "0", "0", "0"]


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("source", registers.SOURCES, ids=lambda p: p.stem)
def test_compiles_without_spills(source: Path) -> None:
    kernels = registers.compile_report(source)
    text = registers.table(kernels)
    kept = ROOT / "build" / "registers" / f"{source.stem}.txt"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(f"{source.stem}.cu\n{text}\n", encoding="utf-8")
    if source.stem == "table":
        return  # no kernels
    assert {kernel.arch for kernel in kernels} == set(registers.ARCHS)
    assert not [kernel for kernel in kernels if kernel.stack or kernel.spills], text


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
@pytest.mark.skipif(os.environ.get("QDENGINE_CUDA") == "OFF", reason="built with QDENGINE_CUDA=OFF")
def test_the_build_has_them() -> None:
    """With nvcc there, an AUTO build has the CUDA kernels; that this module is imported shows that no GPU is needed."""
    info = _native.build_info()
    assert info["cuda"]
    assert tuple(info["cuda_archs"]) == registers.ARCHS


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_said() -> None:
    from qdengine import ops
    from qdengine.errors import BackendError

    with pytest.raises(BackendError, match=r"torch sees no CUDA device|no CUDA kernels"):
        ops.load("cuda")
