"""Rewards among siblings: written numbers, limits and what a trivial group does."""

from dataclasses import replace

import pytest
import torch
from test_loop import training

from opd import recipes
from opd.contract import check, gradients, toy_cast, toy_groups
from opd.dist import TableDist
from opd.errors import OpdError
from opd.estimators import ppo_clip
from opd.loop import one_step
from opd.method import Updates, chain
from opd.parts.credit import LogRatio
from opd.parts.groups import GroupAdvantage, LeaveOneOut, LessBatch, Mixed, Saved, SkipTrivial, Whitened
from opd.parts.losses import PolicyGradient
from opd.rows import Rows
from opd.step import prepare


def table(groups, lengths=2):
    """Rows of groups of rewards; every rollout is `lengths` rows long."""
    rewards = torch.tensor([reward for group in groups for reward in group], dtype=torch.float64)
    group = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    sequence = torch.arange(len(rewards)).repeat_interleave(lengths)
    return Rows(
        {
            "reward": rewards[sequence],
            "group": group[sequence],
            "sequence": sequence,
            "keep": torch.ones(len(sequence), dtype=torch.bool),
        }
    )


def per_rollout(rows, column="advantage"):
    return rows[column].view(-1, 2)[:, 0].tolist()


def test_written_numbers_of_a_group():
    rows = table([(1, 0, 0, 0), (0, 1)])
    assert per_rollout(GroupAdvantage()(rows)) == pytest.approx([1.5, -0.5, -0.5, -0.5, -(0.5**0.5), 0.5**0.5])
    assert per_rollout(GroupAdvantage(ddof=0)(rows))[:2] == pytest.approx([3**0.5, -1 / 3**0.5])
    assert per_rollout(GroupAdvantage("none")(rows)) == [0.75, -0.25, -0.25, -0.25, -0.5, 0.5]


def test_rows_of_a_rollout_share_its_advantage_in_any_order_of_the_table():
    rows = table([(1, 0, 3), (5, 1)])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert torch.equal(GroupAdvantage()(rows)["advantage"][order], GroupAdvantage()(rows.index(order))["advantage"])


def test_a_trivial_group_has_advantage_0_and_does_not_blow_up_the_others():
    """With the trivial groups in the batch's deviation every live advantage would be 1/sqrt(share alive) too large."""
    live = table([(1, 0), (0, 1)])
    mixed = table([(1, 0), (1, 1), (0, 0), (0, 1)])
    for spread in ("group", "batch", "none"):
        alone, among = per_rollout(GroupAdvantage(spread)(live)), per_rollout(GroupAdvantage(spread)(mixed))
        assert [*among[:2], *among[6:]] == pytest.approx(alone)
        assert among[2:6] == [0] * 4


def test_groups_of_one_value_stay_finite_under_every_spread():
    for spread in ("group", "batch", "none"):
        assert per_rollout(GroupAdvantage(spread)(table([(0.3,), (0.1, 0.1, 0.1)]))) == [0] * 4


def test_skipping_trivial_groups_takes_them_from_the_mean_and_counts_them():
    rows = SkipTrivial()(table([(1, 0), (1, 1)]))
    assert rows["keep"].tolist() == [True] * 4 + [False] * 4
    assert torch.equal(rows["masked.trivial"], ~rows["keep"])


def shortened(group):
    """The group, of whose answers each is two tokens shorter than the one before."""
    cut = lambda values, by: values[: len(values) - 2 * by]
    rollouts = [
        replace(one, tokens=cut(one.tokens, by), author=cut(one.author, by),
                columns={name: cut(column, by) for name, column in one.columns.items()})
        for by, one in enumerate(group.rollouts)
    ]  # fmt: skip
    return replace(group, rollouts=tuple(rollouts))


