"""Teachers: what they are asked, what their faults do, and that each row is told of once."""

from __future__ import annotations

import json
import socket
from collections import Counter

import pytest
from chat_server import FAULTS, ChatServer
from hypothesis import given
from hypothesis import strategies as st
from qdengine import Engine
from qdengine.errors import ConfigError, EmptyInputError, LimitError
from qdengine.train import label_config
from qdengine.train.rows import Row
from qdengine.train.teachers import Answer, TeacherError, fill, open_teacher
from tiny import TEXT, tiny_bundle, tiny_hf_folder, with_config


def make_rows(count: int) -> list[Row]:
    return [
        Row(f"r{i}", f"What of {i}?", f"Title {i}", f"Sentence {i} is first. Another one. {TEXT}", "")
        for i in range(count)
    ]


def ask(teacher, rows, **changes):
    """The answers or errors of the rows, in order; each is told once."""
    settings = label_config.Label(output="unused", requests=["unused"], teacher=teacher, **changes)
    told = []
    open_teacher(settings).ask(rows, lambda row, answer: told.append((row.id, answer)))
    assert Counter(identity for identity, _ in told) == Counter(row.id for row in rows)
    return [dict(told)[row.id] for row in rows]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folder(bundle):
    return bundle.with_name(f"{bundle.name}-hf")


@given(st.text(), st.text(), st.text())
def test_texts_are_never_templates(query, title, document):
    row = Row("1", query, title + "{query}", document + "{document}{title}", "")
    made = fill("<{title}|{document}|{query}>{other}{", row)
    assert made == f"<{row.title.strip()}|{row.document.strip()}|{row.query.strip()}>{{other}}{{"


class TestOpenAI:
    @pytest.fixture(autouse=True)
    def _no_proxy(self, monkeypatch):
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def teacher(self, server, **changes):
        return {"kind": "openai", "base_url": server.url, "model": "big", "concurrency": 4, "retries": 2} | changes

    def test_what_is_sent(self, monkeypatch):
        monkeypatch.setenv("SOME_KEY", "secret")
        rows = make_rows(3)
        more = {"max_tokens": None, "max_completion_tokens": 9, "top_k": 1}
        with ChatServer() as server:
            answers = ask(self.teacher(server, api_key="SOME_KEY", body=more), rows, temperature=0.5)
        assert answers == [Answer(f"Sentence {i} is first.", True) for i in range(3)]
        assert server.keys == {"Bearer secret"}
        for row, body in zip(rows, sorted(server.bodies, key=lambda body: body["messages"][0]["content"]), strict=True):
            content = fill(label_config.CONCISE, row)
            assert row.query in content and row.title in content and row.document in content
            assert body == {
                "model": "big", "messages": [{"role": "user", "content": content}], "temperature": 0.5,
                "max_completion_tokens": 9, "top_k": 1,
            }  # fmt: skip

    def test_a_key_that_is_not_there(self, monkeypatch):
        monkeypatch.delenv("SOME_KEY", raising=False)
        with ChatServer() as server, pytest.raises(ConfigError, match="environment variable SOME_KEY"):
            ask(self.teacher(server, api_key="SOME_KEY"), make_rows(1))

    def test_ends_of_answers(self):
        choices = {
            "0": {"finish_reason": "length", "message": {"role": "assistant", "content": " cut \n"}},
            "1": {"message": {"role": "assistant", "content": None, "refusal": "I'm sorry"}},
            "2": {"message": {"role": "assistant", "content": None}},
            "3": {"message": {"role": "assistant", "content": "half \ud800"}},
        }
        with ChatServer(lambda prompt: choices[prompt.partition("What of ")[2][0]]) as server:
            answers = ask(self.teacher(server), make_rows(4))
        assert answers == [Answer("cut", False), Answer("I'm sorry", True), Answer("", True), Answer("half ?", True)]

    @pytest.mark.parametrize("concurrency", [1, 3])
    def test_concurrency(self, concurrency):
        with ChatServer(delay=0.05) as server:
            ask(self.teacher(server, concurrency=concurrency), make_rows(9))
        assert server.most == concurrency

    def test_rate(self):
        """Retries count, and a minute's requests do not go out at once."""
        with ChatServer(fault=lambda prompt, count: "429" if count == 0 else None) as server:
            ask(self.teacher(server, concurrency=16, requests_per_minute=1200), make_rows(8))
        assert len(server.times) == 16
        times = sorted(server.times)
        assert times[-1] - times[0] >= 15 * 0.05 * 0.9
        assert max(sum(begin <= t < begin + 0.2 for t in times) for begin in times) <= 4 + 3

    @pytest.mark.parametrize("fault", [*FAULTS, "slow"])
    def test_a_fault_is_retried(self, fault):
        rows = make_rows(4)
        with ChatServer(fault=lambda prompt, count: fault if count == 0 and "What of 2" in prompt else None) as server:
            answers = ask(self.teacher(server, timeout=0.5), rows)
        assert answers == [Answer(f"Sentence {i} is first.", True) for i in range(4)]
        assert server.asked.total() == 5

    @pytest.mark.parametrize("fault", [*FAULTS, "slow", "400"])
    def test_a_fault_that_stays_is_the_rows_own(self, fault):
        with ChatServer(fault=lambda prompt, count: fault if "What of 1" in prompt else None) as server:
            answers = ask(self.teacher(server, retries=1, timeout=0.5), make_rows(3))
        assert isinstance(answers[1], TeacherError) and str(answers[1])
        assert [answers[0], answers[2]] == [Answer(f"Sentence {i} is first.", True) for i in (0, 2)]
        assert server.asked.total() == (3 if fault == "400" else 4)

    def test_the_server_says_when(self):
        fault, rows = (lambda prompt, count: "429" if count == 0 else None), make_rows(1)
        with ChatServer(fault=fault, retry_after=1.3) as server:
            ask(self.teacher(server), rows)
        assert 1.3 <= server.times[1] - server.times[0] < 2.5

    def test_rows_that_are_refused_never_stop_a_run(self):
        with ChatServer(fault=lambda prompt, count: "400" if "What of 9" not in prompt else None) as server:
            answers = ask(self.teacher(server), make_rows(60))
        assert [i for i, answer in enumerate(answers) if isinstance(answer, Answer)] == [9]

    @pytest.mark.parametrize("fault", ["401", "404"])
    def test_a_server_that_refuses_us_ends_the_run(self, fault):
        with ChatServer(fault=lambda prompt, count: fault) as server, pytest.raises(TeacherError, match="refuses"):
            ask(self.teacher(server), make_rows(60))
        assert server.asked.total() <= 4

    def test_a_server_that_is_down_ends_the_run(self):
        with ChatServer(fault=lambda prompt, count: "drop") as server, pytest.raises(TeacherError, match="28 times"):
            ask(self.teacher(server, retries=0), make_rows(100))
        with pytest.raises(TeacherError, match="28 times in a row"):
            ask(self.teacher(server, retries=0), make_rows(100))

    def test_what_telling_raises_is_raised(self):
        def tell(row, answer):
            raise OSError("disk full")

        with ChatServer() as server, pytest.raises(OSError, match="disk full"):
            settings = label_config.Label(output="unused", requests=["unused"], teacher=self.teacher(server))
            open_teacher(settings).ask(make_rows(5), tell)


