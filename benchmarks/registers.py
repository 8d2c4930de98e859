"""Registers, shared memory and spills of every CUDA kernel, by architecture, as ptxas reports them. Needs nvcc, no GPU.

    python benchmarks/registers.py                      # all of csrc/cuda
    python benchmarks/registers.py norm --json out.json

tests/test_cuda_compile.py compiles through `compile_report`, forbids spills and keeps the tables in build/registers/.
Shared memory is what a kernel declares; what a launch adds to it is not in the report.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHS = ("80", "89", "90")
_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>[^']+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture. stack: bytes of local memory; spills: bytes stored to and loaded from it."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int


def parse(report: str) -> list[Kernel]:
    """The kernels of what `nvcc -Xptxas=-v` wrote."""
    entries = list(_ENTRY.finditer(report))
    names = _readable([entry["name"] for entry in entries])
    kernels = []
    for entry, name in zip(entries, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        kernels.append(
            Kernel(
                name, entry["arch"], int(entry["registers"]), int(shared[1]) if shared else 0,
                int(entry["stack"]), int(entry["stores"]) + int(entry["loads"]),
            )
        )  # fmt: skip
    return kernels


def _readable(mangled: list[str]) -> list[str]:
    """C++ names without namespaces and parameters; as they are where binutils is not installed."""
    filter_ = shutil.which("c++filt")
    if filter_ is None or not mangled:
        return mangled
    done = subprocess.run([filter_], input="\n".join(mangled), capture_output=True, text=True, check=True)
    return [_short(line) for line in done.stdout.splitlines()]


def _short(name: str) -> str:
    name = re.sub(r"\((int|bool|long|unsigned int)\)", "", name.replace("(anonymous namespace)::", ""))
    name = re.sub(r"\b(qdengine|cuda)::", "", name).removeprefix("void ")
    depth = 0
    for i, c in enumerate(name):  # the parameters begin at the first parenthesis outside of <>
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i]
    return name


def compile_report(source: Path, archs: tuple[str, ...] = ARCHS) -> list[Kernel]:
    """Compile with warnings as errors. Raises `RuntimeError` with the compiler's words when it fails."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not on PATH; install the CUDA toolkit")
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Werror=all-warnings", "-Xptxas=-v"]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        command += ["-I", str(ROOT / "csrc" / "include"), "--threads=2", "-c", str(source), "-o", f"{folder}/kernels.o"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stderr[-3000:]}")
    return parse(done.stderr)


def table(kernels: list[Kernel]) -> str:
    """A line a kernel: registers on each architecture, shared memory, stack and spills where there are any."""
    archs = sorted({kernel.arch for kernel in kernels})
    by_name: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.arch] = kernel
    width = max([len(name) for name in by_name], default=0) + 2
    lines = [
        f"{'kernel':{width}}"
        + "".join(f"{'sm_' + arch:>8}" for arch in archs)
        + f"{'shared':>9}{'stack':>7}{'spills':>8}"
    ]
    for name, of in by_name.items():
        registers = "".join(f"{of[arch].registers if arch in of else '-':>8}" for arch in archs)
        worst = [max(getattr(kernel, field) for kernel in of.values()) for field in ("shared", "stack", "spills")]
        lines.append(f"{name:{width}}{registers}{worst[0]:>9}{worst[1]:>7}{worst[2]:>8}")
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--json", "out", type=click.Path(dir_okay=False), help="Also write every kernel here.")
def main(names: tuple[str, ...], out: str | None) -> None:
    """Registers of each architecture; bytes of shared memory, stack and spills, the largest of all."""
    kernels: dict[str, list[Kernel]] = {}
    for source in SOURCES:
        if not names or source.stem in names:
            kernels[source.stem] = compile_report(source)
            if kernels[source.stem]:
                click.echo(f"\n{source.stem}.cu\n{table(kernels[source.stem])}")
    if out:
        found = {stem: [asdict(kernel) for kernel in of] for stem, of in kernels.items()}
        Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
