"""What the studies claim, as numbers: growth with the horizon, the bandit's table, who wins where, and by how much."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from opd import maths
from opd.cli.main import main
from opd.dist import TableDist
from opd.lab import bandit, cliff, noisy_experts, realizability
from opd.lab.drawing import Line, Panel, drawn
from opd.lab.learning import learn
from opd.lab.locks import LEARNERS, fitted, is_learnable, slope, staying, walks_needed
from opd.lab.policy import Policy
from opd.lab.telling_apart import affinity
from opd.lab.world import lock_expert, prefix_lock
from opd.parts.channel import Channel, Given, uniform
from opd.parts.losses import CrossEntropy, Everywhere, ThroughChannel
from opd.recipes.nail import nail
from opd.recipes.sft import sft
from opd.rows import Rows

FAIR = np.full(4, 0.25)
LIAR = np.array([0.1, 0.7, 0.1, 0.1])


# ---- the closed forms are the minimisers of the package's own losses


@pytest.mark.parametrize("noise", [FAIR, LIAR, np.array([0.0, 1.0, 0.0, 0.0])], ids=["fair", "liar", "one"])
@pytest.mark.parametrize("counts", [(5, 2, 1, 0), (1, 9, 1, 1), (0, 3, 0, 0), (7, 7, 7, 7), (2, 40, 0, 1)])
def test_fitted_is_the_minimiser_of_the_channel_aware_loss(noise, counts):
    """No policy on a grid over the simplex, and none near by, has a smaller loss."""
    rate = 0.4
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    loss = ThroughChannel(Channel(rate, Given(tuple(noise))), "teacher.label")
    rows = Rows({"keep": torch.ones(len(labels), dtype=torch.bool), "teacher.label": labels})

    def value(p) -> float:
        lp = torch.tensor(p).log().expand(len(labels), 4)
        return float(loss(TableDist(lp, labels), rows).sum())

    best = fitted(np.array(counts, float), rate, noise)
    assert abs(best.sum() - 1) < 1e-12 and (best >= 0).all()
    grid = [np.array(p) / 10 for p in itertools.product(range(11), repeat=4) if sum(p) == 10]
    near = [best + step * (np.eye(4)[a] - best) for a in range(4) for step in (1e-2, 1e-3)]
    assert value(best) <= min(value(p) for p in [*grid, *near]) + 1e-12


def test_counts_are_the_minimiser_of_cross_entropy():
    counts = np.array([5.0, 2.0, 1.0, 2.0])
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts).long())
    logits = torch.tensor(counts / counts.sum()).log().requires_grad_()
    dist = TableDist(logits.log_softmax(-1).expand(10, 4), labels)
    rows = Rows({"keep": torch.ones(10, dtype=torch.bool), "teacher.label": labels})
    (slopes,) = torch.autograd.grad(CrossEntropy("teacher.label")(dist, rows).sum(), logits)
    assert float(slopes.abs().max()) < 1e-14  # convex, so this is the minimum
    assert np.allclose(fitted(counts, 0.0, FAIR), counts / counts.sum())


def test_without_labels_nothing_is_known():
    assert np.array_equal(fitted(np.zeros((2, 4)), 0.3, FAIR), np.full((2, 4), 0.25))


# ---- noisy experts


def test_walks_grow_exponentially_for_whoever_samples_and_about_linearly_for_the_greedy():
    """The acceptance numbers, at 30 seeds: interval edges against -log rho, and exponents of a power of H."""
    for rate, horizons in ((0.3, (4, 8, 12, 16, 24)), (0.5, (4, 8, 12))):
        least = -math.log(staying(rate, FAIR))
        found = {name: [walks_needed(name, rate, FAIR, h, 30) for h in horizons] for name in LEARNERS}
        for name in ("bc", "opd"):
            value, _, high = slope(horizons, found[name])
            assert value > 0.85 * least and high >= least, (rate, name)
        for name in ("nail", "nailgun"):
            exponent, low, high = slope(np.log(horizons), found[name])
            assert 0.8 < exponent < 1.5 and low < 1.3, (rate, name)
            assert np.median(found[name][-1]) < np.median(found["bc"][-1]) / 4
        assert slope(horizons, found["aware"])[0] < 0.75 * least, "the channel helps a student that samples, too"


def test_noise_that_outvotes_the_expert_defeats_whoever_does_not_know_it():
    one = np.array([0.0, 1.0, 0.0, 0.0])
    for name, learner in LEARNERS.items():
        assert is_learnable(learner, 0.6, one) == learner.channel
        assert np.isfinite(walks_needed(name, 0.6, one, 4, 3)).all() == learner.channel
    assert all(is_learnable(learner, 0.4, one) for learner in LEARNERS.values())
    # in the limit the plain loss is least at what is seen, the wrong action; the channel-aware one at the right one
    seen = np.array([0.4, 0.6, 0.0, 0.0])
    assert fitted(seen, 0.6, one).argmax() == 0 and seen.argmax() == 1


def test_the_recipes_learn_the_lock_as_the_counts_say():
    """Where noise hides the depths from whoever copies the expert's walks, nail finds the whole key."""
    key, rate = (2, 1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 1, 2, 1, 2, 2), 0.6  # no 0, which is what ties go to
    world = prefix_lock(key, 3)
    expert = Policy.of(world, (1 - rate) * lock_expert(key, 3) + rate / 3)
    clean = {}
    for name, method in (("sft", sft(fresh=True)), ("nail", nail(rate=rate, mean="sequence_sum"))):
        student = Policy(world, torch.zeros(world.states, 3))
        learn(world, method, student, expert, steps=20, batch=4, data=4, seed=0, lr=4.0)
        clean[name] = int((student.probabilities()[:-1].argmax(1) == key).sum())
    assert clean["nail"] == len(key) > clean["sft"] + 2


