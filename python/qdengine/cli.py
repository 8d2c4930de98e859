"""The command line. Modules that need torch are imported by the commands that use them, so that --help is quick."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from . import __version__
from .config import DEFAULT_STUDENT
from .errors import QdengineError
from .train.cli import train

ENGINE_OPTIONS = [
    click.option("--model", default=DEFAULT_STUDENT, show_default=True, help="Student, bundle or Hugging Face folder."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:n]."),
    click.option("--precision", default="auto", show_default=True, help="auto, float32, bfloat16, int8 or float8."),
    click.option("--kv-dtype", default="auto", show_default=True, help="Keys and values: auto, int8 or float8."),
    click.option("--lookahead", type=click.IntRange(0), help="Most drafted tokens a step; 0 for none. [default: 64]"),
    click.option("--max-new-tokens", type=click.IntRange(1), help="Most tokens of a summary. [default: 96]"),
    click.option(
        "--engine", "others", multiple=True, metavar="NAME=VALUE", help="Another field of EngineConfig, as in JSON."
    ),
]


def engine_options(command: Any) -> Any:
    for option in reversed(ENGINE_OPTIONS):
        command = option(command)
    return command


def make_engine(
    model: str,
    device: str,
    precision: str,
    kv_dtype: str,
    lookahead: int | None,
    max_new_tokens: int | None,
    others: tuple[str, ...],
) -> Any:
    from . import Engine, EngineConfig

    given: dict[str, Any] = {"kv_dtype": kv_dtype, "lookahead": lookahead, "max_new_tokens": max_new_tokens}
    given = {name: value for name, value in given.items() if value is not None}
    known = {field.name for field in dataclasses.fields(EngineConfig)}
    for other in others:
        name, _, value = other.partition("=")
        if name not in known:
            raise click.UsageError(f"--engine {other}: EngineConfig has {', '.join(sorted(known))}")
        try:
            given[name] = json.loads(value)
        except ValueError:
            raise click.UsageError(f"--engine {other}: give NAME=VALUE, the value a number, true or false") from None
    return Engine.from_pretrained(model, device, precision, EngineConfig(**given))


def _check_folder(path: str | None) -> None:
    """Before the work, not after it."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise click.ClickException(f"{path}: there is no folder {Path(path).parent}; make it first")


class Group(click.Group):
    """Expected errors end a command with one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click ends quietly when nobody reads on
            raise
        except (QdengineError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group)
@click.version_option(__version__, prog_name="qdengine")
def main() -> None:
    """Query-driven summaries in the document's own words."""


@main.command()
@click.argument("file", required=False, type=click.Path(allow_dash=True))
@click.option("--query", help="The question about FILE.")
@click.option("--title", default="", help="FILE's title.")
@click.option(
    "--input", "source", type=click.Path(exists=True, dir_okay=False), help="Rows to summarize (.jsonl, .jsonl.gz)."
)
@click.option(
    "--output", type=click.Path(dir_okay=False), help="Where the rows' summaries go; an existing file is continued."
)
@click.option("--verbatim", is_flag=True, help="Whole sentences of the document alone, and where they stand in it.")
@engine_options
@click.option(
    "--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Rows given to the engine at a time."
)
def summarize(
    file: str | None,
    query: str | None,
    title: str,
    source: str | None,
    output: str | None,
    verbatim: bool,
    batch_size: int,
    **engine: Any,
) -> None:
    """Summarize FILE (- for standard input) for a query, or every row of --input."""
    if (file is None) == (source is None):
        raise click.UsageError("give either FILE with --query, or --input with --output")
    if source is not None:
        if output is None or query is not None or title:
            raise click.UsageError("--input takes --output, and its rows have the queries and titles")
        from .summarize_file import summarize_file

        _check_folder(output)
        with make_engine(**engine) as opened:
            failed = summarize_file(opened, source, output, batch_size, verbatim)
        if failed:
            click.echo(f"{failed} rows have an error; see their 'error' in {output}", err=True)
        return
    if query is None or output is not None:
        raise click.UsageError("FILE takes --query, and its summary goes to standard output")
    from . import jsonl
    from .summarize_file import to_row

    raw = sys.stdin.buffer.read() if file == "-" else Path(str(file)).read_bytes()
    try:
        document = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    with make_engine(**engine) as opened:
        request = {"query": query, "title": title, "document": document, "verbatim": verbatim}
        summary = opened.summarize([request])[0]
    click.echo(jsonl.dumps(to_row(file, summary)), nl=False)  # bytes: UTF-8 whatever the terminal is set to
    if summary.error is not None:
        raise summary.error


@main.command("eval")
@click.option("--predictions", type=click.Path(exists=True, dir_okay=False), help="Rows with id and summary.")
@click.option(
    "--baseline",
    help="Instead of predictions, whole sentences: lead, query-match (BM25), ranked (by the engine) or oracle.",
)
@click.option("--sentences", type=click.IntRange(1), default=1, show_default=True, help="Of each but oracle.")
@click.option(
    "--references", required=True, type=click.Path(exists=True, dir_okay=False), help="Rows with id, summary, document."
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False),
    help="Other predictions: also tell by how much these differ.",
)
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def evaluate(
    predictions: str | None,
    baseline: str | None,
    sentences: int,
    references: str,
    against: str | None,
    lang: str,
    as_json: bool,
) -> None:
    """ROUGE, exact matches, verbatim runs, 4-gram copy share and length, with 95% intervals."""
    if (predictions is None) == (baseline is None):
        raise click.UsageError("give either --predictions or --baseline")
    from . import jsonl
    from .evaluate import baselines, report

    wanted = list(jsonl.read(references))
    if baseline is not None:
        good = (row for row in wanted if isinstance(row, dict))
        found = baselines.baseline(baseline, good, lang, sentences)
    else:
        found = jsonl.read(predictions)  # type: ignore[assignment,arg-type]
    others = None if against is None else jsonl.read(against)
    result = report.evaluate(found, wanted, lang, against=others)
    click.echo(json.dumps(result) if as_json else report.table(result))


