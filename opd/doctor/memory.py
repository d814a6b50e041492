"""The memory that a run will need, estimated from shapes before anything is allocated, and what the device has.

weights     bytes of both models, and of the values that a copy of the student holds
gradients   bytes of what learns, and a float32 sum [V, D] for a head of fewer bits
optimizer   twice the bytes of what learns (AdamW's two moments)

and the largest of three phases, which come one after the other. With B sequences of T tokens (the longest prompt and
--max-new: every answer is taken to be that long), L layers of width D with an MLP of width I, and b bytes a number:

writing     2.5 B T * 2 (key heads) (head width) b L  +  4 * 4 B V            key and value cache, logits
reading     tokens (6 D + 3 I) b  +  3 * 4 rows V                             one layer at a time, logits of a chunk
learning    tokens L (16 D + 5 I) b  +  8 * 4 rows V                          what backward needs, logits of a chunk

tokens are those of one pass (micro_tokens at most, or one sequence), rows those of one chunk. With gradient
checkpointing a pass keeps L states of width D and one layer of the rest. While there is reading and learning the
teacher's answers are kept: a hidden state per row of the batch, or K ids and log-probs. The factors are fitted to
decoders whose attention keeps no T x T matrix; what small models were measured to take lies between half of the
estimate and 1.2 times the estimate. Libraries take some memory besides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from opd import step
from opd.doctor.case import Case
from opd.doctor.finding import Finding, finding
from opd.engines import hf
from opd.engines.hf import HFModel

EXAMINED = 32  # problems that an examination writes at a time
MEMINFO = Path("/proc/meminfo")
REMEDY = "Lower --micro-tokens, --batch or --max-new, or give --gradient-checkpointing, --lora 16 or --dtype bfloat16"


@dataclass(frozen=True)
class Need:
    """Bytes on the student's device, and of the teacher's where it sits there, too."""

    weights: int
    gradients: int
    optimizer: int
    phases: dict[str, int]

    @property
    def certain(self) -> int:
        """What no setting of batch or length changes."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.certain + max(self.phases.values())


