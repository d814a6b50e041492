"""A causal language model of a few hundred float64 numbers that can write, read and learn: the contract's guinea pig.

Axes: B sequences, T positions, N rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from opd.dist import HeadDist, TopDist
from opd.protocols import CAPABILITIES, Answer, Forward, Student, Want, resolve_layers
from opd.rollout import STUDENT, TEACHER, Array, End, Message, Piece, Problem, Rollout, Sampling

STOP = 1  # token 0 is padding, token 1 ends a text
MAX_NEW = 5
LEAST = 0.02  # weight of a token however long ago: a hint far above the answer is not forgotten


class ToyModel(nn.Module):
    """Two layers over an exponentially fading sum of embeddings; `calls` counts the passes it was asked for."""

    def __init__(self, seed: int = 0, vocab: int = 7, width: int = 6, name: str = "toy", padded: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator))
        self.embedding, self.first, self.second = draw(vocab, width), draw(width, width), draw(width, width)
        self.head = draw(vocab + padded, width)
        self.name, self.vocab = name, vocab
        self.can, self.live = frozenset(CAPABILITIES), False
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.calls: Counter[str] = Counter()

    def layers_of(self, tokens: Tensor) -> list[Tensor]:
        """[B, T] ids -> the states [B, T, D] after each of the two layers; position t sees tokens 0..t only."""
        t = torch.arange(tokens.shape[1])
        fade = (0.6 ** (t[:, None] - t[None, :]).clamp(min=0).double()).clamp(min=LEAST).tril()
        first = torch.tanh((fade @ self.embedding[tokens]) @ self.first)
        return [first, torch.tanh(first @ self.second + first)]

    def trunk(self, tokens: Sequence[Array], positions: Sequence[Array], layers: tuple[int, ...]) -> Forward:
        self.calls["learn"] += 1
        return self._forward(tokens, positions, layers)

    def _forward(self, tokens: Sequence[Array], positions: Sequence[Array], layers: tuple[int, ...]) -> Forward:
        padded = torch.zeros(len(tokens), max(map(len, tokens)) + 1, dtype=torch.long)
        for i, sequence in enumerate(tokens):
            padded[i, : len(sequence)] = torch.as_tensor(sequence)
        states = self.layers_of(padded)
        blocks = resolve_layers(layers, len(states), self.name)
        who = torch.cat([torch.full((len(p),), i) for i, p in enumerate(positions)])
        where = torch.from_numpy(np.concatenate(positions)).long()
        return Forward(
            states[-1][who, where - 1], self.head, {key: states[block - 1][who, where] for key, block in blocks.items()}
        )

    @torch.no_grad()
    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        self.calls["read"] += 1
        f = self._forward([c.tokens for c in contexts], [c.positions for c in contexts], want.layers)
        chosen = torch.from_numpy(np.concatenate([c.decisions for c in contexts])).long()
        dist = HeadDist(f.hidden, self.head.detach().clone(), chosen, self.vocab, states=f.states)
        known = dist.chosen if want.chosen else None
        if want.values:  # a token is worth its probability
            values = dist.logprobs().exp()
            return Answer(dist if want.dist else None, known, None, values, values.square().sum(-1))
        gathered = None
        if want.gather:
            gathered = dist.at(torch.from_numpy(np.concatenate([c.columns[want.gather] for c in contexts])))
        if want.topk and not want.dist:
            ids = dist.top(want.topk)
            return Answer(TopDist(ids, dist.at(ids), chosen, known, f.states), known, gathered)
        return Answer(dist if want.dist or want.layers else None, known, gathered)

    def follow(self, student: Student, step: int) -> None:
        """A frozen reader follows nobody."""

    @torch.no_grad()
    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        self.calls["write"] += 1
        return [
            [self._piece(prompt, sampling, seed) for seed in some] for prompt, some in zip(prompts, seeds, strict=True)
        ]

    def _piece(self, prompt: Array, sampling: Sampling, seed: int) -> Piece:
        uniform = np.random.Generator(np.random.Philox(key=seed % 2**64)).random(MAX_NEW)
        tokens, behaviour, untruncated = list(prompt), list[float](), list[float]()
        for u in uniform:
            plain, drawn = self._next(tokens, sampling)
            token = _drawn(drawn, u)
            tokens.append(token)
            behaviour.append(float(drawn[token]))
            untruncated.append(float(plain[token]))
            if token == STOP:
                break
        end = End.STOP if tokens[-1] == STOP else End.LENGTH
        return Piece(np.array(tokens[len(prompt) :], np.int32), np.array(behaviour), np.array(untruncated), end)

    def _next(self, tokens: Sequence[int], sampling: Sampling) -> tuple[Tensor, Tensor]:
        """[V] log-probs of the next token: the model's own, and those that it is drawn with."""
        logits = self.layers_of(torch.tensor([list(tokens)]))[-1][0, -1] @ self.head[: self.vocab].T
        return logits.log_softmax(-1), (logits / (sampling.temperature or 1.0)).log_softmax(-1)

    @torch.no_grad()
    def take_turns(
        self,
        teacher: ToyModel,
        share: float,
        prompts: Sequence[Array],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Piece]]:
        self.calls["write"] += 1
        teacher.calls["write"] += 1
        pairs = zip(prompts, seeds, strict=True)
        return [[self._turns(teacher, share, prompt, sampling, seed) for seed in some] for prompt, some in pairs]

    def _turns(self, teacher: ToyModel, share: float, prompt: Array, sampling: Sampling, seed: int) -> Piece:
        uniform = np.random.Generator(np.random.Philox(key=seed % 2**64)).random((MAX_NEW, 3))
        tokens, found = list(prompt), list[tuple[int, int, float, float]]()
        for coin, ours, theirs in uniform:
            (plain, drawn), (_, expert) = self._next(tokens, sampling), teacher._next(tokens, sampling)
            label = _drawn(expert, theirs)
            relieved = coin < share
            token = label if relieved else _drawn(drawn, ours)
            mixture = (1 - share) * drawn[token].exp() + share * expert[token].exp()
            tokens.append(token)
            found.append((label, TEACHER if relieved else STUDENT, float(mixture.log()), float(plain[token])))
            if token == STOP:
                break
        label, author, behaviour, untruncated = (np.array(column) for column in zip(*found, strict=True))
        end = End.STOP if tokens[-1] == STOP else End.LENGTH
        ids = np.array(tokens[len(prompt) :], np.int32)
        return Piece(ids, behaviour, untruncated, end, author, columns={"label": label})

    def render(self, messages: Sequence[Message]) -> Array:
        """One token from 2 up per character; the text needs no tokenizer."""
        text = "".join(message["content"] for message in messages) or " "
        return np.array([2 + ord(c) % (self.vocab - 2) for c in text], np.int32)

    def encode(self, text: str) -> Array:
        """As a prompt, and the stop token."""
        return np.append(self.render([{"role": "assistant", "content": text}]), STOP).astype(np.int32)

    def decode(self, tokens: Array) -> str:
        return " ".join(self.decode_token(int(token)) for token in tokens)

    def decode_token(self, token: int) -> str:
        return str(token)

    def save(self, folder: Path) -> None:
        """Only here so that a toy is a whole student."""
        raise NotImplementedError("a toy is not worth keeping")


def _drawn(logprobs: Tensor, uniform: float) -> int:
    return int(torch.searchsorted(logprobs.exp().cumsum(-1), torch.tensor(uniform * 0.999999)))


def problems(n: int) -> list[Problem]:
    """Toy problems with everything that a method may want to know about one."""
    return [
        Problem(f"toy-{i}", "ab" * (1 + i % 3), "2", "hint" + " x" * i, {"solution": "because" + "y" * i})
        for i in range(n)
    ]
