"""The table of all methods: what is tried in parts is one table, and what was made another way is not in it."""

import json

import pytest

from experiments.side_by_side.compare import entrant
from experiments.side_by_side.table import EMBEDDED, Table

MADE = {"steps": 60, "answers": 64, "seeds": 3, "rates": [1e-3, 1e-2], "further": 2}


def row(name, task=EMBEDDED, share=0.5, **more):
    numbers = {"sampled": {"value": share, "low": share - 0.1, "high": share + 0.1}, "tokens": {"value": 1234.0}}
    lines = {"before": {"sampled": {"value": 0.2, "low": None, "high": None}}, "method": numbers}
    return {"name": name, "task": task, "errors": (), "lr": 1e-2, "tried": [1e-3, 1e-2], "lines": lines} | more


def cells(out, name):
    text = (out / "side_by_side.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_parts_make_one_table_in_the_order_of_the_methods(tmp_path):
    Table(tmp_path, MADE).put(row("sft", batch_seconds=0.5))
    Table(tmp_path, MADE).put(row("gkd", "countdown", share=0.25, tried=[1e-3, 1e-2, 3e-2]))
    Table(tmp_path, MADE).put(row("gkd", share=0.75))
    text = (tmp_path / "side_by_side.md").read_text()
    assert text.index("`gkd`") < text.index("`sft`") and "best of 0.001, 0.01 by" in " ".join(text.split())
    assert cells(tmp_path, "`gkd`")[1:4] == ["75.0 (65.0 to 85.0)", "25.0 (15.0 to 35.0)", "0.01 (highest tried), 0.01"]
    assert cells(tmp_path, "`sft`")[1:5] == ["50.0 (40.0 to 60.0)", "", "0.01 (highest tried), –", "1,234"]
    assert cells(tmp_path, "*the student before*")[1:3] == ["20.0", "20.0"]


def test_what_was_refused_or_broke_stands_beneath(tmp_path):
    refused = {"name": "raps_da", "task": EMBEDDED, "lines": {}, "errors": (), "refused": "nobody is the specialist"}
    Table(tmp_path, MADE).put(refused)
    Table(tmp_path, MADE).put(row("sft", errors=["seed 1: not finite"]))
    text = (tmp_path / "side_by_side.md").read_text()
    assert cells(tmp_path, "`raps_da`")[1:3] == ["not run", "–"]
    assert "- `raps_da` on embedded: nobody is the specialist" in text
    assert "- `sft` on embedded broke, seed 1: not finite" in text


@pytest.mark.parametrize("change", [{"seeds": 5}, {"rates": [1e-3]}, {"steps": 30}])
def test_rows_that_were_made_another_way_are_forgotten(tmp_path, change):
    Table(tmp_path, MADE).put(row("gkd"))
    Table(tmp_path, MADE | change).put(row("sft"))
    kept = json.loads((tmp_path / "side_by_side.json").read_text())
    assert [one["name"] for one in kept["rows"]] == ["sft"] and kept["made"] == MADE | change


def test_a_method_with_a_task_of_its_own_says_so(tmp_path):
    Table(tmp_path, MADE).put(row("raps_da"))
    assert "`raps_da` has a task of its own" in (tmp_path / "side_by_side.md").read_text()


def test_a_method_that_cannot_have_its_defaults_on_a_task_says_so(tmp_path):
    Table(tmp_path, MADE).put(row("sdpo", "countdown"))
    text = (tmp_path / "side_by_side.md").read_text()
    assert "- `sdpo` on countdown has k=64, since its vocabulary has 92 tokens." in text
    assert "bridge=8" not in text  # of a method that was not tried
    assert [entrant("sdpo", task).parameters for task in ("sums", "countdown")] == [{}, {"k": 64}]
