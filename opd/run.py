"""A run: from settings to a folder that holds everything that was asked, done and learned, and can be continued.

RUN/run.toml             all settings as resolved, versions, git state
    prompts.json         the words in which a reader was told more than the student, with their versions
    metrics.jsonl        one line per step, and one per examination
    drafts/  rows/       marked-up answers before and after; tables of rows of some steps
    episodes/            pictures of a policy in its environment, before and after
    checkpoints/step-N/  everything that moves: resume is exact
    nonfinite/           rows of updates that were refused
    model/               the student as a Hugging Face folder
    summary.json         before, after, teacher
    teachers.json        who answers from elsewhere
"""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import tomli_w
from safetensors.torch import save_file

from opd import cast as casting
from opd import elsewhere, prompts, sampler
from opd.build import build
from opd.checkpoint import checkpoints, forget_old, load_state, save_state, separate, write_folder, write_text
from opd.doctor import Case, Finding, at_start
from opd.drafts import answers, drafts
from opd.errors import ModelError, SettingError, Unanswered
from opd.evaluate import Evaluation, evaluate
from opd.examined import examined
from opd.loop import Batch, Training, train
from opd.protocols import Task, Teacher
from opd.record import exam_line, peak_memory, read_metrics, resolved
from opd.rollout import Problem
from opd.rows import Rows
from opd.settings import Settings, read_toml
from opd.stopping import asked_to_stop


class Stopped(Exception):
    """The run was asked to stop; a checkpoint was written and it can be resumed."""


class Watch(Protocol):
    """Whoever looks on: a display, a logger."""

    def started(self, run: Run) -> None: ...
    def phase(self, name: str, done: int, total: int) -> None: ...
    def stepped(self, metrics: dict[str, Any]) -> None: ...
    def examined(self, metrics: dict[str, Any]) -> None: ...
    def finished(self, summary: dict[str, Any] | None) -> None: ...