def test_dr_grpo_divides_neither_by_a_deviation_nor_by_a_length():
    """The mean over answers of sum_t -(R - mean R) log pi(y_t), by hand on answers of unequal length."""
    method = recipes.load("grpo")(n=3, spread="none", mean="sequence_sum")
    cast = toy_cast(method)
    groups, student = [shortened(group) for group in toy_groups(method, cast)], cast["student"]
    losses = []
    for group in groups:
        baseline = sum(answer.tags["reward"] for answer in group.rollouts) / 3
        for answer in group.rollouts:
            tokens, before = torch.from_numpy(answer.tokens).long(), torch.from_numpy(answer.positions) - 1
            logp = (student.layers_of(tokens[None])[-1][0, before] @ student.head.T).log_softmax(-1)
            chosen = logp.gather(-1, tokens[before + 1][:, None]).sum()
            losses.append((baseline - answer.tags["reward"]) * chosen)
    expected = torch.autograd.grad(torch.stack(losses).mean(), [student.head, student.first])

    def found(mean):
        method = recipes.load("grpo")(n=3, spread="none", mean=mean)
        slopes = gradients(method, student, *prepare(groups, method, cast, 0))
        return torch.cat([slopes[name].flatten() for name in ("head", "first")])

    exact = torch.cat([slope.flatten() for slope in expected])
    assert torch.allclose(found("sequence_sum"), exact, rtol=0, atol=1e-14)
    assert torch.cosine_similarity(found("sequence_mean"), exact, 0) < 0.98


def test_leave_one_out_is_the_reward_less_the_others_mean():
    assert per_rollout(LeaveOneOut()(table([(1, 0, 0), (0.5,)]))) == pytest.approx([1, -0.5, -0.5, 0])
    assert per_rollout(LessBatch()(table([(1, 0), (1, 0)]))) == [0.5, -0.5, 0.5, -0.5]


def test_whitening_looks_at_kept_rows_only():
    rows = table([(1, 0)]).plus(
        advantage=torch.tensor([1.0, 3.0, 100.0, torch.nan]), keep=torch.tensor([True, True, False, False])
    )
    assert Whitened()(rows)["advantage"][:2].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    flat = rows.plus(advantage=torch.full((4,), 2.0))
    assert Whitened()(flat)["advantage"].tolist() == [0] * 4


def test_the_scope_of_a_statistic_is_the_batch_unless_it_is_said_to_be_a_micro_batch():
    rows = table([(1, 0), (5, 1)])
    assert per_rollout(LessBatch()(rows)) == [-0.75, -1.75, 3.25, -0.75]
    assert per_rollout(LessBatch(micro=2)(rows)) == [0.5, -0.5, 2.0, -2.0]
    assert per_rollout(LessBatch(micro=3)(rows)) == [-1.0, -2.0, 3.0, 0.0]
    rows = table([(0, 0), (0, 0)], lengths=1).plus(advantage=torch.tensor([1.0, 3.0, 7.0, 7.0]))
    assert Whitened()(rows)["advantage"].tolist() == pytest.approx([-7 / 6, -0.5, 5 / 6, 5 / 6])
    assert Whitened(micro=2)(rows)["advantage"].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0, 0])
    assert torch.equal(Whitened(micro=4)(rows)["advantage"], Whitened()(rows)["advantage"])
    for part in (LessBatch, Whitened):
        with pytest.raises(OpdError, match="micro"):
            part(micro=-1)


