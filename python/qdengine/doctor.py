"""What runs on this machine, what does not, and how to mend it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def examine() -> dict[str, Any]:
    """Versions, processor, GPU, backends with their remedies, students. `ok`: the default backend works here."""
    import torch

    from . import __version__, ops, student
    from .errors import QdengineError

    backends: dict[str, str] = {}
    for name in ops.BACKENDS:
        try:
            ops.load(name)
            backends[name] = "ok"
        except Exception as error:  # a broken install may fail in any way: report it
            backends[name] = str(error) or type(error).__name__
    native: dict[str, Any] = {}
    if backends["cpu"] == "ok":
        from .ops.native import build_info

        native = dict(build_info())
    gpu = torch.cuda.is_available()
    default = "cuda" if gpu else "cpu"
    try:
        students = {name: str(path) if path else "not installed" for name, path in student.installed().items()}
    except (QdengineError, OSError) as error:
        students = {"cache": str(error)}
    return {
        "qdengine": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu_name(),
        "isa": native.get("isa"),
        "isas_built": native.get("isas"),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": ops.usable_threads() if native else torch.get_num_threads(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "compute_capability": list(torch.cuda.get_device_capability()) if gpu else None,
        "cuda_archs_built": native.get("cuda_archs"),
        "backends": backends,
        "default_backend": default,
        "students": students,
        "ok": backends[default] == "ok",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
