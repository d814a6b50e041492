"""A teacher, a student that is its earlier self, and smaller ones; all learn from right answers alone."""

import math
import random
from pathlib import Path
from typing import Any

import torch

from experiments.embedded.build import build_model
from experiments.realizability.cell import examined
from experiments.realizability.tasks import Kind, question
from experiments.revisiting.pairs import Text, cost
from opd.engines.hf import HFModel
from opd.tasks.graders import Graded

BATCH, EVERY = 192, 20
EARLIER = "earlier self"


def shape(width: int, layers: int) -> dict[str, int | float]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 3 * width, "initializer_range": 0.02,
    }  # fmt: skip


def batch(kind: Kind, tokenizer: Any, rng: random.Random, held: set[str], size: int) -> list[Text]:
    """Right answers to questions none of which is held out."""
    drawn: list[tuple[str, str]] = []
    while len(drawn) < size:
        asked, answer, same = kind.draw(rng)
        if same not in held:
            drawn.append((asked, answer))
    given = tokenizer([asked for asked, _ in drawn]).input_ids
    whole = tokenizer([asked + answer for asked, answer in drawn]).input_ids
    end = [tokenizer.eos_token_id]
    return [(w + end, [-100] * len(g) + w[len(g) :] + end) for g, w in zip(given, whole, strict=True)]


def made(out: Path, kind: Kind, task: Graded) -> dict[str, str]:
    """The folders of the teacher and its students, made where they are missing."""
    folders = {name: out / name for name in ("teacher", EARLIER, *kind.students)}
    missing = {name for name, folder in folders.items() if not (folder / "config.json").is_file()}
    if "teacher" in missing:  # written last, so that a stopped command begins anew
        grow(kind, task, shape(*kind.teacher), {folders[EARLIER]: kind.start, folders["teacher"]: None})
    for name in missing & kind.students.keys():
        grow(kind, task, shape(*kind.students[name]), {folders[name]: kind.start})
    return {name: str(folder) for name, folder in folders.items()}


def grow(kind: Kind, task: Graded, size: dict[str, int | float], stops: dict[Path, float | None]) -> None:
    """Muon on the matrices, AdamW on the rest, cosine to 5 %.

    Saves the model into each folder once so many per cent of its samples are right, at the end at the latest, and is
    done when all are saved.
    """
    torch.manual_seed(0)
    tokenizer, rng, waiting, steps = kind.tokenizer(), random.Random(0), dict(stops), kind.steps
    model = build_model(size, tokenizer)
    held = {kind.same(question(problem)) for problem in task.held_out}
    inner = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in inner)]
    optimizers = [
        torch.optim.Muon(inner, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    rate = lambda s: min(1, (s + 1) / 50) * (0.05 + 0.475 * (1 + math.cos(math.pi * s / steps)))
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    for step in range(1, steps + 1):
        loss = cost(model, batch(kind, tokenizer, rng, held, BATCH))
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % EVERY and step < steps:
            continue
        right = 100 * examined(HFModel(model.eval(), tokenizer, "model", max_new=kind.max_new), task)["sampled"]
        model.train()
        print(f"{size['hidden_size']} wide, step {step}: loss {float(loss.detach()):.3f}, {right:.1f} %", flush=True)
        for folder, enough in list(waiting.items()):
            if step == steps or (enough is not None and right >= enough):
                model.save_pretrained(folder)
                kind.tokenizer().save_pretrained(folder)  # a padded call would leave its padding in the file
                del waiting[folder]
        if not waiting:
            return
