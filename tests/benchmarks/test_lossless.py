"""How near a tie was, by models whose ties are known, and by bfloat16 against float32."""

from __future__ import annotations

import numpy as np
import torch
from lossless import NEAR_TIE, first_difference, margin, margins
from qdengine import Engine, EngineConfig
from qdengine.checkpoint import load
from qdengine.prompt import Prompt
from tiny import TEXT, tiny_bundle


def test_first_difference():
    assert first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert first_difference([1, 2], [1, 2, 4]) == 2
    assert first_difference([5], [6]) == 0


def test_margin_is_in_deviations_of_the_logits():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, ids):
            assert ids.tolist() == [[1, 2, 3]]
            return torch.tensor([[[9.0, 9.0, 9.0, 9.0], [1.0, 5.0, 2.0, 8.0]]])

    prompt = Prompt.__new__(Prompt)
    object.__setattr__(prompt, "ids", np.array([1, 2], np.int32))
    assert margin(Fixed(), prompt, [3]) == float(3 / torch.tensor([1.0, 5.0, 2.0, 8.0]).std())


def test_where_bfloat16_parts_from_float32_is_a_near_tie(tmp_path):
    bundle, batch, new = (
        tiny_bundle(tmp_path),
        [{"query": q, "document": TEXT} for q in ("fox?", "rain", "火车", "a")],
        32,
    )
    found = []
    for precision in ("bfloat16", "float32"):
        with Engine.from_pretrained(bundle, "cpu", precision, EngineConfig(max_new_tokens=new)) as engine:
            found.append([s.token_ids for s in engine.summarize(batch)])
    pairs = list(zip(*found, strict=True))
    gaps = margins(load(bundle), batch, pairs, new, "cpu")
    assert len(gaps) == sum(a != b for a, b in pairs) > 0
    assert max(gaps) <= 2 * NEAR_TIE  # all of bfloat16's rounding, not only that of another batch
