"""Import a GGUF file or a Hugging Face folder as a bundle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint, huggingface
from .config import ModelConfig
from .errors import CheckpointError, ConfigError, UnsupportedModelError
from .prompt import DOCUMENT_FIRST, PromptFormat

if TYPE_CHECKING:
    from gguf import GGUFReader

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    dtype: str = "bfloat16",
    prompt: PromptFormat | None = None,
    stop_ids: tuple[int, ...] | None = None,
) -> Path:
    """Write the bundle `destination` from `source` (a .gguf file or a folder) with weights in `dtype`.

    prompt, stop_ids: instead of those of the source. Raises `CheckpointError`, `UnsupportedModelError` or
        `ConfigError`.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}; expected {' or '.join(DTYPES)}")
    source = Path(source)
    if source.is_file():
        config, weights, tokenizer, own_prompt, own_stops = _from_gguf(source)
    else:
        loaded = checkpoint.load(source)
        config, weights, own_prompt, own_stops = loaded.config, loaded.weights(), loaded.prompt, loaded.stop_ids
        loaded.tokenizer()  # its errors name the file
        tokenizer = loaded.tokenizer_json()
    weights = {name: tensor.to(DTYPES[dtype]) for name, tensor in weights.items()}
    stops = own_stops if stop_ids is None else stop_ids
    return checkpoint.save_bundle(
        destination, config, weights, tokenizer, prompt or own_prompt, stops, source.resolve().name
    )


def _from_gguf(path: Path) -> tuple[ModelConfig, dict[str, Tensor], str, PromptFormat, tuple[int, ...]]:
    try:
        import gguf
    except ImportError:
        raise CheckpointError("reading a GGUF file needs the gguf package: pip install 'qdengine[convert]'") from None
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise CheckpointError(f"{path} is not a GGUF file, or not a whole one ({error}); get it again") from None
    meta = {name: field.contents() for name, field in reader.fields.items()}
    kind = meta.get("general.architecture")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise UnsupportedModelError(f"GGUF architecture {kind!r}; qdengine imports llama, qwen2 and qwen3")
    try:
        config = _gguf_config(str(kind), meta, reader)
        tokenizer = _gguf_tokenizer(meta)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the metadata {error}") from None
    tokens = meta["tokenizer.ggml.tokens"]
    stops = {
        meta[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot") if f"tokenizer.ggml.{name}_token_id" in meta
    }
    stops |= {i for i, token in enumerate(tokens) if token in ("<|im_end|>", "<|endoftext|>")}
    bos = meta.get("tokenizer.ggml.bos_token_id") if meta.get("tokenizer.ggml.add_bos_token") else None
    prompt = PromptFormat(DOCUMENT_FIRST.parts, bos_id=bos)
    return config, _gguf_weights(config, str(kind), reader), tokenizer, prompt, tuple(sorted(int(i) for i in stops))


def _gguf_config(kind: str, meta: dict[str, Any], reader: GGUFReader) -> ModelConfig:
    def get(name: str, *default: Any) -> Any:
        key = f"{kind}.{name}"
        return meta.get(key, default[0]) if default else meta[key]

    names = {tensor.name for tensor in reader.tensors}
    if get("rope.scaling.type", "none") not in ("none", "") or "rope_freqs.weight" in names:
        raise UnsupportedModelError("a GGUF with rope scaling; convert the Hugging Face folder of this model instead")
    if get("expert_count", 0):
        raise UnsupportedModelError("a GGUF with a mixture of experts; qdengine implements dense models")
    heads, width = get("attention.head_count"), get("embedding_length")
    return ModelConfig(
        family="llama",
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        width=width,
        ffn_width=get("feed_forward_length"),
        layers=get("block_count"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_width=get("attention.key_length", width // heads),
        max_positions=get("context_length"),
        norm_eps=_decimal(get("attention.layer_norm_rms_epsilon")),
        rope_theta=_decimal(get("rope.freq_base", 10000.0)),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied_head="output.weight" not in names,
    )


def _decimal(value: float) -> float:
    """The number that the file's float32 stands for: 1e-05, not 9.99999974737875e-06."""
    return float(str(np.float32(value)))


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _gguf_weights(config: ModelConfig, kind: str, reader: GGUFReader) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    source = {}
    for tensor in reader.tensors:
        stem, _, suffix = tensor.name.rpartition(".")
        prefix = ""
        if stem.startswith("blk."):
            _, layer, stem = stem.split(".", 2)
            prefix = f"model.layers.{layer}."
        array = dequantize(tensor.data, tensor.tensor_type)
        weight = torch.from_numpy(array.astype("float32", copy=True))
        if kind == "llama" and stem in ("attn_q", "attn_k"):
            weight = _unpermute(weight, config.heads if stem == "attn_q" else config.kv_heads)
        source[f"{prefix}{_GGUF_NAMES.get(stem, stem)}.{suffix}"] = weight
    return huggingface.canonical(config, source)


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """GGUF llama files interleave the two halves that a rotation pairs; checkpoints keep them apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _gguf_tokenizer(meta: dict[str, Any]) -> str:
    """A tokenizer.json from a GGUF's byte-level BPE vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    model, pre = meta["tokenizer.ggml.model"], meta.get("tokenizer.ggml.pre", "default")
    if model != "gpt2":
        raise UnsupportedModelError(f"GGUF tokenizer model {model!r}; qdengine imports byte-level BPE ('gpt2')")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splits = {
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        "gpt-2": byte_level,
    }
    if pre not in splits:
        raise UnsupportedModelError(
            f"GGUF pre-tokenizer {pre!r}; qdengine imports {', '.join(splits)}: convert the Hugging Face folder instead"
        )
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = splits[pre]
    tokenizer.decoder = decoders.ByteLevel()
    control, user_defined = 3, 4
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, k in zip(tokens, types, strict=True)
            if k in (control, user_defined)
        ]
    )
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)