def test_affinity_is_the_sum_over_all_walks():
    world = prefix_lock((2, 0, 1), 3)
    random = np.random.default_rng(0)
    one, other, walker = (random.dirichlet(np.ones(3), world.states) for _ in range(3))
    offline = online = 0.0
    for walk in itertools.product(range(3), repeat=3):
        states = world.walk(np.array([0]), np.array([walk]))[0]
        there = list(zip(states[:-1], walk, strict=True))
        offline += math.sqrt(np.prod([one[s, a] * other[s, a] for s, a in there]))
        moved = np.prod([walker[s, a] for s, a in there])
        for labels in itertools.product(range(3), repeat=3):
            said = [one[s, b] * other[s, b] for s, b in zip(states[:-1], labels, strict=True)]
            online += moved * math.sqrt(np.prod(said))
    assert abs(affinity(world, one, other) - offline) < 1e-14
    assert abs(affinity(world, one, other, walker) - online) < 1e-14


def test_what_a_class_costs():
    """Two keys: offline rho^-(H-1), greedy the same at every horizon; the class enters as log M for both."""
    found = {(row["H"], row["M"]): row for row in noisy_experts.class_size(0.3, FAIR)}
    rho = staying(0.3, FAIR)
    assert found[8, 2.0]["greedy"] == pytest.approx(found[32, 2.0]["greedy"])
    growth = math.log(found[32, 2.0]["offline"] / found[16, 2.0]["offline"]) / 16
    assert growth == pytest.approx(-math.log(rho), rel=0.02)
    for way in ("offline", "greedy"):
        ratio = found[16, 256.0][way] / found[16, 2.0][way]
        assert ratio == pytest.approx(math.log(256 / 0.05) / math.log(2 / 0.05))


def test_only_noise_that_the_expert_dominates_leaves_a_rate_without_the_horizon():
    found = {row["H"]: row for row in noisy_experts.domination(0.3)}
    grows = lambda name: math.log(found[256][name] / found[32][name]) / math.log(8)
    assert grows("uniform") == pytest.approx(1, abs=0.05)
    assert abs(grows("dominated")) < 0.02 and abs(grows("no noise")) < 0.02
    assert grows("dominated, M = 2^H") == pytest.approx(1, abs=0.06), "a class that grows brings the horizon back"


# ---- realizability


