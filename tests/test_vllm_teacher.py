"""A teacher behind vLLM gives the loss of a local one; what it cannot do is refused, and no fault gives a wrong number.

The server is a stand-in that speaks vLLM's JSON; `make test-vllm` asks a real one.
"""

import json

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from serving import through, written
from vllm_stand_in import StandIn

from opd import Run, Settings
from opd import cast as casting
from opd.build import build
from opd.cli.main import main
from opd.errors import ModelError, SettingError, TeacherError, Unanswered
from opd.loop import train
from opd.protocols import Want
from opd.rollout import STUDENT, End, Problem, Sampling, continued
from opd.teachers.vllm import VLLMTeacher

SMALL = {"steps": 4, "batch": 4, "lr": 1e-3, "max_new": 12, "eval_problems": 2, "drafts": 1, "doctor": "off"}
PATIENT = {"teacher_timeout": 30.0, "teacher_patience": 60.0}
HASTY = {"teacher_timeout": 30.0, "teacher_patience": 0.6}
START = 10  # questions before the first about a text of the student: limits, tokens and the probe


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A student, its teacher, and another model in the teacher's form."""
    base = tmp_path_factory.mktemp("models")
    return {name: str(models.folder(base / name, seed=i)) for i, name in enumerate(("student", "teacher", "other"))}


@pytest.fixture(scope="module")
def server(folders):
    served = StandIn(folders["teacher"])
    yield served
    served.stop()


@pytest.fixture
def another(folders):
    """A server of the test's own, which it may change."""
    served = StandIn(folders["teacher"])
    yield served
    served.stop()


def settings(folders, teacher="", **more):
    given = {"method": "sampled_token", "student": folders["student"], "teacher": teacher, **SMALL, **PATIENT, **more}
    return Settings.of(**given)


def outcome(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], load_file(folder / "model" / "model.safetensors")


def trained(folder, folders, teacher, **more):
    """A run to its end: its losses and its student."""
    Run.new(settings(folders, teacher, out=str(folder), **more)).train()
    return outcome(folder)


def same(first, second):
    return first[0] == second[0] and all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.fixture(scope="module")
def undisturbed(folders, server, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("undisturbed") / "run", folders, f"vllm:{server.url}")


def student_of(folders):
    return casting.open_model(folders["student"], settings(folders), "float32", "cpu")


def met(folders, url, patience=0.0):
    """The teacher, after all that it is held to before a run."""
    student = student_of(folders)
    teacher = VLLMTeacher.of(f"vllm:{url}", student, 30.0, patience)
    casting.share_tokens(student, teacher)
    return teacher


# ---- the same answers


