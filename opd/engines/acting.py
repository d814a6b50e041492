"""Whoever acts in a world, student or teacher: log-probs of actions in, episodes as pieces of writing out.

The prompt of an episode is one number, the seed that its environment starts from; its tokens are the actions.

Axes: B episodes, n decisions, N rows, V actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from opd.dist import HeadDist, TableDist, TopDist
from opd.engines.sampling import at, choose, take_turn, uniforms
from opd.engines.world import World, play
from opd.protocols import Answer, Want
from opd.rollout import Array, Message, Piece, Rollout, Sampling


class Actor(ABC):
    """A writer whose texts are episodes."""

    def __init__(self, world: World, name: str, max_new: int = 1000) -> None:
        self.world, self.name, self.max_new = world, name, max_new

    @abstractmethod
    def logprobs(self, observations: Tensor) -> Tensor:
        """[n, ...] observations -> [n, V] log-probs of the actions."""

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        starts, flat, limit = self._spread(prompts, sampling, seeds)
        uniform = uniforms(flat, limit)

        def decide(observations: Tensor, live: Array, t: int) -> Mapping[str, Array]:
            plain = self.logprobs(observations)
            token, drawn = choose(plain, sampling, uniform[live, t])
            own = at(plain, token)
            behaviour = torch.zeros_like(own) if sampling.greedy else at(drawn, token)
            return {"token": token.numpy(), "behaviour": behaviour.numpy(), "untruncated": own.numpy()}

        with torch.no_grad():
            return _regrouped(play(self.world, starts, limit, decide), seeds)

    def take_turns(
        self, teacher: Actor, share: float, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Piece]]:
        """Per step a coin says who executes; what the teacher would do is drawn anyway and kept as `label`."""
        starts, flat, limit = self._spread(prompts, sampling, seeds)
        uniform = uniforms(flat, 3 * limit).unflatten(-1, (limit, 3))

        def decide(observations: Tensor, live: Array, t: int) -> Mapping[str, Array]:
            plain, expert = self.logprobs(observations), teacher.logprobs(observations)
            turn = take_turn(plain, expert, share, sampling, uniform[live, t])
            return {name: column.numpy() for name, column in turn.items()}

        with torch.no_grad():
            return _regrouped(play(self.world, starts, limit, decide), seeds)

    def _spread(
        self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[int], int]:
        starts = [int(prompt[-1]) for prompt, some in zip(prompts, seeds, strict=True) for _ in some]
        return starts, [seed for some in seeds for seed in some], sampling.max_new or self.max_new

    def render(self, messages: Sequence[Message]) -> Array:
        """The seed at the end of the text."""
        return np.array([int(messages[-1]["content"].rpartition(" ")[2])], np.int32)

    def decode(self, tokens: Array) -> str:
        return " ".join(self.decode_token(int(token)) for token in tokens)

    def decode_token(self, token: int) -> str:
        return self.world.called(token)


def observations(contexts: Sequence[Rollout]) -> Tensor:
    """[N, ...] what every decision of these episodes rested on."""
    return torch.from_numpy(np.concatenate([c.fed[c.positions - 1] for c in contexts]))


def answered(dist: HeadDist | TableDist, contexts: Sequence[Rollout], want: Want) -> Answer:
    """Whatever can be said from whole distributions [N, V]."""
    chosen = dist.chosen if want.chosen else None
    gathered = None
    if want.gather:
        gathered = dist.at(torch.from_numpy(np.concatenate([c.columns[want.gather] for c in contexts])))
    if want.topk and not want.dist:
        ids = dist.top(want.topk)
        return Answer(TopDist(ids, dist.at(ids), dist.tokens, dist.chosen), chosen, gathered)
    return Answer(dist if want.dist else None, chosen, gathered)


def decisions(contexts: Sequence[Rollout]) -> Tensor:
    """[N] the actions that were executed."""
    return torch.from_numpy(np.concatenate([c.decisions for c in contexts])).long()


def _regrouped(pieces: list[Piece], seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
    rest = iter(pieces)
    return [[next(rest) for _ in some] for some in seeds]