def test_the_passes_of_learning_do_not_change_credit():
    """The batch is all ranks: credit is given before anything is split. A scope of credit's own does change it."""
    build = lambda micro: replace(
        recipes.load("sampled_token")(n=2), credit=chain(LogRatio(), Whitened(micro)), updates=Updates(parts=2)
    )
    whole, split = (training(build(0), micro_tokens=tokens) for tokens in (10**6, 1))
    done = [one_step(run) for run in (whole, split)]
    assert torch.equal(*(batch.rows["advantage"] for batch in done))
    assert done[0].metrics["loss"] == pytest.approx(done[1].metrics["loss"], abs=1e-12)
    for one, other in zip(whole.student.parameters(), split.student.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
    small = one_step(training(build(2))).rows["advantage"]
    assert not torch.allclose(small, done[0].rows["advantage"], atol=1e-2)


def test_reward_and_distillation_are_mixed_by_weight():
    rows = Saved("reward_advantage")(GroupAdvantage("none")(table([(1, 0)])))
    rows = rows.plus(advantage=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    mixed = Mixed((("reward_advantage", 0.5), ("advantage", 0.1)))(rows)["advantage"]
    assert mixed.tolist() == pytest.approx([0.35, 0.45, 0.05, 0.15])
    with pytest.raises(OpdError):
        Mixed(())


def test_the_common_form_adds_rewards_to_the_log_ratio_undiscounted():
    build, weight = recipes.load("sampled_token"), 0.5
    ratio = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    columns = {"teacher.chosen": ratio, "untruncated": torch.zeros(4), "episode": torch.tensor([0, 0, 1, 1])}
    columns["row"] = torch.tensor([0, 1, 0, 1])
    rows = table([(1, 0)]).plus(**columns)
    mixed = build(n=2, gamma=1.0, reward=weight).credit(rows)["advantage"]
    assert mixed.tolist() == pytest.approx([3 + weight / 2, 2 + weight / 2, 7 - weight / 2, 4 - weight / 2])
    assert build(n=2, gamma=1.0).credit(rows)["advantage"].tolist() == pytest.approx([3, 2, 7, 4])
    assert build(reward=weight).needs_reward and not build().needs_reward
    assert len(list(check(lambda: build(reward=weight, n=2)))) > 5
    with pytest.raises(OpdError, match="rewards are compared"):
        build(reward=weight, n=1)


def test_the_dual_clip_bounds_only_a_negative_advantage():
    logp, old = torch.tensor([5.0, 5.0, 0.1]).double(), torch.zeros(3).double()
    advantage = torch.tensor([-1.0, 1.0, -1.0]).double()
    plain, dual = ppo_clip(logp, old, advantage), ppo_clip(logp, old, advantage, dual=3.0)
    assert dual.tolist() == pytest.approx([3.0, plain[1].item(), plain[2].item()])
    assert plain[0] > 100
    with pytest.raises(ValueError, match="dual"):
        ppo_clip(logp, old, advantage, dual=1.1)


def test_an_upper_clip_needs_a_lower_one():
    for high in (0.0, 0.3):
        with pytest.raises(OpdError):
            PolicyGradient(clip_high=high)


def one_row(method, ratio, advantage=1.0):
    """The loss of a token whose ratio and advantage are these, and what is counted of it."""
    token, half = torch.zeros(1, dtype=torch.long), torch.tensor([0.5], dtype=torch.float64)
    student = TableDist(torch.tensor([[ratio / 2, 1 - ratio / 2]], dtype=torch.float64).log(), token)
    rows = Rows({"keep": token == 0, "token": token, "untruncated": half.log(), "advantage": 2 * half * advantage})
    return float(method.terms["reward"].loss(student, rows)), method.lookup[0](student, rows)


def test_an_upper_clip_of_0_stops_at_the_ratio_1():
    for high, loss, clipped in ((0.0, -1.0, 1.0), (0.28, -1.1, 0.0)):
        value, counted = one_row(recipes.load("dapo")(high=high), 1.1)
        assert value == pytest.approx(loss) and counted["clipped"].item() == clipped


@pytest.mark.parametrize("name", ["grpo", "rlsd", "rlsd_ectr", "sc_grpo"])
def test_where_nothing_is_clipped_nothing_is_counted(name):
    value, counted = one_row(recipes.load(name)(clip=0.0), 1.9)
    assert value == pytest.approx(-1.9) and counted == {}
    value, counted = one_row(recipes.load(name)(clip=0.2), 1.9)
    assert value == pytest.approx(-1.2) and counted["clipped"].item() == 1
