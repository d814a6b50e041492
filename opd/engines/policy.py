"""A student that acts: any small torch module from observations to one logit per action.

Axes: n decisions, N rows, V actions, S states, W width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opd.dist import HeadDist
from opd.engines.acting import Actor, answered, decisions, observations
from opd.engines.world import World
from opd.errors import ModelError, SettingError
from opd.protocols import Answer, Forward, Want
from opd.rollout import Array, Rollout

NETS = "table, mlp, mlp:WIDTH, or a folder that opd saved"


class Policy(Actor):
    """net: observations ([n] state numbers, or [n, D] vectors) -> logits [n, V].

    The logits take the place of the last hidden state, under a head that leaves them as they are.
    """

    context = sys.maxsize  # an episode has no longest prompt
    lora = None

    def __init__(self, world: World, net: nn.Module, spec: str = "module", max_new: int = 1000) -> None:
        super().__init__(world, spec, max_new)
        self.net, self.vocab = net, world.actions
        first = next(net.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.head = torch.eye(self.vocab, dtype=self.dtype, device=self.device)

    def logits(self, observations: Tensor) -> Tensor:
        return self.net(observations.long() if self.world.states else observations.to(self.dtype))

    def logprobs(self, observations: Tensor) -> Tensor:
        return self.logits(observations).log_softmax(-1)

    def trunk(self, tokens: Sequence[Array], positions: Sequence[Array], layers: tuple[int, ...]) -> Forward:
        """`tokens` are the observations of each episode; the decision at position p rests on number p - 1."""
        if layers:
            raise ModelError("a policy has no layers to compare", got=layers, remedy="Use a method that reads actions")
        seen = np.concatenate([shown[where - 1] for shown, where in zip(tokens, positions, strict=True)])
        return Forward(self.logits(torch.from_numpy(seen)), self.head)

    @torch.no_grad()
    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        hidden = self.logits(observations(contexts))
        return answered(HeadDist(hidden, self.head, decisions(contexts), self.vocab), contexts, want)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.net.parameters()

    def weights(self) -> dict[str, nn.Parameter]:
        return dict(self.net.named_parameters())

    @contextmanager
    def wearing(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """While it lasts, the net has these values: a copy of the student reads and acts like this."""
        own = {key: p.data for key, p in self.weights().items()}
        try:
            for key, p in self.weights().items():
                p.data = weights[key].to(p.dtype)
            yield
        finally:
            for key, p in self.weights().items():
                p.data = own[key]

    def state_dict(self) -> Mapping[str, Any]:
        return self.net.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        return self.net.load_state_dict(state)

    def save(self, folder: Path) -> None:
        """policy.json says what was built for which environment; policy.safetensors holds the numbers."""
        save_file(
            {key: value.contiguous() for key, value in self.net.state_dict().items()}, folder / "policy.safetensors"
        )
        about = {"environment": self.world.name, "net": self.name, "states": self.world.states, "actions": self.vocab}
        (folder / "policy.json").write_text(json.dumps(about), encoding="utf-8")


def made(spec: str, world: World, seed: int, max_new: int) -> Policy:
    """An untaught policy: `table` (one row of logits per state, uniform) or `mlp:WIDTH` (two layers)."""
    kind, _, width = spec.partition(":")
    if kind == "table" and world.states:
        net: nn.Module = nn.Embedding(world.states, world.actions)
        nn.init.zeros_(next(net.parameters()))
        return Policy(world, net, spec, max_new)
    if kind == "table":
        raise SettingError(f"a table for {world.name}", got="observations that are vectors", expected="--student mlp")
    if kind != "mlp" or (width and not (width.isdigit() and int(width))):
        raise SettingError(f"a student for {world.name}", got=repr(spec), expected=NETS)
    return Policy(world, _mlp(world, int(width or 64), seed), spec, max_new)


def _mlp(world: World, width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Embedding(world.states, width) if world.states else nn.Linear(world.width, width)
        last = nn.Linear(width, world.actions)
        net = nn.Sequential(first, nn.Tanh(), nn.Linear(width, width), nn.Tanh(), last)
    with torch.no_grad():
        last.weight.mul_(0.01)  # an untaught policy is close to uniform
        last.bias.zero_()
    return net


def loaded(folder: Path, world: World, max_new: int) -> Policy:
    """A policy that was saved, if it was saved for this environment."""
    try:
        about = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "policy.safetensors")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no policy that can be read", got=str(error)) from error
    ours = {"environment": world.name, "states": world.states, "actions": world.actions}
    if different := [key for key, value in ours.items() if about.get(key) != value]:
        got, expected = (f"{different[0]} {values.get(different[0])}" for values in (about, ours))
        raise ModelError(f"{folder} is a policy for another environment", got=got, expected=expected)
    policy = made(about["net"], world, 0, max_new)
    policy.load_state_dict(tensors)
    return policy
