"""Engines in processes of their own: the protocol with one that misbehaves, what is made of figures, a whole run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import plot
import pytest
from click.testing import CliRunner
from commands import write_rows
from peers import cli, report
from peers.adapters import transformers
from peers.link import Link, LinkError
from peers.table import specs
from peers.workload import TooLong, Workload
from synthetic import rows
from tiny import tiny_bundle, tiny_hf_folder

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
FAKE = """
import os, subprocess, sys, time
print("noise at import")
def versions():
    return {"fake": "1"}
def convert(source, destination, kind):
    import no_such_module
def load(model, settings):
    def run(requests):
        print("noise")
        subprocess.run(["echo", "noise of a child"])
        os.write(1, b"{}\\n")
        if requests == "hang":
            time.sleep(60)
        if requests == "crash":
            print("last words", file=sys.stderr)
            os._exit(3)
        return [[1, len(request)] for request in requests]
    return run, {"precision": model}
"""


@pytest.fixture
def link(tmp_path, monkeypatch):
    (tmp_path / "fake_engine.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    link = Link(sys.executable, "fake_engine", 1)
    yield link
    link.close()


def test_what_an_engine_prints_is_no_answer(link):
    assert link.call("versions", 30) == {"versions": {"fake": "1"}}
    assert link.call("load", 30, model="m", settings={}) == {"precision": "m"}
    for _ in range(2):
        found = link.call("run", 30, requests=["ab", "c"])
        assert found["ids"] == [[1, 2], [1, 1]] and 0 < found["seconds"] < 30 and found["rss"] > 0


def test_failures_are_told(link):
    with pytest.raises(LinkError, match="ModuleNotFoundError") as missing:
        link.call("convert", 30, source="a", destination="b", kind="c")
    with pytest.raises(LinkError, match="TypeError") as failed:
        link.call("run", 30, requests=[])
    assert missing.value.missing and not failed.value.missing
    link.call("load", 30, model="m", settings={})
    with pytest.raises(LinkError, match="ended with 3: last words"):
        link.call("run", 30, requests="crash")
    with pytest.raises(LinkError, match="ended with 3"):
        link.call("run", 30, requests=[])


def test_an_engine_that_hangs_is_ended(link):
    link.call("load", 30, model="m", settings={})
    with pytest.raises(LinkError, match=r"run took more than 0\.5 s"):
        link.call("run", 0.5, requests="hang")


COLD = {
    "qdengine": {"requests_per_s": 8.0, "latency_p50_ms": 10.0, "rouge": {"rouge2": 70.0}, "output_tokens": 40.0},
    "a": {"requests_per_s": 2.0, "latency_p50_ms": 40.0},
    "b": {"requests_per_s": 4.0},
    "c": {"error": "RuntimeError: no"},
}
RESULT = {
    "model": "a/b", "rows": 4, "data": "x", "threads": 1, "cold": COLD, "warm": {"qdengine": {"requests_per_s": 32.0}},
    "batches": {"qdengine": {"1": 1.5, "2": 3.0}, "b": {"1": 1.0, "2": 2.0}, "c": {"error": "RuntimeError: no"}},
    "lengths": {
        "qdengine": {"256": {"cold_ms": 9.0, "warm_ms": 3.0}, "512": {"skipped": "the model's context is 512 tokens"}},
        "a": {"256": {"cold_ms": 30.0}},
    },
    "engines": {"qdengine": {"precision": "float32"}, "d": {"not_installed": "pip install d"}},
}  # fmt: skip


def test_ratios_and_table():
    found = report.ratios(RESULT)
    assert found["qdengine"]["requests_per_s_over"] == {"a": 4.0, "b": 2.0}
    assert found["qdengine"]["requests_per_s_over_best"] == 2.0 and found["qdengine"]["latency_share_of_best"] == 0.25
    assert found["qdengine"]["latency_share_of_best_is"] == "a" and found["qdengine"]["warm_over_best_cold"] == 8.0
    assert report.ratios({"cold": {"qdengine": {}}}) == {
        "qdengine": {"requests_per_s_over": {}, "latency_share_of": {}}
    }
    told = report.markdown(RESULT | {"ratios": found})
    assert "| qdengine (float32) | 8.00 | 10 | 40.0 | 70.0 |" in told and "RuntimeError: no" in told
    assert "| qdengine (float32) | cold 9, warm 3 |  |" in told and "d is not installed: pip install d" in told


def test_plots(tmp_path):
    (tmp_path / "peers.json").write_text(json.dumps(RESULT))
    done = CliRunner().invoke(plot.main, ["--peers", str(tmp_path / "peers.json"), "--out", str(tmp_path / "plots")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"compare.svg", "batches.svg", "length.svg"}


def test_every_engine_has_a_name_of_its_own():
    for device in ("cpu", "cuda"):
        names = [spec.name for spec in specs(device, ("auto", "int8"), (), None)]
        assert len(set(names)) == len(names) and {"qdengine", "qdengine_int8", "vllm_ngram"} <= set(names)


def test_wrong_use_is_said(tmp_path):
    usual = ["--data", write_rows(tmp_path / "rows.jsonl", rows(4)), "--model", str(tiny_bundle(tmp_path))]
    for options, message in (
        (("--peer", "no"), "no is no engine; there are qdengine,"),
        (("--python", "openvino=no"), "--python openvino=no: give an interpreter"),
    ):
        done = CliRunner().invoke(cli.main, [*usual, *options])
        assert done.exit_code == 2 and message in done.output


def test_workload(tmp_path):
    work = Workload(tiny_bundle(tmp_path), write_rows(tmp_path / "rows.jsonl", rows(10)), 4, 2, 8)
    assert len(work.rows) == 4 and len(work.latency_rows) == 2 and len(work.warm_up) == 10  # all there are
    own, other = work.requests(work.rows), work.requests(work.rows, "known", other=True)
    assert own[1]["query"] == other[0]["query"] and own[0]["document"] == other[0]["document"]
    assert own[0]["ids"] != other[0]["ids"] and other[0]["namespace"] == "known"
    first, second = (work.documents(64, 1)[0]["document"] for _ in range(2))
    assert first != second and 60 <= len(work.tokenizer.encode(first).ids) <= 68
    for tokens, message in ((510, "the model's context is 512 tokens"), (500, "tokens together; give more rows")):
        with pytest.raises(TooLong, match=message):
            work.documents(tokens, 1)


def test_static_and_compiled_generation_agree_with_plain(tmp_path):
    folder = tiny_hf_folder(tmp_path / "hf")
    settings = {"device": "cpu", "dtype": "float32", "threads": 1, "new_tokens": 6, "stops": [1]}
    requests = [{"ids": [5, 6, 7, 8]}, {"ids": [9, 10]}]
    found = [transformers.load(str(folder), settings | {"how": how})[0](requests) for how in ("plain", "static")]
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.slow
def test_whole_run(tmp_path):
    """All sections with ours and one rival; an interpreter that has no rival is told what would install it."""
    data = write_rows(tmp_path / "rows.jsonl", rows(10))
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, PEERS, "--data", data, "--model", tiny_bundle(tmp_path / "m"), "--precision", "float32",
         "--peer", "transformers_plain", "--peer", "ctranslate2_int8", "--rows", "4", "--latency-rows", "1",
         "--slice", "2", "--tokens", "64", "--tokens", "600", "--max-new-tokens", "8", "--threads", "1",
         "--models", tmp_path / "models", "--json", out],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["cold"]["qdengine"]["rows_equal_to_transformers_plain"] == 4
    assert found["batches"]["qdengine"].keys() == {"1", "2", "4"} and found["warm"]["qdengine"]["requests_per_s"] > 0
    lengths = found["lengths"]["qdengine"]
    assert lengths["64"].keys() == {"cold_ms", "warm_ms"} and "context" in lengths["600"]["skipped"]
    assert found["ratios"]["qdengine"]["requests_per_s_over"].keys() == {"transformers_plain"}
    assert found["engines"]["qdengine"]["precision"] == "float32" and found["engines"]["qdengine"]["versions"]["torch"]
    assert "| qdengine (float32) |" in done.stdout and "ctranslate2" in done.stdout
