"""Two language models write one text: what drew each token, against what both say of the finished text."""

import numpy as np
import pytest
import torch
from models import VOCAB, engine

from opd.engines.hf import common_vocab
from opd.engines.sampling import take_turn
from opd.errors import MethodError
from opd.loop import Source, Training, one_step
from opd.meter import Metered
from opd.parts.fading import Fading
from opd.parts.rounds import TakeTurns
from opd.protocols import Want
from opd.recipes import load
from opd.rollout import STUDENT, TEACHER, End, Group, Problem, Sampling, Visit, continued
from opd.teachers.copies import Frozen
from opd.teachers.local import LocalTeacher
from opd.teachers.renamed import Renamed

SEEDS = [[1, 2, 3], [4, 5]]
PROMPTS = [np.array([1, 5, 9, 7], np.int32), np.array([1, 8], np.int32)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A student and a teacher of another width, whose head is padded further, over their common tokens."""
    folder = tmp_path_factory.mktemp("pair")
    student = engine(folder / "student", max_new=10, seed=1)
    teacher = engine(folder / "teacher", "qwen3", name="teacher", width=24, vocab=VOCAB + 19, seed=2)
    assert common_vocab(student, teacher) == VOCAB
    assert teacher.head.shape[0] != student.head.shape[0]
    return student, LocalTeacher(teacher)


def logprobs(model, prompt, piece):
    """[n, V] what a model says at every decision of a finished text."""
    rollout = continued(prompt, piece, Problem("p", "x"), Sampling(), STUDENT)
    return model.read([rollout], Want(dist=True)).dist.logprobs()


def at(table, ids):
    return table.gather(-1, torch.from_numpy(np.asarray(ids)).long()[:, None]).squeeze(-1)


def every_piece(pieces):
    return [(prompt, piece) for prompt, some in zip(PROMPTS, pieces, strict=True) for piece in some]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=5), Sampling(temperature=0.0)])
def test_behaviour_is_the_log_prob_under_the_mixture(pair, sampling):
    student, teacher = pair
    pieces = student.take_turns(teacher, 0.3, PROMPTS, sampling, SEEDS)
    assert [len(some) for some in pieces] == [3, 2]
    for prompt, piece in every_piece(pieces):
        ours, theirs = logprobs(student, prompt, piece), logprobs(teacher, prompt, piece)
        if sampling.greedy:
            own = torch.nn.functional.one_hot(ours.argmax(-1), VOCAB).double()
        else:
            tempered = ours / sampling.temperature
            floor = tempered.topk(sampling.top_k, -1).values[:, -1:] if sampling.top_k else -torch.inf
            own = tempered.masked_fill(tempered < floor, -torch.inf).softmax(-1)
        mixture = (0.7 * own + 0.3 * theirs.exp()).log()
        assert np.allclose(piece.behaviour, at(mixture, piece.tokens), atol=1e-12)
        assert np.allclose(piece.untruncated, at(ours, piece.tokens), atol=1e-12)
        assert (piece.tokens == piece.columns["label"])[piece.author == TEACHER].all()
    authors = np.concatenate([piece.author for _, piece in every_piece(pieces)])
    assert {STUDENT, TEACHER} == set(authors.tolist())


def test_a_text_depends_on_its_seed_alone(pair):
    student, teacher = pair
    together = student.take_turns(teacher, 0.4, PROMPTS, Sampling(), SEEDS)
    longer = student.take_turns(teacher, 0.4, PROMPTS[1:], Sampling(max_new=20), [[5]])[0][0]
    alone = student.take_turns(teacher, 0.4, PROMPTS[1:], Sampling(), [[5]])[0][0]
    for name in ("tokens", "author", "behaviour"):
        ours, theirs, long = (getattr(piece, name) for piece in (together[1][1], alone, longer))
        assert np.allclose(ours, theirs, atol=1e-12) and np.allclose(long[: len(ours)], ours, atol=1e-12)


def test_the_whole_share_and_none_of_it(pair):
    student, teacher = pair
    for share, author in ((0.0, STUDENT), (1.0, TEACHER)):
        for prompt, piece in every_piece(student.take_turns(teacher, share, PROMPTS, Sampling(), SEEDS)):
            assert set(piece.author.tolist()) == {author}
            writer = teacher if share else student
            assert np.allclose(piece.behaviour, at(logprobs(writer, prompt, piece), piece.tokens), atol=1e-12)


def test_tokens_come_as_often_as_the_mixture_says():
    """Every coin and every draw on a grid: the share of each token is its probability, to the grid's width."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(1, 6, dtype=torch.float64, generator=generator).log_softmax(-1) for _ in range(2))
    coins, draws = (torch.arange(n) / n + 0.5 / n for n in (40, 500))
    grid = torch.cartesian_prod(coins.double(), draws.double())
    uniform = torch.stack([grid[:, 0], grid[:, 1], grid[:, 1]], -1)
    sampling = Sampling(temperature=0.8)
    turn = take_turn(ours.expand(len(grid), -1), theirs.expand(len(grid), -1), 0.25, sampling, uniform)
    mixture = 0.75 * (ours / 0.8).softmax(-1)[0] + 0.25 * theirs.exp()[0]
    seen = torch.bincount(turn["token"], minlength=6) / len(grid)
    assert torch.allclose(seen.double(), mixture, atol=1 / 500)
    assert torch.allclose(turn["behaviour"].exp(), mixture[turn["token"]])


def test_the_teachers_own_end_ends_the_text_and_a_renamed_one_the_students(pair):
    student, teacher = pair
    ours, theirs = 2, 7
    teacher.engine.tokenizer.eos_token = teacher.engine.tokenizer.convert_ids_to_tokens(theirs)
    teacher.engine.model.generation_config.eos_token_id = theirs
    try:
        many = [[*range(40)], []]
        plain = student.take_turns(teacher, 0.5, PROMPTS, Sampling(max_new=30), many)[0]
        renamed = student.take_turns(Renamed(teacher, ours, theirs), 0.5, PROMPTS, Sampling(max_new=30), many)[0]
    finally:
        teacher.engine.tokenizer.eos_token = "</s>"
        teacher.engine.model.generation_config.eos_token_id = ours
    assert {int(piece.tokens[-1]) for piece in plain if piece.end == End.STOP} == {ours, theirs}
    assert {int(piece.tokens[-1]) for piece in renamed if piece.end == End.STOP} == {ours}
    assert any(theirs in piece.tokens for piece in renamed), "in our names it is a token like any other"


def test_a_renamed_teacher_is_asked_in_its_own_names(pair):
    student, teacher = pair
    named = Renamed(teacher, 2, 7)
    for prompt, piece in every_piece(student.take_turns(named, 1.0, PROMPTS, Sampling(), SEEDS)):
        assert np.allclose(piece.behaviour, at(logprobs(named, prompt, piece), piece.tokens), atol=1e-12)


def test_what_the_teacher_read_while_writing_is_counted(pair):
    student, teacher = pair
    meter = Metered(teacher)
    visits = [Visit(Problem(f"p{i}", "1+1=?"), 0, 0) for i in range(3)]
    groups: list[Group] = TakeTurns(Fading(0.5, 10), n=2)({"student": student, "teacher": meter}, visits, 0)
    written = sum(rollout.n for group in groups for rollout in group.rollouts)
    prompts = sum(len(student.render(visit.problem.messages)) for visit in visits)
    assert meter.tokens == prompts + written


def test_who_cannot_be_relieved_is_refused(pair):
    student, _ = pair
    with pytest.raises(MethodError, match="a Frozen as teacher"):
        load("minillm")().sample.check({"student": student, "teacher": Frozen(student)})


class Task:
    name, train, held_out = "t", [Problem(f"p{i}", "1+1=?") for i in range(4)], []
    grade = staticmethod(lambda problem, text: None)


@pytest.mark.parametrize(("name", "terms"), [("minillm", {"later", "single"}), ("dagger", {"imitate"})])
def test_a_step_on_two_models(pair, name, terms):
    student, teacher = pair
    cast = {"student": student, "teacher": teacher}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    method = load(name)()
    batch = one_step(
        Training(student, cast, Task(), method, optimizer, lambda step: 0.0, Source(Task.train, 0), steps=1, batch=4)
    )
    assert np.isfinite(batch.metrics["loss"]) and set(method.terms) == terms
    assert (batch.metrics["teacher_tokens"] > batch.metrics["tokens"]) and {"label", "author"} <= set(
        batch.rows.columns
    )
    if name == "minillm":
        weight = (batch.rows["untruncated"] - batch.rows["behaviour"]).exp()
        assert float(weight.max()) <= 1 / 0.8 + 1e-12, "the mixture bounds the weight"
