"""What a run writes down: its settings as resolved, what it was made with, and lines of metrics."""

from __future__ import annotations

import inspect
import json
import platform
import resource
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from opd import recipes
from opd.settings import Settings


def exam_line(step: int, result: dict[str, Any]) -> dict[str, Any]:
    """One line of metrics.jsonl for an examination after `step` batches."""
    line: dict[str, Any] = {"step": step}
    for kind in ("greedy", "sampled"):
        if drawn := result[kind]:
            line |= {f"eval.{kind}.length": drawn["length"], f"eval.{kind}.truncated": drawn["truncated"]}
            if share := drawn["accuracy"]:
                line |= {
                    f"eval.{kind}": share["value"],
                    f"eval.{kind}.low": share["low"],
                    f"eval.{kind}.high": share["high"],
                }
            if returned := drawn.get("returned"):  # runs of before have none
                line |= {f"eval.{kind}.return": returned["value"], f"eval.{kind}.return.low": returned["low"]}
                line |= {f"eval.{kind}.return.high": returned["high"]}
    for name, found in (("reverse_kl", result["kl"]), ("entropy", result.get("entropy"))):  # runs of before have none
        if found:
            line |= {f"eval.{name}": found["per_token"], f"eval.{name}.error": found["per_token_error"]}
    return line


def peak_memory() -> float:
    """The most memory that this process has held, in MiB: on the graphics card if it used one, else in the machine."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def chosen(settings: Settings) -> dict[str, Any]:
    """All settings, and every parameter of the method with its value."""
    defaults = {name: p.default for name, p in inspect.signature(recipes.load(settings.method)).parameters.items()}
    return settings.model_dump(mode="json") | {
        "out": str(settings.folder),
        "parameters": {**defaults, **settings.parameters},
    }


def resolved(settings: Settings) -> dict[str, Any]:
    """What was chosen, and what the run was made with."""
    packages = ("opd", "torch", "transformers", "numpy", "safetensors")
    versions = {name: metadata.version(name) for name in packages if _installed(name)}
    return {**chosen(settings), "versions": {"python": platform.python_version(), **versions}, "git": git_state()}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def git_state() -> dict[str, Any]:
    """Commit of the folder that the run was started in, and whether files differed from it."""
    if not shutil.which("git"):
        return {}

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False).stdout.strip()

    commit = ask("rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(ask("status", "--porcelain"))} if commit else {}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut by a kill is left out."""
    lines = list[dict[str, Any]]()
    for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
