"""A Llama in llama.cpp's file format, its matrices in Q8_0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def write(source: str | Path, file: Path) -> None:
    """From the Hugging Face folder that qdengine exports. Raises `ValueError` for other models than a plain Llama."""
    config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama" or config["rope_scaling"]:
        raise ValueError(f"only a Llama without rope scaling is written, not {config['model_type']}")
    tokenizer = json.loads((Path(source) / "tokenizer.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, "llama")
    add_shape(writer, config)
    add_vocabulary(writer, tokenizer, config)
    add_weights(writer, Path(source), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def add_vocabulary(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """The prompts are tokens, so that how text is split first does not matter."""
    ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = {token["id"] for token in tokenizer["added_tokens"]}
    names = {i: name for name, i in ids.items()}
    known = range(config["vocab_size"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    control, unused, normal = gguf.TokenType.CONTROL, gguf.TokenType.UNUSED, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([names.get(i, f"[unused {i}]") for i in known])
    writer.add_token_types([control if i in special else normal if i in names else unused for i in known])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"][-1])


def add_weights(writer: Any, source: Path, config: dict[str, Any]) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in load_file(source / "model.safetensors").items():
        array = tensor.float().numpy()
        rotated = next((count for part, count in heads.items() if part in name), 0)
        if rotated:  # llama.cpp rotates neighbours, transformers the two halves of a head
            array = array.reshape(rotated, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        array, own = np.ascontiguousarray(array), names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(own, gguf.quants.quantize(array, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(own, array)
