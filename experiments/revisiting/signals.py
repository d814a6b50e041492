"""What the sampled token and the local support would teach about every token that a student wrote, before any step.

Axes: N rows, K support, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opd import Settings
from opd.build import build
from opd.loop import Training
from opd.protocols import Want
from opd.rollout import Group
from opd.step import prepare

ENTERING, INSIDE, END, ELSEWHERE = "entering a loop", "inside a loop", "end of the text", "elsewhere"


@dataclass
class Signals:
    """One number per row [N]: what both models gave the written token, and what either objective would do."""

    kind: list[str]
    student: Tensor  # log pi(y)
    teacher: Tensor  # log q(y)
    sampled: Tensor  # norm of the sampled token's gradient with respect to the logits
    local: Tensor  # the same of the local support's
    push: Tensor  # the local support's push of the written token's own logit: minus its gradient; 0 outside the support

    @property
    def advantage(self) -> Tensor:
        return self.teacher - self.student


def signals(student: str, teacher: str, seed: int, k: int, answers: int = 4, max_new: int = 16) -> Signals:
    """128 problems, some answers each, read by the teacher."""
    settings = Settings.of(
        method="gkd", parameters={"lam": 1.0, "n": answers}, student=student, teacher=teacher, max_new=max_new,
        task=f"sums,train=128,seed={seed}", seed=seed, batch=128, threads=1,
    )  # fmt: skip
    training = build(settings)
    groups = training.method.sample(training.cast, training.source.take(training.batch), 0)
    lp, lq, token = distributions(training, groups)
    ids = lq.topk(k).indices
    local = local_gradient(lp.gather(1, ids), lq.gather(1, ids))
    own, theirs = lp.gather(1, token[:, None])[:, 0], lq.gather(1, token[:, None])[:, 0]
    away = -lp.exp()
    away.scatter_add_(1, token[:, None], torch.ones_like(own)[:, None])  # d log pi(y) / d logits
    push = torch.where(ids == token[:, None], -local, 0.0).sum(1)
    return Signals(
        kinds(training, groups), own, theirs, (theirs - own).abs() * away.norm(dim=1), local.norm(dim=1), push
    )


@torch.no_grad()
def distributions(training: Training, groups: list[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """[N, V] log-probs of student and teacher at every row, and [N] the written tokens."""
    rows, _ = prepare(groups, training.method, training.cast, 0)
    contexts = [rollout for group in groups for rollout in group.rollouts if rollout.n]
    dist = training.student.read(contexts, Want(dist=True)).dist
    assert dist is not None
    return dist.logprobs(), rows.dist("teacher").logprobs(), rows["token"]


def local_gradient(lp: Tensor, lq: Tensor) -> Tensor:
    """[N, K] gradient of the renormalised reverse KL with respect to the student's logits on the support."""
    lp, lq = lp.log_softmax(1), lq.log_softmax(1)
    ratio = lp - lq
    return lp.exp() * (ratio - (lp.exp() * ratio).sum(1, keepdim=True))


def kinds(training: Training, groups: Sequence[Group]) -> list[str]:
    """Where every row stands: two tokens are one total; a loop is a total written twice in a row, and then again."""
    found: list[str] = []
    for rollout in (r for group in groups for r in group.rollouts):
        words = [training.student.decode_token(int(token)) for token in rollout.decisions]
        totals = ["".join(words[at : at + 2]).strip(" ,") for at in range(0, len(words), 2)]
        for row, token in enumerate(rollout.decisions):
            again = [totals[row // 2 - back - 1] == totals[row // 2] for back in range(min(row // 2, 2))]
            stopped = int(token) in training.student.stops
            found.append(
                END if stopped else INSIDE if again == [True, True] else ENTERING if again[:1] == [True] else ELSEWHERE
            )
    return found


def carried(values: Tensor, share: float) -> float:
    """The part of a sum of sizes that the largest `share` of the rows carries."""
    sizes = values.abs().sort(descending=True).values
    return float(sizes[: max(round(share * len(sizes)), 1)].sum() / sizes.sum())
