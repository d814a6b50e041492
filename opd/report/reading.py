"""A run folder as the page needs it: whatever a run has not written, or wrote half, is None or empty, never an error.

Numbers that are not finite are read as None, so that nothing below has to think of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opd.errors import SettingError
from opd.settings import read_toml

Table = dict[str, Any]


@dataclass(frozen=True)
class Folder:
    """What a run has written so far."""

    path: Path
    settings: Table  # run.toml
    batches: list[Table]  # lines of metrics.jsonl, one per step
    exams: list[Table]  # lines of metrics.jsonl, one per examination
    before: Table | None  # examinations as evaluate.Evaluation writes them
    after: Table | None
    teacher: Table | None
    summary: Table | None
    drafts: list[tuple[int, list[Table]]]  # (step, marked-up answers), in the order of the steps
    films: list[tuple[int, Table]]  # (step, pictures of episodes), in the order of the steps
    prompts: list[Table]  # the wordings of its views, as prompts.Prompt writes them
    notes: Table | str | None  # notes.json, or notes.md as text
    label: str = ""  # what the page calls it; see labelled

    @property
    def method(self) -> str:
        return str(self.settings.get("method") or "a method without a name")

    @property
    def task(self) -> str:
        return str(self.settings.get("task") or "")

    @property
    def steps_done(self) -> int:
        return max((int(line["step"]) + 1 for line in self.batches), default=0)

    @property
    def steps_asked(self) -> int:
        return int(self.settings.get("steps") or 0)

    @property
    def is_finished(self) -> bool:
        return self.summary is not None


def read(path: Path) -> Folder:
    """The run in a folder; a folder without run.toml is no run."""
    if not path.is_dir():
        raise SettingError(
            "no such run folder", got=path, expected="a folder that opd train has written", remedy="Look in runs/"
        )
    if not (path / "run.toml").is_file():
        raise SettingError(
            f"{path} is no run folder",
            got="no run.toml in it",
            expected="a folder that opd train has written",
            remedy="Give the folder itself, for example runs/gkd-sums-0, not the one around it",
        )
    lines = [line for line in _lines(path / "metrics.jsonl") if isinstance(line.get("step"), int)]
    summary, first = _table(path / "summary.json"), _table(path / "before.json") or {}
    return Folder(
        path=path,
        settings=read_toml(path / "run.toml"),
        batches=_unique(line for line in lines if "loss" in line),
        exams=_unique(line for line in lines if "loss" not in line),
        before=(summary or {}).get("student_before") or first.get("student"),
        after=(summary or {}).get("student_after"),
        teacher=(summary or {}).get("teacher") or first.get("teacher"),
        summary=summary,
        drafts=[(step, table["drafts"]) for step, table in _by_step(path / "drafts") if table.get("drafts")],
        films=_by_step(path / "episodes"),
        prompts=_tables(path / "prompts.json"),
        notes=_notes(path),
    )


def labelled(runs: Sequence[Folder]) -> list[Folder]:
    """The runs with a name each: the method, and where two share it, what tells them apart."""
    named = [replace(run, label=", ".join([run.method, *_own(run, runs)])) for run in runs]
    labels = [run.label for run in named]
    return [
        replace(run, label=f"{run.label} ({run.path.name})") if labels.count(run.label) > 1 else run for run in named
    ]


def _own(run: Folder, runs: Sequence[Folder]) -> list[str]:
    """Those parameters and settings that differ between the runs of one method."""
    tables = [(each.settings.get("parameters") or {}) | each.settings for each in runs if each.method == run.method]
    mine = (run.settings.get("parameters") or {}) | run.settings
    apart = {"parameters", "out", "versions", "git"}
    names = [name for name in mine if name not in apart and any(table.get(name) != mine[name] for table in tables)]
    return [f"{name} {mine[name]}" for name in names[:3]]


def _unique(lines: Any) -> list[Table]:
    """One line per step, in order; of a step that was done twice, the later line."""
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def _parsed(text: str) -> Any:
    """JSON, with None for nan, the infinities and whatever is not JSON."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except json.JSONDecodeError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _tables(file: Path) -> list[Table]:
    value = _parsed(_text(file))
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _table(file: Path) -> Table | None:
    value = _parsed(_text(file))
    return value if isinstance(value, dict) else None


def _lines(file: Path) -> list[Table]:
    return [line for text in _text(file).splitlines() if isinstance(line := _parsed(text), dict)]


def _by_step(folder: Path) -> list[tuple[int, Table]]:
    tables = [table for file in sorted(folder.glob("step-*.json")) if (table := _table(file))]
    return [(int(table.get("step") or 0), table) for table in tables]


def _notes(path: Path) -> Table | str | None:
    return _table(path / "notes.json") or _text(path / "notes.md") or None
