"""The reference model and the engine's decoder against transformers, in float32."""

from __future__ import annotations

import pytest
import torch
from qdengine import Engine, EngineConfig, checkpoint
from qdengine.model.reference import ReferenceModel
from tiny import FAMILIES, tiny_hf_folder, tiny_hf_model

REQUESTS = [
    {
        "query": "What jumps over the dog?",
        "document": "The quick brown fox jumps over the lazy dog. " * n,
        "title": "Fox",
    }
    for n in (1, 7, 3)
] + [{"query": "火车", "document": "雨水流进桶里。火车晚上出发。"}]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family, tmp_path):
    theirs = tiny_hf_model(family)
    loaded = checkpoint.load(tiny_hf_folder(tmp_path, family))
    ours = ReferenceModel.from_weights(loaded.config, loaded.weights())
    ids = torch.randint(0, loaded.config.vocab_size, (3, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want, got = theirs(ids).logits, ours(ids)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_of_a_ragged_batch(family, backend, tmp_path):
    """64 tokens, prefilled in chunks of 40, drafted and batched, equal transformers' one by one."""
    folder = tiny_hf_folder(tmp_path, family)
    model = tiny_hf_model(family)
    config = EngineConfig(max_step_tokens=40, max_new_tokens=64, kv_bytes=1 << 22)
    with Engine.from_pretrained(folder, device="cpu", precision="float32", config=config, backend=backend) as engine:
        summaries = engine.summarize(REQUESTS)
        prompts = [p.ids for p in prompts_of(engine)]
    for summary, prompt in zip(summaries, prompts, strict=True):
        ids = torch.tensor(prompt, dtype=torch.long)[None]
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=1, pad_token_id=0)
        want = [t for t in out[0, ids.shape[1] :].tolist() if t != 1]
        assert summary.token_ids == want
        assert len(want) > 1


def prompts_of(engine):
    from qdengine.prompt import encode
    from qdengine.request import Request

    return encode(
        engine.tokenizer, engine.checkpoint.prompt, [Request.parse(r) for r in REQUESTS], [400] * len(REQUESTS)
    )
