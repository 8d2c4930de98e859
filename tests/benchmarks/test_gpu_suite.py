"""The suite without a GPU: its steps, a dry run on a tiny bundle, and what is made of its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_json
import plot
import pytest
import roofline
from click.testing import CliRunner
from commands import questions, write_rows
from tiny import tiny_bundle

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "benchmarks" / "gpu_suite.sh"
ENGINE = {
    "precision": "bfloat16", "requests_per_s": 900.0, "warm_requests_per_s": 4000.0, "warm_reused_share": 0.9,
    "prompt_tokens": 600.0, "drafted": 80.0, "steps": 3.0, "latency_ms": {"p50": 4.0},
    "load": [{"rate": r, "latency_ms": {"p50": r / 50, "p99": r / 9}} for r in (450.0, 800.0)],
}  # fmt: skip
WORK = {"us": 10.0, "bytes": 1000, "flops": 1000, "unit": "vector", "backend": "cuda", "share_of_limit": 0.1}
INVENTED = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "steps": {
        "tests-ops": {"exit": 0, "seconds": 9, "last_line": "9 passed"},
        "ops": {"result": {"rows": [{"op": "gelu", "size": "verify", "dtype": "float32"} | WORK]}},
        "steps": {"result": {"rows": [{"step": "1x33", "precision": "bfloat16"} | WORK]}},
        "attention": {
            "result": {
                "rows": [
                    {"case": "verify 1 x 620", "dtype": "bfloat16", "how": "qdengine cuda"} | WORK,
                    {"case": "verify 1 x 620", "dtype": "bfloat16", "how": "flex", "error": "RuntimeError: no"},
                ]
            }
        },
        "engine-bfloat16": {"result": ENGINE},
        "compare": {
            "result": {
                "model": "a/b", "rows": 4, "data": "x", "threads": 1, "gpu": "NVIDIA H100 80GB HBM3",
                "engines": {"qdengine": {"precision": "bfloat16"}},
                "cold": {
                    "qdengine": {"requests_per_s": 9.0, "latency_p50_ms": 1.0},
                    "transformers_compiled": {"latency_p50_ms": 3.0},
                    "transformers_static": {"error": "RuntimeError: no"},
                },
            }
        },
    },
}  # fmt: skip


def suite(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SUITE), *map(str, arguments)]
    clean = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, env=clean)


def test_steps_are_listed():
    listed = suite("--list")
    assert listed.returncode == 0 and not listed.stderr
    steps = dict(line.split() for line in listed.stdout.splitlines())
    wanted = {"build", "facts", "tests-ops", "memcheck", "racecheck", "ops", "steps", "attention", "bundle", "compare"}
    assert wanted | {"engine-float32", "engine-bfloat16", "lossless", "length"} <= set(steps)
    assert all(5 < int(limit) <= 240 for limit in steps.values())
    some = suite("--list", "--steps", "ops,tests-ops").stdout.split()
    assert some[::2] == ["tests-ops", "ops"]


def test_wrong_use_is_said(tmp_path):
    for arguments, message in ((("--fast", tmp_path), "unknown option --fast"), ((), "usage: gpu_suite.sh")):
        done = suite(*arguments)
        assert done.returncode == 2 and message in done.stderr and not done.stdout


def test_a_step_that_fails_is_noted(tmp_path):
    """And an earlier run's gpu.json is added to."""
    assert suite("--dry", "--steps", "facts", tmp_path).returncode == 0
    (tmp_path / "b").mkdir()
    done = suite("--dry", "--steps", "engine-float32", tmp_path, tmp_path / "b", SUITE)
    assert done.returncode == 1 and "Error: " in done.stdout
    found = gpu_json.read(tmp_path / "gpu.json")
    assert found["steps"]["facts"]["exit"] == 0 and found["torch"]
    assert found["steps"]["engine-float32"]["exit"] == 1 and "result" not in found["steps"]["engine-float32"]
    assert "Error: " in found["steps"]["engine-float32"]["last_line"]


@pytest.mark.slow
def test_dry_run(tmp_path):
    """Every command of the suite that can run here does, from weights in parts; plots read what it made."""
    bundle = tiny_bundle(tmp_path)
    weights = bundle / "model.safetensors"
    content = weights.read_bytes()
    for i, begin in enumerate(range(0, len(content), 100_000)):
        (bundle / f"model.safetensors.part-{i:02}").write_bytes(content[begin : begin + 100_000])
    weights.unlink()
    rows = [{**row, "summary": row["document"][:40]} for row in questions(8)]
    done = suite("--dry", tmp_path / "out", bundle, write_rows(tmp_path / "rows.jsonl", rows))
    assert done.returncode == 0, done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "suite.log"}
    found = gpu_json.read(tmp_path / "out" / "gpu.json")
    assert all(step["exit"] == 0 for step in found["steps"].values())
    results = {name for name, step in found["steps"].items() if "result" in step}
    assert results == {"ops", "steps", "attention", "engine-float32", "compare", "lossless", "length"}
    assert found["steps"]["lossless"]["result"]["different"] == 0
    peers = found["steps"]["compare"]["result"]["cold"]
    assert peers["qdengine"]["rows_equal_to_transformers_plain"] == 4 and "error" not in peers["transformers_batch8"]
    assert found["steps"]["length"]["result"]["lengths"]["qdengine"]["64"].keys() == {"cold_ms", "warm_ms"}
    plot.plot_gpu(found, tmp_path / "plots")
    assert (tmp_path / "plots" / "gpu-load.svg").exists() and (tmp_path / "plots" / "gpu-compare.svg").exists()


def test_measurements_stand_beside_limits(tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(INVENTED))
    done = CliRunner().invoke(roofline.main, ["--gpu", str(file)])
    assert done.exit_code == 0, done.output
    lines = {line[:46].strip(): line[46:].split() for line in done.output.splitlines() if line}
    # 1,000 bytes take 0.2985 ns of an H100's 3.35 TB/s and 1.157 ns of an L20's 864 GB/s.
    assert lines["gelu verify float32 cuda"] == ["10.00", "0.1", "0.00", "0.0%", "38.77"]
    assert lines["verify 1 x 620 bfloat16 flex"] == ["RuntimeError:", "no"]
    engine = next(line for line in done.output.splitlines() if "cold requests/s" in line)
    assert "900.0" in engine
    file.write_text(json.dumps({**INVENTED, "gpu": None}))
    assert "no limits are known for None" in CliRunner().invoke(roofline.main, ["--gpu", str(file)]).output


def test_plots(tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(INVENTED))
    done = CliRunner().invoke(plot.main, ["--gpu", str(file), "--out", str(tmp_path / "plots")])
    assert done.exit_code == 0, done.output
    drawn = {path.name: path.read_text() for path in (tmp_path / "plots").iterdir()}
    assert set(drawn) == {"gpu-load.svg", "gpu-share.svg", "gpu-attention.svg", "gpu-compare.svg"}
    assert "bfloat16, p99" in drawn["gpu-load.svg"] and "gelu verify float32 cuda" in drawn["gpu-share.svg"]


def test_runs_are_merged():
    first, second = (
        {"gpu": "A", "date": d, "steps": {"x": {"exit": n}, d: {"exit": 0}}} for n, d in ((1, "1"), (0, "2"))
    )
    total = gpu_json.merged([first, second])
    assert total["steps"] == {"x": {"exit": 0}, "1": {"exit": 0}, "2": {"exit": 0}} and total["date"] == "2"
    with pytest.raises(ValueError, match="a run on B cannot be merged with one on A"):
        gpu_json.merged([first, {"gpu": "B", "steps": {}}])