class TestTransformers:
    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch):
        def connect(*_):
            raise AssertionError("a teacher in a folder needs no network")

        monkeypatch.setattr(socket.socket, "connect", connect)
        monkeypatch.setattr(socket, "getaddrinfo", connect)

    def ask(self, folder, rows, **changes):
        teacher = {"kind": "transformers", "folder": folder, "device": "cpu", "precision": "float32"}
        given = {name: changes.pop(name) for name in ("batch", "template") if name in changes}
        return ask(
            teacher | given, rows, **{"max_new_tokens": 8, "instruction": "{title} {document} {query}"} | changes
        )

    def test_batches_are_what_the_model_writes(self, folder):
        import torch
        import transformers as hf

        rows = [Row(str(i), "rain " * (1 + 3 * i), f"T{i}", TEXT[: 40 * (i + 1)], "") for i in range(5)]
        model, tokenizer = hf.AutoModelForCausalLM.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
        want = []
        for row in rows:
            ids = tokenizer(fill("{title} {document} {query}", row), return_tensors="pt").input_ids
            for _ in range(8):
                with torch.no_grad():
                    new = model(ids).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, new], 1)
            new = ids[0, -8:].tolist()
            whole = 1 in new
            want.append(Answer(tokenizer.decode(new[: new.index(1)] if whole else new).strip(), whole))
        for batch in (1, 3, 8):
            assert self.ask(folder, rows, batch=batch) == want
        assert len({answer.text for answer in want}) > 1

    def test_an_answer_that_ends(self, folder, tmp_path):
        """The first new token is made the stop token."""
        rows = make_rows(1)
        (first,) = self.ask(folder, rows, max_new_tokens=1)
        assert first.text and not first.whole
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ways = [tokenizer.encode(space + first.text).ids for space in ("", " ")]
        stops = [ids[0] for ids in ways if len(ids) == 1]
        other = tiny_hf_folder(tmp_path / "other")
        file = other / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [1, *stops]}))
        assert self.ask(other, rows) == [Answer("", True)]

    def test_rows_that_do_not_fit(self, folder):
        rows = make_rows(3)
        rows[1] = Row("r1", "q", "", TEXT * 40, "")
        answers = self.ask(folder, rows)
        assert isinstance(answers[1], LimitError) and "of 512 positions" in str(answers[1])
        assert isinstance(answers[0], Answer) and isinstance(answers[2], Answer)

    def test_chat_template(self, folder, tmp_path):
        from qdengine.train.teachers import TransformersTeacher
        from transformers import AutoTokenizer

        template = (
            "{% for m in messages %}<|im_end|>{{ m.role }}: {{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|im_end|>A{{ tone }}:{% endif %}"
        )
        chat = tiny_hf_folder(tmp_path / "chat")
        (chat / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        teacher = label_config.TransformersTeacher(kind="transformers", folder=chat, template={"tone": "!"})
        settings = label_config.Label(output="unused", requests=["unused"], teacher=teacher)
        tokenizer = AutoTokenizer.from_pretrained(chat)
        encode = TransformersTeacher(teacher, settings)._encoder(tokenizer)
        ids = encode("rain <|im_end|> falls {{ tone }}")
        assert ids.count(1) == 2, "what spells a special token in a document is text"
        assert tokenizer.decode(ids) == "<|im_end|>user: rain <|im_end|> falls {{ tone }}<|im_end|>A!:"
        assert self.ask(chat, make_rows(2)) != self.ask(folder, make_rows(2))
        (chat / "tokenizer_config.json").write_text(json.dumps({"chat_template": "nothing"}))
        with pytest.raises(ConfigError, match="user's text 0 times"):
            self.ask(chat, make_rows(1))

    def test_sampling(self, folder):
        rows = make_rows(6)
        assert self.ask(folder, rows) == self.ask(folder, rows)
        assert self.ask(folder, rows, temperature=5.0) != self.ask(folder, rows, temperature=5.0)

    def test_folders_that_hold_no_model(self, folder, tmp_path):
        bare = tmp_path / "bare"
        bare.mkdir()
        with pytest.raises(ConfigError, match="cannot be loaded"):
            self.ask(bare, make_rows(1))
        unsafe = tiny_hf_folder(tmp_path / "unsafe")
        (unsafe / "model.safetensors").rename(unsafe / "pytorch_model.bin")
        with pytest.raises(ConfigError, match="cannot be loaded"):
            self.ask(unsafe, make_rows(1))
        code = with_config(tiny_hf_folder(tmp_path / "code"), model_type="own", auto_map={"AutoConfig": "own.Own"})
        (code / "own.py").write_text("raise SystemExit('code of a folder runs')")
        with pytest.raises(ConfigError, match="cannot be loaded"):
            self.ask(code, make_rows(1))


class TestEngine:
    def teacher(self, bundle, **changes):
        return {"kind": "engine", "student": str(bundle), "device": "cpu", "precision": "float32"} | changes

    def test_answers_are_the_engines(self, bundle):
        rows = [*make_rows(3), Row("bad", "q", "", " ", "")]
        answers = ask(self.teacher(bundle), rows, max_new_tokens=7)
        with Engine.from_pretrained(bundle, "cpu", "float32") as engine:
            asked = [{"query": r.query, "title": r.title, "document": r.document, "max_new_tokens": 7} for r in rows]
            want = engine.summarize(asked)
        assert answers[:3] == [Answer(one.text, one.finish_reason == "stop") for one in want[:3]]
        assert isinstance(answers[3], EmptyInputError)

    def test_verbatim(self, bundle):
        rows = make_rows(2)
        for row, answer in zip(rows, ask(self.teacher(bundle, verbatim=True), rows, max_new_tokens=20), strict=True):
            assert answer.text and all(line in row.document for line in answer.text.split("\n"))

    def test_the_prompt_names_all_that_is_asked(self, bundle):
        settings = label_config.Label(output="unused", requests=["unused"], teacher=self.teacher(bundle))
        teacher = open_teacher(settings)
        row = make_rows(1)[0]
        assert all(text in teacher.prompt(row) for text in (row.query, row.title, row.document, "Summary:"))
        assert teacher.name == bundle.name
