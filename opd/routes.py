"""Where one role is played by several, every rollout says by whom, and every batch how much each of them had to say.

Axes: N rows of an update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from opd.protocols import Cast
from opd.rollout import Group
from opd.rows import Rows

TAG = "route"  # the column `WHO.route` holds the number of the member that plays the role of WHO


def tagged(groups: Iterable[Group], cast: Cast) -> list[Group]:
    """The groups with the number of the member that their problem names, for every role that several play."""
    roles = {who: member for who, member in cast.items() if hasattr(member, "routes")}

    def one(group: Group) -> Group:
        tags = {f"{who}.{TAG}": member.route(group.problem) for who, member in roles.items()}
        return replace(group, rollouts=tuple(rollout.tagged(**tags) for rollout in group.rollouts))

    return [one(group) for group in groups] if roles else list(groups)


@dataclass
class Fared:
    """Rows and loss by member over the updates of one batch, so that a member that starves or drifts shows."""

    cast: Cast
    total: int = 0
    rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    loss: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, rows: Rows, each: Tensor) -> None:
        """Counts one update; each [N] is the loss of every row, nan where none was computed."""
        self.total += int((~each.isnan()).sum())
        for who, name, number in self.members():
            own = each[(rows[f"{who}.{TAG}"] == number) & ~each.isnan()]
            self.rows[f"{who}.{name}"] += len(own)
            self.loss[f"{who}.{name}"] += float(own.double().sum())

    def metrics(self) -> dict[str, float]:
        """WHO.NAME.rows, the share of the learned rows, and WHO.NAME.loss, their mean; no mean over nothing."""
        shares = {f"{key}.rows": n / max(self.total, 1) for key, n in self.rows.items()}
        return shares | {f"{key}.loss": self.loss[key] / n for key, n in self.rows.items() if n}

    def members(self) -> Sequence[tuple[str, str, int]]:
        """(role, name, number) of everyone who shares a role."""
        return [
            (who, name, number)
            for who, member in self.cast.items()
            for number, name in enumerate(getattr(member, "routes", ()))
        ]
