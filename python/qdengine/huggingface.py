"""Hugging Face folders: which architectures and options are understood, and how their tensors map to canonical
names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import ModelConfig, RopeScaling
from .errors import CheckpointError, ConfigError, UnsupportedModelError

LLAMA_TYPES = ("llama", "qwen2", "qwen3")


def model_config(data: dict[str, Any]) -> ModelConfig:
    """A `config.json` as a `ModelConfig`. Raises `UnsupportedModelError` naming the architecture or option."""
    kind = data.get("model_type")
    try:
        if kind in LLAMA_TYPES:
            return _llama(data, str(kind))
        if kind == "gpt2":
            return _gpt2(data)
    except KeyError as error:
        raise CheckpointError(f"config.json has no {error}") from None
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from None
    raise UnsupportedModelError(f"model_type {kind!r}; qdengine runs {', '.join(LLAMA_TYPES)} and gpt2")


def _refuse(data: dict[str, Any], name: str, allowed: tuple[Any, ...]) -> None:
    if data.get(name, allowed[0]) not in allowed:
        raise UnsupportedModelError(f"{name}={data[name]!r}; qdengine implements {' or '.join(map(repr, allowed))}")


def _llama(data: dict[str, Any], kind: str) -> ModelConfig:
    _refuse(data, "hidden_act", ("silu",))
    _refuse(data, "mlp_bias", (False,))
    _refuse(data, "quantization_config", (None,))
    _refuse(data, "pretraining_tp", (1,))
    _refuse(data, "partial_rotary_factor", (1.0,))
    if kind != "qwen2":
        _refuse(data, "attention_bias", (False,))
    layer_types = set(data.get("layer_types") or ["full_attention"])
    if (
        data.get("use_sliding_window")
        or (data.get("sliding_window") and kind == "llama")
        or layer_types != {"full_attention"}
    ):
        raise UnsupportedModelError("sliding window attention; qdengine implements full attention")
    heads = data["num_attention_heads"]
    theta, scaling = _rope(data)
    return ModelConfig(
        family="llama",
        vocab_size=data["vocab_size"],
        width=data["hidden_size"],
        ffn_width=data["intermediate_size"],
        layers=data["num_hidden_layers"],
        heads=heads,
        kv_heads=data.get("num_key_value_heads") or heads,
        head_width=data.get("head_dim") or data["hidden_size"] // heads,
        max_positions=data["max_position_embeddings"],
        norm_eps=data.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied_head=data.get("tie_word_embeddings", False),
    )


def _rope(data: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Newer files have `rope_parameters`, older ones `rope_theta` and `rope_scaling`."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UnsupportedModelError(f"rope_type {kind!r}; qdengine implements 'default' and 'llama3'")
    scaling = RopeScaling(
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope["original_max_position_embeddings"]),
    )
    return theta, scaling


def _gpt2(data: dict[str, Any]) -> ModelConfig:
    _refuse(data, "activation_function", ("gelu_new", "gelu_pytorch_tanh"))
    _refuse(data, "scale_attn_weights", (True,))
    _refuse(data, "scale_attn_by_inverse_layer_idx", (False,))
    _refuse(data, "reorder_and_upcast_attn", (False,))
    _refuse(data, "add_cross_attention", (False,))
    _refuse(data, "quantization_config", (None,))
    return ModelConfig(
        family="gpt2",
        vocab_size=data["vocab_size"],
        width=data["n_embd"],
        ffn_width=data.get("n_inner") or 4 * data["n_embd"],
        layers=data["n_layer"],
        heads=data["n_head"],
        kv_heads=data["n_head"],
        head_width=data["n_embd"] // data["n_head"],
        max_positions=data.get("n_positions", 1024),
        norm_eps=data.get("layer_norm_epsilon", 1e-5),
        tied_head=data.get("tie_word_embeddings", True),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises `CheckpointError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _generation(folder: Path, data: dict[str, Any], name: str) -> Any:
    return _optional(folder / "generation_config.json").get(name, data.get(name))


def stop_ids(folder: Path, data: dict[str, Any]) -> tuple[int, ...]:
    found = _generation(folder, data, "eos_token_id")
    return tuple(found) if isinstance(found, list) else () if found is None else (int(found),)


def bos_id(folder: Path, data: dict[str, Any]) -> int | None:
    """The token that the folder's tokenizer puts first, or None.

    `add_bos_token` of tokenizer_config.json says so, or (Llama 3) the template of tokenizer.json's post-processor.
    """
    bos = _generation(folder, data, "bos_token_id")
    added = _optional(folder / "tokenizer_config.json").get("add_bos_token")
    if added is not None:
        return bos if added else None
    processor = _optional(folder / "tokenizer.json").get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
            return int(step["special_tokens"][step["single"][0]["SpecialToken"]["id"]]["ids"][0])
    return None


def tensors(folder: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map")
        names = sorted(set(weight_map.values()))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        pickled = sorted(file.name for file in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        if pickled:
            raise CheckpointError(
                f"{folder / pickled[0]} is a pickle, which can run code when read; save the model as safetensors "
                "(model.save_pretrained(folder, safe_serialization=True))"
            )
        raise CheckpointError(f"{folder} has no *.safetensors file")
    return {name: tensor for file in names for name, tensor in read(folder / file).items()}


def canonical(config: ModelConfig, source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under their canonical names; unknown ones keep their own, so that the check of the weights names them."""
    return _canonical_gpt2(config, source) if config.family == "gpt2" else _canonical_llama(config, source)


