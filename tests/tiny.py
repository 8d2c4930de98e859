"""Tiny random models with a tokenizer for any text, for tests that need no network."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from qdengine.convert import convert
from qdengine.model.layers import StepInputs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FAMILIES = ("llama", "llama3", "qwen2", "qwen3", "gpt2", "untied")
TEXT = """The quick brown fox jumps over the lazy dog. A summary answers the query in the words of the document.
Rain falls on the roof and runs into the barrel. Trains leave at night and arrive in the morning. \
雨水流进桶里。火车晚上出发。"""


@cache
def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer.to_str()


def vocab_size() -> int:
    return Tokenizer.from_str(tokenizer_json()).get_vocab_size()


def hf_config(family: str) -> Any:
    import transformers as hf

    shape: dict[str, Any] = {
        "vocab_size": vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": family != "untied",
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    if family == "llama3":
        shape["rope_scaling"] = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    if family == "qwen2":
        return hf.Qwen2Config(**shape)
    if family == "qwen3":
        return hf.Qwen3Config(**shape, head_dim=32)
    if family == "gpt2":
        return hf.GPT2Config(
            vocab_size=vocab_size(), n_embd=64, n_layer=2, n_head=4, n_positions=512, eos_token_id=1, bos_token_id=0
        )
    return hf.LlamaConfig(**shape)


def tiny_hf_model(family: str) -> Any:
    """A random float32 model of a family, the same every time, with weights large enough that outputs vary."""
    import transformers as hf

    torch.manual_seed(7)
    model = hf.AutoModelForCausalLM.from_config(hf_config(family)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.15)
            parameter.add_(noise) if "norm" in name or "ln_" in name or parameter.ndim == 1 else parameter.copy_(noise)
    return model


def tiny_hf_folder(path: Path, family: str = "llama") -> Path:
    """The model saved as transformers saves it, with a tokenizer.json."""
    tiny_hf_model(family).save_pretrained(path)
    (path / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return path


def tiny_bundle(path: Path, family: str = "llama") -> Path:
    """A float32 bundle: 2 layers, width 64, context 512."""
    folder = tiny_hf_folder(path / f"{family}-hf", family)
    return convert(folder, path / family, dtype="float32")


def with_config(folder: Path, **changes: Any) -> Path:
    """Change keys of a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def tiny_gguf(path: Path) -> Path:
    """The llama model as a GGUF file: q and k rows interleaved as llama.cpp wants them, the vocabulary as metadata."""
    import gguf

    state = {name: tensor.numpy() for name, tensor in tiny_hf_model("llama").state_dict().items()}
    tokenizer = json.loads(tokenizer_json())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, array in state.items():
        if name == "lm_head.weight":
            continue
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        if heads:
            halves = array.reshape(heads, 2, -1, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def step_inputs(lens: list[int], rows: list[int], vocab: int) -> StepInputs:
    """Of sequences that begin with this step, in blocks of 16 that follow each other."""
    ends = torch.tensor([0, *lens]).cumsum(0).int()
    blocks = [-(-n // 16) for n in lens]
    table = torch.zeros(len(lens), max(blocks), dtype=torch.int32)
    slots = []
    for i, (n, count) in enumerate(zip(lens, blocks, strict=True)):
        first = sum(blocks[:i])
        table[i, :count] = torch.arange(first, first + count)
        slots.append(16 * first + torch.arange(n, dtype=torch.int32))
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lens])
    ids = torch.randint(0, vocab, (int(ends[-1]),), generator=torch.Generator().manual_seed(2)).int()
    return StepInputs(
        ids, positions, torch.cat(slots).int(), table, torch.tensor(lens).int(), ends, torch.tensor(rows).int()
    )
