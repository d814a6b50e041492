"""Whatever cannot be is refused with one sentence and code 2, before anything is written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch

from opd import checkpoint
from opd.cli import main as entry
from opd.cli.main import main

ROOT = Path(entry.__file__).parents[2]
LONG = "1+1=" * 40  # 160 tokens, and a context of 128


def made(folder, name, change=None, **how):
    models.folder(folder / name, **how)
    if change:
        change(folder / name)


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "strange.py").write_text("raise SystemExit('code of the model folder ran')")


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models and files, most of them broken in one way each."""
    folder = tmp_path_factory.mktemp("bad")
    made(folder, "student")
    made(folder, "teacher", seed=1)
    made(folder, "other", letters=models.LETTERS[::-1])
    made(folder, "wide", width=32)
    made(folder, "deep", layers=3)
    made(folder, "pickled", pickled)
    made(folder, "code", with_code)
    made(folder, "cut", cut)
    made(folder, "no-tokenizer", without_tokenizer)
    made(folder, "no-json", lambda path: (path / "config.json").write_text("{"))
    (folder / "nothing").mkdir()
    (folder / "used").mkdir()
    (folder / "used" / "notes.txt").write_text("mine")
    files = {
        "good.jsonl": [json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) for i in range(40)],
        "broken.jsonl": ['{"prompt": "1+1="}', '{"prompt": "2+', '{"prompt": "3+1="}'],
        "columns.jsonl": ['{"text": "1+1="}'],
        "empty.jsonl": [],
        "routed.jsonl": [json.dumps({"prompt": f"{i}+1=", "teacher_id": "ab"[i % 2]}) for i in range(40)],
        "bare.jsonl": [json.dumps({"prompt": f"{i}+1="}) for i in range(40)],
        "told.jsonl": [json.dumps({"prompt": f"{i}+1=", "privileged_context": "count"}) for i in range(40)],
        "half.jsonl": [
            json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)} | ({"privileged_context": "count"} if i < 3 else {}))
            for i in range(40)
        ],
        "list.jsonl": ['["1+1="]'],
        "one.jsonl": ['{"prompt": "1+1="}'],
        "long.jsonl": [json.dumps({"prompt": f"{i}{LONG if i == 17 else '+1='}"}) for i in range(40)],
        "key.toml": ['method = "gkd"', "stepz = 3"],
        "parameter.toml": ['method = "gkd"', "[parameters]", "lamda = 0.5"],
        "type.toml": ['method = "gkd"', 'steps = "many"'],
        "method.toml": ['method = "gdk"'],
        "none.toml": ["steps = 3"],
        "table.toml": ['method = "gkd"', "parameters = 3"],
        "no.toml": ["method ="],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    (folder / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    return folder


@pytest.fixture
def refused(place, monkeypatch, capsys):
    """Runs words that must be refused; gives the sentence."""
    monkeypatch.chdir(place)

    def call(words):
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
        code = main(words.split())
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), (code, out, err)
        assert err.startswith("opd: ") and err.count("\n") == 1 and "Traceback" not in err
        assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
        return err

    return call


GOOD = "--student student --teacher teacher --task jsonl:good.jsonl --steps 1 --batch 2 --max-new 4 --device cpu "

