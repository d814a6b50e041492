"""One reverse KL over a large vocabulary through the chunk loop of the step: memory, and time against its products.

    python benchmarks/divergence.py

The products alone are the student's and the teacher's logits and the gradients of hidden states and head, in the same
chunks: what no way of computing the same thing in the same precision can do without.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))  # what is freed leaves the process, so that peaks are peaks

import torch
from common import Peak, best, report, seconds
from torch import Tensor

from opd import maths
from opd.dist import HeadDist
from opd.method import Method, Term
from opd.parts.losses import Everywhere
from opd.parts.means import token_mean
from opd.protocols import Forward
from opd.rollout import Array
from opd.rows import Rows
from opd.step import CHUNK_ELEMENTS, CHUNK_ROWS, gradient

VOCAB, WIDTHS = 151_936, (1024, 2048)
ROWS, TIMED = (4096, 8192), 256


@dataclass
class Bare:
    """A student that is nothing but hidden states [N, D] and a head [V, D]."""

    hidden: Tensor
    head: Tensor
    name: str = "bare"

    @property
    def vocab(self) -> int:
        return len(self.head)

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def trunk(self, tokens: Sequence[Array], positions: Sequence[Array], layers: tuple[int, ...] = ()) -> Forward:
        return Forward(self.hidden, self.head)


@dataclass
class Case:
    """n rows, a vocabulary, and the widths of student and teacher."""

    n: int
    vocab: int
    student: int
    teacher: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.bare = Bare(self._random(self.n, self.student), self._random(self.vocab, self.student))
        tokens = torch.randint(self.vocab, (self.n,), device=self.device)
        theirs = self._random(self.n, self.teacher), self._random(self.vocab, self.teacher)
        dist = HeadDist(*(x.detach() for x in theirs), tokens, self.vocab)
        number = torch.arange(self.n, device=self.device)
        self.rows = Rows(
            {
                "token": tokens, "position": number + 1, "row": number, "sequence": torch.zeros_like(number),
                "keep": torch.ones_like(number, dtype=torch.bool), "teacher": dist,
            }
        )  # fmt: skip
        self.sequences = [torch.zeros(self.n + 1, dtype=torch.int32).numpy()]
        self.method = Method(sample=_nobody, terms={"match": Term(Everywhere(maths.reverse_kl), token_mean)})
        for x in (self.bare.hidden, self.bare.head):
            x.grad = torch.zeros_like(x)

    def _random(self, n: int, width: int) -> Tensor:
        x = torch.randn(n, width, device=self.device, dtype=self.dtype) / width**0.25
        return x.requires_grad_()

    def learn(self, chunk: int = 0) -> None:
        """Forward and backward to hidden states and head, as in a step."""
        gradient(self.bare, self.rows, self.sequences, self.method, micro_tokens=2**40, chunk=chunk)  # pyright: ignore[reportArgumentType]

    def products(self, chunk: int) -> None:
        """The matrix products of `learn` and nothing else."""
        teacher = self.rows.dist("teacher")
        assert isinstance(teacher, HeadDist)
        hidden, head = self.bare.hidden.detach(), self.bare.head.detach()
        for start in range(0, self.n, chunk):
            here = slice(start, start + chunk)
            logits = hidden[here] @ head.T
            teacher.hidden[here] @ teacher.head.T
            logits @ head
            self.bare.head.grad.addmm_(logits.T, hidden[here])  # pyright: ignore[reportOptionalMemberAccess]


def _nobody(*_: object) -> list[object]:
    return []


def above(n: int) -> int:
    """MiB that learning from n rows takes beyond models, hidden states and the gradients that exist already."""
    case = Case(n, VOCAB, *WIDTHS)
    with Peak() as peak:
        case.learn()
    return round(peak.above)


def timed(n: int) -> dict[str, object]:
    """Seconds of learning from n rows and of its products alone, in turn."""
    case, chunk = Case(n, VOCAB, *WIDTHS), max(CHUNK_ROWS, CHUNK_ELEMENTS[0] // VOCAB)
    learn: list[float] = []
    products: list[float] = []
    for _ in range(3):
        learn += seconds(case.learn, 1)
        products += seconds(lambda: case.products(chunk), 1)
    ratio = statistics.median(learn) / statistics.median(products)
    return {"learn": best(learn), "products": best(products), "ratio": round(ratio, 2)}


def main() -> None:
    torch.manual_seed(0)
    memory, work = {n: above(n) for n in ROWS}, timed(TIMED)
    report(vocab=VOCAB, widths=WIDTHS, mib_above=memory, seconds={"rows": TIMED, **work})


if __name__ == "__main__":
    main()
