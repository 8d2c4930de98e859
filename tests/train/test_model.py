"""The model of a run: what it is made of, and what of it is trained."""

from __future__ import annotations

import pytest
import torch
from qdengine import checkpoint
from qdengine.config import ModelConfig
from qdengine.model.reference import ReferenceModel
from qdengine.prompt import DOCUMENT_FIRST, QUERY_FIRST
from qdengine.train import config
from qdengine.train.model import device, make, merged, open_student, save


def trained(model) -> set[str]:
    return {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}


def made(settings, seed: int = 0):
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"seed": seed})})
    source, shape, _ = open_student(settings.student)
    return make(settings, source, shape)


def test_a_student_as_it_is(run, bundle):
    source, shape, prompt = open_student(run().student)
    assert shape == source.config and prompt == source.prompt and prompt.parts == DOCUMENT_FIRST.parts
    model = make(run(), source, shape)
    weights = source.weights()
    assert trained(model) == set(weights)
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())


def test_another_prompt_keeps_the_first_token(run):
    source, _, prompt = open_student(run(student={"prompt": "query_first"}).student)
    assert prompt.parts == QUERY_FIRST.parts and prompt.bos_id == source.prompt.bos_id


def test_layers(run):
    settings = run(student={"layers": [1]})
    source, shape, _ = open_student(settings.student)
    assert (shape.layers, source.config.layers) == (1, 2)
    found, weights = make(settings, source, shape).model.state_dict(), source.weights()
    assert torch.equal(found["layers.0.qkv.weight"], weights["layers.1.qkv.weight"])
    assert torch.equal(found["embed.weight"], weights["embed.weight"]) and "layers.1.qkv.weight" not in found


def test_layers_by_number_and_not_by_its_beginning():
    weights = {f"layers.{i}.out.weight": torch.tensor(i) for i in range(12)} | {"norm.weight": torch.tensor(-1)}
    found = checkpoint.select_layers(weights, [0, 1, 11])
    assert {name: int(tensor) for name, tensor in found.items()} == {
        "norm.weight": -1, "layers.0.out.weight": 0, "layers.1.out.weight": 1, "layers.2.out.weight": 11,
    }  # fmt: skip


def test_scratch(run):
    settings = run(student={"scratch": {"layers": 3, "width": 48, "heads": 3}})
    source, shape, _ = open_student(settings.student)
    assert shape == ModelConfig("gpt2", source.config.vocab_size, 48, 192, 3, 3, 3, 16, 512)
    one, same, other = (made(settings, seed).state_dict() for seed in (0, 0, 1))
    for name, first in one.items():
        second, third = same[name], other[name]
        assert torch.equal(first, second)
        if first.ndim == 2:
            assert not torch.equal(first, third), name
            wide = 0.02 / 6**0.5 if name.endswith(("out.weight", "down.weight")) else 0.02
            assert first.std().item() == pytest.approx(wide, rel=0.1), name
        else:
            assert set(first.tolist()) == ({1.0} if name.endswith("weight") else {0.0})


def test_frozen(run):
    settings = run(student={"frozen": ["embed", "layers.0."]})
    source, shape, _ = open_student(settings.student)
    assert trained(make(settings, source, shape)) == {
        name for name in source.weights() if name.startswith(("layers.1.", "norm"))
    }
    adapted = trained(make(run(student=settings.student.model_dump(), lora={"rank": 2}), source, shape))
    assert adapted and all(".layers.1." in name and "lora_" in name for name in adapted)


@pytest.mark.parametrize("scratch", [None, {"layers": 2, "width": 32, "heads": 2}])
def test_adapters(run, scratch):
    settings = run(student={"scratch": scratch}, lora={"rank": 3, "scale": 0.1})
    _, shape, _ = open_student(settings.student)
    model, same, other = (made(settings, seed) for seed in (0, 0, 1))
    names = trained(model)
    assert len(names) == 2 * 4 * 2, "two matrices for each linear layer"
    first, second, third = (one.model.state_dict() for one in (model, same, other))
    assert all(torch.equal(first[name], second[name]) for name in first), "drawn by seed"
    assert any(not torch.equal(first[name], third[name]) for name in names)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name in names:
                parameter.copy_(torch.ones_like(parameter))
    plain = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): tensor.clone()
        for name, tensor in model.model.state_dict().items()
        if "lora_" not in name
    }
    found = merged(model)
    assert found.keys() == plain.keys() == ReferenceModel(shape).state_dict().keys()
    for name, tensor in found.items():
        adapted = name.endswith("weight") and name.startswith("layers") and "norm" not in name
        wanted = plain[name] + (0.1 * 3 if adapted else 0)  # scale * ones [out, 3] @ ones [3, in]
        assert torch.allclose(tensor.float(), wanted, atol=1e-2, rtol=1e-2), name


def test_save(run, tmp_path):
    source, shape, prompt = open_student(run(student={"prompt": "query_first"}).student)
    path = save(tmp_path / "bundle", make(run(), source, shape), source, shape, prompt, "here, sft")
    again = checkpoint.load(path)
    assert (again.config, again.prompt, again.stop_ids) == (shape, prompt, source.stop_ids)
    assert again.tokenizer().vocabulary == source.tokenizer().vocabulary
    weights = source.weights()
    for name, tensor in again.weights().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, weights[name].bfloat16())


def test_device(monkeypatch):
    assert device(config.Training(device="cpu")).type == "cpu"
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device(config.Training()).type == ("cuda" if there else "cpu")
        assert device(config.Training(device="cpu")).type == "cpu"
