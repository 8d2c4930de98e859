"""Bundles and Hugging Face folders: what is read, and what is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from qdengine import checkpoint
from qdengine.config import FAMILIES, ModelConfig
from qdengine.errors import CheckpointError, UnsupportedModelError
from qdengine.model.reference import ReferenceModel
from qdengine.prompt import DOCUMENT_FIRST, QUERY_FIRST
from safetensors.torch import load_file, save_file
from tiny import tiny_bundle, tiny_hf_folder, tokenizer_json, with_config


def save(path, config, weights, prompt=DOCUMENT_FIRST):
    return checkpoint.save_bundle(path, config, weights, tokenizer_json(), prompt, (1,), "test")


def test_a_bundle_is_what_was_saved(tmp_path):
    source = checkpoint.load(tiny_hf_folder(tmp_path / "hf"))
    weights = source.weights()
    made = checkpoint.load(save(tmp_path / "deep" / "bundle", source.config, weights, QUERY_FIRST))
    assert (made.name, made.config, made.prompt, made.stop_ids) == ("bundle", source.config, QUERY_FIRST, (1,))
    assert made.weights().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.weights().items())
    assert made.tokenizer().encode("fox").ids.tolist() == source.tokenizer().encode("fox").ids.tolist()
    assert sorted(p.name for p in made.path.iterdir()) == ["model.safetensors", "qdengine.json", "tokenizer.json"]
    assert all(p.stat().st_mode & 0o444 == 0o444 for p in made.path.iterdir())
    assert [p.name for p in made.path.parent.iterdir()] == ["bundle"]  # nothing temporary is left


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True}, {"qk_norm": True}, {"tied_head": False}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_the_models(family, options):
    config = ModelConfig(family, 40, 16, 24, 2, 4, 2, 8, 32, **options)
    wanted = {name: tuple(tensor.shape) for name, tensor in ReferenceModel(config).state_dict().items()}
    assert checkpoint.shapes(config) == wanted


def test_loading_imports_no_model_definition():
    code = "import sys, qdengine.engine.engine; print([m for m in sys.modules if m.startswith('qdengine.model.ref')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_digest_names_the_contents(tmp_path):
    source = checkpoint.load(tiny_hf_folder(tmp_path / "hf"))
    weights = source.weights()
    first = checkpoint.load(save(tmp_path / "a", source.config, weights)).digest
    assert checkpoint.load(save(tmp_path / "b", source.config, weights)).digest == first
    changed = {**weights, "norm.weight": weights["norm.weight"] + 1}
    assert checkpoint.load(save(tmp_path / "c", source.config, changed)).digest != first
    hf = load_file(tmp_path / "hf" / "model.safetensors")
    save_file({**hf, "model.norm.weight": hf["model.norm.weight"] + 1}, tmp_path / "hf" / "model.safetensors")
    assert checkpoint.load(tmp_path / "hf").digest != source.digest


def test_an_existing_folder_is_not_overwritten(tmp_path):
    source = checkpoint.load(tiny_hf_folder(tmp_path / "hf"))
    with pytest.raises(CheckpointError, match="already exists"):
        save(tmp_path / "hf", source.config, source.weights())


def test_two_writers_leave_one_whole_bundle(tmp_path):
    source = checkpoint.load(tiny_hf_folder(tmp_path / "hf"))
    weights = source.weights()

    def write(_):
        try:
            return save(tmp_path / "bundle", source.config, weights)
        except (CheckpointError, OSError):
            return None

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(write, range(8)))
    assert sum(path is not None for path in made) == 1
    assert checkpoint.load(tmp_path / "bundle").weights().keys() == weights.keys()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_or_missing_file_is_named(tmp_path, name):
    bundle = tiny_bundle(tmp_path)
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} is not the file of the manifest"):
        checkpoint.load(bundle)
    (bundle / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99; this version reads format 1"),
        ({"architecture": {}}, "architecture"),
        ({"architecture": None}, "convert the model again"),
        ({"prompt": {"parts": ["{query}"]}}, "prompt format"),
        ({"stop_ids": None}, "convert the model again"),
        ({"stop_ids": [10**6]}, "stop_ids has 1000000, and the vocabulary is .* tokens; convert the model again"),
        ({"prompt": {**DOCUMENT_FIRST.to_dict(), "bos_id": -1}}, r"prompt\.bos_id has -1"),
        ({"manifest": {"..": "0"}}, "not a plain file name"),
        ({"manifest": {}}, "is not the file of the manifest"),
        ({"manifest": {"../model.safetensors": "0"}}, "not a plain file name"),
    ],
)
def test_a_damaged_description_is_explained(tmp_path, change, message):
    bundle = tiny_bundle(tmp_path)
    file = bundle / "qdengine.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_description_that_is_not_json(tmp_path, text):
    (tmp_path / "qdengine.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"qdengine\.json"):
        checkpoint.load(tmp_path)


def test_not_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"neither qdengine\.json"):
        checkpoint.load(tmp_path)


def test_sharded_weights(tmp_path):
    folder = tiny_hf_folder(tmp_path)
    whole = checkpoint.load(folder).weights()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in checkpoint.load(folder).weights().items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors is missing"):
        checkpoint.load(folder).weights()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        checkpoint.load(folder).weights()


def test_pickle_is_refused(tmp_path):
    folder = tiny_hf_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        checkpoint.load(folder).weights()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        checkpoint.load(folder).weights()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "lack tensor 'model.norm.weight'"),
        (lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"), "layers.1.self_attn.k_proj.weight"),
        (lambda t: t.update({"extra.weight": torch.zeros(1)}), "unknown tensor 'extra.weight'"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(3)}),
            r"'norm.weight' has shape \[3\]; the architecture needs \[64\]",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    folder = tiny_hf_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder).weights()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"model_type": "mixtral"}),
        ("llama", {"model_type": "qwen3_moe"}),
        ("llama", {"hidden_act": "relu"}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"attention_bias": True}),
        ("llama", {"sliding_window": 128}),
        ("llama", {"quantization_config": {"quant_method": "awq"}}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("qwen2", {"use_sliding_window": True}),
        ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen3", {"attention_bias": True}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("gpt2", {"add_cross_attention": True}),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, family, changes):
    folder = with_config(tiny_hf_folder(tmp_path, family), **changes)
    name = list(changes)[-1]
    spelt = {"rope_parameters": "rope_type", "rope_scaling": "rope_type", "layer_types": "sliding window"}
    expected = "sliding window" if "sliding" in name else spelt.get(name, name)
    with pytest.raises(UnsupportedModelError, match=expected):
        checkpoint.load(folder)


def test_old_and_new_rope_keys_say_the_same(tmp_path):
    folder = tiny_hf_folder(tmp_path, "llama3")
    new = checkpoint.load(folder).config
    rope = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = checkpoint.load(with_config(folder, rope_parameters=None, rope_theta=10000.0, rope_scaling=rope)).config
    assert old == new and old.rope_scaling.factor == 4.0
    other = checkpoint.load(with_config(folder, rope_parameters=None, rope_theta=5e5, rope_scaling=None)).config
    assert other.rope_theta == 5e5 and other.rope_scaling is None


def test_stop_and_first_tokens(tmp_path):
    folder = tiny_hf_folder(tmp_path)
    assert checkpoint.load(folder).stop_ids == (1,) and checkpoint.load(folder).prompt.bos_id is None
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1], "bos_token_id": 0}')
    assert checkpoint.load(folder).stop_ids == (0, 1)
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    sequence = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    for processor in (template, sequence):
        stored = json.loads(tokenizer_json()) | {"post_processor": processor}
        (folder / "tokenizer.json").write_text(json.dumps(stored))
        assert checkpoint.load(folder).prompt.bos_id == 0
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert checkpoint.load(folder).prompt.bos_id is None
