"""A policy that is a table of logits: it writes, reads and learns as any student does, with V = number of actions.

A text is one given token, the number of the first state, and then actions. The states in between are found by walking.

Axes: B sequences, T positions, N rows, S states, G rows of the table, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from opd.dist import TableDist, TopDist
from opd.engines.sampling import draw, truncate, uniforms
from opd.errors import SettingError
from opd.lab.world import World
from opd.protocols import Answer, Forward, Student, Want
from opd.rollout import Array, End, Message, Piece, Problem, Rollout, Sampling


class Policy(nn.Module):
    """Logits [G, A] in a world; `shares` [S] says which row of the table a state uses (every state its own).

    A policy whose states share a row cannot represent every expert: the smallest student that is too weak. Log-probs of
    -inf are fine in a table that only reads and writes; one that learns must be finite.
    """

    can = frozenset({"chosen", "topk", "gather", "dist", "text"})
    live = False
    context = 1_000_000  # tokens; no walk is too long

    def __init__(self, world: World, logits: Tensor, shares: Sequence[int] | None = None, name: str = "policy") -> None:
        super().__init__()
        self.world, self.name = world, name
        self.shares = torch.arange(world.states) if shares is None else torch.tensor(shares)
        if logits.shape[-1] != world.actions:
            what = "a policy over another action set than its world"
            raise SettingError(what, got=logits.shape[-1], expected=world.actions)
        self.logits = nn.Parameter(logits.double())
        self.vocab = world.actions
        self.device, self.dtype = torch.device("cpu"), torch.float64

    @classmethod
    def of(cls, world: World, probabilities: Array, name: str = "teacher") -> Policy:
        """A policy [S, A] that is known and does not learn."""
        return cls(world, torch.from_numpy(np.asarray(probabilities)).log(), name=name).requires_grad_(False)

    @torch.no_grad()
    def probabilities(self) -> Array:
        """[S, A]"""
        return self.logits[self.shares].softmax(-1).numpy()

    def trunk(self, tokens: Sequence[Array], positions: Sequence[Array], layers: tuple[int, ...]) -> Forward:
        rows = self.shares[self._states(tokens, positions)]
        return Forward(self.logits[rows], torch.eye(self.vocab, dtype=self.dtype))

    def _states(self, tokens: Sequence[Array], positions: Sequence[Array]) -> Tensor:
        """[N] the state in which each of these positions was decided."""
        padded = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        for i, sequence in enumerate(tokens):
            padded[i, : len(sequence)] = sequence
        visited = self.world.walk(padded[:, 0], padded[:, 1:])
        who = np.concatenate([np.full(len(p), i) for i, p in enumerate(positions)])
        return torch.from_numpy(visited[who, np.concatenate(positions) - 1])

    @torch.no_grad()
    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        states = self._states([c.tokens for c in contexts], [c.positions for c in contexts])
        chosen = torch.from_numpy(np.concatenate([c.decisions for c in contexts])).long()
        dist = TableDist(self.logits[self.shares[states]].log_softmax(-1), chosen)
        known = dist.chosen if want.chosen else None
        ids = [c.columns[want.gather] for c in contexts] if want.gather else []
        gathered = dist.at(torch.from_numpy(np.concatenate(ids))) if want.gather else None
        if want.topk and not want.dist:
            best = dist.top(want.topk)
            return Answer(TopDist(best, dist.at(best), chosen, known), known, gathered)
        return Answer(dist if want.dist else None, known, gathered)

    def follow(self, student: Student, step: int) -> None:
        """An expert stays as it is."""

    @torch.no_grad()
    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """Whole walks; `max_new` and stop tokens are a language model's, the world's horizon is what ends a walk."""
        flat = [seed for some in seeds for seed in some]
        starts = np.repeat([int(prompt[-1]) for prompt in prompts], [len(some) for some in seeds])
        pieces = iter(self._walks(starts, sampling, uniforms([seed % 2**64 for seed in flat], self.world.horizon)))
        return [[next(pieces) for _ in some] for some in seeds]

    def _walks(self, states: Array, sampling: Sampling, uniform: Tensor) -> list[Piece]:
        own = self.logits[self.shares].log_softmax(-1)
        behaviour = own if sampling.greedy else truncate(own, sampling)
        taken, drawn, plain = list[Array](), list[Array](), list[Array]()
        for h in range(self.world.horizon):
            row = torch.from_numpy(states)
            action = own[row].argmax(-1) if sampling.greedy else draw(behaviour[row], uniform[:, h])
            taken.append(action.numpy().astype(np.int32))
            drawn.append(np.zeros(len(states)) if sampling.greedy else behaviour[row, action].numpy())
            plain.append(own[row, action].numpy())
            states = self.world.moves[states, taken[-1]]
        actions, logs, own_logs = (np.stack(column, 1) for column in (taken, drawn, plain))
        return [Piece(a, b, c, End.STOP) for a, b, c in zip(actions, logs, own_logs, strict=True)]

    def render(self, messages: Sequence[Message]) -> Array:
        """The number of the first state is the whole prompt."""
        return np.array([int(messages[-1]["content"])], np.int32)

    def decode(self, tokens: Array) -> str:
        return " ".join(self.decode_token(int(token)) for token in tokens)

    def decode_token(self, token: int) -> str:
        return str(token)

    def save(self, folder: Path) -> None:
        """Only here so that a table is a whole student."""
        raise NotImplementedError("a table of the lab is not worth keeping")


def problems(world: World, n: int) -> list[Problem]:
    """n problems, evenly over the states in which the world begins."""
    return [Problem(f"walk-{i}", str(world.starts[i % len(world.starts)])) for i in range(n)]
