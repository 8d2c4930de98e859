"""Options of the engine and the shape of a model, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .errors import ConfigError, UnsupportedModelError

DEFAULT_STUDENT = "qd-135m"
FAMILIES = ("llama", "gpt2")
PRECISIONS = ("auto", "float32", "bfloat16", "int8", "float8")
KV_DTYPES = ("auto", "int8", "float8")
LINEAR = ("qkv", "out", "gate_up", "up", "down")
"""The linear layers of a model's layers; a family has some of them."""


def is_linear(name: str) -> bool:
    """Whether a weight, by its canonical name, is the matrix of one of LINEAR."""
    return name.startswith("layers.") and name.endswith(tuple(f".{layer}.weight" for layer in LINEAR))


_MOST = {"layers": 1024, "vocab_size": 1 << 22}  # far above any model: larger is a damaged description


def _check_int(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; it must be an int in [{least}, {most}]")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {value!r}; it must be a positive number")


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be True or False")


_BY_DEVICE = ("kv_bytes", "max_sequences", "max_step_tokens", "threads")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine spends memory and time. What is None is chosen for the device: see `sizes`.

    kv_bytes: memory for keys and values, in bytes.
    kv_dtype: their numbers: "auto" (the model's precision), or 8 bits, "int8" or "float8" (e4m3), with a float32 scale
        for every token and kv head: more tokens in the same memory, and a little less exact.
    block_tokens: tokens of one block of that memory; documents are shared in whole blocks.
    document_cache_bytes: memory for the tokens and sentences of documents, so that a known text is not tokenised
        again; 0 keeps none.
    max_sequences: most sequences in one step.
    max_step_tokens: most tokens in one step: prefill chunks, drafts and plain decode together.
    threads: on a CPU, most threads of a step; None: all that the process may use.
    max_new_tokens, lookahead: what a request means that does not say.
    adaptive_lookahead: draft only as many tokens as pay, by what steps cost and drafts achieve here and now;
        False drafts `lookahead` tokens whenever there is a match.
    cuda_graphs: on a GPU, capture the forward pass for every size of step when the engine starts, and replay it.
    batch_invariant: on a GPU, linear layers of fixed shape, so that no bit of a row depends on the rows beside it:
        slower, and lossless to the bit in 16 bits as well. On a CPU they always are.
    fused_head: on a GPU with Triton, greedy steps find the likeliest token without writing the logits.
    """

    kv_bytes: int | None = None
    kv_dtype: str = "auto"
    block_tokens: int = 16
    document_cache_bytes: int = 128 << 20
    max_sequences: int | None = None
    max_step_tokens: int | None = None
    threads: int | None = None
    max_new_tokens: int = 96
    lookahead: int = 64
    adaptive_lookahead: bool = True
    cuda_graphs: bool = True
    batch_invariant: bool = False
    fused_head: bool = False

    def __post_init__(self) -> None:
        for name in ("adaptive_lookahead", "cuda_graphs", "batch_invariant", "fused_head"):
            _check_bool(f"EngineConfig.{name}", getattr(self, name))
        if self.kv_dtype not in KV_DTYPES:
            raise ConfigError(f"EngineConfig.kv_dtype is {self.kv_dtype!r}; it must be one of {', '.join(KV_DTYPES)}")
        for name, least in (
            ("kv_bytes", 1),
            ("block_tokens", 1),
            ("document_cache_bytes", 0),
            ("max_sequences", 1),
            ("max_step_tokens", 1),
            ("threads", 1),
            ("max_new_tokens", 1),
            ("lookahead", 0),
        ):
            most = 2**63 - 1 if name.endswith("_bytes") else 2**31 - 1
            if getattr(self, name) is not None or name not in _BY_DEVICE:
                _check_int(f"EngineConfig.{name}", getattr(self, name), least, most)

    def sizes(self, gpu_free_bytes: int | None) -> tuple[int, int, int]:
        """kv_bytes, max_sequences and max_step_tokens, with numbers for a GPU with so much free memory, or for a CPU
        (None), where they are None: a GPU takes half of its memory, and steps that arithmetic bounds."""
        chosen = (1 << 30, 64, 1024) if gpu_free_bytes is None else (max(1, gpu_free_bytes // 2), 256, 8192)
        given = (self.kv_bytes, self.max_sequences, self.max_step_tokens)
        kv_bytes, sequences, step_tokens = (b if a is None else a for a, b in zip(given, chosen, strict=True))
        return kv_bytes, sequences, step_tokens


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3 frequency scaling (arXiv 2407.21783; `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_positive(f"RopeScaling.{f.name}", getattr(self, f.name))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder-only model, in the letters of the design: V E F L H G D.

    family: "llama" (RMS norm, rotary positions, gated SiLU) or "gpt2" (layer norm, learned positions, GELU).
    qkv_bias: biases on q, k and v; qk_norm: RMS norm of each head of q and k before rotation.
    tied_head: the head is the embedding matrix.
    """

    family: str
    vocab_size: int
    width: int
    ffn_width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    max_positions: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = True

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UnsupportedModelError(f"model family {self.family!r}; qdengine has {', '.join(FAMILIES)}")
        for name in (
            "vocab_size", "width", "ffn_width", "layers", "heads", "kv_heads", "head_width", "max_positions",
        ):  # fmt: skip
            _check_int(f"ModelConfig.{name}", getattr(self, name), 1, _MOST.get(name, 1 << 24))
        for name in ("norm_eps", "rope_theta"):
            _check_positive(f"ModelConfig.{name}", getattr(self, name))
        for name in ("qkv_bias", "qk_norm", "tied_head"):
            _check_bool(f"ModelConfig.{name}", getattr(self, name))
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_width % 2 and self.family == "llama":
            raise ConfigError(f"head_width is {self.head_width}; rotary positions need an even one")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Inverse of `dataclasses.asdict`. Raises `ConfigError` for a missing or unknown key."""
        data = dict(data)
        try:
            if data.get("rope_scaling") is not None:
                data["rope_scaling"] = RopeScaling(**data["rope_scaling"])
            return cls(**data)
        except TypeError as error:
            raise ConfigError(f"architecture: {error}") from None
