"""The doctor finds each planted fault and nothing beside it, and is quiet about healthy models."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from opd import cast as casting
from opd import doctor, recipes
from opd.build import build, checks
from opd.doctor import Case, at_start, examine
from opd.doctor.signal import halves
from opd.doctor.spelling import differing
from opd.errors import ModelError
from opd.protocols import Want
from opd.settings import Settings
from opd.tasks import sums
from opd.tasks.graders import Graded
from opd.teachers.fake import FakeTeacher

ANSWERS = 24


def case(method="local_support", **given):
    given = {"max_new": 20, "device": "cpu", **given}
    return Case.open(Settings.of(method=method, **given))


def complaints(examined, answers=ANSWERS):
    """name -> finding of everything that is not a pass."""
    return {found.name: found for found in examine(examined, answers) if found.verdict != "pass"}


@pytest.fixture
def planted(tmp_path):
    """A copy of an embedded model with a fault: its weights, its tokenizer or its JSON files changed."""

    def plant(who, weights=None, tokenizer=None, **files):
        folder = tmp_path / who
        shutil.copytree(casting.located(f"embedded:{who}"), folder)
        if weights:
            tensors = load_file(folder / "model.safetensors")
            save_file(weights(tensors), folder / "model.safetensors", {"format": "pt"})
        if tokenizer:
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            tokenizer(found)
            found.save_pretrained(folder)
        for name, change in files.items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
        return str(folder)

    return plant


@pytest.fixture
def task_of(tmp_path):
    """The sums, written to a file with something changed in every row."""

    def write(change):
        rows = [change(row | {"answer": row["privileged_context"]}) for row in sums.problems("train", 64, 0)]
        (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"jsonl:{tmp_path}/task.jsonl"

    return write


# ---- healthy


@pytest.mark.parametrize("method", ["local_support", "sampled_token", "gkd", "sft"])
def test_quiet_about_the_embedded_pair(method):
    examined = case(method)
    assert not complaints(examined)
    assert not at_start(examined)


def test_every_check_speaks_on_the_embedded_pair():
    names = [found.name for found in examine(case(), ANSWERS)]
    assert len(names) == len(set(names)) == 24


def test_padding_is_a_pass_with_a_note(tmp_path):
    for who, seed in (("student", 0), ("teacher", 1)):
        models.folder(tmp_path / who, seed=seed, vocab=64 if who == "teacher" else models.VOCAB)
    (tmp_path / "task.jsonl").write_text("".join(json.dumps({"prompt": f"{i}+1="}) + "\n" for i in range(20)))
    who = {name: str(tmp_path / name) for name in ("student", "teacher")}
    found = {one.name: one for one in examine(case(**who, task=f"jsonl:{tmp_path}/task.jsonl"), 0)}
    assert found["padded vocabulary"].verdict == "pass"
    assert "teacher 45 tokens in 64 rows" in found["padded vocabulary"].evidence


# ---- planted faults: tokens and prompts


def test_a_permuted_token_map(planted):
    def permute(folder_tokenizer):
        vocab = json.loads(folder_tokenizer.backend_tokenizer.to_str())
        words = vocab["model"]["vocab"]
        words["a"], words["b"] = words["b"], words["a"]
        folder_tokenizer._tokenizer = type(folder_tokenizer.backend_tokenizer).from_str(json.dumps(vocab))

    teacher = planted("teacher", tokenizer=permute)
    found = complaints(case(teacher=teacher))
    assert set(found) == {"token map", "answers"}
    assert found["token map"].verdict == "fail" and "different tokenizers, first at id" in found["token map"].evidence
    with pytest.raises(ModelError, match="different tokenizers"):  # and training refuses with the same words
        build(Settings.of(method="local_support", teacher=teacher))


def test_another_stop_token(planted):
    def swap(weights):
        table = weights["model.embed_tokens.weight"]
        table[[0, 1]] = table[[1, 0]]
        return weights

    ends = {"eos_token_id": 0}
    student = planted(
        "student", swap, tokenizer_config={"eos_token": "<pad>"}, generation_config=ends, config=ends
    )  # fmt: skip
    found = complaints(case(student=student, teacher="embedded:teacher"))
    assert set(found) == {"stop tokens", "mismatch"}
    assert "student ends with '<pad>' (0)" in found["stop tokens"].evidence
    assert "--stop-token map" in found["stop tokens"].remedy and "--stop-token" in found["mismatch"].remedy
    assert "'<pad>' (0), at the end" in found["mismatch"].evidence
    for mended in ("map", "mask"):
        assert not complaints(case(student=student, teacher="embedded:teacher", stop_token=mended))


def test_a_stop_id_that_is_an_ordinary_token(planted):
    found = complaints(case(teacher=planted("teacher", generation_config={"eos_token_id": 50})))
    assert "teacher ends at" in found["stop tokens"].evidence and "no special token" in found["stop tokens"].evidence
    assert set(found) <= {"stop tokens", "cut off", "reward"}  # the teacher stops at a digit


PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_teacher_that_thinks(planted):
    opens = PLAIN + "{% if add_generation_prompt %}<think>\n{% endif %}"
    found = complaints(case(teacher=planted("teacher", tokenizer_config={"chat_template": opens})))
    assert set(found) == {"thinking"} and "opens <think> in the prompt" in found["thinking"].evidence


def test_another_chat_template(planted):
    asks = "Q: " + PLAIN + "\nA:"
    found = complaints(case(teacher=planted("teacher", tokenizer_config={"chat_template": asks})))
    assert set(found) == {"chat template"} and "'Q: " in found["chat template"].evidence


def test_a_template_that_says_the_same_is_no_fault(planted):
    assert not complaints(case(teacher=planted("teacher", tokenizer_config={"chat_template": PLAIN})))


def longer_head(weights):
    table = weights["model.embed_tokens.weight"]
    return weights | {"model.embed_tokens.weight": torch.cat([table, table.mean(0, keepdim=True)])}


def test_a_special_token_that_the_student_writes_as_pieces(planted, task_of):
    teacher = planted(
        "teacher", longer_head, lambda t: t.add_special_tokens({"additional_special_tokens": ["<step>"]}),
        config={"vocab_size": 285},
    )  # fmt: skip
    assert not complaints(case(teacher=teacher))  # it occurs nowhere
    task = task_of(lambda row: row | {"privileged_context": f"<step> {row['privileged_context']}"})
    found = complaints(case(teacher=teacher, task=task))
    assert set(found) == {"markers"}
    assert "the student spells '<step>' as '<' 's' 't' 'e' 'p' '>'" in found["markers"].evidence


def test_a_marker_in_an_answer_that_the_teacher_would_spell_otherwise(planted):
    teacher = planted(
        "teacher", longer_head, lambda t: t.add_special_tokens({"additional_special_tokens": ["<step>"]}),
        config={"vocab_size": 285},
    )  # fmt: skip
    examined = case(teacher=teacher)
    assert examined.reader
    ids = examined.student.tokenizer.encode("so <step> 5<step")
    ratio = -np.arange(len(ids), dtype=float)
    (one,) = differing(examined.student, examined.reader, ids, ratio, {"<step>"})
    assert one == ("<step>", "'<' 's' 't' 'e' 'p' '>'", -8.0)
    assert not list(differing(examined.student, examined.reader, ids, ratio * np.nan, {"<step>"}))  # masked
    assert not list(differing(examined.student, examined.student, ids, ratio, {"<step>"}))


# ---- planted faults: the teacher


def test_a_teacher_that_is_the_student():
    found = complaints(case(teacher="embedded:student"))
    assert {name for name, one in found.items() if one.verdict == "fail"} == {"another model", "another opinion"}
    assert set(found) <= {"another model", "another opinion", "teacher's noise"}  # its samples are often wrong
    assert "another model" not in complaints(case("opsd", teacher="embedded:student"))  # it is shown more


def test_a_copy_that_is_shown_nothing_more():
    found = complaints(case(teacher="self:frozen"))
    assert set(found) == {"another model"} and found["another model"].verdict == "warn"


def noise(scale, keep):
    def change(weights):
        generator = torch.Generator().manual_seed(0)
        return {k: keep * w + scale * w.std() * torch.randn(w.shape, generator=generator) for k, w in weights.items()}

    return change


def test_a_teacher_without_knowledge(planted):
    found = complaints(case(teacher=planted("teacher", noise(0.3, 0.0))))
    assert found["teacher's own text"].verdict == "fail"
    assert set(found) <= {"teacher's own text", "reward", "cut off", "mismatch", "drift"}


def test_a_teacher_with_noise_in_its_weights(planted):
    found = complaints(case(teacher=planted("teacher", noise(0.5, 1.0))))
    assert "the student is better than its teacher" in found["reward"].evidence
    assert set(found) <= {"teacher's own text", "reward", "cut off", "mismatch", "drift"}


def test_student_and_teacher_swapped():
    found = complaints(case(student="embedded:teacher", teacher="embedded:student"))
    assert "the student is better than its teacher" in found["reward"].evidence
    assert set(found) <= {"reward", "teacher's own text", "teacher's noise"}


def test_a_teacher_that_cannot_answer():
    examined = case()
    table = torch.zeros(examined.student.vocab, examined.student.vocab).log_softmax(-1)
    mute = replace(examined, cast={**examined.cast, "teacher": FakeTeacher(table, can=frozenset({"chosen"}))})
    found = complaints(mute)
    assert set(found) == {"capabilities", "answers"}
    assert found["capabilities"].verdict == "fail" and "can't answer ['topk']" in found["capabilities"].evidence


# ---- planted faults: the task and the settings


def test_a_grader_that_never_says_right(task_of):
    found = complaints(case(task=task_of(lambda row: row | {"answer": "none"})))
    assert set(found) == {"reward"}
    assert "nobody ever is" in found["reward"].evidence and "expected 'none'" in found["reward"].evidence


def test_a_prompt_that_is_too_long(task_of):
    task = task_of(lambda row: row | {"prompt": row["prompt"] * (60 if row["prompt"].startswith("9") else 1)})
    found = complaints(case(task=task))
    assert set(found) == {"prompts"} and "does not fit the context" in found["prompts"].evidence


def test_answers_that_are_cut_off():
    found = complaints(case(max_new=12))
    assert set(found) == {"cut off"} and "--max-new 24" in found["cut off"].remedy


def test_answers_that_have_no_room():
    found = complaints(case(max_new=505))
    assert set(found) == {"room"} and "--max-new 498" in found["room"].remedy


def test_a_support_above_the_vocabulary():
    found = complaints(case(parameters={"k": 300}))
    assert set(found) == {"support", "answers"} and "at most 284" in found["support"].evidence


def test_held_out_problems_that_are_learned_from():
    examined = case()
    task = examined.task
    leaking = Graded("sums", task.train, [*task.held_out[:6], *task.train[:2]], task.grade)
    found = complaints(replace(examined, task=leaking))
    assert set(found) == {"held-out problems"} and found["held-out problems"].numbers["shared"] == 2


# ---- planted faults: the three failure modes


def judged(method, change, **given):
    """The embedded student before a teacher whose log-ratio of every row is change(row, length); it cannot write."""
    examined = case(method, **given)
    student = examined.student

    def table(context):
        own = student.read([context], Want(dist=True)).dist.logprobs()
        rows = torch.arange(context.n)
        wanted = own[rows, torch.from_numpy(context.decisions).long()] + change(rows, context.n)
        shifted = own.clone()
        shifted[rows, torch.from_numpy(context.decisions).long()] = wanted
        return shifted

    can = frozenset({"chosen", "topk", "dist"})
    return replace(examined, cast={"student": student, "teacher": FakeTeacher(table, can=can)})


def test_imbalance():
    def all_negative(rows, length):
        return -0.5 - 0.1 * rows

    found = complaints(judged("sampled_token", all_negative))
    assert set(found) == {"imbalance"}
    assert "100% of log-ratios are negative" in found["imbalance"].evidence
    assert not complaints(judged("local_support", all_negative))  # it does not learn from single numbers


def test_few_tokens_carry_the_signal():
    contexts = []

    def one_of_all(rows, length):
        contexts.append(length)
        return torch.where((rows == 3) & (len(contexts) == 1), -9.0, 1e-3 * (-1.0) ** rows)

    found = complaints(judged("sampled_token", one_of_all))
    assert set(found) == {"imbalance"} and found["imbalance"].numbers["top1"] > 0.9


def test_drift():
    found = complaints(judged("local_support", lambda rows, length: torch.where(rows < 6, 0.05, -4.0)))
    assert set(found) == {"drift"} and found["drift"].numbers["fall"] < -3


def test_halves_are_means_over_answers():
    sequence = np.array([0, 0, 0, 0, 1, 1, 2])
    early = np.array([True, True, False, False, True, False, True])
    ratio = np.array([1.0, 3.0, 0.0, 0.0, 5.0, 1.0, 100.0])
    assert halves(ratio, early, sequence) == (-3.0, 1.0)  # changes -2 and -4; an answer of one half says nothing


def test_mismatch_at_the_start():
    def first(rows, length):
        return torch.where(rows == 0, -20.0, 0.05)

    found = complaints(judged("local_support", first))
    assert set(found) == {"mismatch"} and "' ' (" in found["mismatch"].evidence
    assert "at an edge" in found["mismatch"].evidence
    masked = found["mismatch"].remedy.removeprefix("Give --mask ").split(",")
    assert not complaints(judged("local_support", first, mask=masked))  # the remedy mends it
    assert not complaints(judged("local_support", first, skip_first=1))


def test_a_log_prob_that_is_no_number():
    found = complaints(judged("sampled_token", lambda rows, length: torch.where(rows == 3, -torch.inf, -0.01)))
    assert set(found) == {"log-probs"} and found["log-probs"].verdict == "fail"
    assert "24 of" in found["log-probs"].evidence


def test_a_teacher_that_gives_no_log_prob():
    examined = case("sft")
    examined.teacher.can = frozenset({"text"})
    found = complaints(examined)
    assert set(found) == {"log-probs"} and found["log-probs"].verdict == "warn"


def test_a_method_that_shows_siblings_is_examined_without_them():
    assert not [found for found in examine(case("sdpo", parameters={"k": 8}), 4) if found.verdict == "fail"]


def test_remedies_name_options_that_exist():
    source = "".join(file.read_text() for file in Path(doctor.__file__).parent.glob("*.py"))
    named = set(re.findall(r"--([a-z][a-z-]*)", source))
    known = {name.replace("_", "-") for name in Settings.model_fields}
    known |= {p.name.replace("_", "-") for recipe in recipes.names() for p in recipes.describe(recipe).parameters}
    assert named <= known and {"mask", "stop-token", "max-new", "doctor"} <= named


def test_the_page_names_every_check():
    page = (Path(doctor.__file__).parents[2] / "docs" / "doctor.md").read_text()
    examined = case("opsd")
    names = {found.name for found in examine(examined, ANSWERS)}
    names |= set(checks(examined.method, examined.task, examined.cast))
    assert not {name for name in names if f"`{name}`" not in page}
