"""What a paper tried of a parameter stands in the recipe's line of help; a run beyond it is allowed and says so."""

import math

import pytest
from fake_run import write_run

from opd import recipes
from opd.cli.main import main
from opd.compare import verdicts
from opd.compare.outcome import Field
from opd.compare.plan import Contest, Entrant
from opd.errors import MethodError
from opd.report import write
from opd.tried import Tried, parted

BEYOND = "alpha=1000 is outside the range that its paper tried, 0 or 0.1 to 500: allowed, but the paper does not say"
SMALL = {"steps": 1, "batch": 2, "max_new": 4, "eval_problems": 2, "drafts": 0, "device": "cpu", "doctor": "off"}


def test_a_range_is_the_end_of_a_line_of_help():
    assert parted("a power; 0 for none [paper: 0 or 0.1 to 1e3]") == (
        "a power; 0 for none",
        Tried("0 or 0.1 to 1e3", ((0.0, 0.0), (0.1, 1000.0))),
    )
    assert parted("a power") == ("a power", None)
    assert parted("a power [in nats]") == ("a power [in nats]", None)


def test_bounds_belong_to_a_range():
    tried = Tried.of("-2 to 3 or 8")
    assert [value in tried for value in (-2, 0, 3, 8, 8.0)] == [True] * 5
    assert [value in tried for value in (-2.1, 3.1, 7.9, 9, math.inf, math.nan)] == [False] * 6


@pytest.mark.parametrize(
    "line",
    [
        "a power [paper: 1-10]",
        "a power [paper: 10 to 1]",
        "a power [paper: about 1 to 10]",
        "a power [paper: inf]",
        "a power [paper:]",
        "a power [Paper: 1 to 10]",
        "a power [paper 1 to 10]",
        "a power [paper: 1 to 10], bounded",
        "a power [paper: 1 to 10] [paper: 12]",
        "[paper: 1 to 10]",
    ],
)
def test_a_malformed_range_is_an_error(line):
    with pytest.raises(MethodError, match=r"\[paper: 1 to 10\]"):
        parted(line)


@pytest.mark.parametrize("name", recipes.names())
def test_every_range_of_a_recipe_can_be_read_and_holds_the_default(name):
    for parameter in recipes.describe(name).parameters:
        assert parameter.tried is None or parameter.kind in ("int", "float"), parameter
        assert parameter.tried is None or parameter.default in parameter.tried, parameter


def test_what_lies_outside_is_said_and_nothing_else():
    assert recipes.untried("power", {}) == []
    assert recipes.untried("power", {"alpha": 1.0, "k": 10**6, "form": "topk"}) == []
    assert recipes.untried("power", {"alpha": 0.0}) == recipes.untried("power", {"alpha": 500.0}) == []
    assert recipes.untried("power", {"alpha": "of another version"}) == []
    (sentence,) = recipes.untried("power", {"alpha": 1000.0})
    assert sentence.startswith(BEYOND) and sentence.endswith("how that goes")
    assert len(recipes.untried("ar_opd", {"lam": 2.0, "rho": 0.1})) == 2


def test_show_and_help_tell_the_range(capsys):
    assert main(["show", "power"]) == 0
    assert "0 for the log-ratio [5.0; the paper tried 0 or 0.1 to 500]" in " ".join(capsys.readouterr().out.split())
    assert main(["train", "power", "--help"]) == 0
    assert "[5.0; the paper tried 0 or 0.1 to 500]" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("alpha", "times"), [("1000", 1), ("5", 0)])
def test_a_run_says_it_at_its_start(tmp_path, capsys, alpha, times):
    words = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "power", "--alpha", alpha, *words, "--out", str(tmp_path / "run")]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("is outside the range that its paper tried") == times


@pytest.mark.parametrize(("alpha", "times"), [(1000.0, 1), (5.0, 0)])
def test_the_page_of_a_run_says_it(tmp_path, alpha, times):
    run = write_run(tmp_path / "power", method="power", settings={"parameters": {"alpha": alpha}})
    assert write(run).read_text(encoding="utf-8").count(BEYOND) == times


def test_a_comparison_says_it_of_the_entrant(tmp_path):
    entrants = tuple(map(Entrant.of, ("power:alpha=1000", "power:alpha=1", "sft")))
    contest = Contest(entrants, {"task": "sums", "lr": 1e-3}, tmp_path, rates=(1e-3, 1e-2))
    found = [note for note in verdicts.notes(contest, Field(())) if "its paper tried" in note]
    assert len(found) == 1 and found[0].startswith(f"power:alpha=1000: {BEYOND}")
