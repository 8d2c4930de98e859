"""GGUF files and Hugging Face folders as bundles."""

from __future__ import annotations

import pytest
import torch
from qdengine import checkpoint
from qdengine.convert import convert
from qdengine.errors import CheckpointError, ConfigError, UnsupportedModelError
from qdengine.prompt import QUERY_FIRST
from tiny import FAMILIES, tiny_gguf, tiny_hf_folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_folder_and_its_bundle_are_one_model(tmp_path, family, dtype):
    source = checkpoint.load(tiny_hf_folder(tmp_path / "hf", family))
    made = checkpoint.load(convert(source.path, tmp_path / "bundle", dtype=dtype))
    assert (made.config, made.prompt, made.stop_ids) == (source.config, source.prompt, source.stop_ids)
    wanted = source.weights()
    for name, tensor in made.weights().items():
        assert torch.equal(tensor, wanted[name].to(getattr(torch, dtype)))


def test_options_replace_the_sources(tmp_path):
    source = tiny_hf_folder(tmp_path / "hf")
    made = checkpoint.load(convert(source, tmp_path / "bundle", prompt=QUERY_FIRST, stop_ids=(0, 1)))
    assert made.prompt == QUERY_FIRST and made.stop_ids == (0, 1)
    with pytest.raises(ConfigError, match="dtype 'int3'"):
        convert(source, tmp_path / "other", dtype="int3")


def test_gguf(tmp_path):
    theirs = checkpoint.load(tiny_hf_folder(tmp_path / "hf"))
    ours = checkpoint.load(convert(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "bundle", dtype="float32"))
    assert ours.config == theirs.config and ours.stop_ids == (0, 1)
    wanted = theirs.weights()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.weights().items())
    tokenizer = ours.tokenizer()
    text = "The fox <|im_end|> 火车 2024.\n"
    ids = tokenizer.encode(text).ids.tolist()
    assert tokenizer.decode(ids) == text and 1 not in ids
    # SmolLM's pre-tokenizer splits digits.
    assert len(tokenizer.encode("2024").ids) == 4


def edited(path, key: str, value: str):
    """The file with the value of a string field replaced by one of the same length."""
    import gguf

    old = gguf.GGUFReader(path).fields[key].contents()
    data = path.read_bytes()
    at = data.index(old.encode(), data.index(key.encode()) + len(key))
    assert len(old) == len(value)
    path.write_bytes(data[:at] + value.encode() + data[at + len(old) :])
    return path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "mamba", "architecture 'mamba'"),
        ("tokenizer.ggml.pre", "qwen 9", "pre-tokenizer 'qwen 9'"),
        ("tokenizer.ggml.model", "bert", "tokenizer model 'bert'"),
    ],
)
def test_unknown_gguf_kinds_are_refused_by_name(tmp_path, key, value, message):
    with pytest.raises(UnsupportedModelError, match=message):
        convert(edited(tiny_gguf(tmp_path / "tiny.gguf"), key, value), tmp_path / "bundle")


@pytest.mark.parametrize("data", [b"", b"GGUF", b"no gguf at all" * 99])
def test_what_is_not_a_gguf(tmp_path, data):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.gguf is not a GGUF file"):
        convert(tmp_path / "x.gguf", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="absent is not a folder"):
        convert(tmp_path / "absent", tmp_path / "bundle")