@pytest.mark.parametrize(
    ("inside", "n", "share"),
    [(0.1, 10, 0.16), (0.1, 100, 0.49), (0.1, 1000, 1), (0.01, 1000, 0.51), (0.01, 10_000, 1), (0.001, 100, 0.07),
     (0.001, 10_000, 0.49), (0.0001, 10, 0.06), (0.0001, 10_000, 0.15)],
)  # fmt: skip
def test_the_bandit_table(inside, n, share):
    q = bandit.expert(20, 5.0, inside)
    assert bandit.offline(q, n, 30, 100).mean() == pytest.approx(share, abs=0.04)
    assert bandit.online(q)


def test_scores_against_the_reward_mislead_everybody():
    q = bandit.expert(20, 0.2, 1e-3)
    assert not bandit.online(q)
    assert bandit.offline(q, 1000, 30, 100).mean() < 0.05
    assert bandit.reweighted(q, 1000, 30, 100).mean() == 0


def test_reweighted_base_samples_do_not_care_how_rare_the_students_outcomes_are():
    often, rarely = (bandit.reweighted(bandit.expert(20, 5.0, d), 100, 30, 100).mean() for d in (0.1, 1e-4))
    assert often == pytest.approx(rarely, abs=0.03) and often > 0.9


def test_the_rules_of_the_bandit_minimise_the_packages_losses():
    """Each student does one thing; a small share of anything else keeps likelihoods finite."""
    q = bandit.expert(6, 5.0, 0.1)
    students = torch.from_numpy(np.eye(6, 7) * (1 - 1e-3) + 1e-3 / 7).log()
    rows = Rows(
        {"keep": torch.ones(6, dtype=torch.bool), "teacher": TableDist(torch.from_numpy(q).log().expand(6, 7), None)}
    )
    online = Everywhere(maths.reverse_kl)(TableDist(students, None), rows)
    assert int(online.argmin()) == 0 == int(q[:-1].argmax())
    answers = torch.tensor([6, 6, 3, 6, 2, 3, 6])
    offline = [CrossEntropy()(TableDist(s.expand(7, 7), answers), rows).sum() for s in students]
    assert int(torch.stack(offline).argmin()) == 3  # most often among the answers inside


def test_shared_logits_lose_to_sft_after_one_decision():
    """The learners arrive where enumeration says: the expert's mean for SFT, its geometric mean for reverse KL."""
    world, expert = realizability.two_contexts()
    expected = realizability.limits(world, expert)
    assert expected["sft"] == pytest.approx(0.7, abs=0.01) and expected["opd"] > 0.95
    for name, build in realizability.METHODS.items():
        earned = [realizability._earned(world, expert, (0, 0), build(), 20, seed) for seed in range(2)]
        assert np.mean(earned) == pytest.approx(expected[name], abs=0.04), name


def test_a_student_that_can_be_its_teacher_learns_as_much_from_sft():
    world, expert = realizability.slippery()
    level = world.value(expert.probabilities())
    earned = {
        name: np.mean([realizability._earned(world, expert, None, build(), 24, seed) for seed in range(2)])
        for name, build in realizability.METHODS.items()
    }
    assert earned["sft"] == pytest.approx(level, abs=0.02) and earned["opd"] == pytest.approx(level, abs=0.01)


def test_a_good_student_may_be_as_far_from_its_expert_as_one_likes():
    found = realizability.distances()
    for row in found:
        assert row["kl with"] == pytest.approx(-math.log(row["inside"]))
        assert row["reward with"] == pytest.approx(found[0]["reward with"]) and row["reward with"] > 0.8
        assert row["reward against"] < 0.2
    # KL(pi || q) = -E r / beta + KL(pi || base) - k, for any student: the expert's constant k moves no optimum
    rewards, base = torch.linspace(0, 1, 10, dtype=torch.float64), torch.full((10,), 0.1, dtype=torch.float64)
    pi = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    lq = (rewards / 0.2).log_softmax(-1) + math.log(1e-4)
    k = float((lq - rewards / 0.2 - base.log())[0])
    expected = -float(pi.exp() @ rewards) / 0.2 + float(maths.reverse_kl(pi, base.log())) - k
    assert float(maths.reverse_kl(pi, lq)) == pytest.approx(expected, abs=1e-13)


