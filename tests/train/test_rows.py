"""Rows and pairs from files, and which of them are trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic
from commands import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine.jsonl import JsonlError
from qdengine.train import rows
from qdengine.train.rows import Row

GOOD = {"id": "a", "query": "Where?", "title": "T", "document": "On the roof.", "summary": " On the roof. "}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_read(tmp_path, name):
    path = write_rows(tmp_path / name, [GOOD, {"query": "雨?", "document": "雨。", "summary": "", "other": 1}, GOOD])
    first, second, _ = rows.read([path])
    assert first == Row("a", "Where?", "T", "On the roof.", "On the roof.")
    assert second == Row("2", "雨?", "", "雨。", "")
    assert len(rows.read([path, path])) == 6 and len(rows.read([path, path], 4)) == 4
    assert rows.read([]) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"{\n", "line 2 is not JSON"),
        (b"[1]\n", "line 2 is not a JSON object but list"),
        ({**GOOD, "summary": None}, "row 2: summary must be a text, not NoneType"),
        ({**GOOD, "summary": ["x"]}, "row 2: summary must be a text, not list"),
        ({k: v for k, v in GOOD.items() if k != "summary"}, "row 2: summary must be a text"),
        ({k: v for k, v in GOOD.items() if k != "query"}, "row 2: the request has no 'query'"),
        ({k: v for k, v in GOOD.items() if k != "document"}, "row 2: the request has no 'document'"),
        ({**GOOD, "document": " "}, "row 2: document is empty"),
        ({**GOOD, "title": 3}, "row 2: title must be a str, not int"),
    ],
)
def test_a_bad_row_is_named(tmp_path, bad, message):
    path = write_rows(tmp_path / "rows.jsonl", [GOOD, bad])
    with pytest.raises(JsonlError, match=message) as error:
        rows.read([path])
    assert path in str(error.value)
    assert len(rows.read([path], 1)) == 1, "what is behind the last row that is wanted is not read"


def test_a_file_that_is_missing_or_torn(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        rows.read([tmp_path / "none.jsonl"])
    path = write_rows(tmp_path / "rows.jsonl.gz", [GOOD] * 50)
    whole = (tmp_path / "rows.jsonl.gz").read_bytes()
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JsonlError, match="no whole gzip file"):
        rows.read([path])


def test_read_pairs(tmp_path):
    """Two rows are one pair by their id, also where files give none, or give one twice."""
    same = [{**GOOD, "chosen": "On the roof.", "rejected": "roof"}] * 3
    path = write_rows(tmp_path / "pairs.jsonl", [*same, {k: v for k, v in same[0].items() if k != "id"}])
    found = rows.read_pairs([path, path])
    assert len(found) == 8 and len({better.id for better, _ in found}) == 8
    assert all(replace(better, summary="roof") == worse for better, worse in found)
    assert {better.summary for better, _ in found} == {"On the roof."}
    assert len(rows.read_pairs([path], 3)) == 3


def test_a_bad_pair_is_named(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [GOOD | {"chosen": "a", "rejected": "b"}, GOOD | {"chosen": "a"}])
    with pytest.raises(JsonlError, match=r"pairs.jsonl: row 2: rejected must be a text, not NoneType"):
        rows.read_pairs([path])
    assert len(rows.read_pairs([path], 1)) == 1


def row(name: str, document: str, summary: str, title: str = "T") -> Row:
    return Row(name, f"Query {name}?", title, document, summary)


def test_by_document():
    a, b, c = row("a", "One.", "x"), row("b", "Two.", "x"), row("c", "One.", "y")
    other = row("d", "One.", "x", "Another title")
    assert rows.by_document([a, b, c, other]) == [[a, c], [b], [other]]


FIRST = "The rain of the night falls on the roof. It runs into the barrel beside the house."
SECOND = "It runs into the barrel beside the house. The barrel is full in the early morning."
SHARED = "It runs into the barrel beside the house."


def test_answers_are_shared_by_neighbouring_windows():
    asked = row("a", FIRST, SHARED)
    own = row("b", SECOND, "The barrel is full in the early morning.")
    assert rows.share_answers([[asked], [own]]) == [[asked], [own, replace(asked, document=SECOND)]]


def test_what_is_not_shared():
    asked = row("a", FIRST, SHARED)
    known = replace(row("b", SECOND, "The barrel is full in the early morning."), query=asked.query)
    assert rows.share_answers([[asked], [known]]) == [[asked], [known]], "a query that the document has"
    phrase = row("c", f"Another page. {SHARED}", SHARED, "Another title")
    own = row("b", SECOND, "The barrel is full in the early morning.")
    groups = [[asked], [own], [phrase]]
    assert rows.share_answers(groups) == groups, "a set phrase under several titles"
    short = row("d", "It rains. The end of it.", "It rains."), row("e", "It was. It rains.", "It was.")
    groups = [[one] for one in short]
    assert rows.share_answers(groups) == groups, "a short summary"
    none = row("f", FIRST, "")
    assert rows.share_answers([[none], [own]]) == [[none], [own]], "no summary"
    inside = row(
        "g", "He said that it runs into the barrel beside the house. Then.", "it runs into the barrel beside the"
    )
    groups = [[inside], [row("h", f"Now {inside.summary} house.", "Now it runs into the barrel")]]
    assert rows.share_answers(groups) == groups, "what begins no sentence"


def test_a_query_is_shared_once():
    """Two rows that ask the same of two documents."""
    first, second = row("a", FIRST, SHARED), replace(row("b", f"Now. {SHARED}", SHARED), query="Query a?")
    own = row("c", SECOND, "The barrel is full in the early morning.")
    assert rows.share_answers([[first], [second], [own]])[2] == [own, replace(first, document=SECOND)]


@st.composite
def grouped(draw):
    """Groups of rows in which the same row stands in several, as `share_answers` makes them."""
    names = st.lists(st.integers(0, 20), min_size=1, max_size=9)
    return [
        [row(str(name), f"Document {i}.", f"Summary {name}.") for name in draw(names)]
        for i in range(draw(st.integers(1, 8)))
    ]


@settings(max_examples=200, deadline=None)
@given(grouped(), st.integers(1, 6))
def test_cover(groups, most):
    chosen = rows.cover(groups, most)
    taken = [one.id for group in chosen for one in group]
    assert len(taken) == len(set(taken)), "no row twice"
    assert set(taken) == {one.id for group in groups for one in group}, "and every row once"
    sizes = [len(group) for group in chosen]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1 and sizes[0] <= most
    for group in chosen:
        assert len({one.document for one in group}) == 1 and all(
            one in groups[int(group[0].document[9:-1])] for one in group
        )


def test_cover_takes_what_gives_most():
    one, two, three = (
        [row(name, f"Document {i}.", name) for name in names] for i, names in enumerate(("ab", "abc", "cd"))
    )
    assert [[r.id for r in group] for group in rows.cover([one, two, three], 4)] == [["a", "b", "c"], ["d"]]


def test_rows_of_other_files_may_have_the_same_id(tmp_path):
    """Files that number their rows each for itself."""
    plain = [{k: v for k, v in one.items() if k != "id"} for one in synthetic.rows(8)]
    paths = [write_rows(tmp_path / name, part) for name, part in (("a.jsonl", plain[:4]), ("b.jsonl", plain[4:]))]
    found = rows.read(paths)
    assert [one.id for one in found] == list("12341234")
    covered = [one for group in rows.cover(rows.by_document(found), 12) for one in group]
    assert sorted(covered, key=lambda r: r.query) == sorted(found, key=lambda r: r.query)
