"""A teacher that gives its best tokens alone, asked about tokens that we name: what it never said is guessed.

What its best tokens and the decided one leave over is spread evenly over all others (supports.spread).

Axes: N rows, M named tokens, K best tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd import supports
from opd.dist import TopDist
from opd.errors import Unanswered
from opd.protocols import Answer, Want
from opd.rollout import Rollout


class Spread:
    """`teacher` as it is, and it can `gather`.

    misses: the largest share of the tokens named in one read of which it may have said nothing; above that Unanswered.
    It is asked for as many best tokens as it gives.
    """

    def __init__(self, teacher: Any, misses: float) -> None:
        self.asked, self.misses = teacher, misses
        self.can = teacher.can | {"gather"}
        self.rounded = 0  # guesses where rounding left nothing to be spread, since this was last told

    def __getattr__(self, name: str) -> Any:
        return getattr(self.asked, name)

    def meet(self, student: Any) -> None:
        self.asked.meet(student)
        self.learner = student

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        if not want.gather:
            return self.asked.read(contexts, want)
        k = max(want.topk, min(self.asked.most["topk"], self.learner.vocab))
        answer = self.asked.read(contexts, replace(want, gather="", chosen=True, topk=k))
        best, chosen = answer.dist, answer.chosen
        if not isinstance(best, TopDist) or chosen is None:
            return answer  # there was nothing to be read
        ids = torch.from_numpy(np.concatenate([context.columns[want.gather] for context in contexts])).to(best.ids)
        named, guessed, rounded = supports.spread(best.ids, best.values, best.tokens, chosen, ids, self.learner.vocab)
        self._check(guessed, k)
        self.rounded += int((guessed & rounded[:, None]).sum())
        k = want.topk
        dist = TopDist(best.ids[:, :k], best.values[:, :k], best.tokens, chosen) if k else None
        return Answer(dist, chosen if want.chosen else None, named, guessed=guessed)

    def _check(self, guessed: Tensor, k: int) -> None:
        if (share := float(guessed.double().mean())) > self.misses:
            raise Unanswered(
                f"{self.asked.name} says nothing about too many of the tokens that it was asked about",
                got=f"{share:.2%} of them outside its K={k} best",
                expected=f"at most teacher_misses = {self.misses:.2%}",
                remedy="Let it give more best tokens (vLLM: --max-logprobs), or raise teacher_misses in run.toml, "
                "then go on with opd train --resume; or take a method that names no tokens",
            )

    def tell(self) -> dict[str, float]:
        """What asking has cost since this was last told, and how often rounding left nothing to be spread."""
        rounded, self.rounded = self.rounded, 0
        return {**getattr(self.asked, "tell", dict)(), "teacher.missed.rounded": float(rounded)}
