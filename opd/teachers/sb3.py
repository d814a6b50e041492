"""An expert that stable-baselines3 saved: its weights are read from the .zip, and nothing in there is unpickled or run.

Such a file holds JSON (`data`, in which Python objects are pickled beside a readable form) and tensors (`policy.pth`).
Only the readable form and the tensors are looked at, the latter with torch's reader for weights alone, and the network
is built again from their shapes. So stable-baselines3 need not be installed, and a policy that is more than layers of
neurons is refused: MlpPolicy of PPO, A2C and DQN with one-hot states or flat vectors is what there is.

Verified with files of stable-baselines3 2.9.2: the probabilities of PPO (Tanh and ReLU) and A2C and the values of DQN
are those of its own policies, to the last bits of float32. What VecNormalize knew lies in a file of its own: an expert
that was trained behind it sees other numbers here, so wrap the environment instead of naming such a file.

Axes: n decisions, V actions.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from opd.engines.world import World
from opd.errors import TeacherError
from opd.teachers.expert import EPSILON, Expert

SUPPORTED = "MlpPolicy of PPO, A2C or DQN with discrete actions"
ACTIVATIONS: dict[str, type[nn.Module]] = {"Tanh": nn.Tanh, "ReLU": nn.ReLU, "ELU": nn.ELU, "LeakyReLU": nn.LeakyReLU}
HARMLESS = {  # options of a policy that change nothing about what its tensors compute
    "net_arch", "ortho_init", "log_std_init", "share_features_extractor", "optimizer_class", "optimizer_kwargs",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A class of policies: where its layers are among the tensors, and what it computes between them."""

    layers: re.Pattern[str]  # of the tensors that lead from observations to actions, in order
    beside: tuple[str, ...]  # beginnings of the others: critics and older copies
    activation: type[nn.Module]  # unless the file names another
    gives_values: bool


KINDS = {
    "stable_baselines3.common.policies": Kind(
        re.compile(r"(mlp_extractor\.policy_net\.\d+|action_net)\.(weight|bias)"),
        ("mlp_extractor.value_net.", "value_net."),
        nn.Tanh,
        False,
    ),
    "stable_baselines3.dqn.policies": Kind(
        re.compile(r"(q_net\.q_net\.\d+)\.(weight|bias)"), ("q_net_target.",), nn.ReLU, True
    ),
}


def expert(file: str, world: World, *, epsilon: float = EPSILON, max_new: int = 1000) -> Expert:
    """Acts as the saved policy does: draws (PPO, A2C), or takes the best action (DQN, which gives its values too)."""
    about, weights = opened(Path(file))
    kind = kind_of(file, about)
    net = rebuilt(file, kind, activation(file, about, kind), weights)
    check(file, net, world)
    name = f"sb3:{file}"

    def scores(seen: Tensor) -> Tensor:
        return net(nn.functional.one_hot(seen.long(), world.states).float() if world.states else seen.float())

    def best(seen: Tensor) -> Tensor:
        return nn.functional.one_hot(scores(seen).argmax(-1), world.actions)

    if kind.gives_values:
        return Expert(world, best, lambda seen: scores(seen).double(), epsilon=epsilon, name=name, max_new=max_new)
    return Expert(world, lambda seen: scores(seen).softmax(-1), epsilon=epsilon, name=name, max_new=max_new)


def opened(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the file says of itself, and its tensors."""
    if not file.is_file():
        raise TeacherError(f"teacher sb3:{file}", got="no such file", expected="a .zip that stable-baselines3 saved")
    try:
        with zipfile.ZipFile(file) as inside:
            about, tensors = json.loads(inside.read("data")), BytesIO(inside.read("policy.pth"))
        weights = torch.load(tensors, map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, UnpicklingError) as error:
        got = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise TeacherError(f"{file} is no file of stable-baselines3 that can be read", got=got) from error
    if not isinstance(about, dict) or not isinstance(weights, dict):
        raise TeacherError(f"{file} is no file of stable-baselines3", got="no table of tensors", expected=SUPPORTED)
    return about, weights


def kind_of(file: str, about: dict[str, Any]) -> Kind:
    """By the module of the policy's class, which a class of the user's own does not share."""
    policy = about.get("policy_class")
    module = policy.get("__module__") if isinstance(policy, dict) else None
    if module not in KINDS:
        raise TeacherError(f"the policy in {file} is not one that is built again", got=module, expected=SUPPORTED)
    return KINDS[module]


def activation(file: str, about: dict[str, Any], kind: Kind) -> type[nn.Module]:
    """The function between the layers; an option that might change more is refused."""
    options = about.get("policy_kwargs") or {}
    if odd := [name for name in options if not name.startswith(":") and name not in HARMLESS | {"activation_fn"}]:
        raise TeacherError(f"the policy in {file} has an option of its own", got=odd[0], expected=SUPPORTED)
    named = options.get("activation_fn")
    if named is None:
        return kind.activation
    name = str(named).rpartition(".")[2].strip("'>")
    if name not in ACTIVATIONS or "torch.nn" not in str(named):
        raise TeacherError(f"the activation of the policy in {file}", got=name, expected=", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def rebuilt(file: str, kind: Kind, between: type[nn.Module], weights: dict[str, Tensor]) -> nn.Sequential:
    """The layers in the order of the file, with `between` between them; any other tensor is refused."""
    ours = {name: tensor for name, tensor in weights.items() if kind.layers.fullmatch(name)}
    odd = [name for name in weights if name not in ours and not name.startswith(kind.beside)]
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in ours))
    if odd or not names or any(f"{name}.{part}" not in ours for name in names for part in ("weight", "bias")):
        got = odd[0] if odd else "no layers"
        raise TeacherError(f"the policy in {file} is more than layers of neurons", got=got, expected=SUPPORTED)
    net = nn.Sequential()
    for name in names:
        weight, bias = ours[f"{name}.weight"], ours[f"{name}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        net.extend([between(), layer] if len(net) else [layer])
    return net.requires_grad_(False)


def check(file: str, net: nn.Sequential, world: World) -> None:
    """As many numbers go in and come out as the environment has; images would have to be scaled as they were there."""
    space = world.seats[0].observation_space
    if len(space.shape or ()) == 3 and space.dtype == "uint8":
        raise TeacherError(f"{file} for {world.name}", got="images as observations", expected=SUPPORTED)
    first, last = net[0], net[-1]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    got, expected = (first.in_features, last.out_features), (world.states or world.width, world.actions)
    if got != expected:
        words = [f"{observed} observed numbers and {actions} actions" for observed, actions in (got, expected)]
        raise TeacherError(f"{file} is an expert for another environment", got=words[0], expected=words[1])
