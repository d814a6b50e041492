"""What a paper tried of a parameter: the end of its line of help in a recipe, such as `[paper: 0 or 1 to 10]`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from opd.errors import MethodError

MENTIONED = re.compile(r"\[paper\b", re.IGNORECASE)
WRITTEN = re.compile(r"(?P<help>\S.*?) \[paper: (?P<range>[^\[\]]+)\]")


@dataclass(frozen=True)
class Tried:
    """Numbers and ranges of numbers, bounds included, as they were written and as pairs (low, high)."""

    text: str
    ranges: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, text: str) -> Tried:
        """`0 or 1 to 10`; a ValueError where that is no list of numbers and rising ranges."""
        ends = [[float(number) for number in part.split(" to ")] for part in text.split(" or ")]
        if any(len(one) > 2 or sorted(set(one)) != one or not all(map(math.isfinite, one)) for one in ends):
            raise ValueError(text)
        return cls(text, tuple((one[0], one[-1]) for one in ends))

    def __contains__(self, value: float) -> bool:
        return any(low <= value <= high for low, high in self.ranges)


def parted(line: str) -> tuple[str, Tried | None]:
    """A line of help without its range, and the range; a range that cannot be read is the recipe's mistake."""
    if not MENTIONED.search(line):
        return line, None
    found = WRITTEN.fullmatch(line)
    try:
        if found and not MENTIONED.search(found["help"]):
            return found["help"], Tried.of(found["range"])
    except ValueError:
        pass
    raise MethodError(
        "what a paper tried of a parameter", got=repr(line), expected="a line that ends in, say, [paper: 1 to 10]"
    )
