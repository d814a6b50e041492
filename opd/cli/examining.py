"""`opd eval`: what a model gets right on problems that nobody learned from, greedy and sampled."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd.cli import options
from opd.cli.display import exam_words, share
from opd.cli.options import Option
from opd.errors import SettingError

if TYPE_CHECKING:
    from opd.evaluate import Evaluation

OPTIONS = [
    Option("task", "str", "", "sums, jsonl:FILE, parquet:FILE or reasoning_gym:NAME"),
    Option("samples", "int", 1, "sampled answers per problem; 0 for the greedy answer alone"),
    Option("problems", "int", 0, "first so many held-out problems; 0 for all"),
    Option("temperature", "float", 1.0, "of the sampled answers"),
    Option("top_p", "float", 1.0, "nucleus of the sampled answers"),
    Option("max_new", "int", 256, "tokens of an answer at most"),
    Option("seed", "int", 0, "of the sampled answers"),
    Option("teacher", "str", "", "a model: measures the reverse KL to it, on the sampled answers"),
    Option("dtype", "str", "auto", "float32, bfloat16, float16 or float64"),
    Option("device", "str", "auto", "cpu, cuda, cuda:1 ..."),
    Option("trust_remote_code", "bool", False, "allow code from a model folder to run"),
    Option("json", "bool", False, "everything as JSON on one line"),
]


def eval_(words: list[str]) -> int:
    """Examines one model and prints what it found."""
    if options.asks_help(words):
        text = "Examines a model folder, hub name, embedded:NAME or run folder on the held-out problems of a task."
        print(options.page(["opd eval MODEL --task SPEC [options]"], text, OPTIONS))
        return 0
    places, given = options.parse(words, OPTIONS, "eval")
    model = options.one_place(places, "model", "eval")
    if not given.get("task"):
        raise SettingError("opd eval needs a task", expected="--task", remedy="For example --task sums, or --task jsonl:FILE")
    values = {option.name: option.default for option in OPTIONS} | given
    as_json = values.pop("json") in (True, "true")
    found = examined(model, checked(values))
    print(json.dumps(found.to_json()) if as_json else "\n".join(lines(found)))
    return 0


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers as numbers, by the same checks as the settings of a run."""
    from opd.settings import checked_values

    kinds = {"int": int, "float": float, "str": str, "bool": bool}
    return checked_values(values, {option.name: kinds[option.kind] for option in OPTIONS}, "option")


def located(model: str) -> str:
    """The student of a run folder, or the model as it was named."""
    inside = Path(model) / "model"
    return str(inside) if (inside / "config.json").is_file() else model


def examined(model: str, values: dict[str, Any]) -> Evaluation:
    from opd.cli.quiet import hush

    hush()
    from opd.cast import opened, share_vocabulary
    ...
