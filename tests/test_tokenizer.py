"""Any text in, the same text out, and nothing that a text spells is a command."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine.errors import CheckpointError
from qdengine.tokenizer import Tokenizer
from tiny import TEXT, tokenizer_json


def make(tmp_path, **changes) -> Tokenizer:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(tokenizer_json()), **changes}), encoding="utf-8")
    return Tokenizer.from_file(file)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make(tmp_path_factory.mktemp("tokenizer"))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_and_offsets_cover_it(tokenizer, text):
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids.tolist()) == text
    assert encoding.ids.dtype == encoding.offsets.dtype == "int32" and encoding.offsets.shape == (len(encoding.ids), 2)
    if text:
        offsets = encoding.offsets
        assert offsets[0, 0] == 0 and offsets[-1, 1] == len(text)
        # No gap; tokens that share a character have the same offsets.
        assert all(b[0] == a[1] or (b[0] < a[1] and b[1] >= a[1]) for a, b in pairwise(offsets))


def test_special_tokens_are_plain_text(tmp_path):
    added = json.loads(tokenizer_json())["added_tokens"]
    added.append({**added[-1], "id": 400, "content": "<tool>", "special": False})
    tokenizer = make(tmp_path, added_tokens=added)
    for token in ("<|endoftext|>", "<|im_end|>", "<tool>"):
        ids = tokenizer.encode(f"a{token}b").ids.tolist()
        assert tokenizer.token_id(token) not in ids and tokenizer.decode(ids) == f"a{token}b"
    assert tokenizer.token_id("<|im_end|>") == 1 and tokenizer.token_id("absent") is None


def test_nothing_is_added_cut_or_padded(tmp_path):
    plain = make(tmp_path).encode("A fox.").ids.tolist()
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert make(tmp_path, post_processor=template, truncation=truncation).encode("A fox.").ids.tolist() == plain


def test_offsets_keep_the_space_of_a_word(tmp_path):
    trimming = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    encoding = make(tmp_path, post_processor=trimming).encode("The dog")
    assert any(begin == 3 for begin, _ in encoding.offsets)


def test_two_threads(tokenizer):
    texts = [f"{TEXT} {i}" for i in range(50)]
    alone = [tokenizer.encode(text).ids.tolist() for text in texts]
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda _: [e.ids.tolist() for e in tokenizer.encode_batch(texts)], range(8))
        assert all(result == alone for result in results)


def test_a_fork_after_use_is_quiet_and_works(tmp_path):
    make(tmp_path)
    code = (
        "import os, sys; from qdengine.tokenizer import Tokenizer\n"
        "t = Tokenizer.from_file(sys.argv[1]); t.encode_batch(['a b'] * 64)\n"
        "if os.fork() == 0: t.encode_batch(['a b'] * 64); os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "None"}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.json is missing"):
        Tokenizer.from_file(tmp_path / "absent.json")


def test_twins_differ_by_a_space(tokenizer):
    """Pairs, white space apart, and only as many as were asked for."""
    size = tokenizer.vocab_size
    texts = [tokenizer.decode([i]) for i in range(size)]
    twins = tokenizer.twins(size + 9).tolist()
    paired = [i for i, twin in enumerate(twins) if twin not in (i, -1)]
    assert len(paired) > 20 and all(twins[twins[i]] == i for i in paired)
    assert all({texts[i], texts[twins[i]]} in ({text, " " + text} for text in (texts[i], texts[i][1:])) for i in paired)
    assert [i for i, twin in enumerate(twins) if twin < 0] == [i for i, text in enumerate(texts) if text.isspace()]
    assert twins[size:] == [*range(size, size + 9)]
    small = tokenizer.twins(size // 2)
    assert len(small) == size // 2 and small.max() < size // 2
