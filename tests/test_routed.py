"""Several teachers in one role: a routed batch is the separate batches together, and a problem names its teacher."""

import json
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from fake_run import write_run
from test_loop import ToyTask

from opd import Run, Settings
from opd import cast as casting
from opd.build import build
from opd.cli.main import main
from opd.contract import distance, gradients, toy_groups
from opd.dist import TableDist
from opd.errors import DataError, SettingError, TeacherError
from opd.evaluate import evaluate
from opd.lab.toy import ToyModel
from opd.loop import Source, Training, one_step
from opd.method import Updates
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.recipes import load
from opd.report import figures, reading
from opd.rollout import Sampling
from opd.step import gradient, prepare
from opd.teachers.copies import EMA
from opd.teachers.fake import FakeTeacher
from opd.teachers.local import LocalTeacher
from opd.teachers.mixed import Mixed
from opd.teachers.renamed import Renamed
from opd.teachers.routed import Routed

NAMES = ("add", "sub", "add", "sub", "sub", "add")


def sent(problem, name):
    return replace(problem, data={"teacher_id": name})


def teachers():
    return {"add": ToyModel(seed=2), "sub": ToyModel(seed=3)}


def routed_groups(method, cast, names=NAMES):
    groups = toy_groups(method, cast, len(names))
    return [
        replace(g, rollouts=tuple(replace(r, problem=sent(r.problem, name)) for r in g.rollouts))
        for g, name in zip(groups, names, strict=True)
    ]


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("gkd", {"lam": 1.0, "beta": 1.0, "mean": "token_mean"}),
        ("local_support", {"k": 3}),
        ("sampled_token", {}),
        ("sampled_token", {"gamma": 0.5}),
        ("representation", {"mean": "token_mean"}),
    ],
)
def test_a_routed_batch_has_the_loss_and_gradient_of_the_separate_ones(name, parameters):
    method = replace(load(name)(**parameters), updates=Updates())
    student, members = ToyModel(seed=1), teachers()

    def learned(groups, teacher):
        rows, sequences = prepare(groups, method, {"student": student, "teacher": teacher}, 0)
        found = gradients(method, student, rows, sequences, micro_tokens=40, chunk=3)
        return found, gradient(student, rows, sequences, method).loss, len(rows)

    groups = routed_groups(method, {"student": student})
    whole, loss, n = learned(groups, Routed(members))
    parts = [
        learned([g for g, own in zip(groups, NAMES, strict=True) if own == name], teacher)
        for name, teacher in members.items()
    ]
    weighted = {key: sum(part[key] * count for part, _, count in parts) / n for key in whole}
    assert distance(whole, weighted) < 1e-14
    assert loss == pytest.approx(sum(one * count for _, one, count in parts) / n, abs=1e-14)
    other, _, _ = learned(groups, members["add"])
    assert distance(whole, other) > 1e-3, "the second teacher made a difference"


def test_mixed_answers_as_one_table():
    table = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    tokens, owner = torch.tensor([4, 0, 1, 2, 3, 3, 1]), torch.tensor([0, 2, 0, 0, 2, 2, 0])  # nobody asked part 1
    states = {1: torch.arange(14.0).reshape(7, 2)}
    whole = TableDist(table, tokens, states)
    mixed = Mixed(tuple(whole.index(owner == i) for i in range(3)), owner)
    ids = torch.arange(14).reshape(7, 2) % 5
    pick = torch.tensor([5, 0, 0, 4])
    pairs = [
        (mixed, whole),
        (mixed.index(slice(1, 6)), whole.index(slice(1, 6))),
        (mixed.index(pick), whole.index(pick)),
    ]
    for ours, theirs in [*pairs, (mixed.tempered(2.0), whole.tempered(2.0)), (mixed.to(torch.device("cpu")), whole)]:
        some = ids[: len(ours)]
        assert len(ours) == len(theirs) and torch.equal(ours.logprobs(), theirs.logprobs())
        assert torch.equal(ours.chosen, theirs.chosen) and torch.equal(ours.top(2), theirs.top(2))
        assert torch.equal(ours.at(some), theirs.at(some)) and torch.equal(ours.at(some[:, 0]), theirs.at(some[:, 0]))
        if theirs.states:
            assert torch.equal(ours.inner[1], theirs.inner[1])


def test_it_can_what_all_can_and_lives_if_one_does():
    one, two = FakeTeacher(torch.zeros(7, 7), can=frozenset({"chosen", "topk"})), ToyModel(seed=2)
    two.live = True
    routed = Routed({"a": one, "b": two})
    assert routed.can == {"chosen", "topk"} and routed.live
    narrow, wide = ToyModel(seed=2), ToyModel(seed=2)
    narrow.width, wide.width = 6, 8
    assert "inner" in Routed({"a": narrow, "b": narrow}).can
    assert "inner" not in Routed({"a": narrow, "b": wide}).can, "states of unequal width are no column"


