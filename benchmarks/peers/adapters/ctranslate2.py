"""CTranslate2's generator, in batches of eight rows of similar length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2

from peers.adapters import Run

BATCH = 8


def versions() -> dict[str, str]:
    return {"ctranslate2": ctranslate2.__version__}


def convert(source: str, destination: str, kind: str) -> None:
    """The weights keep their precision: a generator has its own."""
    ctranslate2.converters.TransformersConverter(source).convert(destination)
    file = Path(destination) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    # The generator refuses a model without a first token, which the prompts do not need.
    file.write_text(json.dumps({name: "" if value is None else value for name, value in config.items()}))


def load(model: str, settings: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    generator = ctranslate2.Generator(
        model, device="cpu", compute_type=settings["compute"], intra_threads=settings["threads"], inter_threads=1
    )
    tokens = json.loads((Path(model) / "vocabulary.json").read_text(encoding="utf-8"))

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        found = generator.generate_batch(
            [[tokens[i] for i in request["ids"]] for request in requests], max_batch_size=BATCH,
            max_length=settings["new_tokens"], sampling_topk=1, include_prompt_in_result=False,
            end_token=settings["stops"], return_end_token=False,
        )  # fmt: skip
        return [result.sequences_ids[0] for result in found]

    return run, {"precision": generator.compute_type}
