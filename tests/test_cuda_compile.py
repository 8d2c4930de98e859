"""Every CUDA source compiles for the three architectures, and no kernel spills registers to memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from qdengine import _native

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHS = ("80", "89", "90")
NVCC = shutil.which("nvcc")


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_compiles_without_spills(source: Path, tmp_path: Path) -> None:
    command = [
        NVCC,
        "-std=c++17",
        "-O3",
        "--expt-relaxed-constexpr",
        "-I",
        ROOT / "csrc" / "include",
        "-Werror=all-warnings",
    ]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    command += ["-Xptxas=-v", "--threads=2", "-c", source, "-o", tmp_path / "kernels.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if source.stem == "table":
        return  # no kernels
    for arch in ARCHS:
        assert f"for 'sm_{arch}'" in done.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills
    assert set(spills) == {("0", "0", "0")}, done.stderr[-3000:]


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
@pytest.mark.skipif(os.environ.get("QDENGINE_CUDA") == "OFF", reason="built with QDENGINE_CUDA=OFF")
def test_the_build_has_them() -> None:
    """With nvcc there, an AUTO build has the CUDA kernels; that this module is imported shows that no GPU is needed."""
    info = _native.build_info()
    assert info["cuda"]
    assert tuple(info["cuda_archs"]) == ARCHS


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_said() -> None:
    from qdengine import ops
    from qdengine.errors import BackendError

    with pytest.raises(BackendError, match=r"torch sees no CUDA device|no CUDA kernels"):
        ops.load("cuda")