def test_narrow_answers_come_back_in_order():
    method = load("sampled_token")()
    groups = routed_groups(method, {"student": ToyModel(seed=1)})
    contexts = [rollout for group in groups for rollout in group.rollouts]
    contexts = [c.with_columns(ids=np.stack([c.decisions, c.decisions * 0 + 2], 1).astype(np.int64)) for c in contexts]
    want = Want(chosen=True, gather="ids")
    answer = Routed(teachers()).read(contexts, want)
    owners, sizes = [c.problem.data["teacher_id"] for c in contexts], [c.n for c in contexts]
    for column in ("chosen", "gathered"):
        parts = getattr(answer, column).split(sizes)
        for name, teacher in teachers().items():  # each reads all of its own at once: company changes last bits
            its = [c for c, owner in zip(contexts, owners, strict=True) if owner == name]
            routed = torch.cat([part for part, owner in zip(parts, owners, strict=True) if owner == name])
            assert torch.equal(routed, getattr(teacher.read(its, want), column))


@pytest.mark.parametrize("asked, remedy", [("ad", "Did you mean 'add'"), (None, "Name one in every row")])
def test_an_unknown_name_is_an_error_that_names_the_problem(asked, remedy):
    problem = replace(ToyTask().train[0], data={} if asked is None else {"teacher_id": asked})
    with pytest.raises(DataError, match=rf"problem toy-0 \('ab'\).*'add' or 'sub'.*{remedy}"):
        Routed(teachers()).route(problem)


def test_every_problem_has_its_own_writer():
    task, members = ToyTask(), teachers()
    task.train = task.held_out = [sent(p, name) for p, name in zip(task.train, NAMES, strict=True)]
    routed, seeds = Routed(members), [[i, i + 9] for i in range(6)]
    prompts = [routed.render(p.messages) for p in task.train]
    written = routed.write_for(task.train, prompts, Sampling(), seeds)
    for name, prompt, seed, pieces in zip(NAMES, prompts, seeds, written, strict=True):
        (own,) = members[name].write([prompt], Sampling(), [seed])
        assert [p.tokens.tolist() for p in pieces] == [p.tokens.tolist() for p in own]
    with pytest.raises(TeacherError, match="does not say who writes"):
        routed.write(prompts, Sampling(), seeds)
    assert evaluate(routed, task).sampled.samples == 1  # an examination of the teacher is routed too
    visits = Source(task.train, 0).take(6)
    groups = OneTurn(writer="teacher")({"student": ToyModel(seed=1), "teacher": routed}, visits, 0)
    for group, visit in zip(groups, visits, strict=True):
        (pieces,) = members[visit.problem.data["teacher_id"]].write(
            [routed.render(visit.problem.messages)], Sampling(), [[visit.seed(0)]]
        )
        assert group.rollouts[0].decisions.tolist() == pieces[0].tokens.tolist()


def test_following_and_states_are_passed_on(tmp_path):
    student = models.engine(tmp_path)
    routed = Routed({"slow": EMA(student, 0.9), "fixed": FakeTeacher(torch.zeros(7, 7))})
    before = {k: v.clone() for k, v in routed.state_dict()["slow"].items()}
    with torch.no_grad():
        student.head.add_(1.0)
    routed.follow(student, 1)
    after = {k: v.clone() for k, v in routed.state_dict()["slow"].items()}
    assert set(routed.state_dict()) == {"slow"} and any(not torch.equal(before[k], after[k]) for k in before)
    routed.load_state_dict({"slow": before})
    assert all(torch.equal(routed.state_dict()["slow"][k], before[k]) for k in before)


