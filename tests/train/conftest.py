"""Tiny students and rows, made once for all tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from qdengine.train import config
from tiny import tiny_bundle


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Tiny products are slower on several, the more so beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, Any]:
    """64 rows to train on, and 8 others."""
    return synthetic.files(tmp_path_factory.mktemp("rows"), synthetic.rows(64), synthetic.rows(8, first=40))


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory) -> dict[str, Any]:
    return synthetic.files(tmp_path_factory.mktemp("pairs"), synthetic.pairs(64), synthetic.pairs(8, first=40))


@pytest.fixture
def run(tmp_path, bundle, data):
    """Makes the settings of a short run; sections are merged with what is given."""

    def make(kind: Any = config.Sft, **sections: Any) -> Any:
        training = {"steps": 16, "batch": 2, "learning_rate": 3e-3, "warmup": 2, "save_every": 4, "evaluate_every": 8}
        whole: dict[str, Any] = {
            "output": str(tmp_path / "run"), "data": data, "student": {"init": str(bundle)},
            "training": training | {"device": "cpu"},
        }  # fmt: skip
        for name, value in sections.items():
            whole[name] = {**whole.get(name, {}), **value} if isinstance(value, dict) else value
        return kind.model_validate(whole)

    return make
