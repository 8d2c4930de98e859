"""Models on disk: a qdengine bundle, or a Hugging Face folder. Never pickle.

A bundle is a folder with `model.safetensors` (canonical names), `tokenizer.json`, and `qdengine.json`: the
architecture, the prompt format, stop tokens, limits, and a SHA-256 manifest that is checked at load.

Canonical names, matrices [out, in]: embed.weight [V, E]; positions.weight [C, E] (gpt2); for each layer i, layers.i. +
norm1, qkv [(H + 2G) D, E], q_norm and k_norm [D] (where qk_norm), out [E, H D], norm2, gate_up [2F, E] (llama) or up
[F, E] (gpt2), down [E, F]; norm; head.weight [V, E] (untied). Biases where the architecture has them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import huggingface, ops
from .config import ModelConfig, is_linear
from .errors import CheckpointError, ConfigError
from .ops.reference import quantize
from .prompt import DOCUMENT_FIRST, PromptFormat
from .tokenizer import Tokenizer

FORMAT = 1
DESCRIPTION = "qdengine.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
CARD = "README.md"
_SCALES = ".scales"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that is ready to be loaded. digest: hex SHA-256 that names its contents."""

    name: str
    path: Path
    config: ModelConfig
    prompt: PromptFormat
    stop_ids: tuple[int, ...]
    digest: str

    def __post_init__(self) -> None:
        bos = () if self.prompt.bos_id is None else (self.prompt.bos_id,)
        for what, ids in (("prompt.bos_id", bos), ("stop_ids", self.stop_ids)):
            for i in ids:
                if not 0 <= i < self.config.vocab_size:
                    raise CheckpointError(
                        f"{self.path}: {what} has {i}, and the vocabulary is {self.config.vocab_size} tokens; convert "
                        "the model again"
                    )

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(self.path / TOKENIZER)

    def tokenizer_json(self) -> str:
        return (self.path / TOKENIZER).read_text(encoding="utf-8")

    def holds_int8(self) -> bool:
        """Whether its matrices are in 8 bits (`quantized`). Raises `CheckpointError`."""
        return (self.path / DESCRIPTION).exists() and any(name.endswith(_SCALES) for name in _read(self.path / WEIGHTS))

    def weights(self) -> dict[str, Tensor]:
        """Canonical names to tensors, memory-mapped where the file holds them as they are; float32 where it holds int8.
        Raises `CheckpointError`."""
        if (self.path / DESCRIPTION).exists():
            weights = dense(_read(self.path / WEIGHTS))
        else:
            weights = huggingface.canonical(self.config, huggingface.tensors(self.path, _read))
        check_weights(self.config, weights)
        return weights


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """The bundle or Hugging Face folder at `path`. Raises `CheckpointError` that names what is missing or damaged."""
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a qdengine bundle or a Hugging Face model folder")
    if (folder / DESCRIPTION).exists():
        return _load_bundle(folder)
    if (folder / "config.json").exists():
        data = huggingface.read_json(folder / "config.json")
        config = huggingface.model_config(data)
        files = [folder / "config.json", folder / TOKENIZER, *sorted(folder.glob("*.safetensors"))]
        hashes = {file.name: sha256(file) for file in files if file.is_file()}
        digest = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        stops = huggingface.stop_ids(folder, data)
        bos = huggingface.bos_id(folder, data)
        prompt = PromptFormat(DOCUMENT_FIRST.parts, bos_id=bos)
        return Checkpoint(folder.resolve().name, folder, config, prompt, stops, digest)
    raise CheckpointError(f"{folder} has neither {DESCRIPTION} (a bundle) nor config.json (a Hugging Face folder)")


