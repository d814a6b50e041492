"""The lab's worlds are what enumeration says, and its policies are students like any other."""

import itertools

import numpy as np
import pytest
import torch

from opd.contract import distance, gradients
from opd.errors import SettingError
from opd.lab.learning import learn
from opd.lab.policy import Policy, problems
from opd.lab.world import contexts, lock_expert, prefix_lock, slippery_chain
from opd.recipes.gkd import gkd
from opd.recipes.nail import nail
from opd.recipes.sampled_token import sampled_token
from opd.recipes.sft import sft
from opd.rollout import Sampling, Visit
from opd.step import prepare

KEY = (2, 0, 1)
WORLDS = {
    "lock": prefix_lock(KEY, 3),
    "chain": slippery_chain(4, 3),
    "contexts": contexts(np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])),
}


def random_policy(world, seed=0, **how):
    logits = torch.randn(
        world.states, world.actions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return Policy(world, logits, **how)


@pytest.mark.parametrize("name", WORLDS)
def test_the_value_is_the_sum_over_all_walks(name):
    world = WORLDS[name]
    policy = random_policy(world).probabilities()
    total = 0.0
    for start in world.starts:
        for actions in itertools.product(range(world.actions), repeat=world.horizon):
            states = world.walk(np.array([start]), np.array([actions]))[0]
            chance = np.prod([policy[s, a] for s, a in zip(states[:-1], actions, strict=True)]) / len(world.starts)
            total += chance * sum(world.rewards[s, a] for s, a in zip(states[:-1], actions, strict=True))
    assert abs(total - world.value(policy)) < 1e-14


def test_the_lock_opens_for_its_key_alone():
    world = prefix_lock(KEY, 3)
    assert world.value(lock_expert(KEY, 3)) == 1
    assert world.value(lock_expert((2, 0, 0), 3)) == 0
    noisy = 0.7 * lock_expert(KEY, 3) + 0.3 / 3
    assert abs(world.value(noisy) - 0.8**3) < 1e-15


def test_a_policy_writes_as_often_as_it_says():
    world = WORLDS["chain"]
    policy = random_policy(world)
    visits = [Visit(problem, number, 0) for number in range(500) for problem in problems(world, 4)]
    pieces = policy.write(
        [policy.render(v.problem.messages) for v in visits], Sampling(), [[v.seed(0)] for v in visits]
    )
    walked = np.stack([piece.tokens for (piece,) in pieces])
    states = world.walk(np.zeros(len(walked), int), walked)[:, :-1]
    for h, there in enumerate(world.visits(policy.probabilities())):
        seen = np.bincount(states[:, h], minlength=world.states) / len(walked)
        assert np.abs(seen - there).max() < 4 * np.sqrt(0.25 / len(walked))
    behaviour = np.stack([piece.behaviour for (piece,) in pieces])
    np.testing.assert_allclose(np.exp(behaviour), policy.probabilities()[states, walked], rtol=1e-12)


@pytest.mark.parametrize(
    "method", [gkd(lam=1.0, beta=1.0), sampled_token(), sft(), nail()], ids=lambda m: next(iter(m.terms))
)
def test_a_policy_is_a_student_whose_gradient_no_partition_changes(method):
    world = WORLDS["lock"]
    cast = {"student": random_policy(world, 1), "teacher": random_policy(world, 2)}
    groups = method.sample(cast, [Visit(problem, 0, 5) for problem in problems(world, 6)], 0)
    rows, sequences = prepare(groups, method, cast, 0)
    whole = gradients(method, cast["student"], rows, sequences)
    assert distance(whole, gradients(method, cast["student"], rows, sequences, 4, 2)) < 1e-14
    assert float(whole["logits"].abs().max()) > 1e-3


def test_reverse_kl_of_a_walk_is_what_the_recipe_descends():
    """sampled_token with gamma 1, every walk once and weighted: the slope of the enumerated KL between whole walks."""
    world, method = WORLDS["lock"], sampled_token(n=1, gamma=1.0, mean="sequence_sum")
    student, teacher = random_policy(world, 1), random_policy(world, 2)
    walks = np.array(list(itertools.product(range(3), repeat=3)))
    states = torch.from_numpy(world.walk(np.zeros(27, int), walks)[:, :-1])
    taken = torch.from_numpy(walks)
    ours, theirs = (p.logits.log_softmax(-1)[states, taken].sum(1) for p in (student, teacher))
    (exact,) = torch.autograd.grad((ours.exp() * (ours - theirs.detach())).sum(), student.logits)

    from dataclasses import replace

    from opd.rollout import STUDENT, End, Group, Piece, continued

    total = torch.zeros_like(exact)
    (problem,) = problems(world, 1)
    own = student.logits.detach().log_softmax(-1)[states, taken].numpy()
    for walk, logp, chance in zip(walks, own, ours.detach().exp(), strict=True):
        piece = Piece(walk, logp, logp, End.STOP)
        rollout = continued(student.render(problem.messages), piece, problem, Sampling(), STUDENT)
        groups = [Group(problem, (replace(rollout, seed=0),), student.render)]
        rows, sequences = prepare(groups, method, {"student": student, "teacher": teacher}, 0)
        total += chance * gradients(method, student, rows, sequences)["logits"]
    torch.testing.assert_close(total, exact, rtol=1e-12, atol=1e-14)


def test_a_recipe_teaches_a_policy():
    world = WORLDS["chain"]
    teacher = Policy.of(world, np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]]))
    student = learn(
        world,
        gkd(lam=1.0, beta=0.0),
        Policy(world, torch.zeros(2, 3)),
        teacher,
        steps=100,
        batch=8,
        data=8,
        seed=0,
        lr=4.0,
    )
    np.testing.assert_allclose(student.probabilities(), teacher.probabilities(), atol=1e-2)


def test_a_policy_over_another_action_set_is_refused():
    with pytest.raises(SettingError, match="another action set"):
        Policy(WORLDS["chain"], torch.zeros(2, 4))
