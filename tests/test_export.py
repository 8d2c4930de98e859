"""Bundles as Hugging Face folders: transformers computes the same, and importing again gives the same model."""

from __future__ import annotations

import pytest
import torch
from qdengine import checkpoint
from qdengine.errors import CheckpointError
from qdengine.export import export
from qdengine.model.reference import ReferenceModel
from tiny import FAMILIES, tiny_bundle


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(tmp_path, family):
    import transformers as hf

    bundle = checkpoint.load(tiny_bundle(tmp_path, family))
    folder = export(bundle.path, tmp_path / "exported")
    again, wanted = checkpoint.load(folder), bundle.weights()
    assert (again.config, again.stop_ids) == (bundle.config, bundle.stop_ids)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.weights().items())
    ids = torch.randint(0, bundle.config.vocab_size, (1, 80), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        ours = ReferenceModel.from_weights(bundle.config, wanted)(ids)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    text = "The fox jumps. 火车"
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text, add_special_tokens=False).input_ids == bundle.tokenizer().encode(text).ids.tolist()


def test_an_existing_folder_is_not_overwritten(tmp_path):
    bundle = tiny_bundle(tmp_path)
    with pytest.raises(CheckpointError, match="already exists"):
        export(bundle, bundle)
