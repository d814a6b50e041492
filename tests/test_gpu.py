"""The same numbers on a CUDA device: `make gpu`. Written without one at hand, so never run yet."""

import pytest
import torch

from opd.cast import located
from opd.contract import distance
from opd.engines.hf import HFModel, load_model, load_tokenizer
from opd.recipes import load
from opd.rollout import Problem, Visit
from opd.step import gradient, prepare
from opd.tasks import sums
from opd.teachers.local import LocalTeacher

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def cast(device: str, dtype: torch.dtype):
    def opened(name: str) -> HFModel:
        path = located(f"embedded:{name}")
        return HFModel(load_model(path, dtype, device), load_tokenizer(path), name, max_new=20)

    return {"student": opened("student"), "teacher": LocalTeacher(opened("teacher"))}


def visits(n: int = 8) -> list[Visit]:
    rows = sums.problems("train", n, 0)
    return [Visit(Problem(row["id"], row["prompt"], row["answer"]), 0, 0) for row in rows]


def gradients(device: str, dtype: torch.dtype, groups=None):
    method, players = load("gkd")(lam=1.0, beta=1.0), cast(device, dtype)
    groups = groups or method.sample(players, visits(), 0)
    rows, sequences = prepare(groups, method, players, 0)
    outcome = gradient(players["student"], rows, sequences, method, chunk=37)
    named = players["student"].model.named_parameters()
    return outcome.loss, {name: p.grad.detach().cpu().double() for name, p in named}, groups


def test_gradient_on_cuda_equals_the_gradient_on_the_processor():
    loss, ours, groups = gradients("cpu", torch.float64)
    other, theirs, _ = gradients("cuda", torch.float64, groups)
    assert other == pytest.approx(loss, rel=1e-9)
    assert distance(ours, theirs) < 1e-9


def test_bfloat16_is_the_same_direction():
    _, ours, groups = gradients("cpu", torch.float64)
    _, theirs, _ = gradients("cuda", torch.bfloat16, groups)
    flat = [torch.cat([g.flatten() for g in some.values()]) for some in (ours, theirs)]
    assert float(torch.cosine_similarity(*flat, dim=0)) > 0.98


def test_greedy_answers_are_the_same():
    from opd.rollout import Sampling

    written = []
    for device in ("cpu", "cuda"):
        teacher = cast(device, torch.float32)["teacher"]
        prompts = [teacher.render(visit.problem.messages) for visit in visits()]
        pieces = teacher.write(prompts, Sampling(temperature=0.0), [[0]] * len(prompts))
        written.append([piece[0].tokens.tolist() for piece in pieces])
    assert written[0] == written[1]
