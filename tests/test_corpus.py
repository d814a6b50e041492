"""Windows of plain text beside the problems: which they are, what is learned from them, and what they leave alone."""

import json

import numpy as np
import pytest
import torch
from models import engine
from test_loop import training

from opd import recipes
from opd.errors import DataError, OpdError
from opd.loop import grade, one_step
from opd.parts.corpus import WithCorpus
from opd.parts.sample import OneTurn
from opd.rollout import DATA, GIVEN, Problem, Visit
from opd.step import prepare

LINES = ["the cat sat on the mat", "a dog ran", "it was late and it rained on the roof"]


@pytest.fixture
def student(tmp_path):
    return engine(tmp_path / "models")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps({"text": line, "source": "here"}) + "\n" for line in LINES), encoding="utf-8")
    return path


def visits(n, seed=0):
    return [Visit(Problem(f"p{i}", "1+1"), 0, seed) for i in range(n)]


def windows(sample, student, step, n=3, seed=0):
    """The ids of the windows of one batch."""
    groups = sample({"student": student}, visits(n, seed), step)
    return [group.rollouts[0] for group in groups if group.problem.id.startswith("corpus/")]


def test_texts_follow_one_another_each_with_its_end_and_nothing_is_left_out_but_a_rest(file, student):
    whole = np.concatenate([student.encode(line) for line in LINES])
    for size in (5, 7):
        found = WithCorpus(str(file), size, fresh=OneTurn()).windows(student)
        assert found.shape == (len(whole) // size, size)
        assert (found.reshape(-1) == whole[: found.size]).all()


def test_a_text_file_is_one_text(tmp_path, student):
    path = tmp_path / "plain.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    found = WithCorpus(str(path), 4, fresh=OneTurn()).windows(student)
    assert (found.reshape(-1) == student.encode("\n".join(LINES))[: found.size]).all()


def test_a_window_is_given_its_first_token_and_nobody_wrote_the_rest(file, student):
    for rollout in windows(WithCorpus(str(file), 6, fresh=OneTurn()), student, 0):
        assert rollout.author.tolist() == [GIVEN] + [DATA] * 5 and not rollout.written
        assert np.isnan(rollout.tags["reward"]) and rollout.text == student.decode(rollout.decisions)


def test_seed_and_step_choose_the_windows(file, student):
    sample = WithCorpus(str(file), 4, fresh=OneTurn())
    ids = lambda step, seed=0: [r.tokens.tolist() for r in windows(sample, student, step, seed=seed)]
    assert ids(3) == ids(3) and len(ids(3)) == 3
    assert len({str(ids(step, seed)) for step in range(4) for seed in range(2)}) > 4
    once = [one.problem.id for one in windows(sample, student, 1, n=len(sample.windows(student)))]
    assert len(set(once)) == len(once), "no window twice while there are others"
    assert len(windows(sample, student, 1, n=99)) == 99


@pytest.mark.parametrize(
    ("name", "text", "window", "said"),
    [
        ("a.jsonl", '{"body": "x"}\n', 4, "line 1 has no text"),
        ("a.jsonl", '\n{"text": 3}\n', 4, "line 2 has no text"),
        ("a.jsonl", "[1]\n", 4, "line 1 is not an object"),
        ("a.jsonl", "{text}\n", 4, "line 1 is not valid JSON"),
        ("a.jsonl", "", 4, "too short"),
        ("a.txt", "ab", 4000, "does not fit"),
        ("a.txt", "ab", 30, "too short"),
        ("a.txt", None, 4, "cannot be read"),
        ("a.txt", b"\xff\xfe\xff", 4, "cannot be read"),
    ],
)
def test_a_corpus_that_cannot_be_is_refused_before_anybody_writes(tmp_path, student, name, text, window, said):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=said):
        WithCorpus(str(path), window, fresh=OneTurn()).check({"student": student})


def test_a_window_of_one_token_holds_nothing_to_learn(file):
    with pytest.raises(OpdError, match="tokens of a window"):
        WithCorpus(str(file), 1, fresh=OneTurn())


# -- minillm


def minillm(file, **parameters):
    return recipes.load("minillm")(corpus=str(file), window=6, **parameters)


def test_the_corpus_leaves_the_advantages_of_what_was_written_as_they_are(file):
    build = recipes.load("minillm")
    with_corpus, without = training(minillm(file)), training(build())
    tables = []
    for run, method in ((with_corpus, minillm(file)), (without, build())):
        groups = grade(run.task, method.sample(run.cast, visits(4), 0))
        tables.append(prepare(groups, method, run.cast, 0)[0])
    both, alone = tables
    own = both["author"] != DATA
    assert int((~own).sum()) == 4 * 5 and bool((both["plain"] == ~own).all()) and bool((both["keep"] == own).all())
    assert torch.equal(both["advantage"][own], alone["advantage"])


@pytest.mark.parametrize("distilled", [0.0, 0.5, 1.0])
def test_what_the_corpus_teaches_by_hand(file, distilled):
    """(1 - d) times the mean of -log pi(y) plus d times the mean of -sum q log pi, over the rows of the windows."""
    run = training(minillm(file, distilled=distilled, single=0.0))
    groups = grade(run.task, run.method.sample(run.cast, visits(3), 0))
    rows, sequences = prepare(groups, run.method, run.cast, 0)
    from opd.step import gradient

    found = gradient(run.student, rows, sequences, run.method).losses
    plain, soft = [], []
    for group in groups[3:]:
        (rollout,) = group.rollouts
        lp, lq = (log_probs(run.cast[who], rollout) for who in ("student", "teacher"))
        plain += (-lp.gather(-1, torch.from_numpy(rollout.decisions).long()[:, None])).flatten().tolist()
        soft += (-(lq.exp() * lp).sum(-1)).tolist()
    expected = {"plain": np.mean(plain), "soft": np.mean(soft)}
    shares = {"plain": 1 - distilled, "soft": distilled}
    for name, share in shares.items():
        if share:
            assert found[name] == pytest.approx(share * expected[name], rel=1e-5)
        else:
            assert name not in found


def log_probs(model, rollout):
    """[n, V] of the rows of a text."""
    states = model.layers_of(torch.as_tensor(rollout.tokens).long()[None])[-1][0]
    return (states @ model.head.T).log_softmax(-1)[rollout.positions - 1].detach()


def test_no_number_of_a_batch_is_about_the_corpus(file):
    one = one_step(training(minillm(file, epochs=1)))
    other = one_step(training(recipes.load("minillm")(epochs=1)))
    assert {"loss.plain", "loss.soft"} <= set(one.metrics)
    for name in ("length", "tokens", "kept", "student.chosen", "reverse_kl"):
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-6), name