def _take(source: dict[str, Tensor], name: str) -> Tensor:
    try:
        return source.pop(name)
    except KeyError:
        raise CheckpointError(f"the weights lack tensor {name!r}") from None


def _canonical_llama(config: ModelConfig, source: dict[str, Tensor]) -> dict[str, Tensor]:
    source = {name: tensor for name, tensor in source.items() if not name.endswith("rotary_emb.inv_freq")}
    weights = {
        "embed.weight": _take(source, "model.embed_tokens.weight"),
        "norm.weight": _take(source, "model.norm.weight"),
    }
    if config.tied_head:
        source.pop("lm_head.weight", None)
    else:
        weights["head.weight"] = _take(source, "lm_head.weight")
    for i in range(config.layers):
        own, theirs = f"layers.{i}.", f"model.layers.{i}."
        weights[own + "norm1.weight"] = _take(source, theirs + "input_layernorm.weight")
        weights[own + "norm2.weight"] = _take(source, theirs + "post_attention_layernorm.weight")
        for kind in ["weight", "bias"] if config.qkv_bias else ["weight"]:
            weights[own + "qkv." + kind] = torch.cat(
                [_take(source, f"{theirs}self_attn.{name}_proj.{kind}") for name in "qkv"]
            )
        if config.qk_norm:
            for name in "qk":
                weights[f"{own}{name}_norm.weight"] = _take(source, f"{theirs}self_attn.{name}_norm.weight")
        weights[own + "out.weight"] = _take(source, theirs + "self_attn.o_proj.weight")
        weights[own + "gate_up.weight"] = torch.cat(
            [_take(source, f"{theirs}mlp.{name}_proj.weight") for name in ("gate", "up")]
        )
        weights[own + "down.weight"] = _take(source, theirs + "mlp.down_proj.weight")
    return weights | source


def _canonical_gpt2(config: ModelConfig, source: dict[str, Tensor]) -> dict[str, Tensor]:
    source = {name.removeprefix("transformer."): tensor for name, tensor in source.items()}
    # Buffers of old files: the causal mask.
    source = {name: tensor for name, tensor in source.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    weights = {"embed.weight": _take(source, "wte.weight"), "positions.weight": _take(source, "wpe.weight")}
    if config.tied_head:
        source.pop("lm_head.weight", None)
    else:
        weights["head.weight"] = _take(source, "lm_head.weight")
    names = {
        "ln_1": "norm1",
        "attn.c_attn": "qkv",
        "attn.c_proj": "out",
        "ln_2": "norm2",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    }
    for i in range(config.layers):
        for theirs, own in names.items():
            weight = _take(source, f"h.{i}.{theirs}.weight")
            # Conv1D holds [in, out].
            weights[f"layers.{i}.{own}.weight"] = weight.T.contiguous() if weight.ndim == 2 else weight
            weights[f"layers.{i}.{own}.bias"] = _take(source, f"h.{i}.{theirs}.bias")
    for kind in ("weight", "bias"):
        weights["norm." + kind] = _take(source, "ln_f." + kind)
    return weights | source
