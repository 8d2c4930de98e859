"""The command line, as a user meets it: output, options, exit codes. Runs over files: test_summarize_file.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from commands import fails, fine, model_options, questions, run, write_rows
from qdengine import Engine, EngineConfig, checkpoint, ops, student
from qdengine.cli import main
from qdengine.errors import BackendError
from tiny import TEXT, tiny_bundle, tiny_gguf, tiny_hf_folder

KEYS = ["id", "summary", "spans", "finish_reason", "truncated", "stats", "error"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(bundle):
    return model_options(bundle, "--max-new-tokens", 12)


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "雨.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def tokens_and_costs(row: dict) -> dict:
    """All but the times, and what follows from them: how much is worth drafting."""
    timed = ("steps", "drafted", "accepted")
    return {**row, "stats": {k: v for k, v in row["stats"].items() if not k.endswith("_ms") and k not in timed}}


def test_a_file_is_summarized(bundle, model, document):
    arguments = ("summarize", document, "--query", "Where does rain fall?")
    row = json.loads(fine(*arguments, "--title", "A title", *model))
    assert list(row) == KEYS and row["id"] == document and row["error"] is None
    request = {"query": "Where does rain fall?", "title": "A title", "document": TEXT, "max_new_tokens": 12}
    with Engine.from_pretrained(bundle, "cpu", "float32") as engine:
        summary = engine.summarize([request])[0]
    assert (row["summary"], row["finish_reason"]) == (summary.text, summary.finish_reason)
    assert row["summary"] != json.loads(fine(*arguments, *model))["summary"], "the title is in the prompt"
    assert set(row["stats"]) == set(summary.stats.to_dict())
    assert row["stats"]["prompt_tokens"] == summary.stats.prompt_tokens


def test_verbatim(model, document):
    row = json.loads(fine("summarize", document, "--query", "rain", "--verbatim", *model))
    assert row["spans"] and row["summary"] == "\n".join(TEXT[begin:end] for begin, end in row["spans"])
    assert json.loads(fine("summarize", document, "--query", "rain", *model))["spans"] is None


def test_standard_input_and_a_byte_order_mark(model, document):
    want = tokens_and_costs(json.loads(fine("summarize", document, "--query", "rain", *model)))
    for data in (TEXT.encode(), b"\xef\xbb\xbf" + TEXT.encode()):
        got = json.loads(fine("summarize", "-", "--query", "rain", *model, input=data))
        assert tokens_and_costs(got) == {**want, "id": "-"}


def test_files_that_cannot_be_summarized(model, tmp_path):
    path = tmp_path / "file"
    arguments = ("summarize", path, "--query", "q", *model)
    fails("No such file", *arguments)
    path.write_bytes("Müller".encode("latin-1"))
    fails(f"{path} is not UTF-8 text: invalid start byte at byte 1", *arguments)
    fails("Is a directory", "summarize", tmp_path, "--query", "q", *model)
    for content in (b"", b" \n"):
        path.write_bytes(content)
        fails("document is empty; give its text", *arguments)
    row = json.loads(run(*arguments).stdout)
    assert row["error"] == {"type": "EmptyInputError", "message": "document is empty; give its text"}
    assert row["finish_reason"] == "error" and row["summary"] == ""
    fails("query is empty", "summarize", "-", "--query", " ", *model, input=b"text")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either FILE with --query, or --input"),
        (("FILE",), "FILE takes --query"),
        (("FILE", "--query", "q", "--input", "FILE"), "either FILE with --query, or --input"),
        (("FILE", "--query", "q", "--output", "x"), "goes to standard output"),
        (("--query", "q"), "either FILE with --query, or --input"),
        (("--input", "FILE"), "--input takes --output"),
        (("--input", "FILE", "--output", "x", "--query", "q"), "rows have the queries"),
        (("--input", "FILE", "--output", "x", "--title", "t"), "rows have the queries"),
        (("--input", "/nowhere", "--output", "x"), "'/nowhere' does not exist"),
        (("FILE", "--query", "q", "--lookahead", "-1"), "-1 is not in the range"),
        (("FILE", "--query", "q", "--max-new-tokens", "0"), "0 is not in the range"),
        (("FILE", "--query", "q", "--batch-size", "0"), "0 is not in the range"),
    ],
)
def test_usage_errors(document, arguments, message):
    fails(message, "summarize", *(document if a == "FILE" else a for a in arguments), code=2)


def test_models_and_devices_that_do_not_exist(bundle, document, tmp_path, monkeypatch):
    monkeypatch.setenv("QDENGINE_CACHE", str(tmp_path))
    arguments = ("summarize", document, "--query", "q")
    fails("run: qdengine student install qd-135m", *arguments)
    fails("neither a folder nor a student", *arguments, "--model", "x")
    fails("has neither qdengine.json", *arguments, "--model", tmp_path)
    fails("device 'tpu'", *arguments, "--model", bundle, "--device", "tpu")
    fails("precision 'int3'", *arguments, "--model", bundle, "--precision", "int3")
    fails("kv_dtype is 'int3'", *arguments, "--model", bundle, "--kv-dtype", "int3")
    if not torch.cuda.is_available():
        fails("no CUDA device", *arguments, "--model", bundle, "--device", "cuda")


def test_options_reach_the_engine(bundle, model, document, monkeypatch):
    def outcome(*options):
        row = json.loads(fine("summarize", document, "--query", "rain", *model, *options))
        return row["stats"], row["finish_reason"]

    assert outcome()[0]["drafted"] > 0
    plain, _ = outcome("--lookahead", 0)
    assert plain["drafted"] == plain["accepted"] == 0
    three, reason = outcome("--lookahead", 0, "--max-new-tokens", 3)
    assert (three["steps"], reason) == (3, "length")
    seen, make = [], Engine.from_pretrained

    def spy(*arguments):
        seen.append(make(*arguments))
        return seen[-1]

    monkeypatch.setattr(Engine, "from_pretrained", spy)
    outcome("--precision", "bfloat16", "--kv-dtype", "int8", "--lookahead", 5, "--max-new-tokens", 7)
    assert (seen[0].device.type, seen[0].precision) == ("cpu", "bfloat16")
    assert seen[0].config == EngineConfig(kv_dtype="int8", lookahead=5, max_new_tokens=7)


# Evaluation and measurement


@pytest.fixture
def scored(tmp_path):
    document = "Rain falls on the roof. Trains leave at night."
    references = [{"id": i, "summary": "Trains leave at night.", "document": document} for i in ("a", "b")]
    predictions = [{"id": "a", "summary": "Trains leave at night.", "error": None}, {"id": "b", "summary": ""}]
    return (
        "eval",
        "--predictions",
        write_rows(tmp_path / "predictions.jsonl.gz", predictions),
        "--references",
        write_rows(tmp_path / "references.jsonl", references),
    )


def test_eval(scored):
    found = json.loads(fine(*scored, "--json"))
    assert (found["rows"], found["missing"], found["lang"]) == (2, 0, "en")
    assert found["scores"]["rouge2"]["mean"] == found["scores"]["exact"]["mean"] == 50
    lines = fine(*scored).splitlines()
    assert lines[1].split()[:2] == ["rouge1", "50.00"] and lines[-1].startswith("2 rows; predictions: 0 missing")
    assert json.loads(fine(*scored, "--json", "--lang", "zh"))["lang"] == "zh"


def test_eval_of_files_that_do_not_fit(scored, tmp_path):
    fails("Missing option '--references'", *scored[:3], code=2)
    fails("'de' is not one of", *scored, "--lang", "de", code=2)
    fails("does not exist", *scored[:4], tmp_path / "none", code=2)
    bad = write_rows(tmp_path / "bad.jsonl", [b"rubbish\n"])
    fails("references: line 1 is not JSON", *scored[:4], bad)
    fails("references: no rows", *scored[:4], write_rows(tmp_path / "empty.jsonl", []))
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(Path(scored[2]).read_bytes()[:-9])
    fails("torn.jsonl.gz is no whole gzip file", "eval", "--predictions", torn, *scored[3:])


def test_bench(model, tmp_path):
    data, out = write_rows(tmp_path / "data.jsonl", [*questions(5), {"query": ""}]), tmp_path / "result.json"
    arguments = ("bench", "--data", data, *model, "--latency-rows", 2, "--max-new-tokens", 4)
    found = json.loads(fine(*arguments, "--rows", 3, "--engine", "threads=1", "--json", out))
    assert json.loads(out.read_text()) == found
    expected = {"backend": "cpu", "precision": "float32", "threads": 1, "rows": 3, "failed": 0, "model": "llama"}
    assert {name: found[name] for name in expected} == expected
    assert found["requests_per_s"] > 0 and found["latency_ms"]["p50"] > 0 and found["warm_reused_share"] > 0.5
    found = json.loads(fine(*arguments, "--lookahead", 0))
    assert (found["rows"], found["failed"]) == (6, 1)
    assert found["tokens_per_step"] == 1 and found["output_tokens"] <= 4
    assert found["load"] == []
    assert list(tmp_path.glob("*.json")) == [out]


def test_bench_under_load(model, tmp_path):
    data = write_rows(tmp_path / "data.jsonl", questions(3))
    arguments = ("bench", "--data", data, *model, "--latency-rows", 1, "--max-new-tokens", 4)
    found = json.loads(fine(*arguments, "--load", 0.25, "--load", 0.5, "--load-seconds", 0.3))
    assert [load["share"] for load in found["load"]] == [0.25, 0.5]
    for load in found["load"]:
        assert load["rate"] == pytest.approx(load["share"] * found["requests_per_s"])
        assert load["failed"] == 0 and load["requests"] >= 1 and load["latency_ms"]["p99"] > 0


def test_fields_of_the_engine(model, tmp_path):
    data = write_rows(tmp_path / "data.jsonl", questions(1))
    arguments = ("bench", "--data", data, *model, "--latency-rows", 1, "--max-new-tokens", 2)
    fine(*arguments, "--engine", "max_sequences=2", "--engine", "adaptive_lookahead=false")
    fails("EngineConfig has", *arguments, "--engine", "speed=9", code=2)
    fails("give NAME=VALUE", *arguments, "--engine", "max_sequences", code=2)
    fails("EngineConfig.max_sequences is 0", *arguments, "--engine", "max_sequences=0")
    fails("EngineConfig.max_sequences is 'two'", *arguments, "--engine", 'max_sequences="two"')


def test_bench_of_files_without_rows(model, tmp_path):
    for rows, message in (
        ([], "has no rows"),
        ([b"rubbish\n"], "line 1 is not JSON"),
        ([{"text": "x"}], "the request has no 'query'; give its text"),
    ):
        fails(message, "bench", "--data", write_rows(tmp_path / "data.jsonl", rows), *model)


# Diagnosis


def test_doctor():
    result = run("doctor", "--json")
    found = json.loads(result.stdout)
    assert found["backends"]["reference"] == found["backends"]["cpu"] == "ok"
    assert list(found["backends"]) == list(ops.BACKENDS)
    assert found["qdengine"] == version("qdengine") and found["torch"] == torch.__version__
    assert found["isa"] in found["isas_built"] and list(found["students"]) == list(student.STUDENTS)
    assert found["default_backend"] == ("cuda" if torch.cuda.is_available() else "cpu")
    default = found["backends"][found["default_backend"]]
    assert found["ok"] is (default == "ok") and result.exit_code == (0 if found["ok"] else 1)
    lines = run("doctor").stdout.splitlines()
    assert f"torch: {torch.__version__}" in lines and "  cpu: ok" in lines and f"ok: {found['ok']}" in lines


def test_doctor_of_an_unknown_instruction_set():
    done = subprocess.run(
        [sys.executable, "-m", "qdengine", "doctor"],
        env={**os.environ, "QDENGINE_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        "cpu: QDENGINE_ISA=mmx: expected generic, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 or amx; unset "
        "QDENGINE_ISA" in done.stdout
    )


def test_folders_are_looked_for_before_the_work(model, document, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", questions(1))
    nowhere = tmp_path / "absent" / "out"
    for command in (["summarize", "--input", source, "--output"], ["bench", "--data", source, "--json"]):
        fails("absent; make it first", *command, nowhere, "--model", "not a model")


def test_doctor_of_a_broken_installation(monkeypatch):
    """It tells of every fault, ends, and has another exit code."""

    def load(name):
        raise BackendError("the extension does not load; install it") if name == "cpu" else AssertionError

    monkeypatch.setattr(ops, "load", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(student, "installed", lambda: (_ for _ in ()).throw(PermissionError(13, "denied", "/cache")))
    result = run("doctor", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["ok"] is False and found["isa"] is None
    assert found["backends"]["cpu"] == "the extension does not load; install it"
    assert found["backends"]["reference"] == "AssertionError"
    assert "/cache" in found["students"]["cache"]
    text = run("doctor")
    assert text.exit_code == 1 and "isa: none\n" in text.stdout and "ok: False\n" in text.stdout


# Models


def test_info(bundle):
    found = json.loads(fine("info", bundle))
    loaded = checkpoint.load(bundle)
    assert found["parameters"] == sum(w.numel() for w in loaded.weights().values())
    assert (found["name"], found["digest"], found["stop_ids"]) == ("llama", loaded.digest, list(loaded.stop_ids))
    assert found["architecture"]["layers"] == 2 and found["prompt"] == json.loads(json.dumps(loaded.prompt.to_dict()))
    assert found["files"] == {p.name: p.stat().st_size for p in bundle.iterdir()}
    fails("neither a folder nor a student", "info", "x")


def test_convert(tmp_path):
    folder, gguf = tiny_hf_folder(tmp_path / "hf"), tiny_gguf(tmp_path / "tiny.gguf")
    for source, name in ((folder, "a"), (gguf, "b")):
        assert fine("convert", source, tmp_path / name, "--dtype", "float32") == f"{tmp_path / name}\n"
        weights = checkpoint.load(tmp_path / name).weights()
        assert {w.dtype for w in weights.values()} == {torch.float32}
    fine("convert", folder, tmp_path / "c")
    assert checkpoint.load(tmp_path / "c").weights()["embed.weight"].dtype == torch.bfloat16
    fails("already exists", "convert", folder, tmp_path / "a")
    fails("does not exist", "convert", tmp_path / "none", tmp_path / "d", code=2)
    (tmp_path / "bad.gguf").write_bytes(b"rubbish")
    fails("bad.gguf", "convert", tmp_path / "bad.gguf", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_students(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("QDENGINE_CACHE", str(tmp_path))
    name = "smollm2-135m"
    listed = fine("student", "list").splitlines()
    assert listed[0].startswith("qd-135m  not installed  tuned to answer queries")
    assert listed[1].startswith(f"{name}  not installed  SmolLM2")
    fails(f"run: qdengine student install {name}", "student", "path", name)
    assert fine("student", "remove", name) == "was not installed\n"
    for command in ("install", "path", "remove"):
        fails(f"unknown student 'x'; there are: qd-135m, {name}", "student", command, "x")
        fails("Missing argument 'NAME'", "student", command, code=2)
    (tmp_path / "students").mkdir()
    installed = bundle.rename(tmp_path / "students" / name)
    try:
        assert fine("student", "install", name) == fine("student", "path", name) == f"{installed}\n"
        assert fine("student", "list").splitlines()[1].startswith(f"{name}  {installed}  ")
    finally:
        installed.rename(bundle)
    (tmp_path / "students" / name).mkdir()
    assert fine("student", "remove", name) == "removed\n" and not (tmp_path / "students" / name).exists()


# The program itself


def program(*arguments, **options):
    command = [sys.executable, "-m", "qdengine", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


def test_help_of_everything_is_quick_and_needs_no_torch():
    code = """
