"""A world is a row of seats at one gymnasium environment: episodes start from seeds and are played side by side.

Axes: B seats, T steps, V actions, S states of a world whose observations are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.errors import SettingError, nearest
from opd.rollout import Array, End, Piece

SUPPORTED = "a Discrete action space (discrete observations or any that gymnasium can flatten)"
NAMES = {  # of actions, where gymnasium's own documentation gives them
    "FrozenLake": ("←", "↓", "→", "↑"),
    "FrozenLake8x8": ("←", "↓", "→", "↑"),
    "CliffWalking": ("↑", "→", "↓", "←"),
    "Taxi": ("↓", "↑", "→", "←", "pick up", "drop off"),
    "CartPole": ("←", "→"),
}
SUCCESS = {
    "CliffWalking": -99.0,
    "Taxi": 0.0,
}  # least return of a success, where gymnasium's threshold is none or a mean
Decide = Callable[[Tensor, Array, int], Mapping[str, Array]]  # observations [m, ...], seats [m], time -> columns [m]


class World:
    """One environment, as many copies of it as there are seats, and how its observations and actions are written.

    name and options are gymnasium's; `success` is the least return of an episode that counts as a success (None: the
    usual one, if there is one). `steps` counts what was played, whoever played.
    """

    def __init__(self, name: str, options: Mapping[str, Any] | None = None, success: float | None = None) -> None:
        if find_spec("gymnasium") is None:
            raise SettingError("environments need the package gymnasium", remedy="pip install opd[environments]")
        self.name, self.options = name, dict(options or {})
        self.seats: list[Any] = [self._made()]
        first = self.seats[0]
        self._check(first)
        self.actions = int(first.action_space.n)
        self.first_action = int(first.action_space.start)
        self.states = self._states(first.observation_space)
        usual = SUCCESS.get(self.kind, first.spec.reward_threshold)
        self.success = usual if success is None else success
        self.steps = 0

    @property
    def kind(self) -> str:
        """The name without module and version."""
        return self.name.rpartition("/")[2].partition("-v")[0]

    @property
    def limit(self) -> int | None:
        """Decisions after which the environment cuts an episode off."""
        return self.seats[0].spec.max_episode_steps

    def graded(self, total: float, ended: bool) -> float:
        """1 for a success, 0 for none, nan where nobody knows; an episode that is cut off has not paid its whole price.

        So where a success may have a negative return, only an episode that the environment ended can be one.
        """
        if self.success is None:
            return float("nan")
        return float(total >= self.success and (ended or self.success >= 0))

    def called(self, action: int) -> str:
        """An action as a person should see it."""
        names = NAMES.get(self.kind, ())
        return names[action] if action < len(names) else str(action)

    @property
    def width(self) -> int:
        """Numbers in an observation that is a vector."""
        from gymnasium.spaces import flatdim

        return flatdim(self.seats[0].observation_space)

    def observed(self, observation: Any) -> Array:
        """An observation as it is kept: the number of a state, or a flat float32 vector."""
        if self.states:
            return np.asarray(int(observation) - int(self.seats[0].observation_space.start), np.int32)
        from gymnasium.spaces import flatten

        return np.asarray(flatten(self.seats[0].observation_space, observation), np.float32)

    def reset(self, seeds: Sequence[int]) -> Array:
        """[B, ...] the first observation of an episode for each seed, which also fixes the luck of the episode."""
        while len(self.seats) < len(seeds):
            self.seats.append(self._made())
        return np.stack(
            [self.observed(seat.reset(seed=int(seed))[0]) for seat, seed in zip(self.seats, seeds, strict=False)]
        )

    def step(self, seats: Array, actions: Array) -> tuple[Array, Array, Array, Array]:
        """[m, ...] observations, [m] rewards, [m] ended by the environment, [m] cut off by its time limit."""
        played = [self.seats[s].step(int(a) + self.first_action) for s, a in zip(seats, actions, strict=True)]
        self.steps += len(played)
        observations, rewards, ended, cut = (list(column) for column in zip(*(p[:4] for p in played), strict=True))
        return np.stack([self.observed(o) for o in observations]), np.array(rewards), np.array(ended), np.array(cut)

    def _made(self) -> Any:
        import gymnasium

        try:
            return gymnasium.make(self.name, disable_env_checker=True, **self.options)
        except gymnasium.error.NameNotFound:
            known = [name for name in gymnasium.registry if "/" not in name]
            raise SettingError("no such environment", got=repr(self.name), remedy=nearest(self.name, known)) from None
        except (gymnasium.error.Error, TypeError, ValueError, KeyError, ImportError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise SettingError(f"environment {self.name} cannot be made", got=lines[0]) from error

    @staticmethod
    def _states(space: Any) -> int:
        """How many states a numbered observation can have; 0 where observations are vectors."""
        from gymnasium.spaces import Discrete

        return int(space.n) if isinstance(space, Discrete) else 0

    def _check(self, environment: Any) -> None:
        from gymnasium import spaces

        if not isinstance(environment.action_space, spaces.Discrete):
            raise SettingError(f"the actions of {self.name}", got=str(environment.action_space), expected=SUPPORTED)
        if not environment.observation_space.is_np_flattenable:
            raise SettingError(
                f"the observations of {self.name}", got=str(environment.observation_space), expected=SUPPORTED
            )


def play(world: World, starts: Sequence[int], limit: int, decide: Decide) -> list[Piece]:
    """One episode per start, at most `limit` steps each; `decide` is asked once per time step for all that go on.

    Seats are plain environments and not gymnasium's vector ones: episodes end at different times, are never restarted
    on their own, and each is fixed by its own seed alone, whoever plays beside it.
    """
    observations = world.reset(starts)
    shown = np.zeros((limit + 1, *observations.shape), observations.dtype)
    shown[0] = observations
    columns: dict[str, Array] = {"earned": np.zeros((limit, len(starts)))}
    length, ended = np.zeros(len(starts), int), np.zeros(len(starts), bool)
    live = np.arange(len(starts))
    for t in range(limit):
        decided = decide(torch.from_numpy(shown[t, live]), live, t)
        shown[t + 1, live], earned, over, cut = world.step(live, decided["token"])
        for name, values in {**decided, "earned": earned}.items():
            if name not in columns:
                columns[name] = np.zeros((limit, len(starts)), values.dtype)
            columns[name][t, live] = values
        length[live], ended[live] = t + 1, over
        live = live[~(over | cut)]
        if not len(live):
            break
    by_seat = [{name: column[:, seat] for name, column in columns.items()} for seat in range(len(starts))]
    return [_piece(world, shown[:, seat], own, length[seat], ended[seat]) for seat, own in enumerate(by_seat)]


def _piece(world: World, shown: Array, columns: dict[str, Array], n: int, ended: bool) -> Piece:
    """An episode of n decisions; its tags are the return, and as reward whether that is a success."""
    known = {name: values[:n] for name, values in columns.items()}
    if world.states:
        known["state"] = shown[:n].astype(np.int64)
    total = float(known["earned"].sum())
    return Piece(
        tokens=known.pop("token").astype(np.int32),
        behaviour=known.pop("behaviour"),
        untruncated=known.pop("untruncated"),
        end=End.STOP if ended else End.LENGTH,
        author=known.pop("author", None),
        inputs=shown[: n + 1],
        columns=known,
        tags={"reward": world.graded(total, ended), "return": total},
    )
