"""A claim is a sentence of a paper, with the cases in which it is tried and what must be better than what."""

from __future__ import annotations

from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from opd import recipes
from opd.errors import SettingError, nearest
from opd.settings import checked, read_toml

Better = Literal["higher", "lower"]


class Case(BaseModel):
    """One setting in which the claim is tried: `method` must beat `baseline` in `measure`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="ends the sentence 'shown only when ...'")
    method: str = Field(description="as opd compare takes it: NAME or NAME:parameter=value,...")
    baseline: str = Field(description="the method's own baseline, in the same words")
    others: tuple[str, ...] = Field((), description="whom it is also held against; of them, the control decides")
    measure: str = Field(
        "sampled",
        description="sampled, greedy, reverse_kl or length at the end; metric:NAME is a mean over the run; "
        "context:NAME and task:SPEC are examined afterwards (again.py)",
    )
    better: Better = "higher"
    rates: tuple[float, ...] = Field(
        (1e-3, 3e-3, 1e-2),
        description="that every method tries; the best by the measure where it is sampled, greedy or reverse_kl, "
        "else by sampled accuracy",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="shared by all methods")


class Claim(BaseModel):
    model_config = ConfigDict(extra="forbid")

    says: str = Field(description="what the paper claims, in one sentence")
    numbers: str = Field(description="the paper's own numbers")
    here: str = Field(description="what was made of it at this size, and what that leaves out")
    case: tuple[Case, ...] = Field(min_length=1)


def names() -> tuple[str, ...]:
    """The methods that have a claim to try."""
    return tuple(sorted(f.name[:-5] for f in resources.files("opd.claims").iterdir() if f.name.endswith(".toml")))


def load(method: str) -> Claim:
    recipes.check_name(method)
    if method not in names():
        raise SettingError(f"{method} has no claim to try", remedy=nearest(method, names()))
    with resources.as_file(resources.files("opd.claims").joinpath(f"{method}.toml")) as file:
        return checked(Claim, read_toml(file))