import sys, time
begin = time.perf_counter()
import click
from qdengine.cli import main
def walk(command, path):
    with click.Context(command, info_name=path) as context:
        assert command.help and len(command.get_help(context)) > 60, path
        print(path)
    for name, child in getattr(command, "commands", {}).items():
        walk(child, f"{path} {name}")
walk(main, "qdengine")
print(time.perf_counter() - begin)
print(*{"torch", "numpy", "tqdm", "tokenizers"} & set(sys.modules))
"""
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    *paths, _, pulled_in = runs[0].stdout.splitlines()
    assert pulled_in == "" and {"qdengine", "qdengine summarize", "qdengine student install"} < set(paths)
    assert min(float(one.stdout.splitlines()[-2]) for one in runs) < 0.5


def test_the_help_tells_the_defaults_of_the_engine():
    for name in ("lookahead", "max_new_tokens"):
        option = next(p for p in main.commands["summarize"].params if p.name == name)
        assert f"[default: {getattr(EngineConfig(), name)}]" in option.help


def test_the_installed_program():
    assert fine("--version") == f"qdengine, version {version('qdengine')}\n"
    script = Path(sys.executable).with_name("qdengine")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == fine("--version")
    fails("No such command 'sumarize'", "sumarize", code=2)


def test_a_terminal_that_is_not_utf8_gets_utf8(model, document):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = program("summarize", document, "--query", "雨", *model, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == document and "雨.txt".encode() in done.stdout


def test_nobody_reads_on():
    """`qdengine student list | head -0` ends without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qdengine", "student", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
