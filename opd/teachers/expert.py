"""A teacher that acts: any function from observations to action probabilities, with values where it knows them.

Axes: n decisions, N rows, V actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from opd.dist import TableDist
from opd.engines.acting import Actor, answered, decisions, observations
from opd.engines.world import World
from opd.errors import TeacherError, require
from opd.protocols import Answer, Student, Want
from opd.rollout import Rollout

Function = Callable[[Tensor], Tensor]  # [n, ...] observations -> [n, V]
EPSILON = 0.001


class Expert(Actor):
    """Acts, labels and reads with `probabilities`, mixed with a uniform action at rate `epsilon`.

    epsilon is above 0 so that no action is ruled out and every divergence from it is finite; a large one is a noisy
    expert. values: the expected return after each action (Q), of this policy or of an optimal one.
    """

    live = False

    def __init__(
        self,
        world: World,
        probabilities: Function,
        values: Function | None = None,
        *,
        epsilon: float = EPSILON,
        name: str = "teacher",
        max_new: int = 1000,
    ) -> None:
        super().__init__(world, name, max_new)
        require(0 < epsilon < 1, "the expert's rate of random actions epsilon", got=epsilon, expected="between 0 and 1")
        self.probabilities, self.values, self.epsilon = probabilities, values, epsilon
        self.can = frozenset({"chosen", "topk", "gather", "dist", "text"} | ({"values"} if values else set()))
        self._try()

    @torch.no_grad()
    def logprobs(self, observations: Tensor) -> Tensor:
        plain = self.probabilities(observations).double()
        self._check(plain, len(observations))
        return ((1 - self.epsilon) * plain + self.epsilon / self.world.actions).log()

    def _try(self) -> None:
        """One observation is shown at once: an expert for another environment is refused before anybody acts."""
        first = torch.from_numpy(self.world.reset([0]))
        try:
            self.probabilities(first)
        except Exception as error:  # the function is the user's own, and so are its mistakes
            got = f"{type(error).__name__}: {error}"
            raise TeacherError(f"{self.name} fails on an observation of {self.world.name}", got=got) from error
        self.logprobs(first)

    def _check(self, plain: Tensor, n: int) -> None:
        expected = (n, self.world.actions)
        if tuple(plain.shape) != expected:
            raise TeacherError(
                f"{self.name} is no expert for {self.world.name}",
                got=f"answers of shape {tuple(plain.shape)}",
                expected=f"probabilities of shape {expected}",
            )
        sums = plain.sum(-1)
        if bool((plain < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            got = f"sums from {float(sums.min()):.4g} to {float(sums.max()):.4g}"
            raise TeacherError(f"{self.name} gave no probabilities", got=got, expected="numbers from 0 that sum to 1")

    @torch.no_grad()
    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        seen = observations(contexts)
        dist = TableDist(self.logprobs(seen), decisions(contexts))
        answer = answered(dist, contexts, want)
        if not want.values:
            return answer
        if self.values is None:
            raise TeacherError(f"{self.name} knows no values", expected="an expert that was given some")
        values = self.values(seen)
        value = (dist.table.exp() * values).sum(-1)
        return Answer(answer.dist, answer.chosen, answer.gathered, values, value)

    def follow(self, student: Student, step: int) -> None:
        """It stays as it is."""
