"""The experiment with a noisy adding teacher: the rule, its noise and its wrong totals are what the page says."""

import sys

import numpy as np
import pytest
import torch

from experiments.noisy_experts import addition, student
from experiments.noisy_experts.arms import CHANNEL, PLAIN, SFT, WAYS, Arm
from experiments.noisy_experts.rule import MODULUS, TERMS, Rule, task
from opd.parts.channel import Channel
from opd.protocols import Want
from opd.rollout import TEACHER, Sampling, continued

KEY = (1, -1, 1, 1, -1, -1, 1, -1)
DIGIT = {digit: number for number, digit in enumerate("0123456789abcdef")}


def prompts(problems):
    return [np.array([DIGIT[letter] for letter in problem.prompt], np.int32) for problem in problems]


def written(rule, problems, sampling):
    pieces = rule.write(prompts(problems), sampling, [[i] for i in range(len(problems))])
    return [one for (one,) in pieces]


def test_the_clean_teacher_is_right_and_every_wrong_total_counts():
    some = task(KEY, 8, 8, 0)
    for problem, piece in zip(some.train, written(Rule(KEY, Channel(0.0), False), some.train, Sampling()), strict=True):
        text = "".join("0123456789abcdef"[token] for token in piece.tokens)
        assert some.grade(problem, text) == 1.0
        assert some.grade(problem, text[:-1] + "0123456789abcdef"[(DIGIT[text[-1]] + 1) % 16]) == 0.0
    assert not {p.prompt for p in some.train} & {p.prompt for p in some.held_out}


@pytest.mark.parametrize("gets_lost", [True, False])
def test_a_noisy_text_stays_clean_as_often_as_is_said(gets_lost):
    problems = task(KEY, 4000, 1, 0).train
    pieces = written(Rule(KEY, Channel(0.3), gets_lost), problems, Sampling())
    clean = written(Rule(KEY, Channel(0.0), gets_lost), problems, Sampling(temperature=0.0))
    same = np.mean([np.array_equal(a.tokens, b.tokens) for a, b in zip(pieces, clean, strict=True)])
    rho = 1 - 0.3 * (1 - 1 / MODULUS)  # a noisy total may be the right one by chance
    assert same == pytest.approx(rho**TERMS, abs=0.02)


def test_after_a_wrong_total_one_teacher_goes_on_and_the_other_tosses_coins():
    (problem,) = task(KEY, 1, 1, 3).train
    prompt = prompts([problem])[0]
    terms = prompt[:TERMS]
    totals = (np.cumsum(terms * KEY)) % MODULUS
    totals[2:] = (totals[2:] + 5) % MODULUS  # the third total is wrong, and the text goes on from it
    piece = written(Rule(KEY, Channel(0.0), False), [problem], Sampling())[0]
    piece = type(piece)(totals.astype(np.int32), piece.behaviour, piece.untruncated, piece.end)
    context = continued(prompt, piece, problem, Sampling(), TEACHER)
    for gets_lost in (False, True):
        chosen = Rule(KEY, Channel(0.2), gets_lost).read([context], Want(dist=True)).chosen.exp().numpy()
        sure, noise = 0.8 + 0.2 / MODULUS, 0.2 / MODULUS
        later = [0.4 + noise if gets_lost and (2 * term) % MODULUS else sure for term in terms[3:]]
        np.testing.assert_allclose(chosen, [sure, sure, noise, *later])


def test_the_arms_differ_in_who_writes_and_in_what_the_loss_knows():
    methods = {way: Arm("is lost", 0.3, *way).method for way in WAYS}
    assert not methods[SFT, PLAIN].teach
    told = {way: method for way, method in methods.items() if way[0] != SFT}
    assert {ask.want for method in told.values() for ask in method.teach} == {Want(dist=True)}
    for (prefix, loss), method in told.items():
        assert (method.sample.writer, method.sample.sampling.greedy) == (prefix.split(",")[0], "greedy" in prefix)
        assert ("explain" in method.terms) == (loss == CHANNEL)


def test_a_repeated_command_does_no_run_twice(tmp_path, monkeypatch, capsys):
    for name in ("COINS", "KEYS", "COINS_AGAIN"):
        monkeypatch.setattr(student, name, 1)
    monkeypatch.setattr(addition, "NOISE", {"is lost": (0.3,)})
    monkeypatch.setattr(sys, "argv", ["addition", "--out", str(tmp_path), "--seeds", "0", "1", "--steps", "2"])
    torch.manual_seed(5)
    addition.main()
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    assert len(first) == len(WAYS) * 4 + 2 and capsys.readouterr().out.count("| is lost | 0.3 |") == len(WAYS)
    addition.main()
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()} == first
    assert (tmp_path / "noisy-addition.png").read_bytes().startswith(b"\x89PNG")
