"""Files of rows: what is read, what is an error of its line, and what a killed writer leaves."""

from __future__ import annotations

import gzip
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdengine import jsonl
from qdengine.jsonl import JsonlError

BEGIN = b'{"id": '
ROWS = [{"id": i, "summary": f"第{i}行 é\u2028\n"} for i in range(5)]
WHOLE = b"".join(map(jsonl.dumps, ROWS))

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def put(path, data: bytes):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def text(path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def resumed(path) -> list[dict]:
    """The rows that a run would go on from, with the file cut to them."""
    rows, size = [], 0
    for row, size in jsonl.written(path, BEGIN):  # noqa: B007
        rows.append(row)
    jsonl.cut(path, size)
    return rows


@pytest.fixture(params=["rows.jsonl", "rows.jsonl.gz"])
def path(tmp_path, request):
    return tmp_path / request.param


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(st.characters()), values, max_size=4), max_size=5))
def test_round_trip(path, rows):
    with jsonl.open_binary(path, "wb") as file:
        for row in rows:
            file.write(jsonl.dumps(row))
    assert list(jsonl.read(path)) == rows
    assert text(path).count(b"\n") == len(rows)


def test_chinese_is_written_as_it_is_and_a_lone_surrogate_as_an_escape():
    assert jsonl.dumps({"a": "雨"}) == '{"a": "雨"}\n'.encode()
    assert jsonl.dumps({"a": "雨\ud800"}) == b'{"a": "\\u96e8\\ud800"}\n'


def test_every_bad_line_is_an_error_of_its_own(path):
    lines = [
        b"\xef\xbb\xbf" + b'{"n": 1}\r\n',  # a byte order mark and a carriage return, as on Windows
        b"\n",
        b" \t\n",
        b'{"n": \n',
        b"[1, 2]\n",
        b'"text"\n',
        b'{"n": "\xff"}\n',
        b"[" * 100_000 + b"\n",
        b'{"n": ' + b"9" * 5000 + b"}\n",
        b'{"n": 2}',
    ]
    rows = list(jsonl.read(put(path, b"".join(lines))))
    errors = [row for row in rows if isinstance(row, JsonlError)]
    assert [row for row in rows if isinstance(row, dict)] == [{"n": 1}, {"n": 2}]
    assert [str(error).split(":")[0] for error in errors] == [
        "line 4 is not JSON",
        "line 5 is not a JSON object but list",
        "line 6 is not a JSON object but str",
        "line 7 is not UTF-8",
        "line 8 is not JSON",
        "line 9 is not JSON",
    ]
    assert "at byte 7" in str(errors[3])


def test_nothing_in_nothing_out(path):
    assert list(jsonl.read(put(path, b""))) == []
    assert resumed(path) == [] and text(path) == b""
    path.unlink()
    with pytest.raises(FileNotFoundError):
        next(jsonl.read(path))


@pytest.mark.parametrize("keep", [1, 11, 40, -9, -1])
def test_a_gzip_file_that_ends_too_early_is_named(tmp_path, keep):
    path = put(tmp_path / "rows.jsonl.gz", WHOLE)
    path.write_bytes(path.read_bytes()[:keep])
    rows = jsonl.read(path)
    with pytest.raises(JsonlError, match=r"rows\.jsonl\.gz is no whole gzip file"):
        list(rows)


def test_other_files_under_a_gzip_name_are_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(WHOLE)
    with pytest.raises(JsonlError, match="no whole gzip file: Not a gzipped file"):
        next(jsonl.read(path))
    broken = bytearray(gzip.compress(os.urandom(3000).hex().encode()))
    broken[1000:1100] = bytes(100)
    path.write_bytes(broken)
    with pytest.raises(JsonlError, match="no whole gzip file"):
        list(jsonl.read(path))


def test_a_torn_plain_file_at_every_byte(tmp_path):
    path = tmp_path / "rows.jsonl"
    ends = [0]
    for row in ROWS:
        ends.append(ends[-1] + len(jsonl.dumps(row)))
    for size in range(len(WHOLE) + 1):
        path.write_bytes(WHOLE[:size])
        rows = resumed(path)
        # A row that lacks its newline alone is whole.
        assert rows == ROWS[: sum(end <= size + 1 for end in ends) - 1], size
        assert path.read_bytes() == WHOLE[: ends[len(rows)]], size


def test_a_torn_gzip_file_at_every_byte(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with jsonl.open_binary(path, "wb") as file:
        for row in ROWS:
            file.write(jsonl.dumps(row))
            file.flush()
    data, most = path.read_bytes(), 0
    for size in [0, *range(2, len(data) + 1)]:  # one byte does not show yet that it is gzip
        path.write_bytes(data[:size])
        rows = resumed(path)
        assert rows == ROWS[: len(rows)] and len(rows) >= most, size
        assert list(jsonl.read(path)) == rows, "what is left is a whole gzip file"
        most = len(rows)
        with jsonl.open_binary(path, "ab") as file:
            for row in ROWS[len(rows) :]:
                file.write(jsonl.dumps(row))
        assert text(path) == WHOLE
    assert most == len(ROWS)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_damaged_gzip_file_is_left_alone(tmp_path):
    """Damage can read as rows with other words in them, so nothing of such a file is kept as a result."""
    path = tmp_path / "rows.jsonl.gz"
    data = bytearray(gzip.compress(b"".join(jsonl.dumps({"id": i, "summary": "abc" * i}) for i in range(50))))
    for place in (0, len(data) // 2, len(data) - 6):
        broken = data.copy()
        broken[place] ^= 0x55
        path.write_bytes(broken)
        with pytest.raises(JsonlError, match="is not an output to go on with"):
            resumed(path)
        assert path.read_bytes() == broken


@pytest.mark.parametrize(
    "content",
    [
        b"# Notes\n\nmine\n",
        b"notes without an end",
        b'{"key": "value"',
        b"{\n  1: 2\n}\n",
        WHOLE + b"\n",
        WHOLE + b"rubbish\n",
        WHOLE + b"rubbish",
        WHOLE[:20] + b"\n" + WHOLE,
        bytes(64),
    ],
)
def test_a_file_of_somebody_elses_is_left_alone(path, content):
    before = put(path, content).read_bytes()
    with pytest.raises(JsonlError, match=r"is not an output to go on with: .*choose another name"):
        resumed(path)
    assert path.read_bytes() == before


def test_a_plain_file_under_a_gzip_name_is_left_alone(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(WHOLE)
    with pytest.raises(JsonlError, match="Not a gzipped file"):
        resumed(path)
    assert path.read_bytes() == WHOLE


def test_links_and_modes_stay(path):
    target = put(path.with_name("elsewhere" + path.suffix), WHOLE + BEGIN)
    target.chmod(0o640)
    path.symlink_to(target)
    assert resumed(path) == ROWS
    assert path.is_symlink() and text(target) == WHOLE
    assert target.stat().st_mode & 0o777 == 0o640


def test_json_of_other_writers_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a":NaN,"a":[]}\n' + json.dumps({"x": "\U0001f600"}) + "\n")
    assert list(jsonl.read(path)) == [{"a": []}, {"x": "\U0001f600"}]
