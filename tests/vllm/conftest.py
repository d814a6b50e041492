"""Tests against a real vLLM server: `make test-vllm` runs them, `make test` does not."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
from vllm_server import VLLM

SHAPE = {"width": 64, "layers": 2, "context": 256}  # 2 heads of 32: what vLLM's attention takes


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


def serving(tmp_path_factory: pytest.TempPathFactory, name: str, *flags: str, **how: object):
    """A small random model in a folder, and the server of it."""
    server = VLLM(models.folder(tmp_path_factory.mktemp("vllm") / name, **{**SHAPE, **how}), *flags)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory):
    """A server with the limits that vLLM has by itself; `untied.folder` is the model, with a head of its own."""
    yield from serving(tmp_path_factory, "untied", seed=1)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory):
    """The same for a model whose head is its embedding."""
    yield from serving(tmp_path_factory, "tied", seed=2, tied=True)
