"""From the source tree to an installed package, as pip does it: in an environment that has no torch."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
EXTENSIONS = ("_host", "_native")
INFO = f"qdengine-{VERSION}.dist-info"
NO_INDEX = re.compile(r"No matching distribution found for (scikit-build-core|pybind11|ninja|cmake)")
pytestmark = pytest.mark.slow


def build(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m build` in an environment of its own; skips the test where the tools to build with cannot be had."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QDENGINE", "SKBUILD"))}
    command = [sys.executable, "-m", "build", "--outdir", str(out), "-C", f"build-dir={out / 'build'}", *arguments]
    done = subprocess.run(
        [*command, str(ROOT)], env={**env, **environment}, capture_output=True, text=True, timeout=900
    )
    if done.returncode and (reason := NO_INDEX.search(done.stdout + done.stderr)):
        pytest.skip(f"no package index: {reason[0]}")
    return done


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A source distribution, and a wheel that is built from it alone."""
    out = tmp_path_factory.mktemp("dist")
    done = build(out, QDENGINE_CUDA="OFF")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out


@pytest.fixture(scope="module")
def sources(dist) -> set[str]:
    """Paths in the source distribution."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as file:
        return {name.partition("/")[2] for name in file.getnames()}


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def test_the_source_distribution_has_what_building_takes(sources):
    tracked = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "python", "triton_kernels")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py", ".pyi", ".typed", ".safetensors")
    }
    assert {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md", *tracked} <= sources
    unwanted = re.compile(r"(^|/)(\.venv|\.git|build|dist|__pycache__|\.\w+_cache|\.hypothesis)/|\.(so|pyc)$")
    assert not [name for name in sources if unwanted.search(name)]


def test_the_wheel_has_what_running_takes_and_no_more(wheel, sources):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    expected = {name.removeprefix("python/") for name in sources if name.startswith("python/qdengine/")}
    expected |= {f"qdengine/{name}" for name in sources if re.fullmatch(r"triton_kernels/\w+\.py", name)}
    expected |= {f"{INFO}/{name}" for name in ["METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"]}
    expected |= {f"qdengine/{name}{sysconfig.get_config_var('EXT_SUFFIX')}" for name in EXTENSIONS}
    assert names == expected
    assert {"qdengine/_native.pyi", "qdengine/py.typed", "qdengine/triton_kernels/__init__.py"} < names
    suffixes = {Path(name).suffix for name in names if name.startswith("qdengine/")}
    assert suffixes == {".py", ".pyi", ".typed", ".so", ".safetensors"}
    students = sum(path.stat().st_size for path in (ROOT / "python" / "qdengine" / "students").iterdir())
    assert students <= 24_000_000
    assert wheel.stat().st_size < students + (5 << 20)


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as file:
        metadata = email.message_from_bytes(file.read(f"{INFO}/METADATA"))
        entry_points = file.read(f"{INFO}/entry_points.txt").decode()
    needs = metadata.get_all("Requires-Dist")
    always = {re.split(r"[<>=]", need)[0] for need in needs if "extra ==" not in need}
    assert always == {"torch", "numpy", "tokenizers", "safetensors", "click", "tqdm"}
    assert set(metadata.get_all("Provides-Extra")) == {"convert", "eval", "train", "triton", "test"}
    for extra, package in (
        ("convert", "gguf"),
        ("eval", "rouge-score"),
        ("train", "peft"),
        ("triton", "triton"),
        ("test", "pytest"),
    ):
        assert any(need.startswith(package) and f'extra == "{extra}"' in need for need in needs), extra
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "Apache-2.0"
    assert entry_points.split() == ["[console_scripts]", "qdengine", "=", "qdengine.cli:main"]


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_links_neither_torch_nor_cuda(wheel, tmp_path, name):
    with zipfile.ZipFile(wheel) as file:
        extension = file.extract(f"qdengine/{name}{sysconfig.get_config_var('EXT_SUFFIX')}", tmp_path)
    dynamic = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    needed = {name.split(".so")[0] for name in re.findall(r"NEEDED.*\[(.+)\]", dynamic)}
    system = {"libc", "libm", "libgcc_s", "libpthread", "libdl", "librt", "ld-linux-x86-64", "ld-linux-aarch64"}
    assert {"libstdc++"} <= needed <= {"libstdc++"} | system
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    symbols = subprocess.run(["nm", "-D", "--defined-only", extension], capture_output=True, text=True, check=True)
    own = [line.split()[-1] for line in symbols.stdout.splitlines() if "qdengine" in line or " T " in line]
    own = [symbol for symbol in own if "once_flag" not in symbol]  # of the standard library, by way of pybind11
    assert own == [f"PyInit_{name}"], "nothing else for other extensions to collide with"
    assert str(ROOT).encode() not in Path(extension).read_bytes(), "no path of the machine that built it"


def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """Its dependencies are seen through a .pth file; qdengine itself is the wheel's."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True)
    site = next(home.glob("lib/python3*/site-packages"))
    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parent.parent))
    code = """
import torch, qdengine
from qdengine import ops
x, out = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)), torch.empty(2, 3, 100)
for i, backend in enumerate(("cpu", "reference")):
    ops.load(backend).rms_norm(out[i], None, x, torch.ones(100), 1e-5)
torch.testing.assert_close(out[0], out[1])
print(qdengine.__version__, qdengine.__file__, qdengine.Engine.__name__)
"""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    options = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    done = subprocess.run([python, "-c", code], **options)
    assert done.stdout.split() == [VERSION, str(site / "qdengine" / "__init__.py"), "Engine"]
    done = subprocess.run([home / "bin" / "qdengine", "doctor", "--json"], **options)
    found = json.loads(done.stdout)
    assert found["ok"] and found["cuda_archs_built"] == [] and found["qdengine"] == VERSION
    assert found["backends"]["cuda"].endswith("rebuild with QDENGINE_CUDA=ON and nvcc on PATH")


def test_cuda_without_a_compiler_is_an_error_that_says_so(tmp_path):
    """CUDACXX names a compiler that is not there, which hides those that are."""
    done = build(tmp_path, "--wheel", QDENGINE_CUDA="ON", CUDACXX=str(tmp_path / "nvcc"))
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and not list(tmp_path.glob("*.whl"))
    assert "QDENGINE_CUDA=ON, but nvcc was not found: install the CUDA toolkit" in said
    assert "or build with QDENGINE_CUDA=OFF" in said
