"""Numbers of a run in wandb, trackio or tensorboard: optional packages, missed before any model is loaded."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from opd.errors import SettingError

if TYPE_CHECKING:
    from opd.run import Run

PROJECT = "opd"


def opened(name: str) -> list[Logger]:
    """The logger of that name, or none; a missing package is one sentence."""
    if name in ("none", ""):
        return []
    kinds = {"wandb": Wandb, "trackio": Trackio, "tensorboard": Tensorboard}
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # a folder of that name is no package
        raise SettingError(f"the logger {name} is not installed", remedy="pip install opd[loggers]")
    return [kinds[name]()]


def flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a line of metrics, nested ones with their path; problems one by one are left out."""
    for key, value in metrics.items():
        if isinstance(value, Mapping) and key != "by_problem":
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


def identity(run: Run) -> str:
    """A name that a resumed run finds again and no other run has."""
    file = run.folder / "run.toml"
    return hashlib.blake2b(f"{file.resolve()}{file.stat().st_mtime_ns}".encode(), digest_size=6).hexdigest()


class Logger:
    """A Watch that hands numbers on; kinds differ in how they open, log and close."""

    def open(self, run: Run) -> None:
        raise NotImplementedError

    def log(self, step: int, numbers: dict[str, float]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def started(self, run: Run) -> None:
        self.open(run)

    def phase(self, name: str, done: int, total: int) -> None:
        """Nothing to log."""

    def stepped(self, metrics: dict[str, Any]) -> None:
        """Steps are counted from 1 here, so that an examination before learning stands at 0."""
        self.log(int(metrics["step"]) + 1, dict(flat({k: v for k, v in metrics.items() if k != "step"})))

    def examined(self, metrics: dict[str, Any]) -> None:
        self.log(int(metrics["step"]), dict(flat({k: v for k, v in metrics.items() if k != "step"})))

    def finished(self, summary: dict[str, Any] | None) -> None:
        self.close()


class Wandb(Logger):
    """Weights & Biases; WANDB_MODE=offline needs no network and no account."""

    def __init__(self) -> None:
        self.wandb = importlib.import_module("wandb")
        if os.environ.get("WANDB_MODE", "online") == "online" and not self.wandb.login(prompt=False):
            raise SettingError("wandb has no key", remedy="Run wandb login, or set WANDB_MODE=offline")

    def open(self, run: Run) -> None:
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.folder.name, id=identity(run), resume="allow",
            dir=str(run.folder), config=run.settings.model_dump(mode="json"),
        )  # fmt: skip

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio(Logger):
    """Trackio, whose numbers stay in a local database."""

    def __init__(self) -> None:
        self.trackio = importlib.import_module("trackio")

    def open(self, run: Run) -> None:
        self.trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=f"{run.folder.name}-{identity(run)}",
            resume="allow", config=run.settings.model_dump(mode="json"),
        )  # fmt: skip

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.trackio.log(numbers, step=step)

    def close(self) -> None:
        self.trackio.finish()


class Tensorboard(Logger):
    """Event files in the run folder, under tensorboard/."""

    def __init__(self) -> None:
        self.kind = importlib.import_module("torch.utils.tensorboard").SummaryWriter

    def open(self, run: Run) -> None:
        again = run.training.step + 1 if run.resumed else None
        self.writer = self.kind(str(run.folder / "tensorboard"), purge_step=again)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name.replace(".", "/"), value, step)

    def close(self) -> None:
        self.writer.close()
