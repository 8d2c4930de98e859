"""Summarize the pages beside this file, verbatim: each query's summary, where it stands in the page, and what it cost.

Run it twice to see that the second query on a page reuses the page: `python examples/demo.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import qdengine

PAGES = Path(__file__).parent / "pages"
QUERIES = {
    "rain-barrels": ["How do I keep a rain barrel from breaking in winter?", "Can I drink water from a rain barrel?"],
    "night-trains": ["What refund do I get when a night train is late?", "When should I book a berth?"],
    "sourdough": ["Why is my sourdough bread dense?", "How long can I keep a starter in the refrigerator?"],
}


def main() -> None:
    begin = time.perf_counter()
    with qdengine.Engine.from_pretrained("qd-135m") as engine:
        print(f"qd-135m on {engine.device}, {engine.precision}, ready in {time.perf_counter() - begin:.1f} s\n")
        for name, queries in QUERIES.items():
            title, _, document = (PAGES / f"{name}.txt").read_text(encoding="utf-8").partition("\n\n")
            for query in queries:
                begin = time.perf_counter()
                request = {"query": query, "title": title, "document": document, "verbatim": True}
                summary = engine.summarize([request])[0]
                ms = 1e3 * (time.perf_counter() - begin)
                if summary.error:
                    raise summary.error
                stats = summary.stats
                text = summary.text.replace("\n", "\n           ")
                places = ", ".join(f"{begin} to {end}" for begin, end in summary.spans)
                print(f"{title}\n  query    {query}\n  summary  {text}\n  place    characters {places}")
                print(
                    f"  cost     {ms:.0f} ms, {stats.steps} steps, "
                    f"{len(summary.token_ids) / stats.steps:.1f} tokens/step, "
                    f"{stats.reused_tokens} of {stats.prompt_tokens} prompt tokens reused\n"
                )


if __name__ == "__main__":
    main()
