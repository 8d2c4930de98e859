"""Pairs of a student's own summaries."""

from __future__ import annotations

import json

import pytest
import synthetic
from commands import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine import jsonl
from qdengine.errors import ConfigError, TrainingError
from qdengine.train import config, pairs, rows
from qdengine.train.pairs import choose, make_pairs, measure, score
from qdengine.train.rows import Row

ROW = Row("a", "Where?", "Rain", "Rain falls on the old roof. It runs into the barrel.", "Rain falls on the old roof.")


@pytest.fixture
def given_rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", synthetic.rows(10))


@pytest.fixture
def asked(tmp_path, bundle, given_rows):
    def make(name="pairs.jsonl", **changes):
        whole = {
            "output": str(tmp_path / name), "train": [given_rows], "student": str(bundle), "precision": "float32",
            "samples": 4, "max_new_tokens": 12, "margin": 0.01,
        }  # fmt: skip
        return config.Pairs.model_validate(whole | changes)

    return make


def test_the_same_seed_gives_the_same_file(asked, monkeypatch, capsys):
    first = make_pairs(asked("a.jsonl")).read_bytes()
    made = first.count(b"\n")
    assert made >= 3 and f"{made} pairs of 10 rows" in capsys.readouterr().err
    monkeypatch.setattr(pairs, "_BATCH", 3)
    assert make_pairs(asked("b.jsonl")).read_bytes() == first
    assert make_pairs(asked("c.jsonl", seed=1)).read_bytes() != first


def test_pairs_are_rows_to_train_on(asked):
    path = make_pairs(asked(margin=0.05))
    by_id = {row["id"]: row for row in synthetic.rows(10)}
    lines = list(jsonl.read(path))
    assert lines and len(rows.read_pairs([path])) == len(lines)
    for line in lines:
        row = Row(**by_id.pop(line["id"]))
        assert (line["query"], line["title"], line["document"]) == (row.query, row.title, row.document)
        for name in ("chosen", "rejected"):
            figures = measure(row, line[name], "en")
            assert line[f"{name}_figures"] == figures | {"score": score(figures, config.Weights())}
        assert line["chosen_figures"]["score"] - line["rejected_figures"]["score"] >= 0.05
        assert line["chosen"].strip() and line["rejected"].strip()


def test_the_best_and_the_worst_are_taken(asked):
    texts = ["It runs into the barrel.", "", ROW.summary, "xyz", "Rain falls.", ROW.summary, "xyz "]
    pair = choose(ROW, texts, asked())
    assert (pair["chosen"], pair["rejected"]) == (ROW.summary, "xyz")
    assert pair["chosen_figures"]["score"] == 1 and pair["id"] == "a"
    assert choose(ROW, [ROW.summary] * 3, asked()) is None
    assert choose(ROW, ["", " \n"], asked()) is None, "no text says nothing about a good one"
    assert choose(ROW, ["", ROW.summary], asked()) is None
    near = [ROW.summary, ROW.summary.removesuffix(".")]
    assert choose(ROW, near, asked()) is None, "the same words"


def test_what_is_good_is_weighed(asked):
    """Copied, but not the answer; or the answer's words in an order that the document has not."""
    texts = ["It runs into the barrel.", "old roof the on falls Rain"]
    names = ("rouge", "verbatim", "coverage", "length")
    alone = [{name: float(name == one) for name in names} for one in ("verbatim", "coverage")]
    chosen = [choose(ROW, texts, asked(weights=weights)) for weights in alone]
    assert [pair["chosen"] for pair in chosen] == texts


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("", (0, 0, 0, 0)),
        ("Rain falls on the old roof.", (1, 1, 1, 1)),
        ("Rain falls on", (2 / 3, 1, 0.5, 1)),
        ("Rain falls on the old roof. It runs into", (0.8, 1, 1, 0.5)),
        ("Rain falls on the old roof. It runs into the barrel.", (12 / 17, 1, 1, 1 / 6)),
        ("a b c d e f g h i j k l m", (0, 0, 0, 0)),
    ],
)
def test_figures(text, figures):
    found = measure(ROW, text, "en")
    assert tuple(found[name] for name in ("rouge", "verbatim", "coverage", "length")) == pytest.approx(figures)


