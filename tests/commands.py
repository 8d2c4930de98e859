"""Calls of the command line, for its tests."""

from __future__ import annotations

from click.testing import CliRunner, Result
from qdengine import cli, jsonl
from tiny import TEXT

SENTENCES = [line for line in TEXT.replace(". ", ".\n").split("\n") if line]


def run(*arguments, **options) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], **options)


def fine(*arguments, **options) -> str:
    result = run(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(message, *arguments, code=1, **options) -> None:
    """One line says what is wrong, and there is no traceback."""
    result = run(*arguments, **options)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and message in last, last


def model_options(bundle, *more) -> tuple:
    """The tiny model in the arithmetic in which nothing depends on the batch."""
    return ("--model", bundle, "--device", "cpu", "--precision", "float32", *more)


def write_rows(path, rows) -> str:
    """Rows, or bytes as they are."""
    with jsonl.open_binary(path, "wb") as file:
        for row in rows:
            file.write(row if isinstance(row, bytes) else jsonl.dumps(row))
    return str(path)


def questions(count: int) -> list[dict]:
    return [{"id": f"row {i}", "query": f"雨 {i}?", "document": " ".join(SENTENCES[i % 3 :])} for i in range(count)]
