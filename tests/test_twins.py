"""The student under two prompts at once: who is moved by which term, and nothing is counted twice."""

from dataclasses import replace

import pytest
import torch
from test_loop import training
from torch import nn

from opd import maths
from opd.contract import distance, gradients, toy_cast, toy_groups
from opd.lab.toy import ToyModel
from opd.loop import grade, one_step, train
from opd.parts.twins import Twins
from opd.parts.views import Privileged
from opd.protocols import Forward, Want
from opd.recipes import load
from opd.rollout import REPEATED, Visit
from opd.step import gradient, prepare


class Split(nn.Module):
    """A student of two models: one knows the prompts that begin with the flag, the other all the rest."""

    def __init__(self, flag, seeds=(1, 3)):
        super().__init__()
        self.plain, self.told = (ToyModel(seed=seed) for seed in seeds)
        self.flag = flag
        self.name, self.vocab, self.device, self.dtype = "split", 7, torch.device("cpu"), torch.float64
        self.can, self.live, self.calls = self.plain.can, False, self.plain.calls

    def _forward(self, tokens, positions, layers):
        """Both models side by side in a hidden state of twice the width, of which a row uses one half."""
        both = [model._forward(tokens, positions, layers) for model in (self.plain, self.told)]
        told = [sequence[0] == self.flag for sequence in tokens]
        told = torch.cat([torch.full((len(p), 1), float(t)).double() for t, p in zip(told, positions, strict=True)])
        hidden = torch.cat([both[0].hidden * (1 - told), both[1].hidden * told], -1)
        return Forward(hidden, torch.cat([one.head for one in both], -1))

    trunk = _forward
    head = property(lambda self: torch.cat([self.plain.head, self.told.head], -1))
    read, write, render, decode, decode_token, _piece = (
        ToyModel.read, ToyModel.write, ToyModel.render, ToyModel.decode, ToyModel.decode_token, ToyModel._piece,
    )  # fmt: skip

    def _next(self, tokens, sampling):
        return self.plain._next(tokens, sampling)


FLAG = "c"  # begins every context, and no prompt


def flagged(method):
    """The method with a context that the split student knows by its first token."""
    view = Privileged(FLAG + "{prompt}{context}")
    twins = replace(method.sample, view=view)
    teacher, own = method.teach
    return replace(method, sample=twins, teach=(replace(teacher, view=replace(teacher.view, view=view)), own))


def split(seeds=(1, 3)):
    flag = int(ToyModel().render(({"content": FLAG},))[0])
    return {"student": Split(flag, seeds), "teacher": ToyModel(seed=2, name="teacher")}


def test_each_term_moves_its_own_side_only():
    """With two disjoint models the plain one's gradient is the same for every beta."""
    found = {}
    for beta in (0.1, 0.5, 2.0):
        method, cast = flagged(load("nca")(k=4, beta=beta)), split()
        rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
        found[beta] = gradients(method, cast["student"], rows, sequences)
    for name, one in found[0.1].items():
        assert one.abs().max() > 1e-6, name
        times = 1 if name.startswith("plain") else 5
        assert torch.allclose(found[0.5][name], times * one, atol=1e-14), name
    assert distance(found[0.1], found[2.0]) > 1e-3


def test_without_a_difference_there_is_nothing_to_anchor():
    """grad of the anchor is 0 exactly where both sides are one distribution."""
    method = flagged(load("nca")(k=0))
    for seeds, still in (((1, 1), True), ((1, 3), False)):
        cast = split(seeds)
        for model in (cast["student"].plain, cast["student"].told):  # the flag and the context are not looked at
            with torch.no_grad():
                model.embedding.copy_(model.embedding[:1].expand_as(model.embedding))
                model.layers_of = lambda tokens, model=model: [
                    torch.tanh(model.embedding[tokens] @ model.first),
                    torch.tanh(model.embedding[tokens] @ model.second),
                ]
        rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
        alone = {"anchor": method.terms["anchor"]}
        outcome = gradients(replace(method, terms=alone), cast["student"], rows, sequences)
        assert (max(float(g.abs().max()) for g in outcome.values()) < 1e-15) == still


def test_an_empty_context_costs_nothing_and_teaches_nothing():
    method = load("nca")(k=4)
    view = Privileged("{prompt}")
    method = replace(method, sample=replace(method.sample, view=view))
    cast = toy_cast(method)
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    outcome = gradient(cast["student"], rows, sequences, method)
    assert abs(outcome.losses["anchor"]) < 1e-15
    anchor = gradients(replace(method, terms={"anchor": method.terms["anchor"]}), cast["student"], rows, sequences)
    assert max(float(g.abs().max()) for g in anchor.values()) < 1e-15