@dataclass(frozen=True)
class Shape:
    """The widths of a decoder, and the bytes of its numbers."""

    depth: int
    width: int
    mlp: int
    keys: int  # key heads times head width
    vocab: int
    size: int

    @classmethod
    def of(cls, model: HFModel) -> Shape:
        vocab, width = model.head.shape
        heads = number(model, "num_attention_heads", 1)
        keys = number(model, "num_key_value_heads", heads) * number(model, "head_dim", width // heads)
        mlp = number(model, "intermediate_size", 4 * width)
        return cls(number(model, "num_hidden_layers", 1), width, mlp, keys, vocab, model.head.element_size())

    def writing(self, sequences: int, length: int) -> int:
        return int(2.5 * sequences * length * 2 * self.keys * self.size * self.depth) + 16 * sequences * self.vocab

    def reading(self, tokens: int, rows: int) -> int:
        return tokens * (6 * self.width + 3 * self.mlp) * self.size + 12 * rows * self.vocab

    def learning(self, tokens: int, rows: int, recompute: bool) -> int:
        layer = tokens * (16 * self.width + 5 * self.mlp) * self.size
        kept = layer + self.depth * tokens * self.width * self.size if recompute else self.depth * layer
        return kept + 32 * rows * self.vocab


def number(model: HFModel, name: str, default: int) -> int:
    """A size in the configuration; the largest where layers differ."""
    found: Any = getattr(model.config, name, None) or default
    return max(found) if isinstance(found, list | tuple) else int(found)


def memory(case: Case) -> Iterator[Finding]:
    """Fails when weights, gradients and optimizer alone do not fit; warns when the estimate of the whole does not."""
    need, device = estimate(case), case.student.device
    held = need.weights  # they are there already
    has = free(device)
    parts = {"weights": need.weights, "gradients": need.gradients, "optimizer": need.optimizer, **need.phases}
    what = f"about {words(need.total)} on {device}: " + ", ".join(f"{name} {words(n)}" for name, n in parts.items())
    numbers = {name: float(n) for name, n in parts.items()} | {"total": float(need.total)}
    if has is None:
        yield Finding("memory", "pass", f"{what}; what the device has is unknown", numbers=numbers)
        return
    over, fatal = need.total - held > has, need.certain - held > has
    found = finding("memory", over, f"{what}; {words(has + held)} are there", REMEDY, fatal=fatal)
    yield replace(found, numbers=numbers | {"free": float(has + held)})


def estimate(case: Case) -> Need:
    """The formula of this file for one planned run."""
    ours, theirs = own_bytes(case)
    weights = case.student.weights().values()
    learns = sum(p.numel() * p.element_size() for p in weights)
    return Need(
        weights=ours + (theirs if case.together else 0),
        gradients=learns + head_sum(case.student),
        optimizer=2 * learns,
        phases=phases(case, Shape.of(case.student), Shape.of(case.reader or case.student)),
    )


def phases(case: Case, student: Shape, teacher: Shape) -> dict[str, int]:
    """Bytes of writing, reading and learning; a teacher that sits elsewhere writes and reads there."""
    settings, engine = case.settings, case.student
    length = case.longest_prompt + settings.max_new
    answers = settings.batch * case.writing.n
    beside = min(engine.max_sequences, max(answers, EXAMINED * settings.eval_samples))
    rows = answers * settings.max_new
    kept = rows * answer_bytes(case, teacher)
    writing, reading = student.writing(beside, length), kept
    if case.together:
        writing = max(writing, teacher.writing(beside, length))
        tokens = min(max(engine.micro_tokens, length), answers * length)
        reading += teacher.reading(tokens, read_rows(case, rows)) if case.method.teach else 0
    updated = -(-answers // case.method.updates.parts)
    tokens = min(max(settings.micro_tokens, length), updated * length)
    chunk = learned_rows(case, min(tokens, updated * settings.max_new))
    learning = kept + student.learning(tokens, chunk, settings.gradient_checkpointing)
    return {"writing": writing, "reading": reading, "learning": learning}


def own_bytes(case: Case) -> tuple[int, int]:
    """Bytes of the student's weights, and of the teacher's: a model of its own, or the values that a copy holds."""
    ours = sum(p.numel() * p.element_size() for p in case.student.model.parameters())
    if case.reader is not None:
        return ours, sum(p.numel() * p.element_size() for p in case.reader.model.parameters())
    held = getattr(case.teacher, "weights", {})
    return ours, sum(w.numel() * w.element_size() for w in held.values())


def answer_bytes(case: Case, teacher: Shape) -> int:
    """What the teacher's answers take per row of the batch."""
    wants = [ask.want for ask in case.method.teach]
    states = sum(len(want.layers) + want.dist for want in wants) * teacher.width * teacher.size
    return states + sum(12 * want.topk for want in wants)


def head_sum(student: HFModel) -> int:
    """The float32 buffer in which the gradient of a head of fewer bits is summed."""
    head = student.head
    return 4 * head.numel() if head.requires_grad and head.element_size() < 4 else 0


def read_rows(case: Case, most: int) -> int:
    """Rows whose logits exist at one time while the teacher reads; hidden states alone need none."""
    asked = any(ask.want.needs - {"dist", "inner"} for ask in case.method.teach)
    return min(hf.CHUNK // case.student.vocab, most) if asked else 0


def learned_rows(case: Case, most: int) -> int:
    """Rows whose logits exist at one time while the student learns."""
    elements = step.CHUNK_ELEMENTS[case.student.device.type != "cpu"]
    rows = case.settings.chunk or max(step.CHUNK_ROWS, elements // case.student.vocab)
    return min(rows, most)


def free(device: torch.device) -> int | None:
    """Bytes that this process can still have on a device; None where nobody tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    if MEMINFO.is_file():
        lines = (line.split() for line in MEMINFO.read_text(encoding="utf-8").splitlines())
        return next((1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"), None)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def words(n: float) -> str:
    """Bytes as a person says them."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:.3g} GiB" if n < 1024 else f"{n:,.0f} GiB"
