"""The model of a run: made of a student or new, with adapters or without, and saved as a bundle."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoint, student
from ..checkpoint import Checkpoint
from ..config import ModelConfig, is_linear
from ..errors import ConfigError
from ..model.reference import Layer, ReferenceModel, Tree
from ..prompt import DOCUMENT_FIRST, QUERY_FIRST, SENTENCES, PromptFormat
from . import config

_FORMATS = {"document_first": DOCUMENT_FIRST, "query_first": QUERY_FIRST, "sentences": SENTENCES}


class PackModel(nn.Module):
    """A model over packs: the tensors of `packs.batch` to logits [R, V] of the tokens to be learnt."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._compiled = False

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        ids, fused = inputs["ids"], inputs["fused"]
        if fused and not self._compiled:
            self._compile()
        tree = Tree.of(inputs["shapes"], ids.device, fused)
        return self.model(ids, tree, inputs["rows"])[0]

    def _compile(self) -> None:
        for module in self.modules():
            if isinstance(module, Layer):  # all of them together would be compiled for minutes
                module.compile(dynamic=False)
        self._compiled = True


def open_student(
    settings: config.Student, lora: config.Lora | None = None
) -> tuple[Checkpoint, ModelConfig, PromptFormat]:
    """What `settings` start from, without its weights. Raises `ConfigError` where they do not fit it."""
    source = checkpoint.load(student.resolve(settings.init))
    shape, prompt = source.config, source.prompt
    if settings.prompt is not None:
        format = _FORMATS[settings.prompt]
        prompt = replace(prompt, parts=format.parts, sentences=format.sentences)
    if settings.layers is not None:
        if settings.layers[-1] >= shape.layers:
            raise ConfigError(f"student.layers: {settings.layers[-1]}, and {source.name} has {shape.layers} layers")
        shape = replace(shape, layers=len(settings.layers))
    if settings.scratch is not None:
        new = settings.scratch
        shape = ModelConfig(
            "gpt2", shape.vocab_size, new.width, 4 * new.width, new.layers, new.heads, new.heads,
            new.width // new.heads, min(2048, shape.max_positions),
        )  # fmt: skip
    names = _names(shape)
    for beginning in settings.frozen:
        if not any(name.startswith(beginning) for name in names):
            raise ConfigError(f"student.frozen: no weight's name begins with {beginning!r}; there is {names[0]}")
    trained = [name for name in names if not name.startswith(tuple(settings.frozen)) and (not lora or is_linear(name))]
    if not trained:
        raise ConfigError(f"student.frozen: {settings.frozen} leaves nothing to train")
    return source, shape, prompt


def make(settings: config.Run, source: Checkpoint, shape: ModelConfig) -> PackModel:
    """The model to train, float32, on the CPU."""
    torch.manual_seed(settings.training.seed)  # of new weights and of adapters
    if settings.student.scratch is not None:
        model = _scratch(shape)
    else:
        weights = source.weights()
        if settings.student.layers is not None:
            weights = checkpoint.select_layers(weights, settings.student.layers)
        model = ReferenceModel.from_weights(shape, {name: tensor.float() for name, tensor in weights.items()})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(settings.student.frozen)))
    return PackModel(model if settings.lora is None else _with_adapters(model, settings.lora))


def device(settings: config.Training) -> torch.device:
    """The one to train on. Raises `ConfigError` where it is not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device is cuda, and there is none; give cpu or auto")
    return torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")


def merged(trained: PackModel) -> dict[str, Tensor]:
    """Canonical weights, bfloat16, with adapters added to the matrices that they adapt."""
    model: Any = trained.model
    plain = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in plain.state_dict().items()}


def save(
    path: Path, trained: PackModel, source: Checkpoint, shape: ModelConfig, prompt: PromptFormat, origin: str
) -> Path:
    weights, text = merged(trained), source.tokenizer_json()
    return checkpoint.save_bundle(path, shape, weights, text, prompt, source.stop_ids, origin)


def _names(shape: ModelConfig) -> list[str]:
    with torch.device("meta"):
        return list(ReferenceModel(shape).state_dict())


def _scratch(shape: ModelConfig) -> ReferenceModel:
    """GPT-2's initialisation: N(0, 0.02), and 1/sqrt(2L) of it where a layer adds to the residual stream."""
    model = ReferenceModel(shape)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            residual = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * shape.layers) ** 0.5 if residual else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def _with_adapters(model: ReferenceModel, settings: config.Lora) -> nn.Module:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from peft import LoraConfig, get_peft_model

    adapted = [
        name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
        if is_linear(name) and parameter.requires_grad
    ]
    adapters = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale * settings.rank,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=adapted,
    )
    return get_peft_model(model, adapters)  # type: ignore[arg-type]