# ---- what a person sees


# ---- cliff


@pytest.mark.parametrize("c", [2.0, 5.0])
def test_the_edge_of_the_iterated_update_is_the_closed_form_and_the_guard_stays_before_it(c):
    """Within one step of lambda, at three kinds of certain positions."""
    for kind, (q, b) in enumerate(cliff.CERTAIN):
        first = math.ceil((cliff.limits(q, b, c) - 1) / cliff.STEP)  # the first step of the sweep at or beyond lambda*
        lams = [1 + cliff.STEP * i for i in (first - 1, first)]
        before, beyond = (cliff.ended(lam, c, "watch", 2) for lam in lams)
        assert (before.beyond[kind], beyond.beyond[kind]) == (0.0, 1.0)
        assert cliff.edge([before, beyond], kind) == lams[1]
        assert before.rarer[kind] < c <= beyond.rarer[kind]
        guarded = cliff.ended(lams[1], c, "cap", 2)
        assert guarded.beyond[kind] == 0 and guarded.rarer[kind] < c and cliff.edge([guarded], kind) == math.inf
        assert guarded.right[-1] == pytest.approx(beyond.right[-1]), (
            "where nothing is certain the guard changes nothing"
        )


def test_several_updates_of_a_batch_under_the_cap_end_where_one_without_it_does():
    lam, c = 1.8, 1.01
    often, once = cliff.ended(lam, c, "watch", 4), cliff.ended(lam, c, "watch", 1)
    assert often.largest > c, "the cap did cut"
    odds = lambda u: math.log(u / (1 - u))
    for kind, (q, b) in enumerate((*cliff.CERTAIN, cliff.FREE)):
        shift = math.log(cliff.WORDS - 1)  # the other words share what is left
        exact = lam * (odds(q) + shift) + (1 - lam) * (odds(b) + shift) - shift
        for end in (often, once):
            assert odds(end.right[kind]) == pytest.approx(exact, abs=1e-6)


def test_the_cliffs_study_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["lab", "cliff", "--caps", "2", "--most", "1.35", "--updates", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1.2912" in printed and "1.30" in printed and "never" in printed and "keeps the format" in printed
    assert [end["lam"] for end in json.loads((out / "results.json").read_text())["ends"]["2.0"]["cap"]][-1] == 1.35
    assert main(["lab", "cliff", "--caps", "1", "--out", str(tmp_path / "other")]) == 2
    assert "above 1" in capsys.readouterr().err


def test_the_lab_lists_its_studies_and_runs_one(tmp_path, capsys):
    assert main(["lab"]) == 0
    listed = capsys.readouterr().out
    assert "noisy-experts" in listed and "realizability" in listed
    out = tmp_path / "study"
    assert main(["lab", "noisy-experts", "--seeds", "3", "--rates", "0.2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "rho^-(H-1)" in printed and "never" in printed
    raw = json.loads((out / "results.json").read_text())
    assert len(raw["counted"]["0.2"]["8"]["nail"]) == 3 and raw["liar"]["bc"] == [None] * 3
    assert (out / "tables.md").read_text() in printed
    assert (out / "picture.svg").read_text().startswith("<svg")


def test_a_picture_has_every_finite_point_and_escapes_its_texts():
    from xml.etree import ElementTree

    lines = [Line("a < b", [1, 10, 100], [0.1, math.inf, 10.0]), Line("c", [1, 10, 100], [1, 1, 1], [0.5] * 3, [2] * 3)]
    root = ElementTree.fromstring(drawn([Panel("x & y", "n", "share", lines, log_x=True, log_y=True)]))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 5
    heights = [float(c.get("cy")) for c in circles]
    assert heights[0] > heights[2] > heights[1], "larger is higher"


def test_uniform_noise_is_what_the_study_says_it_uses():
    assert np.allclose(noisy_experts.check(noisy_experts.Options()), FAIR)
    channel = Channel(0.3, uniform)(torch.eye(4, dtype=torch.float64)[:1].log(), Rows({}))
    assert float(channel.exp()[0, 0]) == pytest.approx(staying(0.3, FAIR))
