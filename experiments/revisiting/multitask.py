"""Two tasks with a teacher each: one student on alternating tasks, routed to the right teacher, against one per task.

    python -m experiments.revisiting.multitask --out runs/multitask

The tasks are running totals and, asked with another sign, the numbers of a question plus one each. The teacher of
the first is the embedded one; that of the second, and a student that has begun with both, are made from the embedded
pair by fine-tuning (pairs.py), two to four minutes. The alternating student takes as many steps per task as the others.
A run that is already in --out is not done again.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.revisiting.language import COMMON, Values, remembered
from experiments.revisiting.pairs import beginner, counter, made, successors
from experiments.revisiting.results import COLOURS, STYLE, keep, spread, table
from opd import Settings
from opd.build import build
from opd.evaluate import evaluate
from opd.loop import Source, Training, train
from opd.rollout import Problem, Visit
from opd.tasks import sums

OBJECTIVES: dict[str, Values] = {
    "sampled_token": {"parameters": {"n": 1}, "lr": 5e-4},
    "local_support": {"parameters": {"n": 1, "k": 8, "updates": 1}, "lr": 4.5e-3},
}
TASKS = ("totals", "successors")
ARMS = {"alternating": TASKS, "totals alone": TASKS[:1], "successors alone": TASKS[1:]}
TRAIN, HELD_OUT = 128, 128  # problems per task


@dataclass
class Alternating:
    """One task per step, in turn, as in the paper; every task has its own walk."""

    sources: Sequence[Source]
    seed: int
    position: int = 0  # steps taken

    def take(self, n: int) -> list[Visit]:
        self.position += 1
        return self.sources[(self.position - 1) % len(self.sources)].take(n)


def write_problems(file: Path, split: str, count: int, seed: int) -> Path:
    """Problems of both tasks, each naming its teacher."""
    rows: list[dict[str, str]] = []
    for task in TASKS:
        for index in range(count):
            terms = sums.draw(random.Random(f"{task}/{split}/{seed}/{index}"), split)
            own = sums.question_text(terms), sums.chain_text(sums.totals(terms))
            prompt, answer = own if task == "totals" else successors(terms)
            rows.append({"prompt": prompt, "answer": answer.strip(), "teacher_id": task})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def of_task(problems: Sequence[Problem], task: str) -> list[Problem]:
    return [problem for problem in problems if problem.data["teacher_id"] == task]


def trained(objective: str, arm: str, seed: int, steps: int, models: dict[str, str], out: Path) -> Values:
    train_file, test_file = (
        write_problems(out / "problems" / f"{split}-{seed}.jsonl", split, count, seed)
        for split, count in (("train", TRAIN), ("test", HELD_OUT))
    )
    tasks = ARMS[arm]
    settings = Settings.of(**{
        **COMMON, **OBJECTIVES[objective], "method": objective, "seed": seed, "student": models["student"],
        "teacher": f"totals=embedded:teacher,successors={models['counter']}", "steps": steps * len(tasks),
        "task": f"jsonl:{train_file},held_out={test_file}",
    })  # fmt: skip
    training = build(settings)
    before = examined(training) if (objective, arm) == (next(iter(OBJECTIVES)), "alternating") else {}
    training.source = Alternating([Source(of_task(training.task.train, task), seed) for task in tasks], seed)
    routes = [{k: v for k, v in batch.metrics.items() if k.startswith("teacher.")} for batch in train(training)]
    return {"objective": objective, "arm": arm, "seed": seed, "before": before, "routes": routes, **examined(training)}


def examined(training: Training) -> Values:
    """By task: per cent right, greedy and sampled, and reverse KL to the task's own teacher."""
    found: Values = {}
    for task in TASKS:
        problems = of_task(training.task.held_out, task)
        exam = evaluate(training.student, training.task, problems, teacher=training.cast["teacher"])
        assert exam.greedy and exam.sampled and exam.kl and exam.greedy.accuracy and exam.sampled.accuracy
        right = {"greedy": 100 * exam.greedy.accuracy.value, "sampled": 100 * exam.sampled.accuracy.value}
        found[task] = {**right, "reverse kl": exam.kl.per_token}
    return found


def run(objective: str, arm: str, seed: int, steps: int, models: dict[str, str], out: Path) -> Values:
    name = f"{objective}-{arm}-seed{seed}-{steps}".replace(" ", "-")
    found = remembered(out / "runs" / f"{name}.json", lambda: trained(objective, arm, seed, steps, models, out))
    shown = ", ".join(f"{t} {found[t]['sampled']:.1f} % and {found[t]['reverse kl']:.2f} nats" for t in TASKS)
    print(f"{name}: {shown}", flush=True)
    return found


def summary(runs: list[Values]) -> str:
    lines: list[list[Any]] = []
    starts = [one["before"] for one in runs if one["before"]]
    lines.append(["before", "", *cells(starts)])
    for objective in OBJECTIVES:
        for arm in ARMS:
            lines.append([objective, arm, *cells([r for r in runs if (r["objective"], r["arm"]) == (objective, arm)])])
    names = [f"{task}: {what}" for task in TASKS for what in ("greedy %", "sampled %", "reverse KL")]
    return table(["objective", "trained on", *names], lines)


def cells(runs: list[Values]) -> list[str]:
    columns = (("greedy", ".1f"), ("sampled", ".1f"), ("reverse kl", ".2f"))
    return [spread([one[task][key] for one in runs], form) for task in TASKS for key, form in columns]


def plot(runs: list[Values]) -> Figure:
    """Sampled accuracy on both tasks, every seed a dot."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 2.4), layout="constrained")
        names = [f"{objective}, {arm}" for objective in OBJECTIVES for arm in ARMS][::-1]
        for axes, task in zip(figure.subplots(1, 2, sharey=True), TASKS, strict=True):
            for key, colour in (("greedy", 0), ("sampled", 4)):
                y = [names.index(f"{one['objective']}, {one['arm']}") for one in runs]
                axes.plot([one[task][key] for one in runs], y, "o", color=COLOURS[colour], alpha=0.7, label=key)
            axes.set(yticks=range(len(names)), yticklabels=names, xlabel=f"{task}: right, % of held-out problems")
        axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/multitask"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40, help="per task")
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = {
        "student": made(given.out / "models" / "beginner", "embedded:student", beginner, 60, 2e-3),
        "counter": made(given.out / "models" / "counter", "embedded:teacher", counter, 80, 2e-3),
    }
    runs = [
        run(o, arm, seed, given.steps, models, given.out) for seed in given.seeds for o in OBJECTIVES for arm in ARMS
    ]
    keep(given.out, "multitask", summary(runs), runs, plot(runs))


if __name__ == "__main__":
    main()