@dataclass
class Run:
    """One student learning by one method. `Run.new(settings).train()` is the whole program."""

    settings: Settings
    folder: Path
    training: Training
    resumed: bool = False
    watches: list[Watch] = field(default_factory=list[Watch])
    findings: list[Finding] = field(default_factory=list[Finding])  # what the doctor warned of at the start
    stopping: bool = False

    @classmethod
    def new(cls, settings: Settings, *watches: Watch) -> Run:
        """A fresh run; its folder must not exist yet."""
        folder = settings.folder
        if folder.exists() and any(folder.iterdir()):
            raise SettingError(
                f"the run folder {folder} exists",
                expected="a new folder",
                remedy=f"Choose another with --out, or continue it: opd train --resume {folder}",
            )
        training = build(settings)
        case = Case(settings, training.method, training.task, training.cast)
        findings = at_start(case) if settings.doctor == "on" else []
        sampler.attach(settings, training)
        run = cls(settings, folder, training, watches=list(watches), findings=findings)
        folder.mkdir(parents=True, exist_ok=True)
        played = {"student": casting.student_spec(settings), "teacher": run.teacher_spec}
        played |= casting.specs(settings, training.method)
        write_text(folder / "run.toml", tomli_w.dumps(resolved(settings) | played))
        elsewhere.write(folder, training.cast)
        if told := prompts.prompts(training.method):
            write_text(folder / prompts.FILE, prompts.written(told))
        return run

    @classmethod
    def resume(cls, folder: str | Path, *watches: Watch) -> Run:
        """The run in a folder, exactly where its last checkpoint stands (or at its start when it has none)."""
        path = Path(folder)
        if not (path / "run.toml").is_file():
            raise SettingError("nothing to resume", got=str(folder), expected="a run folder with a run.toml")
        values = {k: v for k, v in read_toml(path / "run.toml").items() if k in Settings.model_fields}
        settings = Settings.of(**{**values, "out": str(path)})
        run = cls(settings, path, build(settings), resumed=True, watches=list(watches))
        sampler.attach(settings, run.training)
        elsewhere.check(path, run.training.cast, settings.another_teacher)
        prompts.check_unchanged(path, prompts.prompts(run.training.method))
        if saved := checkpoints(path / "checkpoints"):
            run.load(saved[-1])
        return run

    @property
    def task(self) -> Task:
        return self.training.task

    @property
    def teacher(self) -> Teacher | None:
        return self.training.cast.get("teacher")

    def train(self) -> dict[str, Any]:
        """Runs to the end and gives the summary; raises Stopped after Ctrl-C or SIGTERM."""
        self.training.on_failure = self.save_refused
        for watch in self.watches:
            watch.started(self)
        summary: dict[str, Any] = {}
        try:
            with asked_to_stop(self.ask):
                summary = self._train()
        finally:
            for watch in self.watches:
                watch.finished(summary or None)
        return summary

    def _train(self) -> dict[str, Any]:
        before = self.examined_before()
        self.truncate_metrics()
        kept = self.small()
        try:
            for batch in train(self.training):
                kept = self.small()
                self.after(batch)
        except Unanswered:
            self.restore(kept)  # what a batch that was never finished has moved
            self.save()
            if self.stopping:
                raise Stopped from None
            raise
        return self.conclude(before)

    def after(self, batch: Batch) -> None:
        """Records a finished batch, and examines, saves and stops where that is due."""
        batch.metrics.update(elsewhere.tell(self.training.cast))
        self.record(batch)
        done = batch.step + 1
        last = self.training.is_done
        if not last and self.due(self.settings.eval_every, done):
            with suppress(Stopped):  # the checkpoint comes first
                self.examine(done)
        if last or self.stopping or self.due(self.settings.checkpoint_every, done):
            self.save()
        if self.stopping and not last:
            raise Stopped

    @staticmethod
    def due(every: int, done: int) -> bool:
        return bool(every) and done % every == 0

    def examined_before(self) -> dict[str, Any]:
        """The examination of the untaught student and of the teacher, made once."""
        file = self.folder / "before.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        result = {
            "student": self.evaluation("student before", self.training.student).to_json(),
            "teacher": self.teacher_result(),
        }
        self.save_drafts(0)
        self.save_film(0)
        write_text(file, json.dumps(result))
        self.note(exam_line(0, result["student"]))
        return result

    def teacher_result(self) -> dict[str, Any] | None:
        writes = self.teacher is not None and "text" in self.teacher.can and not self.teacher_spec.startswith("self")
        writes = writes and getattr(self.teacher, "is_free", True)  # who is paid by the answer is not examined unasked
        return self.evaluation("teacher", self.teacher).to_json() if writes else None

    @property
    def teacher_spec(self) -> str:
        return casting.teacher_spec(self.settings, self.training.method)

    def evaluation(self, name: str, writer: Any) -> Evaluation:
        def progress(done: int, total: int) -> None:
            for watch in self.watches:
                watch.phase(f"examining {name}", done, total)
            if self.stopping:
                raise Stopped

        is_student, s = writer is self.training.student, self.settings
        teacher = self.teacher if is_student and casting.reads(self.teacher) else None
        return evaluate(
            writer, self.task, self.problems(s.eval_problems), samples=s.eval_samples, max_new=s.max_new,
            seed=s.seed, teacher=teacher, progress=progress,
        )  # fmt: skip

    def problems(self, most: int) -> list[Problem]:
        """Those that this run is examined on."""
        return examined(self.task.held_out, self.settings.tuning_problems, self.settings.eval_on, most)

    def examine(self, step: int) -> dict[str, Any]:
        result = self.evaluation("student", self.training.student).to_json()
        self.note(exam_line(step, result))
        return result

    def note(self, line: dict[str, Any]) -> None:
        self.append(line)
        for watch in self.watches:
            watch.examined(line)

    def conclude(self, before: dict[str, Any]) -> dict[str, Any]:
        """The last examination, drafts, the model as a Hugging Face folder, and the summary."""
        file, steps = self.folder / "summary.json", self.training.step
        after = self.examine(steps)
        self.save_drafts(steps)
        self.save_film(steps)
        write_folder(self.folder / "model", self.training.student.save)
        lines = [line for line in read_metrics(self.folder) if "loss" in line]
        spent = {
            k: sum(line.get(k, 0.0) for line in lines)
            for k in ("seconds.sample", "seconds.teach", "seconds.learn", "tokens", "teacher_tokens")
        }
        summary = {
            "method": self.settings.method,
            "steps": steps,
            "student_before": before["student"],
            "student_after": after,
            "teacher": before["teacher"],
            "seconds": spent["seconds.sample"] + spent["seconds.teach"] + spent["seconds.learn"],
            **spent,
            "memory": peak_memory(),
        }
        write_text(file, json.dumps(summary, indent=1))
        return summary

    def record(self, batch: Batch) -> None:
        self.append({"step": batch.step, **batch.metrics})
        if batch.step == 0 or self.training.is_done or self.due(self.settings.rows_every, batch.step):
            self.save_rows("rows", batch.step, batch.rows)
        for watch in self.watches:
            watch.stepped({"step": batch.step, **batch.metrics})

    def append(self, line: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_metrics(self) -> None:
        """Forgets lines of steps that will be done again."""
        if self.resumed and (self.folder / "metrics.jsonl").is_file():
            kept = [
                line for line in read_metrics(self.folder) if line["step"] < self.training.step or "loss" not in line
            ]
            kept = [line for line in kept if "loss" in line or line["step"] <= self.training.step]
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def save_rows(self, where: str, step: int, rows: Rows) -> Path:
        file = self.folder / where / f"step-{step:06d}.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_file(separate(rows.narrow()), file, {"step": str(step)})
        return file

    def save_refused(self, step: int, rows: Rows) -> str:
        return str(self.save_rows("nonfinite", step, rows))

    def save_drafts(self, step: int) -> None:
        if self.teacher is None or not self.settings.drafts or not casting.reads(self.teacher):
            return
        problems = self.problems(self.settings.drafts)
        marked = drafts(
            self.training.student, self.teacher, self.task, problems, self.settings.max_new, self.settings.seed
        )
        (self.folder / "drafts").mkdir(exist_ok=True)
        write_text(self.folder / "drafts" / f"step-{step:06d}.json", json.dumps({"step": step, "drafts": marked}))

    def save_film(self, step: int) -> None:
        """Pictures of the first episodes whose drafts are kept, where the task is an environment."""
        world = getattr(self.task, "world", None)
        if world is None or not self.settings.drafts:
            return
        from opd.film import EPISODES, film

        problems = self.problems(self.settings.drafts)[:EPISODES]
        episodes = answers(self.training.student, problems, self.settings.max_new, self.settings.seed)
        (self.folder / "episodes").mkdir(exist_ok=True)
        text = json.dumps({"step": step, **film(world, episodes)})
        write_text(self.folder / "episodes" / f"step-{step:06d}.json", text)

    def save(self) -> None:
        """A checkpoint of everything that moves."""
        t = self.training

        def fill(folder: Path) -> None:
            save_state(folder, "student", t.student.state_dict())
            save_state(folder, "optimizer", t.optimizer.state_dict())
            save_state(
                folder,
                "teachers",
                {n: m.state_dict() for n, m in t.cast.items() if n != "student" and hasattr(m, "state_dict")},
            )
            save_state(folder, "method", {name: part.state_dict() for name, part in t.method.state.items()})
            moving = {"step": t.step, "position": t.source.position, "failures": t.failures}
            moving |= {"spent": t.budget.spent} if t.budget else {}
            (folder / "moving.json").write_text(json.dumps(moving), encoding="utf-8")

        write_folder(self.folder / "checkpoints" / f"step-{t.step:06d}", fill)
        forget_old(self.folder / "checkpoints", self.settings.keep_checkpoints)

    def load(self, folder: Path) -> None:
        t = self.training
        try:
            moving = json.loads((folder / "moving.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ModelError(f"checkpoint {folder} cannot be read", got=str(error)) from error
        t.student.load_state_dict(load_state(folder, "student"))
        t.optimizer.load_state_dict(load_state(folder, "optimizer"))
        for name, state in load_state(folder, "teachers").items():
            t.cast[name].load_state_dict(state)
        for name, state in load_state(folder, "method").items():
            t.method.state[name].load_state_dict(state)
        t.step, t.source.position, t.failures = moving["step"], moving["position"], moving["failures"]
        if t.budget:
            t.budget.spent = moving["spent"]

    def small(self) -> dict[str, Any]:
        """What a batch moves before it is learned from, where somebody elsewhere may fail to answer in between."""
        t = self.training
        if not elsewhere.members(t.cast):
            return {}
        states = {name: part.state_dict() for name, part in t.method.state.items()}
        return copy.deepcopy({"position": t.source.position, "method": states})

    def restore(self, kept: dict[str, Any]) -> None:
        """Puts that back, so that the batch is met again."""
        for name, state in kept.get("method", {}).items():
            self.training.method.state[name].load_state_dict(state)
        self.training.source.position = kept.get("position", self.training.source.position)

    def ask(self) -> None:
        """Ctrl-C and SIGTERM let the step finish, save and stop; a second one stops at once."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        elsewhere.give_up(self.training.cast)