@pytest.mark.parametrize("name", ["sampled_token", "local_support", "sft"])
def test_a_starved_teacher_shows(name):
    method = load(name)(**({"k": 3} if name == "local_support" else {}))
    cast = {"student": ToyModel(seed=1), "teacher": Routed({**teachers(), "idle": ToyModel(seed=4)})}
    task = ToyTask()
    problems = [sent(p, own) for p, own in zip(task.train, NAMES, strict=True)]
    optimizer = torch.optim.SGD(cast["student"].parameters(), lr=0.0)
    t = Training(cast["student"], cast, task, method, optimizer, lambda step: 0.0, Source(problems, 3), 1, 6)
    batch = one_step(t)
    seen, m = batch.rows["teacher.route"], batch.metrics
    assert m["teacher.add.rows"] == pytest.approx(float((seen == 0).double().mean()), abs=1e-12)
    assert m["teacher.add.rows"] + m["teacher.sub.rows"] == pytest.approx(1) and m["teacher.idle.rows"] == 0
    assert "teacher.idle.loss" not in m, "a mean over nothing is no number"
    if len(seen) and name != "local_support":  # there, two updates have means of their own
        mixed = m["teacher.add.rows"] * m["teacher.add.loss"] + m["teacher.sub.rows"] * m["teacher.sub.loss"]
        assert mixed == pytest.approx(m["loss"], abs=1e-12)
    if name == "sampled_token":  # at its first step the loss of a row is minus its advantage
        expected = -batch.rows["advantage"][seen == 1].mean()
        assert m["teacher.sub.loss"] == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize(
    "spec, found",
    [
        ("FOLDER", {"": "FOLDER"}),
        ("self:ema=0.99", {"": "self:ema=0.99"}),
        ("some/where/x=1", {"": "some/where/x=1"}),
        ("add=A/b, sub=self:ema=0.9", {"add": "A/b", "sub": "self:ema=0.9"}),
    ],
)
def test_how_teachers_are_named(spec, found):
    assert casting.named(spec) == found


@pytest.mark.parametrize("spec", ["a=X,a=Y", "a=X,Y", "a=", "=X", "a=X,"])
def test_names_that_cannot_be(spec):
    with pytest.raises(SettingError, match="NAME=MODEL"):
        casting.named(spec)


def write_problems(path, names):
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i), "teacher_id": name} for i, name in enumerate(names)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_whole_run_with_two_teachers(tmp_path):
    write_problems(tmp_path / "p.jsonl", ["add", "sub"] * 8)
    for seed, who in enumerate(("student", "one", "two")):
        models.folder(tmp_path / who, seed=seed)
    settings = Settings.of(
        method="gkd", student=str(tmp_path / "student"), teacher=f"add={tmp_path / 'one'},sub={tmp_path / 'two'}",
        task=f"jsonl:{tmp_path / 'p.jsonl'},held_out=4", steps=2, batch=6, max_new=4, out=str(tmp_path / "run"),
    )  # fmt: skip
    summary = Run.new(settings).train()
    assert summary["teacher"]["sampled"] and summary["student_after"]["kl"]["estimator"] == "exact"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["teacher.add.rows"] + line["teacher.sub.rows"] for line in lines if "loss" in line]
    assert shares == pytest.approx([1.0, 1.0])


def test_a_starved_teacher_shows_on_the_page(tmp_path):
    """It never has a row, so that its share never changes; that is what must be seen."""
    run = write_run(tmp_path / "run")
    file = run / "metrics.jsonl"
    more = {"teacher.add.rows": 1.0, "teacher.idle.rows": 0.0, "teacher.add.loss": 0.5}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line | more if "loss" in line else line for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = reading.read(run)
    drawn = {figure.title: figure for figure in figures.training(folder)}
    shares = {line.label: set(line.y) for line in drawn["Learned tokens by teacher"].lines if line.role != "raw"}
    assert shares == {"add": {1.0}, "idle": {0.0}}
    assert "starved" in drawn["Learned tokens by teacher"].about and "Loss by teacher" in drawn
    assert not any("teacher.add" in figure.title for figure in figures.further(folder))


def test_a_wrong_name_stops_the_command_before_step_1(tmp_path, capsys):
    write_problems(tmp_path / "p.jsonl", ["add"] * 7 + ["mul"])
    for who in ("student", "one"):
        models.folder(tmp_path / who)
    words = ["train", "gkd", "--student", str(tmp_path / "student"), "--teacher", f"add={tmp_path / 'one'}",
             "--task", f"jsonl:{tmp_path / 'p.jsonl'}", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(words) == 2
    assert "'7 + 7 ='" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_only_the_teacher_that_ends_differently_is_renamed(tmp_path):
    write_problems(tmp_path / "p.jsonl", ["same", "odd"] * 8)
    for who in ("student", "same", "odd"):
        models.folder(tmp_path / who)
    file = tmp_path / "odd" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "."}))
    named = f"same={tmp_path / 'same'},odd={tmp_path / 'odd'}"
    settings = Settings.of(
        method="gkd", student=str(tmp_path / "student"), teacher=named, task=f"jsonl:{tmp_path / 'p.jsonl'}",
        stop_token="map",
    )  # fmt: skip
    members = build(settings).cast["teacher"].members
    assert isinstance(members["same"], LocalTeacher) and isinstance(members["odd"], Renamed)