FAMILIES = {
    "one log-prob": ("sampled_token", {}),
    "top K": ("local_support", {"k": 8}),
    "top K and tail": ("local_support", {"k": 8, "outside": "tail"}),
    "top K and the sampled token": ("local_support", {"k": 20, "sampled": True}),
    "a text of the teacher": ("sft", {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_and_local_teachers_give_the_same_loss(folders, server, family):
    method, given = FAMILIES[family]
    found = []
    for teacher in (folders["teacher"], f"vllm:{server.url}"):
        chosen = settings(folders, teacher, method=method, parameters=given, batch=6)
        batch = next(train(build(chosen)))
        found.append((batch.metrics["loss"], batch.metrics["grad_norm"], len(batch.rows)))
    (loss, norm, rows), (served, its, count) = found
    assert np.isfinite(loss) and np.isfinite(served)
    if method != "sft":  # each draws texts of its own
        assert abs(loss - served) < 1e-6 and abs(norm - its) < 1e-5 * max(1, norm) and rows == count


def test_every_answer_is_the_local_one(folders, server):
    teacher = met(folders, server.url)
    local = casting.open_model(folders["teacher"], settings(folders, ""), "float32", "cpu")
    texts = written(teacher.learner)
    for k in (1, 5, 20):
        want = Want(chosen=True, topk=k)
        ours, theirs = local.read(texts, want), teacher.read(texts, want)
        assert (ours.chosen - theirs.chosen).abs().max() < 1e-5 and theirs.dist.chosen is theirs.chosen
        assert (ours.dist.ids == theirs.dist.ids).all() and theirs.dist.ids.dtype == torch.int64
        assert (ours.dist.values - theirs.dist.values).abs().max() < 1e-5
    short = [text for text in texts if text.n][:1]
    assert teacher.read(short, Want(topk=3)).dist.known is None  # what was not asked is not known
    assert teacher.manifest["version"] == "0.0.stand-in" and teacher.most == {"topk": 20}


def test_what_was_asked_ahead_is_not_asked_again_and_is_the_same(folders, server):
    teacher, want = met(folders, server.url), Want(chosen=True, topk=5)
    texts = written(teacher.learner)
    plain = teacher.read(texts, want)
    teacher.hearing(want)(texts[:4])
    (asked,) = teacher.early.waiting
    again = teacher.read(texts, want)
    assert len(asked.keys) == len({text.tokens.tobytes() for text in texts[:4]}) and not teacher.early.waiting
    assert (again.dist.ids == plain.dist.ids).all() and teacher.tell()["served.vain"] == 0
    assert (again.dist.values - plain.dist.values).abs().max() < 1e-6 > (again.chosen - plain.chosen).abs().max()


def test_questions_are_cut_and_put_together_again(folders, server, monkeypatch):
    teacher = met(folders, server.url)
    texts = written(teacher.learner, 5)
    whole = teacher.read(texts, Want(chosen=True)).chosen
    before = teacher.replicas.counts["requests"]
    monkeypatch.setattr("opd.teachers.vllm.TOKENS", 40)
    assert torch.equal(teacher.read(texts, Want(chosen=True)).chosen, whole)
    assert teacher.replicas.counts["requests"] - before > 3


def test_texts_are_ids_with_the_log_probs_of_what_drew_them(folders, server):
    teacher = met(folders, server.url)
    prompts = [teacher.learner.render(({"role": "user", "content": text},)) for text in ("12+3=", "4+55=")]
    seeds = [[1, 2], [3]]
    pieces = teacher.write(prompts, Sampling(max_new=7), seeds)
    assert [len(some) for some in pieces] == [2, 1]
    for prompt, some in zip(prompts, pieces, strict=True):
        for piece in some:
            text = continued(prompt, piece, Problem("p", ""), Sampling(), STUDENT)
            known = teacher.read([text], Want(chosen=True)).chosen.numpy()
            assert np.abs(known - piece.behaviour).max() < 1e-5 and (piece.behaviour == piece.untruncated).all()
            assert piece.end == (End.STOP if piece.tokens[-1] == 2 else End.LENGTH)
    again = teacher.write(prompts, Sampling(max_new=7), seeds)
    assert all(
        (a.tokens == b.tokens).all() for x, y in zip(pieces, again, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert np.isnan(teacher.write(prompts, Sampling(0.5, max_new=7), seeds)[0][0].behaviour).all()
    assert (teacher.write(prompts, Sampling(0.0, max_new=7), seeds)[0][0].behaviour == 0).all()


# ---- what cannot be is refused before the run


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("gkd", {"lam": 1.0}, ["can't answer ['dist']", "opd list"]),
        ("local_support", {"k": 8, "source": "student"}, ["can't answer ['dist']"]),
        ("representation", {}, ["inner"]),
        ("extrapolated", {}, ["can't answer ['gather']", "--teacher-misses"]),
        ("rethinking", {"k": 8, "only_named": True}, ["can't answer ['gather']", "--teacher-misses"]),
        ("local_support", {"k": 30}, ["at most K=20", "--k 20"]),
    ],
)
def test_a_method_that_needs_more_is_refused(folders, server, method, given, words):
    who = "reference" if method == "extrapolated" else "teacher"
    cast = {"teacher": folders["teacher"], who: f"vllm:{server.url}"}
    with pytest.raises(TeacherError) as error:
        build(settings(folders, method=method, parameters=given, **cast))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_teacher_is_no_sampler(folders, server, tmp_path):
    """It would be given the student's weights, and from then on read as the student does."""
    with pytest.raises(SettingError, match=r"is the teacher's.*expected two"):
        Run.new(settings(folders, f"vllm:{server.url}", sampler=f"vllm:{server.url}/", out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


# ---- tokens that it is not asked about


NAMED = {"method": "local_support", "parameters": {"k": 12, "source": "student", "only_named": True}}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_server_that_gives_all_tokens_is_asked_about_named_ones_as_a_local_teacher(folders, another):
    another.best = models.VOCAB
    found = []
    for teacher in (folders["teacher"], f"vllm:{another.url}"):
        batch = next(train(build(settings(folders, teacher, batch=6, teacher_misses=1e-9, **NAMED))))
        found.append((batch.metrics["loss"], batch.metrics["grad_norm"]))
    (loss, norm), (served, its) = found
    assert np.isfinite(loss) and abs(loss - served) < 1e-6 and abs(norm - its) < 1e-5 * max(1, norm)
    assert batch.metrics["teacher.missed"] == batch.metrics["teacher.missed.mass"] == 0


def test_what_it_never_said_is_guessed_and_counted(folders, server, tmp_path):
    out = tmp_path / "run"
    Run.new(settings(folders, f"vllm:{server.url}", out=str(out), teacher_misses=0.9, **NAMED)).train()
    lines = [line for line in lines_of(out) if "loss" in line]
    assert all(0 < line["teacher.missed"] < 0.9 and 0 < line["teacher.missed.mass"] < 1 for line in lines)
    assert len(lines) == SMALL["steps"] and all(line["teacher.missed.rounded"] == 0 for line in lines)
    assert not any(name.startswith("support.") for line in lines for name in line), "nobody knows its own best tokens"


def test_a_reference_is_asked_about_the_best_tokens_of_the_teacher(folders, another):
    another.best = models.VOCAB
    found = []
    for reference in (folders["other"], f"vllm:{another.url}"):
        another.load(folders["other"])
        chosen = settings(folders, folders["teacher"], method="extrapolated", reference=reference, teacher_misses=0.95)
        found.append(next(train(build(chosen))).metrics)
    local, served = found
    assert abs(local["loss"] - served["loss"]) < 1e-6 and abs(local["lambda.limit"] - served["lambda.limit"]) < 1e-3
    assert served["teacher.missed"] == 0 and "teacher.missed" not in local
    another.best = 5
    assert 0 < next(train(build(chosen))).metrics["teacher.missed"] < 0.95


def test_too_many_misses_stop_at_a_checkpoint_from_which_more_best_tokens_go_on(folders, another, tmp_path):
    chosen = {"teacher_misses": 0.01, **NAMED}
    whole, out = tmp_path / "whole", tmp_path / "run"
    another.best = models.VOCAB
    Run.new(settings(folders, f"vllm:{another.url}", out=str(whole), **chosen)).train()
    another.best = 5
    run = Run.new(settings(folders, f"vllm:{another.url}", out=str(out), **chosen))
    with pytest.raises(Unanswered, match=r"too many.*outside its K=5 best.*teacher_misses = 1.00%.*--max-logprobs"):
        run.train()
    assert (out / "checkpoints" / "step-000000").is_dir()
    another.best = models.VOCAB
    Run.resume(out).train()
    assert same(outcome(out), outcome(whole))


def test_its_end_of_text_is_nobodys_guess(folders, server):
    with pytest.raises(SettingError, match="nobody knows with which token"):
        build(settings(folders, f"vllm:{server.url}", stop_token="map"))


def test_the_doctor_looks_at_it_before_a_run(folders, server, tmp_path):
    run = Run.new(settings(folders, f"vllm:{server.url}", doctor="on", steps=1, out=str(tmp_path / "run")))
    assert (tmp_path / "run" / "teachers.json").is_file() and run.training.cast["teacher"].known is not None


def test_mistakes_at_the_start_are_one_sentence(folders, another, tmp_path):
    def refused(kind, *words, url=another.url):
        with pytest.raises(kind) as error:
            met(folders, url)
        assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)

    refused(Unanswered, "nobody answers", "Start it", url="http://127.0.0.1:9")
    refused(SettingError, "http://HOST:PORT", url="ftp://127.0.0.1")
    refused(SettingError, "#NAME, of tiny", url=f"{another.url}#nobody")
    refused(SettingError, "given twice", url=f"{another.url},{another.url}/v1")
    with through(another, lambda *_: (200, b"hello")) as proxy:
        refused(Unanswered, "no address of vLLM", url=proxy.url)
    with through(another, lambda *_: (200, b"{}")) as proxy:
        refused(Unanswered, "no vLLM server", url=proxy.url)
    with through(another, lambda n, path, *_: (404, b"{}") if path == "/detokenize" else None) as proxy:
        refused(Unanswered, "spells its tokens", url=proxy.url)
    another.others = ["second"]
    refused(SettingError, "2 models", "#NAME, of tiny, second")
    assert met(folders, f"{another.url}/v1#second").server.model == "second"
    another.others, another.drift = [], 0.2
    refused(Unanswered, "begins alike", "--no-enable-prefix-caching")
    another.drift = 0.0
    another.load(models.folder(tmp_path / "letters", letters=models.LETTERS[::-1], seed=1))
    refused(ModelError, "different tokenizers, first at id 3")
    another.load(models.folder(tmp_path / "padded", vocab=48, seed=1))
    refused(ModelError, "45 to 47", "opd serve")
    another.load(folders["other"])
    with through(another, lambda *_: None) as first:
        another.load(folders["teacher"])
        assert met(folders, f"{first.url},{another.url}").gaps["servers"] == 0.0


def test_ids_that_nothing_is_given_to_are_allowed(folders, another, tmp_path):
    """A head that is padded beyond the tokenizer, as trained ones are: its log-probs are those over the tokens."""
    another.load(models.folder(tmp_path / "padded", vocab=64, seed=1))
    forward = another.model.forward

    def quiet(*words, **named):
        found = forward(*words, **named)
        found.logits[..., 45:] = -40.0
        return found

    another.model.forward = quiet
    teacher = met(folders, another.url)
    assert teacher.vocab == 45
    text = written(teacher.learner)[0]
    assert teacher.read([text], Want(topk=20)).dist.ids.max() < 45


def test_a_text_beyond_the_context_is_refused_with_the_remedy(folders, another):
    another.context = 14
    with pytest.raises(TeacherError, match="--max-model-len"):
        met(folders, another.url).read(written(student_of(folders)), Want(chosen=True))


# ---- faults


def once(what):
    """The fault for every third question of the run."""
    return lambda number, *_: what if number >= START and (number - START) % 3 == 0 else None


PASSING = {
    "500": once((500, b'{"error": {"message": "engine"}}')),
    "503": once((503, b"<html>busy</html>")),
    "cut": once("cut"),
    "no JSON": once((200, b'{"choices": [')),
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass_change_no_bit(folders, server, undisturbed, tmp_path, name):
    with through(server, PASSING[name]) as proxy:
        assert same(trained(tmp_path / "run", folders, f"vllm:{proxy.url}"), undisturbed)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("served.retries", 0) for line in lines) >= 2 and proxy.count > START + 4


def test_an_answer_that_is_too_slow_is_asked_for_again(folders, server, undisturbed, tmp_path):
    with through(server, lambda number, *_: "slow" if number == START + 1 else None) as proxy:
        assert same(trained(tmp_path / "run", folders, f"vllm:{proxy.url}", teacher_timeout=1.0), undisturbed)


def changed(change):
    """An answer about log-probs, changed."""

    def fault(number, path, status, body):
        answer = json.loads(body)
        if number < START or answer["choices"][0]["prompt_logprobs"] is None:
            return None
        change(answer["choices"])
        return 200, json.dumps(answer).encode()

    return fault


def said(value):
    def change(choices):
        place = choices[0]["prompt_logprobs"][-1]
        for told in place.values():
            told["logprob"] = value

    return changed(change)


def drifted(choices):
    """As if other weights had answered."""
    for told in (told for row in choices[-1]["prompt_logprobs"][1:] for told in row.values()):
        told["logprob"] -= 0.3


STOPPING = {
    "nan": (said(float("nan")), "not finite"),
    "other weights": (changed(drifted), "another model answers"),
    "500 for ever": (lambda n, *_: (500, b'{"error": {"message": "broken"}}') if n >= START else None, "broken"),
}


@pytest.mark.parametrize("name", STOPPING)
def test_faults_that_stay_stop_at_a_checkpoint_from_which_the_run_continues(
    folders, server, undisturbed, tmp_path, name
):
    fault, sentence = STOPPING[name]
    out, broken = tmp_path / "run", [True]
    with through(server, lambda *what: fault(*what) if broken[0] else None) as proxy:
        with pytest.raises(Unanswered, match=sentence) as error:
            Run.new(settings(folders, f"vllm:{proxy.url}", out=str(out), **HASTY)).train()
        assert "\n" not in str(error.value)
        broken[0] = False
        Run.resume(out).train()
    assert same(outcome(out), undisturbed)


REFUSED = {
    "a log-prob above 0": (said(2.5), "log-prob of 2.5"),
    "a probability of 0": (said(-9999.0), "probability of 0"),
    "no log-prob": (changed(lambda choices: choices[0]["prompt_logprobs"][-1].clear()), "no log-prob of token"),
    "fewer tokens": (changed(lambda choices: choices[0]["prompt_logprobs"].pop()), "log-probs of"),
    "another text": (changed(lambda choices: choices[0]["prompt_token_ids"].reverse()), "another text"),
    "fewer texts": (changed(lambda choices: choices.pop()), "answered"),
    "another order": (changed(lambda choices: choices.reverse()), "order"),
    "fewer best": (changed(lambda choices: choices[0]["prompt_logprobs"][-1].popitem()), "best tokens|no log-prob"),
    "best ones of too much mass": (said(-0.5), "mass"),
    "an id too many": (
        changed(lambda choices: choices[0]["prompt_logprobs"][-1].update({"99": {"logprob": -0.1, "rank": 1}})),
        "best tokens|token 99",
    ),
    "another name": (lambda *_: (404, b'{"error": {"message": "no such"}}'), "another model"),
    "a refusal": (lambda *_: (400, b'{"error": {"message": "too long"}}'), "too long"),
}


def test_an_answer_that_cannot_be_is_none(folders, server):
    faults = [lambda *_: None]
    with through(server, lambda number, *what: faults[0](number, *what)) as proxy:
        teacher = met(folders, proxy.url)
        assert proxy.count == START
        texts = written(teacher.learner)
        for name, (fault, sentence) in REFUSED.items():
            faults[0] = fault
            with pytest.raises(Unanswered, match=sentence) as error:
                teacher.read(texts, Want(topk=5))
            assert "\n" not in str(error.value), name


def test_a_killed_server_comes_back_and_another_model_is_refused(folders, another, undisturbed, tmp_path, capsys):
    out, url = tmp_path / "run", f"vllm:{another.url}"
    run = Run.new(settings(folders, url, out=str(out), **HASTY))
    another.stop()
    with pytest.raises(Unanswered, match="did not answer in"):
        run.train()
    assert main(["train", "--resume", str(out)]) == 2
    assert "nobody answers" in capsys.readouterr().err
    another.load(folders["other"])
    another.start()
    assert main(["train", "--resume", str(out)]) == 2
    assert "another one than the run began with" in capsys.readouterr().err
    another.stop()
    another.load(folders["teacher"])
    another.start()
    Run.resume(out).train()
    assert same(outcome(out), undisturbed)
