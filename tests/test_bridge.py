"""The bridge between models of unequal width: its algebra, its fit before step 1, and its place in a run."""

import json
import shutil

import pytest
import torch

from opd import Run, Settings
from opd.cli.main import main
from opd.contract import distance, gradients, toy_groups
from opd.dist import TopDist
from opd.errors import OpdError
from opd.lab.toy import ToyModel, problems
from opd.parts.bridge import Bridge, OverBridge, Span, fitted, mapped
from opd.parts.hidden import StateDistance
from opd.parts.sample import OneTurn
from opd.recipes.representation import representation
from opd.rollout import Visit
from opd.rows import Rows
from opd.step import prepare

take = lambda n: [Visit(problem, -3, 0) for problem in problems(n)]


def states(seed, n=50, d=6):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d=6):
    return torch.linalg.qr(states(9, d, d)).Q


def loss(bridge, ours, theirs):
    """The loss of rows whose states at layer 1 are these."""
    n = len(ours)
    row = torch.zeros(n, dtype=torch.long)
    student, teacher = (TopDist(row[:, None], row[:, None].double(), row, None, {1: s}) for s in (ours, theirs))
    return OverBridge(bridge)(student, Rows({"keep": row.bool(), "teacher": teacher}))


def test_layers_are_mapped_first_to_first_and_last_to_last():
    assert [mapped(layer, 2, 3) for layer in (1, 2)] == [1, 3]
    assert [mapped(layer, 28, 36) for layer in (1, 14, 28)] == [1, 18, 36]
    assert mapped(1, 1, 12) == 1


def test_the_teachers_directions_are_orthonormal_and_explain_most():
    theirs = states(1) * torch.tensor([9.0, 5, 1, 1, 1, 1])
    span = fitted(states(0), theirs, 2, 1)
    assert torch.allclose(span.directions @ span.directions.T, torch.eye(2, dtype=torch.float64), atol=1e-12)
    centred = theirs - theirs.mean(0)
    assert (centred @ span.directions.T).square().sum() > 0.9 * centred.square().sum()


def test_a_linear_image_of_the_teacher_is_met_exactly_at_any_rank():
    theirs = states(1)
    ours = (theirs - theirs.mean(0)) @ states(2, 6, 8)
    for rank in (1, 3, 6):
        span = fitted(ours, theirs, rank, 1)
        near, far = span(ours, theirs)
        assert torch.allclose(near, far, atol=1e-8) and span.cosine == pytest.approx(1)
        assert loss(Bridge(rank, OneTurn(), spans={1: span}), ours, theirs).abs().max() < 1e-12


def test_a_change_of_the_teachers_basis_breaks_the_plain_distance_but_not_the_bridge():
    ours, theirs = states(0), states(1)
    spans = [{1: fitted(ours, seen, 3, 1)} for seen in (theirs, theirs @ rotation())]
    values = [
        loss(Bridge(3, OneTurn(), spans=s), ours, seen)
        for s, seen in zip(spans, (theirs, theirs @ rotation()), strict=True)
    ]
    assert torch.allclose(*values, atol=1e-10)
    assert not torch.allclose((ours - theirs).square().mean(-1), (ours - theirs @ rotation()).square().mean(-1))


def test_the_full_bridge_of_the_same_basis_is_the_plain_distance_but_for_length():
    ours, theirs = states(0), states(1)
    whole = Span(1, torch.zeros(6).double(), rotation(), rotation(), 1.0)
    unit = lambda s: s / s.norm(dim=-1, keepdim=True)
    plain = (unit(ours) - unit(theirs)).square().mean(-1)
    assert torch.allclose(loss(Bridge(6, OneTurn(), spans={1: whole}), ours, theirs), plain, atol=1e-12)


def test_unrelated_states_are_not_met():
    assert fitted(states(0, 4000), states(1, 4000), 3, 1).cosine < 0.1


def made(width=4, **parameters):
    method = representation(bridge=3, prompts=30, **parameters)
    cast = {"student": ToyModel(seed=1), "teacher": ToyModel(seed=2, width=width)}
    method.fit.fit(cast, take)
    return method, cast


