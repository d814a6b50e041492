"""`opd doctor` as a person types it, and what `opd train` says by itself when it starts."""

import json

import models
import pytest

from opd.cli.main import main

SHORT = ["--max-new", "20", "--device", "cpu", "--answers", "8"]
TRAIN = ["--steps", "1", "--batch", "2", "--max-new", "14", "--eval-problems", "2", "--drafts", "0", "--device", "cpu"]


@pytest.fixture
def opd(capsys, tmp_path, monkeypatch):
    """Runs a command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def test_healthy_is_0_and_readable_in_80_columns(opd, tmp_path):
    code, out, err = opd("doctor", *SHORT)
    assert (code, err) == (0, "")
    assert out.startswith("local_support on sums, student embedded:student")  # the method when none is named
    assert "24 pass, 0 warn, 0 fail" in out and "every id means the same in both" in out
    assert max(map(len, out.splitlines())) <= 80
    assert not list(tmp_path.iterdir())


def test_a_fail_is_1_with_its_remedy(opd):
    code, out, _ = opd("doctor", "sampled_token", "--teacher", "embedded:student", *SHORT)
    assert code == 1 and "fail   another model" in out and "→ Check --teacher" in out


def test_a_warning_is_0(opd):
    code, out, _ = opd("doctor", "gkd", *SHORT, "--max-new", "12")
    assert code == 0 and "1 warn, 0 fail" in out and "→ Give --max-new 24" in out


def test_json_is_one_line_with_everything(opd):
    code, out, _ = opd("doctor", "gkd", "--teacher", "self:frozen", *SHORT, "--json")
    found = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert (found["method"], found["teacher"], found["verdict"]) == ("gkd", "self:frozen", "warn")
    assert {"name", "verdict", "evidence", "remedy", "numbers", "examples"} == set(found["findings"][0])
    memory = next(one for one in found["findings"] if one["name"] == "memory")
    assert memory["numbers"]["total"] > memory["numbers"]["weights"] > 0


def test_no_answers_are_written_for_0(opd):
    code, out, _ = opd("doctor", "--answers", "0")
    assert code == 0 and "another model" in out and "mismatch" not in out


def test_a_settings_file(opd, tmp_path):
    (tmp_path / "run.toml").write_text('method = "gkd"\nmax_new = 12\ndevice = "cpu"\n[parameters]\nlam = 1.0\n')
    assert "cut off" in opd("doctor", "run.toml", "--answers", "4")[1]


def test_what_cannot_be_is_2(opd):
    for words, sentence in {
        "--answers many": "expected a whole number",
        "gkd --lamda 1": "Did you mean '--lam'?",
        "gdk": "Did you mean 'gkd'?",
        "--student ./nowhere --teacher embedded:teacher": "there is no model folder",
        "--task sum": "Did you mean 'sums'?",
        "gkd twice": "one method or TOML file",
    }.items():
        code, out, err = opd("doctor", *words.split())
        assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1, words


def test_a_different_tokenizer_is_a_finding_here(opd, tmp_path):
    models.folder(tmp_path / "student")
    models.folder(tmp_path / "teacher", letters=models.LETTERS[::-1])
    who = ["--student", "student", "--teacher", "teacher", "--task", "sums", "--device", "cpu"]
    code, out, err = opd("doctor", *who)
    assert (code, err) == (1, "") and "different tokenizers, first at id 3" in " ".join(out.split())
    assert opd("train", "gkd", *who, *TRAIN)[0] == 2


# ---- a run


def test_a_healthy_run_says_nothing_about_it(opd):
    code, out, err = opd("train", "gkd", *TRAIN, "--out", "run")
    assert (code, err) == (0, "") and "warning" not in out


def test_a_fail_stops_a_run_before_anything_is_written(opd, tmp_path):
    words = ["train", "gkd", "--teacher", "embedded:student", *TRAIN, "--out", "run"]
    code, out, err = opd(*words)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "all weights are those of the student" in err and "--doctor off" in err
    assert not list(tmp_path.iterdir())
    code, out, _ = opd(*words, "--doctor", "off")
    assert code == 0 and "another model" not in out and (tmp_path / "run" / "summary.json").is_file()


def test_a_warning_is_shown_once_and_the_run_goes_on(opd):
    code, out, _ = opd("train", "gkd", "--teacher", "self:frozen", *TRAIN, "--out", "run")
    assert code == 0 and out.count("warning: another model: a copy of the student") == 1
