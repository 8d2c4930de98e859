"""Students side by side, on tiny models."""

from __future__ import annotations

import json

import students
import synthetic
from click.testing import CliRunner
from commands import write_rows
from tiny import tiny_bundle


def test_quality_stands_next_to_cost(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = tiny_bundle(tmp_path / "a"), tiny_bundle(tmp_path / "b", "gpt2")
    rows, out = write_rows(tmp_path / "rows.jsonl", synthetic.rows(6)), tmp_path / "students.json"
    precisions = ("--precision", "float32", "--precision", "int8")
    done = CliRunner().invoke(
        students.main,
        [f"A={first}", f"D={second}", "--data", rows, "--rows", "4", "--speed-rows", "3", *precisions,
         "--work", str(tmp_path / "work"), "--json", str(out)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["files"] == ["rows"] and found["baselines"].keys() == {"lead", "query-match", "ranked", "oracle"}
    for name in ("A", "D"):
        for precision in ("float32", "int8"):
            one = found["students"][name]["precisions"][precision]
            assert one["speed"]["requests_per_s"] > 0 and one["scores"]["rows"]["rows"] == 4
            difference = one["scores"]["rows"]["differences"]["length"]
            own, other = (
                found["students"][n]["precisions"][p]["scores"]["rows"]["scores"]["length"]["mean"]
                for n, p in ((name, precision), ("A", "float32"))
            )
            assert abs(difference["mean"] - (own - other)) < 1e-9
    done = CliRunner().invoke(students.main, ["--plot", str(out), "--plots", str(tmp_path / "plots")])
    assert done.exit_code == 0, done.output
    drawn = (tmp_path / "plots" / "students.svg").read_text()
    assert "A, float32" in drawn and "D, int8" in drawn and "requests/s" in drawn
    assert CliRunner().invoke(students.main, ["A"]).exit_code == 2
