"""Who may import whom, read from the sources; and what `import qdengine` costs and pulls in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "qdengine"
# Lower layers first: a module may import its own layer and those before it.
LAYERS = [
    {"errors", "config", "request", "jsonl", "files"},
    {"tokenizer", "sentences", "documents", "prompt", "verbatim"},
    {"ops"},
    {"model"},
    {"huggingface", "checkpoint"},
    {"convert", "export", "delta"},
    {"student"},
    {"engine"},
    {"summarize_file", "doctor"},
    {"evaluate"},
    {"train"},
    {"cli", "__main__"},
]
TORCH_FREE = [
    "engine/scheduler.py",
    "engine/sequence.py",
    "request.py",
    "config.py",
    "errors.py",
    "jsonl.py",
    "files.py",
    "summarize_file.py",
    "verbatim.py",
    "evaluate/baselines.py",
    "evaluate/latency.py",
    "evaluate/report.py",
    "evaluate/rouge.py",
    "evaluate/score.py",
]


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it is loaded or run: not those for type checkers alone."""
    package = path.relative_to(PACKAGE).with_suffix("").parts[:-1]
    found = set()
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {f"{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            full = (*base, *(node.module.split(".") if node.module else ()))
            names = [".".join(full)] if full else [alias.name for alias in node.names]
            found |= {"qdengine." + name for name in names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what is in it, without the bodies of `if TYPE_CHECKING:`."""
    yield node
    skipped = node.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" else []
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from executed(child)


def layer(name: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    mine = layer(own)
    assert mine is not None, f"{own} has no layer; add it to LAYERS"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "qdengine" and len(parts) > 1 and (theirs := layer(parts[1])) is not None:
            assert theirs <= mine, f"{own} imports {name}, a higher layer"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_bookkeeping_needs_no_torch(name: str) -> None:
    assert not {n for n in imports(PACKAGE / name) if n.split(".")[0] == "torch"}


def test_triton_kernels_stand_alone() -> None:
    for path in (ROOT / "triton_kernels").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        absolute = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        absolute |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level}
        assert absolute <= {"torch", "triton", "__future__", "math", "os"}, path.name


def test_import_is_light() -> None:
    code = (
        "import torch, time, sys; t = time.perf_counter(); import qdengine; qdengine.Engine;"
        "d = time.perf_counter() - t;"
        "heavy = {'triton', 'transformers', 'peft', 'gguf', 'rouge_score', 'pydantic', 'yaml'};"
        "print(d, *(heavy & set(sys.modules)))"
    )
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "CUDA_VISIBLE_DEVICES": ""}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, cwd="/")
        for _ in range(3)
    ]
    outputs = [run.stdout.split() for run in runs]
    assert all(len(o) == 1 for o in outputs), f"pulled in {outputs[0][1:]}"
    assert min(float(o[0]) for o in outputs) < 0.3
