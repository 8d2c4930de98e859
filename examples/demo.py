"""Summarize the pages beside this file: each query's summary, where it stands in the page, and what it cost.

Run it twice to see that the second query on a page reuses the page: `python examples/demo.py`.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import qdengine

PAGES = Path(__file__).parent / "pages"
QUERIES = {
    "rain-barrels": ["How do I keep a rain barrel from breaking in winter?", "Can I drink water from a rain barrel?"],
    "night-trains": ["What refund do I get when a night train is late?", "When should I book a berth?"],
    "sourdough": ["Why is my sourdough bread dense?", "How long can I keep a starter in the refrigerator?"],
}


def place(page: str, summary: str) -> str:
    """Where the summary stands in the page: characters, or the share of its four-word runs that do."""
    at = page.find(summary)
    if summary and at >= 0:
        return f"characters {at} to {at + len(summary)} of {len(page)}"
    words, known = re.findall(r"\w+", summary.lower()), " ".join(re.findall(r"\w+", page.lower()))
    runs = [" ".join(words[i : i + 4]) for i in range(len(words) - 3)]
    share = sum(run in known for run in runs) / max(1, len(runs))
    return f"not one run of the page; {share:.0%} of its four-word runs are the page's"


def main() -> None:
    begin = time.perf_counter()
    with qdengine.Engine.from_pretrained("smollm2-135m") as engine:
        print(f"smollm2-135m on {engine.device}, {engine.precision}, ready in {time.perf_counter() - begin:.1f} s\n")
        for name, queries in QUERIES.items():
            title, _, document = (PAGES / f"{name}.txt").read_text(encoding="utf-8").partition("\n\n")
            for query in queries:
                begin = time.perf_counter()
                request = {"query": query, "title": title, "document": document}
                summary = engine.summarize([request])[0]
                ms = 1e3 * (time.perf_counter() - begin)
                if summary.error:
                    raise summary.error
                stats = summary.stats
                print(
                    f"{title}\n  query    {query}\n  summary  {summary.text}\n"
                    f"  place    {place(document, summary.text)}"
                )
                print(
                    f"  cost     {ms:.0f} ms, {stats.steps} steps, "
                    f"{len(summary.token_ids) / stats.steps:.1f} tokens/step, "
                    f"{stats.reused_tokens} of {stats.prompt_tokens} prompt tokens reused\n"
                )


if __name__ == "__main__":
    main()