@main.command()
@click.option(
    "--data", required=True, type=click.Path(exists=True, dir_okay=False), help="Rows with query and document."
)
@click.option("--rows", type=click.IntRange(1), default=64, show_default=True)
@click.option("--latency-rows", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--load",
    "loads",
    type=click.FloatRange(0, min_open=True),
    multiple=True,
    help="Also measure latency at this share of the requests/s measured; may be given several times.",
)
@click.option("--load-seconds", type=click.FloatRange(0, min_open=True), default=10, show_default=True)
@engine_options
@click.option("--json", "out", type=click.Path(dir_okay=False), help="Also write the result here.")
def bench(
    data: str,
    rows: int,
    latency_rows: int,
    loads: tuple[float, ...],
    load_seconds: float,
    out: str | None,
    **engine: Any,
) -> None:
    """Offline requests/s, batch-1 latency and, with --load, latency under load, as JSON."""
    from .evaluate.latency import measure, under_load
    from .summarize_file import to_request, valid_rows

    _check_folder(out)
    requests = [to_request(row) for row in valid_rows(data, rows + 4)]
    if not requests:
        raise QdengineError(f"{data} has no rows")
    warm_up, measured = requests[rows:] or requests[:1], requests[:rows]
    with make_engine(**engine) as opened:
        facts = {"model": opened.checkpoint.name, "backend": opened.backend, "precision": opened.precision}
        facts["memory_bytes"] = opened.memory
        facts["kv_dtype"] = opened.config.kv_dtype
        result = facts | {"threads": opened.threads} | measure(opened, measured, latency_rows, warm_up)
        result["load"] = [
            {"share": share} | under_load(opened, measured, share * result["requests_per_s"], load_seconds)
            for share in loads
        ]
    text = json.dumps(result, indent=2)
    click.echo(text)
    if out is not None:
        Path(out).write_text(text + "\n", encoding="utf-8")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def doctor(as_json: bool) -> None:
    """What runs on this machine. Exit code 1 when the default backend does not."""
    from .doctor import examine

    found = examine()
    click.echo(json.dumps(found) if as_json else describe(found))
    if not found["ok"]:
        sys.exit(1)


@main.command()
@click.argument("model")
def info(model: str) -> None:
    """Architecture, prompt format, stop tokens and files of a student, bundle or folder, as JSON."""
    from dataclasses import asdict

    from . import student
    from .checkpoint import load

    loaded = load(student.resolve(model))
    parameters = sum(tensor.numel() for tensor in loaded.weights().values())
    click.echo(
        json.dumps(
            {
                "name": loaded.name,
                "path": str(loaded.path),
                "parameters": parameters,
                "architecture": asdict(loaded.config),
                "prompt": loaded.prompt.to_dict(),
                "stop_ids": loaded.stop_ids,
                "digest": loaded.digest,
                "files": {file.name: file.stat().st_size for file in sorted(loaded.path.iterdir()) if file.is_file()},
            },
            indent=2,
            ensure_ascii=False,
        )
    )


@main.command()
@click.argument("source", type=click.Path(exists=True))
@click.argument("destination", type=click.Path())
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
def convert(source: str, destination: str, dtype: str) -> None:
    """Import a .gguf file or a Hugging Face folder as the bundle DESTINATION."""
    from .convert import convert as run

    click.echo(run(source, destination, dtype))


@main.command()
@click.argument("model")
@click.argument("destination", type=click.Path())
def export(model: str, destination: str) -> None:
    """Write a student or bundle as the Hugging Face folder DESTINATION, for other engines and training tools."""
    from . import student
    from .export import export as run

    click.echo(run(student.resolve(model), destination))


main.add_command(train)


@main.group()
def student() -> None:
    """Install, list, locate and remove the named students."""


@student.command("install")
@click.argument("name")
def install_student(name: str) -> None:
    """Obtain, check and convert a student; a no-op when it is there."""
    from . import student as students

    click.echo(students.install(name))


@student.command("list")
def list_students() -> None:
    """Every student, and where it is installed."""
    from . import student as students

    for name, path in students.installed().items():
        click.echo(f"{name}  {path or 'not installed'}  {students.STUDENTS[name].description}")


@student.command("path")
@click.argument("name")
def student_path(name: str) -> None:
    """The bundle of an installed student."""
    from . import student as students

    click.echo(students.path(name))


@student.command("remove")
@click.argument("name")
def remove_student(name: str) -> None:
    """Delete an installed student."""
    from . import student as students

    click.echo("removed" if students.remove(name) else "was not installed")


def describe(found: dict[str, Any]) -> str:
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [f"{name}:"] + [f"  {key}: {text}" for key, text in value.items()]
        else:
            lines.append(f"{name}: {'none' if value is None else value}")
    return "\n".join(lines)