words = st.lists(st.sampled_from(["rain", "the", "roof", "雨", "水", "。", "-", "Barrel!", "\n"]), max_size=30)


@settings(max_examples=150, deadline=None)
@given(words, words, words, st.sampled_from(["en", "zh"]), st.tuples(*[st.floats(0, 3)] * 4).filter(any))
def test_figures_are_shares(document, summary, text, language, weights):
    row = Row("a", "q", "", " ".join(document), " ".join(summary))
    figures = measure(row, " ".join(text), language)
    assert all(0 <= value <= 1 for value in figures.values())
    names = ("rouge", "verbatim", "coverage", "length")
    total = score(figures, config.Weights(**dict(zip(names, weights, strict=True))))
    assert -1e-9 <= total <= 1 + 1e-9
    mean = sum(w * figures[name] for name, w in zip(names, weights, strict=True)) / sum(weights)
    assert total == pytest.approx(mean)


def test_a_row_that_the_engine_refuses_does_not_end_the_run(asked, tmp_path, capsys):
    good = synthetic.rows(4)
    bad = {**good[0], "id": "long", "query": "why " * 600}
    path = write_rows(tmp_path / "some.jsonl", [good[0], bad, *good[1:]])
    with_bad = make_pairs(asked("a.jsonl", train=[path])).read_bytes()
    assert "row long: query, title and" in capsys.readouterr().err
    path = write_rows(tmp_path / "good.jsonl", good)
    assert make_pairs(asked("b.jsonl", train=[path])).read_bytes() == with_bad != b""


def test_rows_without_a_summary_are_left_out(asked, tmp_path, capsys):
    given = synthetic.rows(4)
    path = write_rows(tmp_path / "some.jsonl", [{**given[0], "summary": ""}, *given[1:]])
    ids = {line["id"] for line in jsonl.read(make_pairs(asked(train=[path])))}
    assert given[0]["id"] not in ids and ids and "of 3 rows" in capsys.readouterr().err


def test_an_output_is_never_replaced_nor_left_half(asked, tmp_path, monkeypatch):
    settings = asked("deep/er/pairs.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "choose", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_pairs(settings)
    assert not settings.output.exists()
    whole = make_pairs(settings).read_bytes()
    assert {path.name for path in settings.output.parent.iterdir()} == {"pairs.jsonl", ".pairs.jsonl.lock"}
    with pytest.raises(ConfigError, match=r"pairs\.jsonl exists; choose another output"):
        make_pairs(settings)
    assert settings.output.read_bytes() == whole and all(json.loads(line) for line in whole.splitlines())


def test_no_pairs_are_an_error(asked, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(TrainingError, match="train has no row with a summary"):
        make_pairs(asked(train=[tmp_path / "empty.jsonl"]))
    with pytest.raises(TrainingError, match=r"no two samples of 10 rows differ by margin \(1.0\)"):
        make_pairs(asked(margin=1.0))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        make_pairs(asked("file/pairs.jsonl"))
    assert not (tmp_path / "pairs.jsonl").exists()


def test_rows_that_all_fail(asked, tmp_path, capsys):
    path = write_rows(tmp_path / "bad.jsonl", [{**row, "query": "why " * 600} for row in synthetic.rows(2)])
    with pytest.raises(TrainingError, match="the engine answered none of 2 rows"):
        make_pairs(asked(train=[path]))
    assert "query, title and" in capsys.readouterr().err


def test_two_at_once(asked, tmp_path):
    with config.alone(tmp_path / ".pairs.jsonl.lock", tmp_path), pytest.raises(ConfigError, match="another run is at"):
        make_pairs(asked())
    assert make_pairs(asked()).is_file()
