"""A finding is one sentence of evidence with a verdict, and the option that mends what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from opd.errors import OpdError

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check saw. `numbers` and `examples` are what the evidence says, for programs."""

    name: str
    verdict: Verdict
    evidence: str
    remedy: str = ""
    numbers: dict[str, float] = field(default_factory=dict[str, float])
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}" + (f". {self.remedy}" if self.remedy else "")


def finding(
    name: str, fault: bool, evidence: str, remedy: str = "", *, fatal: bool = False, examples: tuple[str, ...] = (),
    **numbers: float,
) -> Finding:  # fmt: skip
    """A pass, or what is wrong with its remedy; `fatal` makes it a fail."""
    verdict: Verdict = ("fail" if fatal else "warn") if fault else "pass"
    return Finding(name, verdict, evidence, remedy if fault else "", numbers, examples)


def tried(name: str, fine: str, check: Callable[..., Any], *arguments: Any) -> Finding:
    """A check that refuses with an error, as a finding: the refusal is the evidence of a fail."""
    try:
        check(*arguments)
    except OpdError as error:
        return Finding(name, "fail", error.evidence, error.remedy)
    return Finding(name, "pass", fine)
