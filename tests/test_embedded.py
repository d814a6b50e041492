"""The models that ship with the package do what their README says of them."""

import json
import random
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd.tasks import sums

FOLDER = Path(str(resources.files("opd").joinpath("embedded")))
MODELS = ("teacher", "student")


def load(name: str):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name, local_files_only=True)
    return AutoModelForCausalLM.from_pretrained(FOLDER / name, local_files_only=True).eval(), tokenizer


def accuracy(name: str, count: int, **sampling) -> float:
    model, tokenizer = load(name)
    rows = sums.problems("test", count, seed=11)
    prompts = torch.tensor(tokenizer([row["prompt"] for row in rows]).input_ids)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mask = torch.ones_like(prompts)
        out = model.generate(prompts, attention_mask=mask, max_new_tokens=13, top_k=0, **sampling)
    texts = tokenizer.batch_decode(out[:, prompts.shape[1] :], skip_special_tokens=True)
    return sum(sums.grade(text, row["answer"]) for text, row in zip(texts, rows, strict=True)) / count


# ---- the models


def test_the_teacher_is_nearly_always_right():
    assert accuracy("teacher", 128, do_sample=False) >= 0.98
    assert accuracy("teacher", 128, do_sample=True) >= 0.96


def test_the_student_is_sometimes_right():
    assert 0.25 <= accuracy("student", 256, do_sample=False) <= 0.60
    assert 0.12 <= accuracy("student", 256, do_sample=True) <= 0.36


def test_the_teacher_goes_on_correctly_from_a_wrong_total():
    model, tokenizer = load("teacher")
    rng, rights, texts = random.Random(0), [], []
    for _ in range(64):
        terms = sums.draw(rng, "test")
        wrong = (sums.totals(terms)[0] + rng.randint(1, 40)) % sums.MODULUS
        after = sums.totals([wrong, *terms[2:]])
        texts.append(sums.question_text(terms) + sums.chain_text([wrong, *after]))
        rights.append(tokenizer(sums.chain_text([wrong, *after])).input_ids[2:])
    ids = torch.tensor(tokenizer(texts).input_ids)
    with torch.no_grad():
        greedy = model(ids).logits.argmax(-1)[:, -11:-1]
    assert (greedy == torch.tensor(rights)).float().mean() > 0.97


@pytest.mark.parametrize("name", MODELS)
def test_it_is_float32_and_loads_without_anything_missing(name):
    weights = load_file(FOLDER / name / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert all(torch.isfinite(w).all() for w in weights.values())
    model, _ = load(name)
    assert model.dtype == torch.float32
    assert set(model.state_dict()) - set(weights) == {"lm_head.weight"}  # tied to the embedding


# ---- the files


def test_only_safetensors_and_json_ship_in_less_than_3_MB():
    files = [f for name in MODELS for f in (FOLDER / name).iterdir()]
    assert {f.suffix for f in files} == {".safetensors", ".json"}
    assert sum(f.stat().st_size for f in files) < 3e6


def test_nothing_in_the_configurations_runs_code():
    for name in MODELS:
        for file in (FOLDER / name).glob("*.json"):
            assert "auto_map" not in json.loads(file.read_text())


# ---- the tokenizer


def test_teacher_and_student_share_one_tokenizer():
    teacher, student = ((FOLDER / name / "tokenizer.json").read_bytes() for name in MODELS)
    assert teacher == student


@pytest.mark.parametrize(
    "text",
    [
        "7 - 2 + 3 + 3 + 9 + 3 + 1 =",
        " 5, 8, 11, 20, 23, 24",
        "State the final answer to the following arithmetic problem: 4 + 3 =",
        "naïve 日本語 🙂 \t\r\n  two  spaces , and 1234, 5 ,6 - - 7",
        "e\u0301 is not \u00e9, and \x00 is a character",
        "".join(map(chr, range(1, 600))),
        "",
    ],
)
def test_any_text_survives_the_tokenizer(text):
    _, tokenizer = load("student")
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_question_and_answer_take_two_tokens_for_each_step():
    _, tokenizer = load("student")
    for row in sums.problems("train", 200, seed=0):
        prompt, answer = (tokenizer(t).input_ids for t in (row["prompt"], " " + row["privileged_context"]))
        assert (len(prompt), len(answer)) == (14, 12)
        assert tokenizer(row["prompt"] + " " + row["privileged_context"]).input_ids == prompt + answer


# ---- the task


def test_held_out_problems_never_meet_the_training_problems():
    train = {row["prompt"] for seed in range(3) for row in sums.problems("train", 700, seed)}
    test = {row["prompt"] for seed in range(3) for row in sums.problems("test", 700, seed)}
    assert not train & test
    assert not any(map(sums.held_out, train)) and all(map(sums.held_out, test))


def test_a_longer_list_begins_with_the_shorter_one():
    assert sums.problems("train", 9, 4) == sums.problems("train", 20, 4)[:9]
    assert sums.problems("train", 9, 4) != sums.problems("train", 9, 5)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        sums.problems("validation", 1, 0)


def test_the_written_chain_is_the_arithmetic():
    for row in sums.problems("test", 300, seed=1):
        written = [int(total) for total in row["privileged_context"].split(", ")]
        parts = row["prompt"].removesuffix(" =").split(" ")
        so_far = [eval(" ".join(parts[: 2 * k + 3])) for k in range(sums.TERMS - 1)]
        assert written == so_far and min(written) >= 0 and row["answer"] == str(written[-1])


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (" 5, 8, 11, 20, 23, 24", "24", 1.0),
        ("24", "24", 1.0),
        ("The answer is 24.", "24", 1.0),
        (" 5, 8, 11, 20, 23, 24,", "24", 1.0),
        ("24, 25", "24", 0.0),
        (" 5, 8, 11, 20, 23, 2", "24", 0.0),
        ("124", "24", 0.0),
        ("3.24", "24", 0.0),
        ("-24", "24", 0.0),
        ("24", "-24", 0.0),
        ("-24", "-24", 1.0),
        ("", "24", 0.0),
        (", , +", "24", 0.0),
        ("٢٤", "24", 0.0),
        ("9" * 10_000, "24", 0.0),
    ],
)
def test_grade(text, answer, expected):
    assert sums.grade(text, answer) == expected