def test_beta_0_is_plain_context_distillation_bit_for_bit():
    plain, anchored = load("nca")(k=4, beta=0.0), load("nca")(k=4)
    cast = toy_cast(anchored)
    one = gradients(plain, cast["student"], *prepare(toy_groups(plain, cast), plain, cast, 0))
    rows, sequences = prepare(toy_groups(anchored, cast), anchored, cast, 0)
    other = gradients(replace(anchored, terms={"match": anchored.terms["match"]}), cast["student"], rows, sequences)
    assert distance(one, other) == 0
    assert not isinstance(plain.sample, Twins) and [ask.who for ask in plain.teach] == ["teacher"]


def test_the_target_of_the_anchor_is_the_student_under_the_plain_prompt():
    method = load("nca")(k=0)
    cast = toy_cast(method)
    groups = toy_groups(method, cast)
    rows, _ = prepare(groups, method, cast, 0)
    written = [r for g in groups for r in g.rollouts if not r.repeated]
    plain = cast["student"].read(written, method.teach[1].want).dist.logprobs()
    assert torch.allclose(rows.dist("own").index(rows["repeated"]).logprobs(), plain, atol=1e-15)
    assert torch.equal(rows["token"][rows["repeated"]], rows["token"][rows["written"]])
    assert torch.equal(rows["own.shown"], rows["author"] == REPEATED)


def test_no_number_of_a_step_counts_a_twin():
    """Before the first update a step with twins and one without see the same answers."""
    plain, twins = (one_step(training(load("nca")(k=4, beta=beta))) for beta in (0.0, 0.5))
    written = ("tokens", "length", "length.max", "truncated", "kept", "reward", "loops")
    for name in (*written, "ratio", "student.chosen", "student.entropy", "teacher.chosen", "support.overlap"):
        assert twins.metrics[name] == pytest.approx(plain.metrics[name], abs=1e-12), name
    assert len(twins.rows) == 2 * len(plain.rows)
    assert twins.metrics["engine.gap.max"] < 1e-12, "a twin was not written where it stands"


def test_a_twin_is_graded_by_nobody():
    t = training(load("nca")(k=4))
    asked = []
    t.task.grade = lambda problem, text: asked.append(problem.id) or 1.0
    batch = one_step(t)
    assert len(asked) == 4 == sum(not r.repeated for g in batch.groups for r in g.rollouts)


class First:
    """Every problem's first answer is right."""

    def __init__(self):
        self.seen = set()

    def grade(self, problem, text):
        fresh = problem.id not in self.seen
        self.seen.add(problem.id)
        return float(fresh)


def test_group_statistics_do_not_see_twins():
    sample = load("grpo")(n=4).sample
    cast = toy_cast(load("grpo")(n=4))
    visits = [Visit(problem, 0, 5) for problem in training(load("grpo")()).task.train[:3]]
    advantages = []
    for write in (sample, Twins(sample, Privileged("{prompt} {context}"))):
        method = replace(load("grpo")(n=4), sample=write)
        groups = grade(First(), write(cast, visits, 0))
        rows, _ = prepare(groups, method, cast, 0)
        advantages.append(rows["advantage"][rows["author"] != REPEATED])
    assert torch.equal(*advantages)


def apart_after(beta, steps=40):
    """How far learning the context takes the student under it from itself without: mean KL(p_x || p_c)."""
    method, view = load("nca")(k=0, beta=beta), Privileged("{prompt}{context}")  # the toy's memory is short
    first, *own = method.teach
    method = replace(method, teach=(replace(first, view=replace(first.view, view=view)), *own))
    t = training(replace(method, sample=replace(method.sample, view=view)) if beta else method, steps=steps)
    t.cast["teacher"].load_state_dict(t.student.state_dict())  # the student itself, as it was at the start
    *_, last = train(t)
    written = [(r, g) for g in last.groups for r in g.rollouts if not r.repeated]
    plain, told = ([context for r, g in written for context in show(r, g)] for show in (lambda r, g: [r], view))
    plain, told = (t.student.read(contexts, Want(dist=True)).dist.logprobs() for contexts in (plain, told))
    return float(maths.reverse_kl(plain, told).mean())


def test_the_anchor_makes_the_context_removable_in_small():
    assert apart_after(0.5) < apart_after(0.0) / 5
