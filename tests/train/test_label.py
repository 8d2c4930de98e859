"""`train label`: every row once whatever fails, the folder of a run, and its settings."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter

import pytest
import yaml
from chat_server import FAULTS, ChatServer, first_sentence
from commands import fails, fine, run, write_rows
from qdengine import jsonl
from qdengine.train import config, label_config, rows
from qdengine.train.teachers import fill
from tiny import TEXT, tiny_bundle, tiny_hf_folder

PROVENANCE = ["teacher", "prompt_hash", "time"]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def make_rows(count: int) -> list[dict]:
    return [
        {"id": f"r{i}", "query": f"Which part is {i}?", "title": f"T{i}", "document": f"Part {i} is here. And {TEXT}"}
        for i in range(count)
    ]


def write_settings(folder, server, found, **changes) -> str:
    teacher = {"kind": "openai", "base_url": server.url, "model": "big", "concurrency": 8, "retries": 4}
    settings = {
        "output": str(folder / "run"),
        "requests": [write_rows(folder / "requests.jsonl", found)],
        "teacher": teacher | changes.pop("teacher", {}),
    }
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return str(path)


def answers(folder) -> list[dict]:
    """All that was sorted, labels first, without the time."""
    lines = [*labels(folder), *jsonl.read(folder / "run" / "rejected.jsonl")]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def labels(folder) -> list[dict]:
    return [line for path in sorted((folder / "run" / "labels").iterdir()) for line in jsonl.read(path)]


def counts(folder) -> dict:
    return json.loads((folder / "run" / "counts.json").read_text())


def once(server) -> bool:
    return set(server.answered.values()) == {1}


def test_labels_with_where_they_come_from(tmp_path):
    found = make_rows(25)
    with ChatServer() as server:
        settings = write_settings(tmp_path, server, found, shard=10)
        result = run("train", "label", settings)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run" / "labels"
    assert result.stdout == f"{folder}\n"
    assert result.stderr == "25 of 25 rows are labels; rejected: none; unanswered: 0\n", "and no bar in no terminal"
    assert [path.name for path in sorted(folder.iterdir())] == [f"part-0000{i}.jsonl" for i in range(3)]
    assert [sum(1 for _ in jsonl.read(path)) for path in sorted(folder.iterdir())] == [10, 10, 5]
    made = labels(tmp_path)
    assert [{name: line[name] for name in found[0]} for line in made] == found, "in the order of the requests"
    assert [line["summary"] for line in made] == [f"Part {i} is here." for i in range(25)]
    assert all(line["teacher"] == "big" and line["time"].endswith("+00:00") for line in made)
    assert len({line["prompt_hash"] for line in made}) == 25
    read = rows.read([folder])
    assert [(row.id, row.query, row.title, row.document, row.summary) for row in read] == [
        tuple(line[name] for name in ("id", "query", "title", "document", "summary")) for line in made
    ]
    assert rows.read([folder], 12) == read[:12]


def test_faults_lose_nothing(tmp_path):
    """With three faults in ten and few retries rows fail; the same command asks those again and no others."""
    chance, found = random.Random(3), make_rows(60)

    def fault(prompt, count):
        return chance.choice(FAULTS) if chance.random() < 0.3 else None

    with ChatServer(fault=fault) as server:
        settings, runs = write_settings(tmp_path, server, found, teacher={"retries": 0}), 0
        while (result := run("train", "label", settings)).exit_code:
            runs += 1
            failed = list(jsonl.read(tmp_path / "run" / "errors.jsonl"))
            assert f"{len(failed)} rows have no answer" in result.stderr and "same command again" in result.stderr
            assert counts(tmp_path)["unanswered"] == len(failed) and runs < 20
            done = {line["id"] for line in labels(tmp_path)}
            assert done | {line["id"] for line in failed} == {row["id"] for row in found}
            assert len(done) + len(failed) == 60
    assert runs and once(server)
    assert [line["id"] for line in labels(tmp_path)] == [row["id"] for row in found]
    assert not (tmp_path / "run" / "errors.jsonl").read_bytes()


def test_faults_with_retries_need_no_second_run(tmp_path):
    found, chance = make_rows(40), random.Random(5)
    faults = {f"Which part is {i}?": chance.choices([None, *FAULTS], [12, *[1] * len(FAULTS)], k=4) for i in range(40)}

    def fault(prompt, count):
        return next(faults[query] for query in faults if query in prompt)[count] if count < 4 else None

    with ChatServer(fault=fault) as server:
        fine("train", "label", write_settings(tmp_path, server, found, teacher={"concurrency": 40}))
    assert once(server) and server.asked.total() > 45
    assert [line["id"] for line in labels(tmp_path)] == [row["id"] for row in found]


def test_what_is_rejected_is_counted_and_kept(tmp_path):
    found = make_rows(8)
    found[6] |= {"query": " which PART is 0?", "title": "T0", "document": found[0]["document"]}
    texts = {
        "1": "",
        "2": "I'm sorry, I can't.",
        "3": "word " * 300,
        "4": "The fourth piece can be found in this place.",
    }

    def answer(prompt):
        return texts.get(prompt.partition("Title: T")[2][0], first_sentence(prompt))

    with ChatServer(answer) as server:
        settings = write_settings(tmp_path, server, found)
        result = run("train", "label", settings)
        assert result.exit_code == 0
        assert result.stderr.startswith("3 of 8 rows are labels; rejected: 1 ")
        assert counts(tmp_path) == {
            "rows": 8,
            "kept": 3,
            "rejected": {
                "duplicate": 1, "empty": 1, "refusal": 1, "long": 1, "abstractive": 1, "off-query": 0,
            },
            "unanswered": 0,
        }  # fmt: skip
        rejected = {line["id"]: line for line in jsonl.read(tmp_path / "run" / "rejected.jsonl")}
        assert {name: line["reason"] for name, line in rejected.items()} == {
            "r1": "empty", "r2": "refusal", "r3": "long", "r4": "abstractive", "r6": "duplicate",
        }  # fmt: skip
        assert rejected["r4"]["summary"] == texts["4"] and set(PROVENANCE) < set(rejected["r4"])
        assert server.asked.total() == 7, "a duplicate is not asked"
        # Other filters sort the same answers anew.
        fine("train", "label", settings, "filters.verbatim=null", "filters.words=null", "filters.query=null")
        assert server.asked.total() == 7
        assert [line["id"] for line in labels(tmp_path)] == ["r0", "r3", "r4", "r5", "r7"]
        fine("train", "label", settings, "filters.duplicate=false")
        assert server.asked.total() == 8
        assert [line["id"] for line in labels(tmp_path)] == ["r0", "r5", "r6", "r7"]


def test_a_run_is_gone_on_with(tmp_path):
    found = make_rows(12)
    with ChatServer() as server:
        settings = write_settings(tmp_path, server, found)
        fine("train", "label", settings, "rows=5")
        assert counts(tmp_path)["rows"] == 5
        fine("train", "label", settings, "teacher.concurrency=1", "teacher.retries=0", "shard=3")
        assert once(server) and server.asked.total() == 12 and len(labels(tmp_path)) == 12
        with ChatServer() as moved:
            fine("train", "label", settings, f"teacher.base_url={moved.url}")
        assert not moved.asked
        for change in (
            "teacher.model=other",
            "temperature=1",
            "max_new_tokens=7",
            "instruction='{query}{title}{document}'",
        ):
            fails("has other settings", "train", "label", settings, change)
        found[3]["document"] += "!"
        write_rows(tmp_path / "requests.jsonl", found)
        before = (tmp_path / "run" / "answers.jsonl").read_bytes()
        fails("answer to another row 'r3'", "train", "label", settings)
        assert (tmp_path / "run" / "answers.jsonl").read_bytes() == before
        assert server.asked.total() == 12


def test_a_torn_file_of_answers(tmp_path):
    with ChatServer() as server:
        settings = write_settings(tmp_path, server, make_rows(6), teacher={"concurrency": 1})
        fine("train", "label", settings)
        whole, data = answers(tmp_path), (tmp_path / "run" / "answers.jsonl").read_bytes()
        for size in (0, 3, len(data) // 2, len(data) - 40, len(data) - 1):
            (tmp_path / "run" / "answers.jsonl").write_bytes(data[:size])
            left = sum(1 for _ in jsonl.written(tmp_path / "run" / "answers.jsonl", b'{"id": '))
            before = server.asked.total()
            fine("train", "label", settings)
            assert server.asked.total() - before == 6 - left
            assert answers(tmp_path) == whole
            assert sum(1 for _ in jsonl.written(tmp_path / "run" / "answers.jsonl", b'{"id": ')) == 6


def test_a_run_that_was_killed_while_it_sorted(tmp_path):
    with ChatServer() as server:
        settings = write_settings(tmp_path, server, make_rows(6))
        fine("train", "label", settings)
        whole, folder = answers(tmp_path), tmp_path / "run"
        (folder / "labels").rename(folder / ".labels")
        (folder / ".labels" / "part-00007.jsonl").write_text("old")
        (folder / ".rejected.jsonl").write_text('{"id": ')
        fine("train", "label", settings)
        assert answers(tmp_path) == whole and not (folder / ".labels").exists()
    early = tmp_path / "early"
    early.mkdir()
    (early / ".run.yaml").write_text("output: ")  # killed while the settings were noted
    with config.claim(early, label_config.Filters()):
        pass
    assert yaml.safe_load((early / "run.yaml").read_text())["words"] == 128
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(config.ConfigError, match="no run's folder"):
        config.check_folder(tmp_path / "mine", label_config.Filters())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_loses_and_doubles_nothing(tmp_path, seed):
    """Killed at moments that chance chooses, with faults, and gone on with until it is done."""
    chance, found = random.Random(seed), make_rows(80)

    def one_in_three(prompt, count):
        return "429" if zlib.crc32(prompt.encode()) % 3 == count else None

    with ChatServer(delay=0.05, fault=one_in_three) as server:
        settings = write_settings(tmp_path, server, found, teacher={"concurrency": 4})
        command = [sys.executable, "-m", "qdengine", "train", "label", settings]
        sizes = []
        for _ in range(2):
            wanted = len(server.answered) + chance.randrange(1, 30)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                deadline = time.monotonic() + 60
                while len(server.answered) < wanted and time.monotonic() < deadline:
                    assert process.poll() is None, process.stderr.read()
                    time.sleep(0.002)
                time.sleep(chance.random() * 0.05)
            finally:
                process.send_signal(signal.SIGKILL)
                process.communicate()
            sizes.append(sum(1 for _ in jsonl.written(tmp_path / "run" / "answers.jsonl", b'{"id": ')))
        assert 0 < sizes[0] < sizes[1] < 80
        server.delay = 0
        fine("train", "label", settings)
        assert Counter(line["id"] for line in labels(tmp_path)) == Counter(row["id"] for row in found)
        assert sum(server.answered.values()) <= 80 + 2 * 4, "what was on its way, at most, is asked again"
        resumed = answers(tmp_path)
        (tmp_path / "whole").mkdir()
        fine("train", "label", write_settings(tmp_path / "whole", server, found))
        assert answers(tmp_path / "whole") == resumed


def test_two_runs_in_one_folder(tmp_path):
    with ChatServer() as server:
        settings = write_settings(tmp_path, server, make_rows(2))
        fine("train", "label", settings)
        with (tmp_path / "run" / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fails("another run is at work", "train", "label", settings)
        fine("train", "label", settings)


def test_a_server_that_is_gone(tmp_path):
    """What was answered is sorted all the same."""
    with ChatServer(fault=lambda prompt, count: "401" if "part is 9?" in prompt else None) as server:
        settings = write_settings(tmp_path, server, make_rows(10), teacher={"concurrency": 1})
        fails("refuses: Error code: 401", "train", "label", settings)
    assert len(labels(tmp_path)) == 9 and counts(tmp_path)["unanswered"] == 1


def test_settings_are_checked_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with ChatServer() as server:
        settings = write_settings(tmp_path, server, make_rows(2))
        for override, message in {
            "instruction='{query} {document}'": "{query}, {title} and {document} must stand in it once each",
            "instruction='{query} {title} {document} {document}'": "once each",
            "teacher.kind=oracle": "teacher: ",
            "teacher.base_url=localhost": "teacher.openai.base_url: ",
            "teacher.api_key=NO_SUCH_KEY": "environment variable NO_SUCH_KEY",
            "teacher.api_key=not a name": "teacher.openai.api_key: ",
            "filters.verbatim=80": "filters.verbatim: ",
            "teacher={kind: transformers, folder: /nowhere}": "teacher.transformers.folder: ",
            "teacher={kind: engine, student: none, verbatim: true}": "'none'",
            "requests=[/nowhere.jsonl]": "/nowhere.jsonl",
            "temperature=-1": "temperature: ",
        }.items():
            fails(message, "train", "label", settings, override)
        engine = "teacher={kind: engine, student: x, verbatim: true}"
        fails("leave instruction out", "train", "label", settings, engine, "instruction='{query}{title}{document}'")
        fails("temperature must be 0", "train", "label", settings, engine, "temperature=1")
        assert not (tmp_path / "run").exists() and not server.asked
        write_rows(tmp_path / "requests.jsonl", [make_rows(1)[0]] * 2)
        fails("id 'r0' stands twice", "train", "label", settings)


def test_shards_of_nothing(tmp_path):
    with ChatServer(lambda prompt: "") as server:
        fine("train", "label", write_settings(tmp_path, server, make_rows(2)))
    assert rows.read([tmp_path / "run" / "labels"]) == []
    with pytest.raises(jsonl.JsonlError, match="without part"):
        rows.read([tmp_path])


def test_a_bar_in_a_terminal(tmp_path):
    import pty
    import termios

    with ChatServer() as server:
        settings = write_settings(tmp_path, server, make_rows(3))
        terminal, end = pty.openpty()
        termios.tcsetwinsize(end, (24, 100))
        command = [sys.executable, "-m", "qdengine", "train", "label", settings]
        assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=end).returncode == 0
        os.close(end)
        assert b"3/3" in os.read(terminal, 10_000)
        os.close(terminal)


@pytest.mark.parametrize("kind", ["transformers", "engine"])
def test_models_on_this_machine(tmp_path, kind):
    found = make_rows(3)
    if kind == "engine":
        teacher = {"student": str(tiny_bundle(tmp_path)), "verbatim": True}
    else:
        teacher = {"folder": str(tiny_hf_folder(tmp_path / "teacher")), "batch": 2}
    settings = {
        "output": str(tmp_path / "run"),
        "requests": [write_rows(tmp_path / "requests.jsonl", found)],
        "teacher": {"kind": kind, "device": "cpu", "precision": "float32"} | teacher,
        "max_new_tokens": 12,
        "filters": {"words": None, "query": None},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    fine("train", "label", tmp_path / "settings.yaml")
    made = answers(tmp_path)
    assert Counter(line["id"] for line in made) == Counter(row["id"] for row in found)
    for line in made:
        assert line["teacher"] == ("llama" if kind == "engine" else "teacher") and line["summary"]
        if kind == "engine":
            assert "reason" not in line and line["summary"].split("\n")[0] in line["document"]


def test_the_default_instruction():
    row = rows.Row("1", "Why?", "Rain", "It rains.", "")
    asked = fill(label_config.CONCISE, row)
    assert asked.endswith("Title: Rain\nDocument:\nIt rains.\n\nQuery: Why?\nSummary:") and config.ABSENT in asked
