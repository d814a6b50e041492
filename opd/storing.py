"""Makes a store: the student writes, or the task brings texts along; the teacher reads each once; shards are kept.

A shard is some problems of the task in their order, with seeds of their own, so that a store that was interrupted goes
on where it stood and ends as it would have without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opd.cast import each
from opd.errors import SettingError, TeacherError
from opd.parts.sample import OneTurn, Solutions
from opd.protocols import Answer, Cast, Want
from opd.rollout import Problem, Sampling, Visit
from opd.rows import flatten
from opd.serve.identity import known, tokenizer_hash
from opd.shards import MANIFEST, Kept, Manifest, Shard, check, is_whole, read_manifest, write_shard

Progress = Callable[[int, int], None]  # shards that are done, of how many


@dataclass(frozen=True)
class Plan:
    """Whose texts, and what is asked about them."""

    n: int = 1  # texts per problem
    k: int = 0  # best tokens that are kept per decision; 0: the log-prob of the decided token alone
    sampling: Sampling = Sampling()
    seed: int = 0
    given: str = ""  # the column of the task whose texts are stored, instead of the student's own
    per_shard: int = 256  # problems

    @property
    def want(self) -> Want:
        return Want(chosen=True, topk=self.k)

    def sample(self) -> OneTurn | Solutions:
        """Who writes."""
        return Solutions(self.given) if self.given else OneTurn(self.n, self.sampling)

    def made(self) -> dict[str, Any]:
        """What a manifest says of the plan."""
        s = self.sampling
        drawn = {"temperature": s.temperature, "top_p": s.top_p, "max_new": s.max_new}
        return {"k": self.k, "n": self.n, "seed": self.seed, "given": self.given, "per_shard": self.per_shard, **drawn}


def store(
    folder: Path, plan: Plan, cast: Cast, task: str, problems: Sequence[Problem], told: Progress = lambda done, of: None
) -> Manifest:
    """Fills the folder and gives its manifest; a shard that is there already and whole is not made again.

    Raises SettingError where the folder holds a store of something else, SaveError where the disk is full.
    """
    if plan.k > cast["student"].vocab:
        raise SettingError("best tokens k", got=plan.k, expected=f"at most {cast['student'].vocab}")
    check_teacher(plan, cast["teacher"])
    if isinstance(sample := plan.sample(), Solutions):
        sample.check(cast)
        for problem in problems:
            sample.check_problem(problem, cast)
    made = identified(cast, task, problems) | plan.made()
    manifest = begun(folder, Manifest(made))
    parts = [problems[i : i + plan.per_shard] for i in range(0, len(problems), plan.per_shard)]
    for number, some in enumerate(parts):
        shards = manifest.shards
        if number >= len(shards) or not is_whole(folder, shards[number]):
            manifest = manifest.plus(number, answered(folder, number, plan, cast, some))
            manifest.save(folder)
        told(number + 1, len(parts))
    whole = Manifest(made, manifest.shards, complete=True)
    whole.save(folder)
    return whole


def check_teacher(plan: Plan, teacher: Any) -> None:
    """It can be asked for what is to be kept."""
    if missing := plan.want.needs - teacher.can:
        what = f"{teacher.name} can't answer {sorted(missing)}, which is to be stored"
        raise TeacherError(what, got=f"a teacher that can {sorted(teacher.can)}", expected=sorted(plan.want.needs))


def identified(cast: Cast, task: str, problems: Sequence[Problem]) -> dict[str, Any]:
    """Who answered about whose texts."""
    student = cast["student"]
    teachers = {name or "teacher": known(one) for name, one in each(cast["teacher"]).items()}
    return {
        "opd": metadata.version("opd"),
        "teacher": teachers,
        "student": known(student) | {"step": step_of(student.name)},
        "tokenizer": tokenizer_hash(student.tokenizer),
        "vocab": student.vocab,
        "task": task,
        "problems": len(problems),
    }


def step_of(model: str) -> int | None:
    """How many batches a student had learned from, where it is the one of a run's folder."""
    file = Path(model).parent / "summary.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["steps"]) if file.is_file() else None


def begun(folder: Path, fresh: Manifest) -> Manifest:
    """The store that is there, if it is the same one; else a new one in a folder that is empty."""
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder)
        ours, theirs = fresh.body()["made"], found.body()["made"]
        if odd := [name for name in ours if ours[name] != theirs.get(name)]:
            raise SettingError(
                f"{folder} is a store of something else: {odd[0]} differs",
                got=ours[odd[0]],
                expected=theirs.get(odd[0]),
                remedy="Name a new folder",
            )
        for left in folder.glob(".*.writing"):  # of a process that was killed
            left.unlink()
        return found
    if folder.exists() and any(folder.iterdir()):
        raise SettingError(f"{folder} holds something else", expected="a new folder", remedy="Name another")
    folder.mkdir(parents=True, exist_ok=True)
    fresh.save(folder)
    return fresh


@torch.no_grad()
def answered(folder: Path, number: int, plan: Plan, cast: Cast, problems: Sequence[Problem]) -> Shard:
    """One shard: its texts, and what the teacher says of them."""
    visits = [Visit(problem, 0, plan.seed) for problem in problems]
    rollouts = [rollout for rollout, _ in flatten(plan.sample()(cast, visits, 0))]
    if plan.given:  # nobody knows how likely these were drawn
        rollouts = [rollout.with_columns(behaviour=rollout.columns["untruncated"]) for rollout in rollouts]
    answer: Answer = cast["teacher"].read(rollouts, plan.want)
    starts = np.cumsum([0, *(rollout.n for rollout in rollouts)])
    kept = list[Kept]()
    for rollout, start in zip(rollouts, starts, strict=False):
        one = answer.index(slice(int(start), int(start) + rollout.n))
        assert one.chosen is not None
        best = (one.dist.top(plan.k), one.dist.at(one.dist.top(plan.k))) if one.dist is not None else (None, None)
        kept.append(Kept(rollout, one.chosen.cpu(), *(None if x is None else x.cpu() for x in best)))
        check(kept[-1], cast["teacher"].name)
    return write_shard(folder, number, kept)