def save_bundle(
    path: str | os.PathLike[str],
    config: ModelConfig,
    weights: dict[str, Tensor],
    tokenizer_json: str,
    prompt: PromptFormat,
    stop_ids: tuple[int, ...],
    source: str,
    card: str = "",
) -> Path:
    """Write a bundle, whole or not at all: it is made beside `path` and renamed.

    weights: tensors under their canonical names, or from `quantized`. card: its README.md, if it is to have one.
    Raises `CheckpointError` where `path` exists and is not an empty folder, or the weights do not fit `config`.
    """
    check_weights(config, dense(weights))
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} already exists; remove it or choose another destination")
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, made / WEIGHTS)
        (made / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
        if card:
            (made / CARD).write_text(card, encoding="utf-8")
        description = {
            "format": FORMAT,
            "source": source,
            "architecture": asdict(config),
            "prompt": prompt.to_dict(),
            "stop_ids": list(stop_ids),
            "limits": {"max_positions": config.max_positions},
            "manifest": {name: sha256(made / name) for name in (WEIGHTS, TOKENIZER, *([CARD] if card else []))},
        }
        (made / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        made.chmod(0o755)
        (made / WEIGHTS).chmod(0o644)  # safetensors makes it readable for its owner alone
        os.replace(made, path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return path


def quantized(config: ModelConfig, weights: dict[str, Tensor], smooth: bool = True) -> dict[str, Tensor]:
    """`weights`, smoothed, with the matrices of linear layers in int8, and a float32 scale for each of their rows under
    `name.scales`. An engine of precision "int8" makes the same numbers of their product, and works with these (with
    AVX2 in pairs, `pack_linear`). smooth: not for weights that were in int8."""
    from .model.layers import Build
    from .model.smooth import smoothed

    wide = {name: tensor.float() for name, tensor in weights.items()}
    found = smoothed(Build(ops.load("cpu"), config, wide, torch.float32, None, False)) if smooth else dict(wide)
    for name, weight in list(found.items()):
        if is_linear(name):
            numbers, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
            quantize(numbers, scales, weight)
            found[name], found[name + _SCALES] = numbers, scales
        else:
            found[name] = weight.to(weights[name].dtype)
    return found


def dense(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `quantized`, in float32 where there are scales."""
    return {
        name: tensor * weights[name + _SCALES].unsqueeze(1) if name + _SCALES in weights else tensor
        for name, tensor in weights.items()
        if not name.endswith(_SCALES)
    }


def select_layers(weights: dict[str, Tensor], layers: list[int]) -> dict[str, Tensor]:
    """The weights of a model that has these layers alone, in this order."""
    found = {name: tensor for name, tensor in weights.items() if not name.startswith("layers.")}
    for new, old in enumerate(layers):
        own = f"layers.{old}."
        found |= {
            f"layers.{new}.{name.removeprefix(own)}": tensor for name, tensor in weights.items() if name.startswith(own)
        }
    return found


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Those of the tensors that `config` needs, by name: of `ReferenceModel`, whose import takes a second."""
    width, llama = config.width, config.family == "llama"
    heads, qkv = config.heads * config.head_width, (config.heads + 2 * config.kv_heads) * config.head_width
    up = {"gate_up": (2 * config.ffn_width, width)} if llama else {"up": (config.ffn_width, width)}
    linear = {"qkv": (qkv, width), "out": (width, heads), **up, "down": (width, config.ffn_width)}
    found: dict[str, tuple[int, ...]] = {"embed.weight": (config.vocab_size, width)}
    if not llama:
        found["positions.weight"] = (config.max_positions, width)
    norms = {"norm": width}
    for prefix in (f"layers.{i}" for i in range(config.layers)):
        norms |= {f"{prefix}.norm1": width, f"{prefix}.norm2": width}
        if config.qk_norm:
            norms |= {f"{prefix}.q_norm": config.head_width, f"{prefix}.k_norm": config.head_width}
        for name, shape in linear.items():
            found[f"{prefix}.{name}.weight"] = shape
            if not llama or (name == "qkv" and config.qkv_bias):
                found[f"{prefix}.{name}.bias"] = shape[:1]
    for norm, size in norms.items():
        found |= {f"{norm}.{part}": (size,) for part in (("weight",) if llama else ("weight", "bias"))}
    if not config.tied_head:
        found["head.weight"] = (config.vocab_size, width)
    return found


def check_weights(config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Raise `CheckpointError` unless `weights` are exactly the tensors that `config` needs."""
    wanted = shapes(config)
    for problem, names in (
        ("lack", wanted.keys() - weights.keys()),
        ("have the unknown", weights.keys() - wanted.keys()),
    ):
        if names:
            raise CheckpointError(f"the weights {problem} tensor {min(names)!r} ({len(names)} in all)")
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(weights[name].shape)}; the architecture needs {list(shape)}"
            )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_bundle(folder: Path) -> Checkpoint:
    data = huggingface.read_json(folder / DESCRIPTION)
    if data.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: format {data.get('format')!r}; this version reads format {FORMAT}"
        )
    try:
        manifest: dict[str, str] = dict(data["manifest"])
        config, prompt = ModelConfig.from_dict(data["architecture"]), PromptFormat.from_dict(data["prompt"])
        stop_ids = tuple(int(i) for i in data["stop_ids"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: {type(error).__name__}: {error}; convert the model again"
        ) from None
    for name in manifest:
        if Path(name).name != name or name in (".", ".."):
            raise CheckpointError(
                f"{folder / DESCRIPTION}: the manifest names {name!r}, which is not a plain file name"
            )
    for name in sorted({WEIGHTS, TOKENIZER, *manifest}):
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; the bundle is incomplete, convert or install it again")
        if sha256(file) != manifest.get(name):
            raise CheckpointError(
                f"{file} is not the file of the manifest (SHA-256 differs); convert or install it again"
            )
    digest = hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
    return Checkpoint(folder.resolve().name, folder, config, prompt, stop_ids, digest)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None