WORDS = {  # words -> what the sentence says; nothing is built for these
    "trian": "Did you mean 'train'?",
    "--halp": "unknown command",
    "list all": "no word",
    "show": "needs one method",
    "show gdk": "Did you mean 'gkd'?",
    "check gkd --lamda 1": "Did you mean '--lam'?",
    "check gkd --lam 2": "a number in [0, 1]",
    "check local_support --k 8": "at most 7",
    "train": "needs one method or TOML file",
    "train gdk": "Did you mean 'gkd'?",
    "train gkd twice": "got 2 words: gkd twice",
    "train gkd --lamda 1": "Did you mean '--lam'?",
    "train gkd --stepz 1": "Did you mean '--steps'?",
    "train gkd --steps": "--steps needs a value",
    "train gkd --steps many": "'steps': got 'many', expected a whole number",
    "train gkd --steps -1": "greater than or equal to 0",
    "train gkd --lr inf": "a finite number",
    "train gkd --betas 0.9": "one more value",
    "train gkd --schedule cosin": "'constant', 'linear' or 'cosine'",
    "train gkd --n 2.5": "parameter 'n' of gkd: got '2.5', expected a whole number",
    "train sft --fresh=perhaps": "true or false",
    "train gkd --lam 1.5": "lam): got 1.5, expected a number in [0, 1]",
    "train gkd --lam -0.1": "lam): got -0.1, expected a number in [0, 1]",
    "train gkd --mean median": "mean: got 'median'",
    "train local_support --k 0": "got 0, expected at least 1",
    "train local_support --k 1": "a support of one token, renormalised, is always matched",
    "train local_support --outside sampled_tail --sampled": "got sampled=true, expected sampled=false",
    "train local_support --cap 2": "only for a sampled tail",
    "train gkd --mask-which last": "'first' or 'all'",
    "train gkd --stop-token drop": "'keep', 'mask' or 'map'",
    "train nail --rate 1": "noise rate: got 1.0, expected a number in [0, 1)",
    "train none.toml": "none.toml names no method",
    "train method.toml": "Did you mean 'gkd'?",
    "train key.toml": "unknown setting: got 'stepz'. Did you mean 'steps'?",
    "train parameter.toml": "unknown parameter of gkd: got 'lamda'. Did you mean 'lam'?",
    "train type.toml": "'steps': got 'many', expected a whole number",
    "train table.toml": "a table [parameters]",
    "train no.toml": "no.toml is not TOML",
    "train nowhere.toml": "no such settings file",
    "train --resume nowhere": "nothing to resume",
    "train --resume used --steps 3": "keeps its own settings",
    "eval student": "needs a task",
    "eval student --task sums --temperature 0": "greater than 0",
    "lab nosy-experts": "Did you mean 'noisy-experts'?",
    "lab noisy-experts --rates 0.3,1": "noise rate: got 1.0, expected a number in [0, 1)",
    "lab noisy-experts --rates 0.999": "leaves too little to see",
    "lab noisy-experts --noise 0.5,0.5": "another action set: got noise over 2 actions",
    "lab noisy-experts --noise 0.5,0.5,0.5,0": "expected probabilities that sum to 1",
    "lab noisy-experts --out used": "the folder used exists",
    "lab realizability twice": "takes no word",
    "report": "needs a run folder",
    "report used": "used is no run folder",
}

RUNS = {  # what differs from a good run -> what the sentence says
    "--student ./nowhere": "there is no model folder './nowhere'",
    "--student student/nowhere": "there is no model folder",
    "--student good.jsonl": "got a file",
    "--student nothing": "no config.json",
    "--student pickled": "pickled, and unpickling runs whatever code",
    "--student code": "--trust-remote-code",
    "--student cut": "no causal language model could be loaded from 'cut'",
    "--student no-json": "is not JSON",
    "--student no-tokenizer": "a tokenizer.json",
    "--student embedded:pupil": "expected student or teacher",
    "--teacher pickled": "pickled",
    "--teacher other": "different tokenizers, first at id 3",
    "--teacher self:yesterday": "self:live, self:frozen",
    "--teacher self:ema=much": "expected a number",
    "--device abacus": "no such device",
    "--mask 1+": "is not one token of student: got '1' (4), '+' (40), expected one token. Name the pieces",
    "--mask 99": "has no such token: got 99, expected an id from 0 to 44",
    "--stop-token map": "there is nothing to map",
    "--task jsonl:broken.jsonl": "broken.jsonl line 2 is not valid JSON",
    "--task jsonl:columns.jsonl": "line 1 has no prompt: got columns ['text']",
    "--task jsonl:empty.jsonl": "holds no problem",
    "--task jsonl:list.jsonl": "line 1 is not an object",
    "--task jsonl:bytes.jsonl": "line 1 is not UTF-8",
    "--task jsonl:one.jsonl": "no held-out problem",
    "--task jsonl:long.jsonl": "does not fit the context of student: got 16",
    "--task jsonl:nowhere.jsonl": "there is no file nowhere.jsonl",
    "--task good.jsonl": "Did you mean 'jsonl:good.jsonl'?",
    "--task sum": "Did you mean 'sums'?",
    "--task sums,trian=3": "Did you mean 'train'?",
    "--out used": "the run folder used exists",
    "--out good.jsonl": "Not a directory",
}


@pytest.mark.parametrize("words", WORDS)
def test_words(refused, words):
    assert WORDS[words] in refused(words)


@pytest.mark.parametrize("words", RUNS)
def test_runs(refused, words):
    assert RUNS[words] in refused(f"train gkd {GOOD}{words}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("local_support --k 46", "larger than the vocabulary: got k=46, expected at most 45"),
        ("representation --layers 3", "no such layer: got [3], expected 1 to 2"),
        ("representation --teacher wide", "different widths: got student 16, teacher 32, expected equal widths"),
        ("representation --teacher deep", "not the same layers: got student 1 to 2, teacher 1 to 3. Name layers that"),
        ("representation --student deep --layers 3", "teacher teacher has no such layer: got [3], expected 1 to 2"),
        ("representation --teacher a=teacher,b=deep --task jsonl:routed.jsonl", "got student 1 to 2, teacher 1 to 3"),
    ],
)
def test_parameters_that_do_not_fit_the_models(refused, words, sentence):
    method, _, rest = words.partition(" ")
    assert sentence in refused(f"train {method} {GOOD}{rest}")


