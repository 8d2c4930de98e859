"""How many rows get other tokens with lookahead than without, by precision.

    python benchmarks/lossless.py --data webqa_en.test.jsonl.gz --rows 500 --precision bfloat16

Every row is summarized with drafts, then without (its document is warm then, so both read the same keys and values),
and where the two differ the margin between the two most likely tokens at the first difference is looked up, in standard
deviations of the logits: where rounding explains it, it is a near tie, at most 1/16 (NEAR_TIE). In float32 no row may
differ.
"""

from __future__ import annotations

import json
from typing import Any

import click
import numpy as np
import torch
from common import facts, write
from qdengine import Engine, EngineConfig
from qdengine.checkpoint import Checkpoint
from qdengine.config import DEFAULT_STUDENT
from qdengine.model.reference import ReferenceModel
from qdengine.prompt import Prompt, encode
from qdengine.request import Request
from qdengine.summarize_file import to_request, valid_rows
from tqdm import tqdm

NEAR_TIE = 2**-4  # standard deviations of the logits
Pairs = list[tuple[list[int], list[int]]]


def first_difference(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def margin(model: ReferenceModel, prompt: Prompt, common: list[int]) -> float:
    """Gap between the two highest logits after prompt and `common`, in standard deviations of the logits; float32."""
    ids = torch.tensor([*prompt.ids.tolist(), *common], device=next(model.parameters()).device)[None]
    with torch.inference_mode():
        logits = model(ids)[0, -1]
        top = logits.topk(2).values
        return float((top[0] - top[1]) / logits.std())


def margins(
    loaded: Checkpoint, requests: list[dict[str, Any]], pairs: Pairs, max_new_tokens: int, device: str
) -> list[float]:
    """`margin` at the first difference of each pair that has one."""
    weights = {name: tensor.to(device, torch.float32) for name, tensor in loaded.weights().items()}
    reference = ReferenceModel.from_weights(loaded.config, weights).to(device)
    different = [i for i, (a, b) in enumerate(pairs) if a != b]
    parsed = [Request.parse(requests[i]) for i in different]
    prompts = encode(loaded.tokenizer(), loaded.prompt, parsed, loaded.config.max_positions - max_new_tokens)
    found = []
    for i, prompt in zip(different, prompts, strict=True):
        assert isinstance(prompt, Prompt)
        a, b = pairs[i]
        found.append(margin(reference, prompt, a[: first_difference(a, b)]))
    return found


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--model", default=DEFAULT_STUDENT, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rows", default=500, show_default=True)
@click.option("--precision", default="bfloat16", show_default=True)
@click.option("--max-new-tokens", default=48, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "out", type=click.Path(dir_okay=False))
def main(
    data: str, model: str, device: str, rows: int, precision: str, max_new_tokens: int, threads: int, out: str | None
) -> None:
    """Count the rows that differ."""
    requests = [to_request(row) for row in valid_rows(data, rows)]
    pairs: Pairs = []
    config = EngineConfig(max_new_tokens=max_new_tokens, threads=threads)
    with Engine.from_pretrained(model, device, precision, config) as engine:
        for begin in tqdm(range(0, len(requests), 64), unit="batch", disable=None):
            part = requests[begin : begin + 64]
            drafted, plain = (engine.summarize([{**r, "lookahead": n} for r in part]) for n in (64, 0))
            pairs += [(a.token_ids, b.token_ids) for a, b in zip(drafted, plain, strict=True)]
        found = margins(engine.checkpoint, requests, pairs, max_new_tokens, device)
    result: dict[str, Any] = facts() | {
        "rows": len(pairs), "different": len(found), "precision": precision, "max_new_tokens": max_new_tokens,
        "tokens": sum(len(b) for _, b in pairs), "bound": NEAR_TIE, "beyond_bound": sum(m > NEAR_TIE for m in found),
        "margin_at_first_difference": {
            name: float(np.percentile(found, q)) for name, q in (("p50", 50), ("p90", 90), ("max", 100))
        } if found else None,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    write(result, out)


if __name__ == "__main__":
    main()
