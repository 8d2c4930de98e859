"""Rows to train tiny models on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands import write_rows

PLACES = ("roof", "barrel", "night train", "summary", "lazy dog", "brown fox", "morning", "document")
ABSENT = "The document does not say."


def page(number: int) -> tuple[str, str, list[tuple[str, str]]]:
    """Title, document, and two queries with their answers: sentences of the document."""
    place, other = PLACES[number % 8], PLACES[(number + 3) % 8]
    rain = f"Rain number {number} falls on the {place} and runs into the barrel."
    train = f"Train {number} leaves the {other} at night and arrives in the morning."
    text = f"The fox jumps over the {place}. {rain}\n{train} 雨水流进桶里。"
    return f"Page {number}", text, [(f"Where does rain {number} fall?", rain), (f"When is train {number}?", train)]


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """So many rows, two for each document."""
    made = []
    for number in range(first, first + (count + 1) // 2):
        title, document, answers = page(number)
        for i, (query, summary) in enumerate(answers):
            made.append(
                {"id": f"{number}.{i}", "query": query, "title": title, "document": document, "summary": summary}
            )
    return made[:count]


def pairs(count: int, first: int = 0) -> list[dict[str, Any]]:
    """The rows with their summary as the better one, and the document's first sentence as the worse."""
    made = rows(count, first)
    for row in made:
        row |= {"chosen": row.pop("summary"), "rejected": row["document"].split(".")[0] + "."}
    return made


def files(folder: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> dict[str, Any]:
    """Both written, as the section `data` of a run. Prompts of the tiny models are short."""
    names = write_rows(folder / "train.jsonl", train), write_rows(folder / "validation.jsonl", validation)
    return {"train": [names[0]], "validation": [names[1]], "max_tokens": 256}
