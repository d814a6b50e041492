"""The experiments without a language model measure what they say, and leave their table, numbers and plot behind."""

import json
import sys

import pytest
import torch

from experiments.revisiting import control, synthetic, variance
from opd.recipes.sampled_token import sampled_token


def walks(policy: control.Policy, count: int = synthetic.BATCH) -> control.Walks:
    return control.walk(policy, control.TASKS["left"], count, torch.Generator().manual_seed(0))


def test_walks_know_their_own_probability_and_start_where_the_task_says():
    torch.manual_seed(0)
    policy = control.Policy()
    seen = walks(policy)
    assert sum(p.numel() for p in policy.parameters()) == 4022
    torch.testing.assert_close(seen.rows["untruncated"], control.logprob(policy(seen.inputs)[1], seen.steps))
    first = seen.rows["row"] == 0
    assert (seen.inputs[first, 1] == 2).all()
    torch.testing.assert_close(seen.inputs[~first, 1], seen.places[:, :-1].flatten())
    mean, std = control.moments(policy(seen.inputs)[1])
    exact = torch.distributions.Normal(mean, std).log_prob(seen.steps)
    torch.testing.assert_close(seen.rows["untruncated"], exact)


def test_the_variance_is_that_of_eight_gradients_of_the_last_layer():
    torch.manual_seed(1)
    student, teacher = control.Policy(), control.Policy()
    seen, method = walks(student), sampled_token(gamma=0.5)
    found, _ = synthetic.learn(student, teacher, seen, method)
    read = control.logprob(teacher(seen.inputs)[1], seen.steps).detach()
    rows, each = seen.rows.plus(**{"teacher.chosen": read}), []
    for part in torch.arange(len(rows)).view(synthetic.PARTS, -1):
        student.zero_grad()
        table, term = method.credit(rows.index(part)), method.terms["advantage"]
        dist = control.Chosen(control.logprob(student(seen.inputs[part])[1], seen.steps[part]))
        (term.mean(table) * term.loss(dist, table)).sum().backward()
        each.append(torch.cat([student.head.weight.grad.flatten(), student.head.bias.grad]))
    assert found == pytest.approx(float(torch.stack(each).var(0).sum()), rel=1e-4)


def test_a_repeated_command_does_no_run_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(control.TEACHER, "updates", 2)
    short = ["--out", str(tmp_path), "--iterations", "2", "--seeds", "0", "1", "--optimizers", "sgd:1e-2"]
    monkeypatch.setattr(sys, "argv", ["synthetic", *short])
    synthetic.main()
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    assert len(first) == 10 and capsys.readouterr().out.count("| sgd 1e-2 |") == 5
    synthetic.main()
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()} == first
    assert (tmp_path / "synthetic.png").read_bytes().startswith(b"\x89PNG")
    assert "reverse KL per walk" in (tmp_path / "synthetic.md").read_text()


def test_independent_words_leave_no_bias_and_coupled_ones_do(tmp_path, monkeypatch):
    monkeypatch.setattr(variance, "FINE", (0.0, 0.5, 1.0))
    free, tied = variance.trade(0, 0.0, 1.0, 3), variance.trade(0, 1.0, 1.0, 3)
    assert max(free["bias"]) < 1e-20 and tied["bias"][0] > tied["bias"][1] > 1e-8 > tied["bias"][2]
    assert all(variance.best(free, batch) == 0 for batch in variance.BATCHES)
    assert variance.best(tied, 10**9) == 1, "with data without end only the unbiased one is right"
    assert json.loads(json.dumps(tied)) == tied
