"""What ends a run: tokens, seconds or teacher tokens, counted in the loop and kept by checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_loop import training

from opd.budget import Budget
from opd.errors import SettingError
from opd.loop import train
from opd.meter import metered
from opd.recipes import load
from opd.run import Run, Stopped
from opd.settings import Settings

WORDS = ["", "tokens", "tokens=", "tokens=0", "tokens=-3", "tokens=2.5", "tokens=nan", "seconds=inf", "seconds=soon"]


@pytest.mark.parametrize("text", WORDS[1:])
def test_an_amount_that_cannot_be_is_one_sentence(text):
    with pytest.raises(SettingError, match=r"expected a (whole )?number above 0"):
        Settings.of(method="sft", budget=text)


def test_an_unknown_unit_names_the_nearest():
    with pytest.raises(SettingError, match="Did you mean 'teacher_tokens'"):
        Settings.of(method="sft", budget="teachertokens=5")


def test_a_budget_in_steps_is_the_number_of_steps():
    settings = Settings.of(method="sft", budget="steps=7", schedule="linear")
    assert settings.steps == 7 and settings.end() is None
    assert [settings.rate(step) for step in range(7)] == [
        Settings.of(method="sft", steps=7, schedule="linear").rate(step) for step in range(7)
    ]


def test_a_run_ends_once():
    with pytest.raises(SettingError, match="a run ends once"):
        Settings.of(method="sft", budget="tokens=100", steps=7)
    again = Settings.of(**Settings.of(method="sft", budget="tokens=100").model_dump())
    assert again.budget == "tokens=100" and again.steps == 0


def test_it_ends_with_the_step_in_which_the_budget_is_spent():
    torch.manual_seed(0)
    lengths = [batch.metrics["tokens"] for batch in train(training(load("gkd")(lam=1.0), steps=5))]
    for amount, steps in ((1, 1), (lengths[0], 1), (lengths[0] + 1, 2), (sum(lengths), 5)):
        torch.manual_seed(0)
        t = training(load("gkd")(lam=1.0), steps=0, budget=Budget("tokens", amount))
        assert len(list(train(t))) == steps
        assert t.budget.spent == sum(lengths[:steps])


def test_seconds_are_those_of_the_three_phases():
    t = training(load("gkd")(lam=1.0), steps=0, budget=Budget("seconds", 1e-9))
    (batch,) = train(t)
    assert t.budget.spent == sum(batch.metrics[f"seconds.{phase}"] for phase in ("sample", "teach", "learn"))


def test_a_teacher_that_reads_is_charged_for_prompt_and_answer():
    (batch,) = train(training(load("gkd")(lam=1.0), steps=1))
    rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
    assert batch.metrics["teacher_tokens"] == sum(len(rollout.tokens) for rollout in rollouts)


def test_a_teacher_that_writes_is_charged_once_for_what_is_used_again():
    counts = [batch.metrics["teacher_tokens"] for batch in train(training(load("sft")(), steps=4))]
    assert counts[0] > 0 and counts[3] == 0, "six problems are all written within the first two batches of four"


def test_a_meter_changes_nothing_else():
    cast = training(load("gkd")(), steps=1).cast
    seen = metered(cast)
    assert seen["student"] is cast["student"]
    assert seen["teacher"].can == cast["teacher"].can and seen["teacher"].name == cast["teacher"].name


def test_the_rate_follows_the_share_that_is_spent():
    settings = Settings.of(method="gkd", budget="tokens=100", lr=1.0, schedule="linear", floor=0.0, warmup=2)
    assert settings.rate(0, 0.0) == 0.5
    assert settings.rate(5, 0.25) == pytest.approx(0.75)


def test_a_method_that_never_asks_has_no_budget_of_teacher_tokens(tmp_path):
    settings = Settings.of(method="sft", budget="teacher_tokens=100", out=str(tmp_path / "run"))
    with pytest.raises(SettingError, match="never spent"):
        Run.new(settings)
    assert not (tmp_path / "run").exists()


class StopAfter:
    """Asks a run to stop as Ctrl-C does, after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def started(self, run):
        self.run = run

    def stepped(self, metrics):
        self.run.stopping = metrics["step"] + 1 == self.steps

    def phase(self, name, done, total): ...
    def examined(self, metrics): ...
    def finished(self, summary): ...


def test_a_resumed_run_has_spent_what_it_had(tmp_path):
    end = {"budget": "teacher_tokens=900", "schedule": "linear"}
    common = {"method": "gkd", "parameters": {"lam": 1}, **end, "lr": 1e-3,
              "batch": 6, "max_new": 16, "eval_problems": 3, "drafts": 0, "threads": 1}  # fmt: skip
    whole = Run.new(Settings.of(**common, out=str(tmp_path / "whole"))).train()
    with pytest.raises(Stopped):
        Run.new(Settings.of(**common, out=str(tmp_path / "torn")), StopAfter(3)).train()
    torn = Run.resume(tmp_path / "torn").train()
    assert torn["steps"] == whole["steps"] > 3
    assert torn["teacher_tokens"] == whole["teacher_tokens"] >= 900
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("torn", "whole"))
    assert all((ours[key] == theirs[key]).all() for key in ours)
    lines = (tmp_path / "torn" / "metrics.jsonl").read_text().splitlines()
    rates = [line["lr"] for line in map(json.loads, lines) if "lr" in line]
    assert len(rates) == whole["steps"] and sorted(set(rates), reverse=True) == rates
