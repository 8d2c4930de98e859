"""Packs: the prompts of the engine, and targets that are the document's own tokens."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import synthetic
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qdengine.prompt import DOCUMENT_FIRST, QUERY_FIRST, encode
from qdengine.request import Request
from qdengine.tokenizer import Tokenizer
from qdengine.train import rows
from qdengine.train.packs import Branch, Pack, Packer, batch, pairs_only, target_ids, together
from qdengine.train.rows import Row
from tiny import tokenizer_json
from tokenizers import Tokenizer as Loaded

STOP = 1
FORMATS = {"document_first": DOCUMENT_FIRST, "query_first": replace(QUERY_FIRST, bos_id=0)}


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(Loaded.from_str(tokenizer_json()))


def packer(prompt=DOCUMENT_FIRST, **changes) -> Packer:
    given = {"max_tokens": 256, "positions": 512, "absent": synthetic.ABSENT}
    return Packer(tokenizer(), prompt, STOP, **{**given, **changes})


def some(count: int) -> list[Row]:
    return [Row(**one) for one in synthetic.rows(count)]


def packed(groups, **changes) -> tuple[list[Pack], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(packer(**changes).packs(groups, skipped)), +skipped


def prompt_of(row: Row, prompt=DOCUMENT_FIRST, most=256):
    return encode(tokenizer(), prompt, [Request(row.query, row.document, row.title)], most)[0]


def decoded(branch: Branch) -> str:
    ids = branch.ids[len(branch.ids) - branch.target :]
    assert ids[-1] == STOP
    return tokenizer().decode(ids[:-1])


@pytest.mark.parametrize("order", FORMATS)
def test_ids_are_those_of_inference(order):
    found, prompt = some(9), FORMATS[order]
    packs, skipped = packed(rows.by_document(found), prompt=prompt)
    assert not skipped and [len(pack.branches) for pack in packs] == (
        [2] * 4 + [1] if order == "document_first" else [1] * 9
    )
    by_id = {row.id: row for row in found}
    for pack in packs:
        for branch in pack.branches:
            row = by_id.pop(branch.id)
            engine = prompt_of(row, prompt)
            whole = np.concatenate([pack.beginning, branch.ids])
            assert whole[: -branch.target].tolist() == engine.ids.tolist()
            assert len(pack.beginning) == engine.shareable >= 1
            target = whole[-branch.target : -1].tolist()
            document = engine.ids[engine.document_begin : engine.document_end].tolist()
            assert any(document[i : i + len(target)] == target for i in range(len(document))), "a run of the document"
            assert decoded(branch).strip() == row.summary
    assert not by_id


def test_batch():
    """Each row is the token before its label, and its logits are what the label is compared with."""
    pack = Pack(
        np.arange(5, dtype=np.int32),
        (Branch("a", np.arange(10, 16, dtype=np.int32), 2), Branch("b", np.arange(20, 23, dtype=np.int32), 3)),
    )
    found = batch([pack])
    assert found["ids"].tolist() == [[0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 15, 20, 21, 22]]
    assert found["shapes"] == [(5, [6, 3])] and not found["fused"] and len(pack) == 14
    assert found["rows"].tolist() == [8, 9, 10, 11, 12]
    assert found["labels"].tolist() == [14, 15, 20, 21, 22] and found["branch"].tolist() == [0, 0, 1, 1, 1]
    assert all(tensor.dtype == torch.int64 for tensor in found.values() if isinstance(tensor, torch.Tensor))


def test_a_batch_of_packs_is_filled_up():
    """With a beginning that nothing is learnt from; branches are counted through."""
    one = Pack(np.arange(5, dtype=np.int32), (Branch("a", np.arange(10, 16, dtype=np.int32), 2),))
    other = Pack(np.arange(3, dtype=np.int32), (Branch("b", np.arange(20, 23, dtype=np.int32), 1),))
    found = batch([one, other], 20)
    assert found["ids"].tolist() == [[0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 15, 0, 1, 2, 20, 21, 22, 0, 0, 0]]
    assert found["shapes"] == [(5, [6]), (3, [3]), (3, [])] and found["fused"]
    assert found["rows"].tolist() == [8, 9, 15] and found["labels"].tolist() == [14, 15, 22]
    assert found["branch"].tolist() == [0, 0, 1]
    assert batch([one, other], 17)["shapes"] == [(5, [6]), (3, [3])]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=30),
    tokens=st.sampled_from([None, 40, 64]),
    seed=st.integers(0, 9),
)
def test_together(sizes, tokens, seed):
    """Every pack once, as many as fit; the same for the same seed."""
    branch = (Branch("a", np.zeros(1, np.int32), 1),)
    packs = [Pack(np.full(size - 1, i, np.int32), branch) for i, size in enumerate(sizes)]
    groups = together(packs, tokens, seed)
    assert sorted(int(pack.beginning[0]) for group in groups for pack in group) == list(range(len(sizes)))
    if tokens is None:
        assert groups == [[pack] for pack in packs]
    else:
        assert all(sum(map(len, group)) <= tokens for group in groups)
        assert all(sum(map(len, a)) + len(b[0]) > tokens for a, b in itertools.pairwise(groups))
        again = together(packs, tokens, seed)
        assert [[id(pack) for pack in group] for group in again] == [[id(pack) for pack in group] for group in groups]


def test_rows_are_before_their_labels():
    for pack in packed(rows.by_document(some(4)))[0]:
        found = batch([pack])
        assert torch.equal(found["ids"][0, found["rows"] + 1], found["labels"])
        assert all(branch.target < len(branch.ids) for branch in pack.branches), "a label's row is of its own branch"


TEXTS = [
    "Rain falls on the roof.",
    " It runs ",
    "雨水流进桶里。",
    "火车晚上出发。",
    "😀🏽",
    "Zażółć gęślą",
    "\n",
    "The lazy dog.",
]


@settings(max_examples=200, deadline=None)
@given(st.data())
@example(None)
def test_targets_of_verbatim_summaries(data):
    """Where a run of the document's ids gives the summary's text, the target is such a run."""
    if data is None:
        document, summary = "雨水流进桶里。火车晚上出发。", "雨水流进桶里。"
    else:
        document = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8).map("".join).filter(str.strip))
        begin = data.draw(st.integers(0, len(document) - 1))
        summary = document[begin : data.draw(st.integers(begin + 1, len(document)))].strip()
    if not summary:
        return
    row = Row("a", "Query?", "Title", document, summary)
    prompt = prompt_of(row)
    target = target_ids(tokenizer(), DOCUMENT_FIRST, prompt, document, summary)
    assert tokenizer().decode(target).strip() == summary
    own = prompt.ids[prompt.document_begin : prompt.document_end][prompt.offsets[:, 1] > 0].tolist()  # not the title
    runs = [own[i : i + n] for n in range(1, len(own) + 1) for i in range(len(own) - n + 1)]
    possible = [run for run in runs if tokenizer().decode(run).strip() == summary]
    if possible:
        assert target.tolist() in possible


def test_a_later_occurrence_is_taken_where_the_first_is_within_a_token():
    document = "The fox jumps.\nox"
    prompt = prompt_of(Row("a", "Query?", "", document, "ox"))
    (within,) = (i for i, (begin, end) in enumerate(prompt.offsets) if begin < document.index("ox") < end)
    assert document[slice(*prompt.offsets[within])] == " fox"
    last = prompt.ids[prompt.document_begin : prompt.document_end][prompt.offsets[:, 1] > document.index("\nox") + 1]
    assert target_ids(tokenizer(), DOCUMENT_FIRST, prompt, document, "ox").tolist() == last.tolist()


def test_white_space_around_documents():
    row = some(1)[0]
    spaced = replace(row, document=f"\n\t  {row.document}  \n")
    (one,), (other,) = packed([[row]])[0], packed([[spaced]])[0]
    assert one.beginning.tolist() == other.beginning.tolist()
    assert one.branches[0].ids.tolist() == other.branches[0].ids.tolist()


@pytest.mark.parametrize(
    ("summary", "text"), [("Not in there at all.", " Not in there at all."), ("", f" {synthetic.ABSENT}")]
)
def test_other_targets_begin_as_the_format_says(summary, text):
    (pack,), skipped = packed([[replace(some(1)[0], summary=summary)]])
    assert not skipped and decoded(pack.branches[0]) == text
    branch = pack.branches[0]
    assert branch.ids[-branch.target : -1].tolist() == tokenizer().encode(text).ids.tolist()


def long_row(answers: int = 3) -> list[Row]:
    """Rows of one document that is longer than 256 tokens, their answers at its beginning, middle and end."""
    pages = [synthetic.page(number) for number in range(12)]
    document = "\n".join(text for _, text, _ in pages)
    chosen = [pages[i][2][0] for i in (0, 6, 11)][:answers]
    return [Row(str(i), query, "Long", document, summary) for i, (query, summary) in enumerate(chosen)]


def test_a_long_document_gives_a_window_with_the_answer():
    group = long_row()
    packs, skipped = packed([group])
    assert len(packs) == 1 and packs[0].branches[0].id == "0"
    assert skipped["answer not in the window"] == 3 - len(packs[0].branches)
    text = tokenizer().decode(packs[0].beginning)
    assert group[0].summary in text and text.removeprefix("Long\n") in group[0].document
    assert len(packs[0].beginning) < 256 and decoded(packs[0].branches[0]).strip() == group[0].summary


def test_windows_are_drawn_by_seed():
    groups = [long_row()[1:2] for _ in range(6)]
    starts = [[pack.beginning.tolist() for pack in packed(groups, seed=seed)[0]] for seed in (0, 0, 1)]
    assert starts[0] == starts[1] != starts[2] and len({tuple(ids) for ids in starts[0]}) > 1


def test_windows_without_the_answer():
    packs, _ = packed([long_row(1)], absent_share=1.0)
    inside, outside = packs
    assert decoded(inside.branches[0]).strip() == long_row()[0].summary
    assert decoded(outside.branches[0]) == f" {synthetic.ABSENT}"
    assert long_row()[0].summary not in tokenizer().decode(outside.beginning)
    shares = [len(packed([long_row(1)] * 40, absent_share=share)[0]) - 40 for share in (0.0, 0.5)]
    assert shares[0] == 0 and 8 < shares[1] < 32


def test_rows_without_an_answer_do_not_take_it_from_their_neighbours():
    """The window is that of the first row whose answer the document holds."""
    none, said = replace(long_row()[0], id="x", summary=""), replace(long_row()[0], id="y", summary="Not in there.")
    packs, skipped = packed([[none, said, *long_row()]])
    assert packs[0].branches[0].id == "0" and skipped["answer not in the window"] >= 2


def test_what_cannot_be_used_is_counted():
    none = [replace(row, summary="") for row in long_row()]
    assert packed([none]) == ([], Counter({"document cut": 3}))
    whole = [replace(long_row()[0], summary=long_row()[0].document)]
    assert packed([whole]) == ([], Counter({"answer not in the window": 1}))
    endless = [replace(some(1)[0], query="why " * 500)]
    assert packed([endless]) == ([], Counter({"no room for the document": 1}))
    row = some(1)[0]
    size = len(prompt_of(row).ids) + packed([[row]])[0][0].branches[0].target
    assert len(packed([[row]], positions=size)[0]) == 1
    assert packed([[row]], positions=size - 1) == ([], Counter({"summary too long": 1}))


def test_groups_of_one_document_stay_apart():
    """So that a pack has no more queries than was asked for."""
    pairs = some(2)
    packs, _ = packed([[pairs[0]], [pairs[1]]])
    assert [[branch.id for branch in pack.branches] for pack in packs] == [["0.0"], ["0.1"]]
    assert packs[0].beginning.tolist() == packs[1].beginning.tolist()


def test_pairs_only():
    beginning = np.arange(3, dtype=np.int32)
    a, b, c, d = (Branch(name, np.arange(i, i + 3, dtype=np.int32), 1) for i, name in enumerate("aabc"))
    skipped: Counter[str] = Counter()
    assert pairs_only(Pack(beginning, (a, b, c, d)), skipped).branches == (a, b)
    assert skipped == {"pair not in one window": 2}
    assert pairs_only(Pack(beginning, (c, d)), skipped) is None and skipped.total() == 4


def test_more_documents_than_are_encoded_at_a_time(monkeypatch):
    groups = rows.by_document(some(20))
    whole = packed(groups)[0]
    monkeypatch.setattr("qdengine.train.packs._ENCODED", 3)
    parts = packed(groups)[0]
    assert len(whole) == len(parts) == 10
    for one, other in zip(whole, parts, strict=True):
        assert one.beginning.tolist() == other.beginning.tolist()
        assert [b.ids.tolist() for b in one.branches] == [b.ids.tolist() for b in other.branches]
