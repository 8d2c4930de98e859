"""The CPU ops of instruction sets that this machine may lack: their own sources, with plain code in the place of the
instructions that dot.h and tiles.h wrap.

It shows that packing, tiles, tails and offsets are right. It does not show speed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import qdengine
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
CXX = shutil.which(os.environ.get("CXX", "g++"))
CASES = ["tests/ops/test_ops.py", "tests/model/test_linear.py"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CXX is None, reason="no C++ compiler")]


def build(isa: str, folder: Path) -> None:
    """qdengine in `folder`, with an extension of this instruction set alone."""
    shutil.copytree(
        Path(qdengine.__file__).parent,
        folder / "qdengine",
        ignore=shutil.ignore_patterns("_native.*.so", "__pycache__"),
    )
    includes = [ROOT / "csrc" / "include", ROOT / "csrc" / "third_party", *include_paths()]
    flags = ["-std=c++20", "-O2", "-fPIC", "-w", "-fno-math-errno", "-ffp-contract=off", "-march=native"]
    flags += [
        '-DQDENGINE_VERSION="emulated"',
        f"-DQDENGINE_EMULATED={isa}",
        f"-DQDENGINE_ISA={isa}",
        f"-DQDENGINE_ISA_{isa}=1",
    ]
    flags += [f"-I{path}" for path in (*includes, sysconfig.get_paths()["include"])]
    sources = [*(ROOT / "csrc" / "cpu").rglob("*.cpp"), *(ROOT / "csrc" / "ops").glob("*.cpp")]
    sources.append(ROOT / "csrc" / "bindings" / "module.cpp")

    def compiled(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}.o"
        done = subprocess.run([CXX, *flags, "-c", source, "-o", target], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return target

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        objects = list(threads.map(compiled, sources))
    library = folder / "qdengine" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([CXX, "-shared", *objects, "-o", library, "-lpthread"], check=True)


@pytest.mark.parametrize(("isa", "chosen"), [("avx512_bf16", "packed"), ("amx", "packed or cpu and attention")])
def test_the_same_cases_pass(isa, chosen, tmp_path):
    build(isa, tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    env.pop("QDENGINE_ISA", None)
    code = "import torch; from qdengine import _native as n; print(n.build_info()['isa'], n.build_info()['version'])"
    probe = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert probe.stdout.split() == [isa, "emulated"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *CASES, "-k", chosen]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
