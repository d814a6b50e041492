"""What readers are told beside the question: named, versioned, kept with the run, and shown on its page."""

import json
from dataclasses import replace

import pytest
from fake_run import HOSTILE, write_run

from opd import recipes
from opd.cli.main import main
from opd.errors import SettingError
from opd.parts.views import Privileged
from opd.prompts import FILE, beside_recipes, check_unchanged, prompts, version, written
from opd.report import write


def shown(name, **parameters):
    return {(one.name, one.asks) for one in prompts(recipes.load(name)(**parameters))}


def test_every_view_says_which_wording_it_uses():
    assert shown("opcd") == {("context", ("teacher",))}
    assert shown("nca") == {("context", ("teacher",))}  # inside another view
    assert shown("sdpo") == {("sibling", ("teacher",)), ("feedback", ("teacher",))}  # of several
    assert shown("sdpo", feedback=False) == {("sibling", ("teacher",))}
    assert shown("sc_grpo") == {("sc_grpo", ("teacher",)), ("sc_grpo_failed", ("teacher",))}  # by how many were right
    assert shown("rlcsd", wrong=2) == {("rlcsd", ("teacher", "wrong.0", "wrong.1"))}  # one pass, one wording
    assert shown("gkd") == set()


def test_every_wording_beside_the_recipes_is_used_by_one():
    used = {one.name for name in recipes.names() for one in prompts(recipes.load(name)())}
    assert used == set(beside_recipes().values())


def test_another_text_is_another_version_and_stops_a_run_that_would_go_on(tmp_path):
    method = recipes.load("opcd")()
    before = prompts(method)
    check_unchanged(tmp_path, before)  # a run of before prompts were kept
    (tmp_path / FILE).write_text(written(before))
    check_unchanged(tmp_path, before)
    (ask,) = method.teach
    after = prompts(replace(method, teach=(replace(ask, view=Privileged("{context}\n{prompt}")),)))
    assert after[0].version == version("{context}\n{prompt}") != before[0].version
    with pytest.raises(SettingError, match="no longer those") as caught:
        check_unchanged(tmp_path, after)
    assert before[0].version in str(caught.value) and after[0].version in str(caught.value)


def test_a_run_keeps_its_prompts_and_shows_them(tmp_path, capsys):
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1), "privileged_context": f"{n + 1}"} for n in range(8)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    words = ["train", "opcd", "--k", "8", "--task", f"jsonl:{tmp_path / 'task.jsonl'},held_out=4", "--out", str(out)]
    small = ["--steps", "1", "--batch", "2", "--max-new", "4", "--eval-problems", "2", "--drafts", "0"]
    assert main([*words, *small]) == 0
    (kept,) = json.loads((out / FILE).read_text())
    assert kept["name"] == "context" and kept["version"] == version(kept["text"])
    assert f"context.txt, version {kept['version']}" in write(out).read_text()
    capsys.readouterr()
    assert main(["show", "opcd"]) == 0
    assert f"context.txt, version {kept['version']}" in capsys.readouterr().out


def test_the_page_shows_the_text_that_was_used_and_says_that_its_file_was_edited(tmp_path):
    run = write_run(tmp_path / "run", method="opcd")
    assert "What a reader was shown" not in write(run).read_text()
    one = {"name": "context", "version": "00000000", "asks": ["teacher"], "text": f"old {HOSTILE}"}
    (run / FILE).write_text(json.dumps([one, {"name": "gone"}, "nonsense"]))
    page = write(run).read_text()
    assert "edited since" in page and page.count("What a reader was shown") == 2
    assert "old &lt;/script&gt;" in page and 'owned"</script>' not in page
    (run / FILE).write_text("half a fi")
    assert "What a reader was shown" not in write(run).read_text()
