"""A file of rows through the command line: order, bad rows, files that are not ours, and runs that are killed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import fails, fine, model_options, questions, run, write_rows
from qdengine import Engine, jsonl
from tiny import TEXT, tiny_bundle

KEYS = ["id", "summary", "spans", "finish_reason", "truncated", "stats", "error", "digest"]
SUFFIXES = pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
BEGIN = b'{"id": '


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(bundle):
    return model_options(bundle, "--max-new-tokens", 12)


def results(path) -> list[dict]:
    """The rows without what they cost, which depends on what was in memory."""
    return [{name: value for name, value in row.items() if name != "stats"} for row in jsonl.read(path)]


@SUFFIXES
def test_rows_are_summarized_in_order(bundle, model, tmp_path, suffix, monkeypatch):
    rows = questions(7)
    source, output = write_rows(tmp_path / f"in.{suffix}", rows), tmp_path / f"out.{suffix}"
    with Engine.from_pretrained(bundle, "cpu", "float32") as engine:
        want = engine.summarize([{"query": r["query"], "document": r["document"], "max_new_tokens": 12} for r in rows])
    batches, summarize = [], Engine.summarize
    monkeypatch.setattr(Engine, "summarize", lambda self, batch: batches.append(len(batch)) or summarize(self, batch))
    assert fine("summarize", "--input", source, "--output", output, *model, "--batch-size", 3) == ""
    assert batches == [3, 3, 1]
    got = list(jsonl.read(output))
    assert all(list(row) == KEYS for row in got)
    assert [(row["id"], row["error"]) for row in got] == [(row["id"], None) for row in rows]
    assert [(row["summary"], row["finish_reason"]) for row in got] == [(s.text, s.finish_reason) for s in want]
    assert [row["stats"]["prompt_tokens"] for row in got] == [s.stats.prompt_tokens for s in want]


def test_rows_carry_the_options_of_requests(model, tmp_path):
    rows = [{**questions(1)[0], "max_new_tokens": 2, "lookahead": 0, "source": "ignored"}, questions(1)[0]]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    fine("summarize", "--input", source, "--output", output, *model, "--max-new-tokens", 5)
    first, second = jsonl.read(output)
    assert first["stats"]["steps"] == 2 and first["stats"]["drafted"] == 0
    assert first["finish_reason"] == second["finish_reason"] == "length"
    assert second["stats"]["steps"] + second["stats"]["accepted"] >= 5


def test_verbatim_is_for_rows_that_do_not_say(model, tmp_path):
    rows = [questions(1)[0], {**questions(1)[0], "verbatim": False}, {**questions(1)[0], "verbatim": "yes"}]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    arguments = ("summarize", "--input", source, "--output", output, *model)
    run(*arguments, "--verbatim")
    first, second, third = jsonl.read(output)
    assert first["spans"] and first["summary"] == "\n".join(rows[0]["document"][a:b] for a, b in first["spans"])
    assert second["spans"] is None and second["error"] is None
    assert third["error"]["type"] == "InvalidTypeError"
    fails("row 1 has digest", *arguments)


def test_bad_rows_harm_only_themselves(model, tmp_path):
    good = questions(2)
    lines = [
        good[0],
        b'{"id": "torn", \n',
        b"[1]\n",
        b'{"id": "\xff"}\n',
        {"id": "empty", "query": "", "document": "x"},
        {"id": 6.5, "query": "q"},
        {"query": "no id", "document": None},
        {"id": "deep", "query": "q", "document": [[["x"]]]},
        {"id": ["list"], "query": "q", "document": "x", "lookahead": "many"},
        {"id": "half \ud800", "query": "q", "document": "half \ud800"},
        {"id": float("nan"), "query": "long " * 600, "document": "x"},
        good[1],
    ]
    source, output = write_rows(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    arguments = ("summarize", "--input", source, "--output", output, *model, "--batch-size", 5)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == f"10 rows have an error; see their 'error' in {output}\n"
    rows = list(jsonl.read(output))
    ids = ["row 0", 2, 3, 4, "empty", 6.5, 7, "deep", 9, "half \ud800", 11, "row 1"]
    assert [row["id"] for row in rows] == ids
    assert [row["error"] and row["error"]["type"] for row in rows] == [
        None, "JsonlError", "JsonlError", "JsonlError", "EmptyInputError", "EmptyInputError", "InvalidTypeError",
        "InvalidTypeError", "InvalidTypeError", "InvalidTextError", "LimitError", None,
    ]  # fmt: skip
    assert rows[1]["error"]["message"].startswith("line 2 is not JSON: ")
    alone = tmp_path / "alone.jsonl"
    fine("summarize", "--input", write_rows(tmp_path / "good.jsonl", good), "--output", alone, *model)
    assert [rows[i]["summary"] for i in (0, -1)] == [row["summary"] for row in jsonl.read(alone)]
    again = run(*arguments)
    assert again.exit_code == 0 and "has 12 of 12 rows already" in again.stderr
    assert list(jsonl.read(output)) == rows


def test_rows_nested_as_deep_as_they_can_be_read(model, tmp_path):
    """What can just be read cannot be written again: such a row is an error, too, and not the end of the run."""
    lines = ['{"query": "q", "document": ' + "[" * n + "]" * n + "}\n" for n in range(600, 1000)]
    source, output = write_rows(tmp_path / "in.jsonl", [line.encode() for line in lines]), tmp_path / "out.jsonl"
    fine("summarize", "--input", source, "--output", output, *model)
    kinds = [row["error"]["type"] for row in jsonl.read(output)]
    assert len(kinds) == 400 and set(kinds) <= {"InvalidTypeError", "JsonlError"} and kinds[0] == "InvalidTypeError"


def test_an_input_without_rows_has_an_output_without_rows(model, tmp_path):
    source, output = write_rows(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl"
    fine("summarize", "--input", source, "--output", output, *model)
    assert output.read_bytes() == b""


def test_files_that_cannot_be_used_are_left_alone(model, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", questions(3))
    before = Path(source).read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    for name in ("in.jsonl", "link.jsonl", "hard.jsonl"):
        fails("--output is the --input file", "summarize", "--input", source, "--output", tmp_path / name, *model)
    fails("there is no folder", "summarize", "--input", source, "--output", tmp_path / "nowhere" / "x", *model)
    notes = tmp_path / "notes.txt"
    for content in ("Mine, and not to be lost.\n", "one line", "{"):
        notes.write_text(content + "!")
        fails("is not an output to go on with", "summarize", "--input", source, "--output", notes, *model)
        assert notes.read_text() == content + "!"
    copy = tmp_path / "copy.jsonl"  # input and output the wrong way round
    copy.write_bytes(before)
    fails("row 1 has digest None", "summarize", "--input", source, "--output", copy, *model)
    assert copy.read_bytes() == Path(source).read_bytes() == before
    torn = tmp_path / "in.jsonl.gz"
    torn.write_bytes(gzip.compress(before)[:-10])
    fails("no whole gzip file", "summarize", "--input", torn, "--output", tmp_path / "out.jsonl", *model)
    assert not (tmp_path / "out.jsonl").exists(), "told before the work and not after it"


def test_rows_that_the_engine_failed_are_done_again(model, tmp_path, monkeypatch):
    source, output = write_rows(tmp_path / "in.jsonl", questions(6)), tmp_path / "out.jsonl"
    arguments = ("summarize", "--input", source, "--output", output, *model, "--batch-size", 2)
    fine(*arguments)
    whole = results(output)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    rows[2] |= {"summary": "", "error": {"type": "EngineError", "message": "a step failed"}}
    output.write_bytes(b"".join(jsonl.dumps(row) for row in rows))
    again = run(*arguments)
    assert again.exit_code == 0 and "has 2 of 6 rows already" in again.stderr
    assert results(output) == whole


def test_devices_and_pipes(model, tmp_path):
    source, fifo, output = write_rows(tmp_path / "in.jsonl", questions(3)), tmp_path / "fifo", tmp_path / "out.jsonl"
    fine("summarize", "--input", source, "--output", "/dev/null", *model)
    assert Path("/dev/null").is_char_device() and not Path("/dev/null.part").exists()
    os.mkfifo(fifo)
    data = [Path(source).read_bytes(), b""]  # who reads a second time gets nothing, and does not wait for ever
    writer = threading.Thread(target=lambda: [fifo.write_bytes(part) for part in data], daemon=True)
    writer.start()
    fine("summarize", "--input", fifo, "--output", output, *model)
    os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
    writer.join(10)
    assert [row["id"] for row in jsonl.read(output)] == ["row 0", "row 1", "row 2"]


@SUFFIXES
def test_a_torn_output_is_gone_on_with(model, tmp_path, suffix, monkeypatch):
    rows = [*questions(5), b"rubbish\n", {"query": "", "document": ""}]
    source, output = write_rows(tmp_path / f"in.{suffix}", rows), tmp_path / f"out.{suffix}"
    arguments = ("summarize", "--input", source, "--output", output, *model, "--batch-size", 2)
    assert "2 rows have an error" in run(*arguments).stderr
    whole, data = results(output), output.read_bytes()
    assert len(whole) == 7
    asked, summarize = [], Engine.summarize
    monkeypatch.setattr(Engine, "summarize", lambda self, batch: asked.extend(batch) or summarize(self, batch))
    for size in (0, len(data) // 3, len(data) // 2, len(data) - 1, len(data)):
        output.write_bytes(data[:size])
        left = sum(1 for _ in jsonl.written(output, BEGIN))
        asked.clear()
        result = run(*arguments)
        assert result.exit_code == 0 and (f"has {left} of 7 rows" in result.stderr) == (left > 0), result.output
        assert "2 rows have an error" in result.stderr, "those of before count, too"
        assert len(asked) == 7 - left - (left < 6), "the line without a row is not asked, and nothing twice"
        assert results(output) == whole
    assert not asked


def test_another_run_is_not_mixed_in(model, tmp_path):
    rows = [{"query": q, "document": TEXT} for q in ("a", "b", "c")]
    output = tmp_path / "out.jsonl"

    def arguments(rows, *more):
        source = write_rows(tmp_path / "in.jsonl", rows)
        return ("summarize", "--input", source, "--output", output, *model, *more)

    fine(*arguments(rows))
    before = output.read_bytes()
    output.write_bytes(before + b'{"id": 4, "summ')
    torn = output.read_bytes()
    fails("has more rows than the input", *arguments(rows[:2]))
    fails("row 1 has id 1, and this run gives it 'x'", *arguments([{**rows[0], "id": "x"}, *rows[1:]]))
    message = (
        "from another input, model, precision, kv dtype or number of new tokens; remove it or choose another --output"
    )
    fails(message, *arguments([*rows[:2], {**rows[2], "document": "another"}]))
    fails(message, *arguments([*rows[:2], b"rubbish\n"]))
    fails(message, *arguments(rows, "--max-new-tokens", 5))
    fails(message, *arguments(rows, "--precision", "bfloat16"))
    fails(message, *arguments(rows, "--kv-dtype", "int8"))
    fails(message, *arguments(rows, "--model", tiny_bundle(tmp_path, "qwen3")))
    assert output.read_bytes() == torn, "refused, and so not even cut"
    fine(*arguments([{**row, "lookahead": 3} for row in [*rows, rows[0]]], "--lookahead", 0))  # it changes no token
    assert output.read_bytes().startswith(before) and len(results(output)) == 4


@SUFFIXES
def test_a_killed_run_is_gone_on_with(model, tmp_path, suffix):
    source = write_rows(tmp_path / "in.jsonl", questions(2000))
    output, whole = tmp_path / f"out.{suffix}", tmp_path / "whole.jsonl"
    options = (*model, "--max-new-tokens", "4")
    command = [sys.executable, "-m", "qdengine", "summarize", "--input", source, "--output", str(output), *options]
    process = subprocess.Popen([*map(str, command), "--batch-size", "3"], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (output.exists() and output.stat().st_size > (4_000 if suffix == "jsonl.gz" else 20_000)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = sum(1 for _ in jsonl.written(output, BEGIN))
    assert 0 < left < 2000, "killed in the middle"
    write_rows(tmp_path / "in.jsonl", questions(left + 20))
    for path in (output, whole):
        fine("summarize", "--input", source, "--output", path, *options)
    assert results(output) == results(whole) and len(results(whole)) == left + 20
