"""A file of JSON lines, read as people write it: one object per line, each with the place where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opd.errors import DataError

NAMES = {str: "text", dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}


def lines(path: Path, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file and where they stand; blank lines are passed over. `example`: a line as it should be."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = json.loads(text) if text.strip() else {}
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8 text", got=f"byte {error.start}: {error.reason}") from error
        except json.JSONDecodeError as error:
            what = f"{error.msg} at column {error.colno}"
            raise DataError(f"{where} is not valid JSON", got=what, expected="one object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is not an object", got=type_of(row), expected=f"{example}, one per line")
        if text.strip():
            yield where, row


def type_of(value: Any) -> str:
    """What somebody who writes JSON would call it."""
    return "nothing" if value is None else NAMES.get(type(value), type(value).__name__)