def test_code_of_a_model_folder_runs_only_when_it_is_asked_for(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place / "modules"))
    with pytest.raises(SystemExit, match="code of the model folder ran"):
        main(f"train gkd {GOOD} --student code --trust-remote-code --out coded".split())
    assert not (place / "coded").exists()


# ---- a disk that is full


def test_a_full_disk_leaves_the_checkpoint_before(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    real, saved = checkpoint.save_file, []

    def full(tensors, file, *rest):
        saved.append(file)
        if "step-000002" in str(file):
            Path(file).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, file, *rest)

    monkeypatch.setattr(checkpoint, "save_file", full)
    words = f"train gkd {GOOD} --steps 3 --eval-problems 2 --drafts 0 --checkpoint-every 1 --out full"
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err and "still stands" in err
    assert [path.name for path in (place / "full" / "checkpoints").iterdir()] == ["step-000001"]

    monkeypatch.setattr(checkpoint, "save_file", real)
    assert main(["train", "--resume", "full"]) == 0
    assert "continuing after step 1" in capsys.readouterr().out
    shutil.rmtree(place / "full")


# ---- in a real process


def test_a_refusal_in_a_shell(place):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = f"train gkd {GOOD} --teacher other --out shell".split()
    done = subprocess.run([sys.executable, "-m", "opd", *words], cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("opd: student and other have different tokenizers") and done.stderr.count("\n") == 1
    assert not (place / "shell").exists()


def test_a_method_of_rewards_without_a_grade_is_refused(tmp_path, capsys):
    file = tmp_path / "ungraded.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}+1="}) + "\n" for n in range(20)))
    assert main(["train", "grpo", "--task", f"jsonl:{file}", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "needs a reward for every answer" in said and "column 'answer'" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["opsd", "sdft", "nca --k 8", "ar_opd", "pbsd", "opcd --k 8"])
@pytest.mark.parametrize("task", ["good", "half"])
def test_a_privileged_method_without_references_is_refused(refused, method, task):
    """The task says of no problem, or not of every one, what the teacher is to be shown."""
    said = refused(f"train {method} --student student --task jsonl:{task}.jsonl --steps 1 --device cpu")
    assert "has no privileged context, and this method shows it to the teacher. Give the task a column 'priv" in said


@pytest.mark.parametrize("words", ["rlsd", "rlcsd --hint reference", "rlsd_ectr --hint reference"])
def test_a_reference_may_be_an_answer_but_not_nothing(refused, words):
    said = refused(f"train {words} --student student --task jsonl:bare.jsonl --steps 1 --device cpu")
    assert "has no reference" in said and "Give the task a column 'privileged_context' or 'answer'" in said


def test_a_method_that_shows_the_answer_beside_the_reference_needs_both(refused):
    said = refused("train ar_opd --student student --task jsonl:told.jsonl --steps 1 --device cpu")
    assert "has no answer" in said and "Give the task a column 'answer'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grpo", "--n", "1"], "expected at least 2"),
        (["rlcsd", "--n", "1"], "each other's hints: got 1, expected at least 2"),
        (["rlsd_ectr", "--n", "1"], "each other's hints: got 1, expected at least 2"),
        (["opsd_ectr", "--n", "1", "--hint", "reference"], "each other's hints: got 1, expected at least 2"),
        (["reinforce", "--n", "1", "--baseline", "siblings"], "expected at least 2"),
        (["sft", "--reference", "self"], "sft asks no reference"),
        (["sft", "--teacher", "none"], "needs a teacher"),
        (["sft", "--teacher", "a=none,b=self:live"], "got 'a=none', expected NAME=MODEL,NAME=MODEL"),
        (
            ["extrapolated", "--reference", "none"],
            "extrapolated needs a reference: got --reference none, expected a base model. "
            "Say --reference MODEL, or leave it out for self:frozen",
        ),
        (["grpo", "--beta", "0.04", "--reference", "none"], "grpo needs a reference"),
        (["distillm2", "--reference", "none"], "distillm2 needs a reference"),
        (["lightning", "--reference", "none"], "lightning needs a reference"),
        (["stable_opd", "--reference", "none"], "stable_opd needs a reference"),
        (["pbsd", "--reference", "none", "--negative-source", "snapshot"], "leave it out for self:every"),
        (["raps_da"], "nobody is the specialist 'grounding': got one teacher"),
    ],
)
def test_roles_and_groups_that_cannot_be(words, said, tmp_path, capsys):
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
