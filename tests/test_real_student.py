"""The default student on real pages: transformers' tokens, and lossless lookahead.

Skipped where student or data are not there: `qdengine student install qd-135m`, and QDENGINE_DATA or
../shared/data for the rows.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import torch
from qdengine import Engine, EngineConfig, student
from qdengine.errors import StudentError
from qdengine.export import export
from qdengine.prompt import encode
from qdengine.request import Request

DATA = Path(os.environ.get("QDENGINE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "webqa_en.test.jsonl.gz"
pytestmark = [pytest.mark.student, pytest.mark.slow]


@pytest.fixture(scope="module")
def bundle():
    try:
        return student.path("qd-135m")
    except StudentError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def requests():
    if not DATA.exists():
        pytest.skip(f"{DATA.name} is not there; set QDENGINE_DATA to the folder that has it")
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(50), file, strict=False)]
    return [{name: row[name] for name in ("query", "title", "document")} for row in rows]


def open_engine(bundle, **options):
    return Engine.from_pretrained(bundle, "cpu", "float32", EngineConfig(**options))


def test_transformers_writes_the_same(bundle, requests, tmp_path):
    """Greedy ids equal transformers' in float32, row by row: at every place of our output the most likely token of
    transformers is the one that we wrote, and a stop among the 64 that are permitted ends it."""
    import transformers as hf

    requests = requests[::3]  # transformers takes five seconds for one
    model = hf.AutoModelForCausalLM.from_pretrained(export(bundle, tmp_path / "exported"), dtype=torch.float32).eval()
    with open_engine(bundle, max_new_tokens=64) as engine:
        summaries = engine.summarize(requests)
        room = engine.checkpoint.config.max_positions - 64
        prompts = encode(engine.tokenizer, engine.checkpoint.prompt, [Request.parse(r) for r in requests], room)
        stops = engine.checkpoint.stop_ids
    for summary, prompt in zip(summaries, prompts, strict=True):
        assert summary.error is None
        ids = torch.tensor([*prompt.ids.tolist(), *summary.token_ids])[None]
        with torch.no_grad():
            written = model(ids, logits_to_keep=len(summary.token_ids) + 1).logits[0].argmax(-1).tolist()
        end = next((i for i, token in enumerate(written[:64]) if token in stops), None)
        assert summary.token_ids == written[: 64 if end is None else end]
        assert summary.finish_reason == ("length" if end is None else "stop")


def test_lossless(bundle, requests):
    """Without drafts, with every draft length policy, alone and in a batch, whole and in chunks: the same ids."""
    some = requests[:4]
    with open_engine(bundle, max_new_tokens=32, lookahead=0) as engine:
        plain = [engine.summarize([request])[0].token_ids for request in some]
    for options in ({"adaptive_lookahead": False}, {}, {"max_step_tokens": 200, "lookahead": 7, "max_sequences": 3}):
        with open_engine(bundle, max_new_tokens=32, **options) as engine:
            summaries = engine.summarize(some)
            assert [s.token_ids for s in summaries] == plain, options
            assert sum(s.stats.accepted for s in summaries) > 0
            again = engine.summarize(some)
            assert [s.token_ids for s in again] == plain, "a warm document changes nothing"
            assert all(s.stats.reused_tokens > 0 for s in again)
