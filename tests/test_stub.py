"""One signature for an op everywhere: the reference, the extension, its stub and the Triton backend."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest
from qdengine import _native, ops
from qdengine.ops import reference

KINDS = {
    "Tensor": "Tensor",
    "torch.Tensor": "Tensor",
    "Tensor | None": "Tensor | None",
    "torch.Tensor | None": "Tensor | None",
    "float": "float",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "int": "int",
    "bool": "bool",
    "typing.SupportsInt | typing.SupportsIndex": "int",
}
Signature = list[tuple[str, str]]


def signature(function: ast.FunctionDef) -> Signature:
    """Names and kinds of the parameters, in order."""
    a = function.args
    assert not (a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg or a.defaults), f"{function.name}: plain ones only"
    assert function.returns is not None and ast.unparse(function.returns) == "None"
    return [(p.arg, KINDS[ast.unparse(p.annotation)]) for p in a.args if p.annotation is not None]


def parsed(path: str | Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


STUB_FILE = Path(_native.__file__).with_name("_native.pyi")
STUB = parsed(STUB_FILE)
OF_A_CPU = ("packed_bytes", "pack_linear", "linear", "usable_threads", "set_thread_limit")
REFERENCE = {name: node for path in Path(reference.__file__).parent.glob("*.py") for name, node in parsed(path).items()}


def documented(function) -> ast.FunctionDef:
    """The signature that pybind11 writes into the docstring."""
    node = ast.parse(f"def {function.__doc__.splitlines()[0]}: ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


@pytest.mark.parametrize("op", ops.OPS)
def test_signatures_agree(op):
    want = signature(REFERENCE[op])
    assert len(want) == len(inspect.signature(getattr(reference, op)).parameters) > 1
    assert want[0][1] == "Tensor", "destination first"
    assert signature(STUB[op]) == want
    assert signature(documented(getattr(_native, op))) == want
    spec = importlib.util.find_spec("qdengine.ops.triton")
    assert spec is not None and spec.submodule_search_locations
    parts = [parsed(path) for path in Path(spec.submodule_search_locations[0]).glob("*.py")]
    assert [signature(part[op]) for part in parts if op in part] == [want]


def test_the_stub_has_every_name():
    names = {name for name in dir(_native) if not name.startswith("_")}
    assert {*STUB, "Layers"} == names == {*ops.OPS, *OF_A_CPU, "build_info", "Layers"}
    assert list(STUB) == ["build_info", *ops.OPS, *OF_A_CPU], "and in the order of the table"


@pytest.mark.parametrize("name", [name for name in OF_A_CPU if not name.endswith(("bytes", "threads"))])
def test_signatures_of_a_cpu_agree(name):
    assert signature(documented(getattr(_native, name))) == signature(STUB[name])


@pytest.mark.parametrize("name", ["__init__", "forward"])
def test_signatures_of_layers_agree(name):
    tree = ast.parse(STUB_FILE.read_text(encoding="utf-8"))
    stub = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Layers").body
    want = next(n for n in stub if isinstance(n, ast.FunctionDef) and n.name == name)
    got = documented(getattr(_native.Layers, name))
    assert [p.arg for p in got.args.args] == [p.arg for p in want.args.args]


def test_build_info_is_what_the_stub_says():
    fields = next(n for n in ast.parse(STUB_FILE.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)).body
    kinds = {"str": str, "int": int, "bool": bool, "list[str]": list}
    told = {ast.unparse(f.target): kinds[ast.unparse(f.annotation)] for f in fields if isinstance(f, ast.AnnAssign)}
    info = _native.build_info()
    assert {name: type(value) for name, value in info.items()} == told
    assert all(isinstance(x, str) for x in info["isas"] + info["cuda_archs"]) and info["isa"] in info["isas"]