def test_models_of_unequal_width_meet_and_the_gradient_does_not_depend_on_the_partition():
    method, cast = made()
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    whole = gradients(method, cast["student"], rows, sequences)
    assert max(float(g.abs().max()) for g in whole.values()) > 0
    assert not whole["head"].any(), "the head is not reached"
    assert distance(whole, gradients(method, cast["student"], rows, sequences, micro_tokens=20, chunk=3)) < 1e-12


@pytest.mark.parametrize("layers", [(0,), (-1,), (1,)])
def test_any_layers_can_be_bridged(layers):
    method, cast = made(layers=layers)
    assert sorted(method.fit.spans) == {(0,): [1, 2], (-1,): [-1], (1,): [1]}[layers]
    assert {span.teacher_layer for span in method.fit.spans.values()} == {(0,): {1, 2}, (-1,): {2}, (1,): {1}}[layers]
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    gradients(method, cast["student"], rows, sequences)


def test_a_bridge_wider_than_a_model_or_its_rows_is_refused():
    for width, prompts in ((2, 30), (4, 1)):
        bridge = Bridge(5 if prompts == 1 else 3, OneTurn(), prompts=prompts)
        with pytest.raises(OpdError, match="wider than what it joins"):
            bridge.fit({"student": ToyModel(seed=1), "teacher": ToyModel(seed=2, width=width)}, take)
    with pytest.raises(OpdError):
        representation(bridge=-1)


def test_an_unfitted_bridge_stops():
    method = representation(bridge=3)
    cast = {"student": ToyModel(seed=1), "teacher": ToyModel(seed=2, width=4)}
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    with pytest.raises(OpdError, match="not fitted"):
        gradients(method, cast["student"], rows, sequences)
    assert isinstance(representation().terms["states"].loss, StateDistance)


def test_a_run_fits_first_says_how_well_and_goes_on_over_the_same_bridge(tmp_path):
    """The embedded models have 48 and 80 numbers per state."""
    common = {
        "method": "representation", "parameters": {"bridge": 8, "prompts": 16, "n": 1}, "batch": 2, "max_new": 8,
        "eval_problems": 4, "drafts": 0, "checkpoint_every": 1, "keep_checkpoints": 9, "lr": 1e-3,
    }  # fmt: skip
    whole = Run.new(Settings.of(**common, steps=3, out=str(tmp_path / "whole")))
    whole.train()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert {name for name in steps[0] if name.startswith("bridge")} == {"bridge.cosine.1", "bridge.cosine.2"}
    assert not any(name.startswith("bridge") for line in steps[1:] for name in line)
    (tmp_path / "whole" / "summary.json").unlink()
    for step in (2, 3):
        shutil.rmtree(tmp_path / "whole" / "checkpoints" / f"step-{step:06d}")
    again = Run.resume(tmp_path / "whole")
    assert again.training.step == 1 and again.training.method.fit.is_fitted
    again.train()
    for (name, a), b in zip(
        whole.training.student.state_dict().items(), again.training.student.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_command_says_how_unequal_widths_can_meet(tmp_path, capsys):
    assert main(["train", "representation", "--out", str(tmp_path / "run")]) == 2
    assert "--bridge 8" in capsys.readouterr().err


def test_permuted_layers_fit_worse():
    """A negative control: a student layer against a teacher layer that has nothing to do with it."""
    teacher = ToyModel(seed=2)
    same = Bridge(3, OneTurn(), prompts=30)
    same.fit({"student": twin(teacher), "teacher": teacher}, take)
    other = Bridge(3, OneTurn(), prompts=30)
    other.fit({"student": twin(teacher), "teacher": ToyModel(seed=8)}, take)
    assert min(s.cosine for s in same.spans.values()) > 0.97 > 0.95 > max(s.cosine for s in other.spans.values())


def twin(model):
    copy = ToyModel(seed=2)
    copy.load_state_dict(model.state_dict())
    return copy
