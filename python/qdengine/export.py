"""A model as a Hugging Face folder, for other engines and for training tools: the inverse of `huggingface`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from . import checkpoint
from .config import ModelConfig
from .errors import CheckpointError

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
_LLAMA = {
    "norm1.weight": "input_layernorm.weight",
    "norm2.weight": "post_attention_layernorm.weight",
    "q_norm.weight": "self_attn.q_norm.weight",
    "k_norm.weight": "self_attn.k_norm.weight",
    "out.weight": "self_attn.o_proj.weight",
    "down.weight": "mlp.down_proj.weight",
}
_GPT2 = {
    "norm1": "ln_1",
    "qkv": "attn.c_attn",
    "out": "attn.c_proj",
    "norm2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}


def export(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> Path:
    """Write `destination` (config.json, generation_config.json, model.safetensors, tokenizer.json) from the bundle or
    folder `source`. Raises `CheckpointError`."""
    loaded = checkpoint.load(source)
    folder = Path(destination)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} already exists; remove it or choose another destination")
    weights = loaded.weights()
    loaded.tokenizer()  # its errors name the file
    folder.mkdir(parents=True, exist_ok=True)
    named = _gpt2(weights) if loaded.config.family == "gpt2" else _llama(loaded.config, weights)
    save_file(
        {name: tensor.contiguous() for name, tensor in named.items()}, folder / checkpoint.WEIGHTS, {"format": "pt"}
    )
    shutil.copyfile(loaded.path / checkpoint.TOKENIZER, folder / checkpoint.TOKENIZER)
    tokens = {"eos_token_id": list(loaded.stop_ids), "bos_token_id": loaded.prompt.bos_id}
    config = _config(loaded.config) | tokens | {"dtype": str(weights["embed.weight"].dtype).removeprefix("torch.")}
    special = loaded.tokenizer().decode(list(loaded.stop_ids[-1:]))
    for name, data in (
        ("config.json", config),
        ("generation_config.json", tokens),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special}),
    ):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return folder


def _kind(config: ModelConfig) -> str:
    if config.family == "gpt2":
        return "gpt2"
    return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"


def _config(config: ModelConfig) -> dict[str, Any]:
    kind = _kind(config)
    common = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
    }
    if kind == "gpt2":
        return common | {
            "n_embd": config.width,
            "n_inner": config.ffn_width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_positions": config.max_positions,
            "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu_new",
        }
    return common | {
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
    }


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    return (
        None
        if scaling is None
        else {
            "rope_type": "llama3",
            "rope_theta": config.rope_theta,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    )


def _llama(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {"model.embed_tokens.weight": weights["embed.weight"], "model.norm.weight": weights["norm.weight"]}
    if "head.weight" in weights:
        named["lm_head.weight"] = weights["head.weight"]
    widths = [n * config.head_width for n in (config.heads, config.kv_heads, config.kv_heads)]
    for i in range(config.layers):
        own, theirs = f"layers.{i}.", f"model.layers.{i}."
        for ours, name in _LLAMA.items():
            if own + ours in weights:
                named[theirs + name] = weights[own + ours]
        for kind in ("weight", "bias"):
            if f"{own}qkv.{kind}" in weights:
                for name, part in zip("qkv", weights[f"{own}qkv.{kind}"].split(widths), strict=True):
                    named[f"{theirs}self_attn.{name}_proj.{kind}"] = part
        for name, part in zip(("gate", "up"), weights[own + "gate_up.weight"].chunk(2), strict=True):
            named[f"{theirs}mlp.{name}_proj.weight"] = part
    return named


def _gpt2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {"transformer.wte.weight": weights["embed.weight"], "transformer.wpe.weight": weights["positions.weight"]}
    if "head.weight" in weights:
        named["lm_head.weight"] = weights["head.weight"]
    for name, tensor in weights.items():
        if name.startswith("layers."):
            _, i, layer, kind = name.split(".")
            # Conv1D holds [in, out].
            named[f"transformer.h.{i}.{_GPT2[layer]}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
        elif name.startswith("norm."):
            named["transformer.ln_f." + name.removeprefix("norm.")] = tensor
    return named
