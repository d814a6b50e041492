"""Claims: every file is a comparison that can be made, and a verdict says what the intervals allow."""

import json
from xml.etree import ElementTree

import pytest
import torch
from fake_comparison import finish

from opd import recipes
from opd.claims import claim as claims
from opd.claims import copyist, models, page, texts
from opd.claims.claim import Case, Claim
from opd.claims.course import contest_of, reproduce
from opd.claims.figure import LEFT, WIDTH, figure
from opd.claims.verdict import concluded, judged
from opd.cli.main import main
from opd.compare.outcome import Field, look
from opd.compare.plan import Entrant
from opd.errors import OpdError

HERE = {"steps": 2, "batch": 2, "max_new": 8, "eval_problems": 4, "teacher": "embedded:teacher"}


def case(**more):
    values = {"name": "it is tried", "method": "gkd:lam=1", "baseline": "sft", "others": ("shuffled",), "rates": ()}
    return Case(**{**values, "settings": {"budget": "steps=20"}, **more})


def outcome(tmp_path, accuracies, **more):
    """A case whose runs ended with these accuracies (and reverse KLs), by method."""
    one = case(**more)
    contest = contest_of(one, 3, tmp_path, str)
    trials = contest.reported({entrant.label: 1e-3 for entrant in contest.entrants}, 0)
    for trial in trials:
        finish(trial, *accuracies[trial.entrant.label])
    return judged(one, Field(tuple(look(trial, {}) for trial in trials)))


def test_the_common_methods_write_as_many_answers_as_the_method_and_learn_as_often():
    common = ("sampled_token", "local_support", "shuffled", "constant_negative")
    for name in claims.names():
        for one in claims.load(name).case:
            n, _ = spent(one.method)
            for word in (word for word in one.others if word.partition(":")[0] in common):
                assert spent(word) == (n, 1), f"{name}, when {one.name}: {word}"


def spent(word: str) -> tuple[int, int]:
    """Answers per problem and updates per batch."""
    entrant = Entrant.of(word)
    own = {p.name: p.default for p in recipes.describe(entrant.method).parameters} | entrant.parameters
    return own.get("n", 1), own.get("updates", 1)


def test_better_than_baseline_and_control_is_shown(tmp_path):
    good = outcome(tmp_path, {"gkd:lam=1": (0.9,), "sft": (0.3,), "shuffled": (0.1,)})
    assert good.holds and concluded([good]) == "shown"
    assert [one.word for one in good.standings] == ["better", "better"]
    assert good.rates == {"gkd:lam=1": 1e-3, "sft": 1e-3, "shuffled": 1e-3}


@pytest.mark.parametrize(
    ("sft", "control", "words"),
    [
        (0.9, 0.1, ["not told apart", "better"]),
        (0.1, 0.9, ["better", "not told apart"]),
        (1.0, 0.1, ["worse", "better"]),
    ],
)
def test_the_baseline_and_the_control_both_decide(tmp_path, sft, control, words):
    one = outcome(tmp_path, {"gkd:lam=1": (0.9,), "sft": (sft,), "shuffled": (control,)})
    assert not one.holds and concluded([one]) == "not shown"
    assert [standing.word for standing in one.standings] == words


def test_others_that_are_no_control_do_not_decide(tmp_path):
    accuracies = {"gkd:lam=1": (0.6,), "sft": (0.2,), "sampled_token": (0.95,)}
    one = outcome(tmp_path, accuracies, others=("sampled_token",))
    assert one.holds and one.standings[1].word == "worse"


def test_lower_is_better_where_the_case_says_so(tmp_path):
    accuracies = {"gkd:lam=1": (0.5, 0.1), "sft": (0.5, 0.9), "shuffled": (0.5, 0.8)}
    # without any spread over the seeds the interval is a point
    assert outcome(tmp_path / "a", accuracies, measure="reverse_kl", better="lower").holds
    assert not outcome(tmp_path / "b", accuracies, measure="reverse_kl").holds


def test_a_metric_of_the_run_can_be_what_is_claimed(tmp_path):
    accuracies = {"gkd:lam=1": (0.9,), "sft": (0.3,), "shuffled": (0.1,)}
    one = outcome(tmp_path, accuracies, measure="metric:reward")
    assert one.values["sft"].value == pytest.approx(0.3) and one.holds


def test_shown_only_when(tmp_path):
    good = outcome(tmp_path / "a", {"gkd:lam=1": (0.9,), "sft": (0.3,), "shuffled": (0.1,)}, name="the moon is full")
    bad = outcome(tmp_path / "b", {"gkd:lam=1": (0.3,), "sft": (0.9,), "shuffled": (0.1,)})
    assert concluded([good, bad]) == "shown only when the moon is full"


def test_a_broken_run_shows_nothing(tmp_path):
    one = case()
    contest = contest_of(one, 2, tmp_path, str)
    trials = contest.reported({entrant.label: 1e-3 for entrant in contest.entrants}, 0)
    for trial in trials[:-1]:
        finish(trial, 0.9 if trial.entrant.method == "gkd" else 0.1)
    broken = judged(one, Field(tuple(look(trial, {}) for trial in trials)))
    assert not broken.holds and broken.broken == (trials[-1].name,)


@pytest.mark.parametrize("name", claims.names())
def test_every_claim_can_be_tried(name, tmp_path):
    found = claims.load(name)
    assert found.says.endswith(".") and found.here.endswith(".")
    for one in found.case:
        assert one.method.partition(":")[0] == name
        contest = contest_of(one, 5, tmp_path, str)
        for entrant in contest.entrants:
            contest.settings(entrant).build_method()


def test_a_whole_reproduction_goes_on_where_it_was(tmp_path):
    """Real runs in processes of their own; the second call finds them done."""
    one = case(method="sampled_token", others=(), rates=(1e-3,), settings=HERE)
    found = Claim(says="S.", numbers="N.", here="H.", case=(one,))
    from opd.cli.comparing_display import Lines

    onlooker = lambda contest, jobs: Lines(0, jobs)
    said = []
    first = reproduce("sampled_token", found, 2, 2, tmp_path, onlooker, said.append)
    metrics = sorted(tmp_path.glob("runs/*/metrics.jsonl"))
    before = [file.stat().st_mtime_ns for file in metrics]
    assert len(metrics) == 6 and said == ["case 1 of 1: it is tried"]
    assert reproduce("sampled_token", found, 2, 2, tmp_path, onlooker, said.append) == first
    assert [file.stat().st_mtime_ns for file in metrics] == before
    (written,) = page.results(tmp_path)
    assert written["verdict"] in ("shown", "not shown")
    shared = Claim(says="S.", numbers="N.", here="H.", case=(one, one.model_copy(update={"baseline": "shuffled"})))
    reproduce("sampled_token", shared, 2, 2, tmp_path, onlooker, said.append)
    assert [file.stat().st_mtime_ns for file in metrics] == before  # the runs of another comparison are not made again
    assert len(list(tmp_path.glob("runs/shuffled*/summary.json"))) == 3
    text = page.document([written], "", "methods")
    assert "| `sft` |" in text and "opd reproduce sampled_token --seeds 2" in text and "When it is tried" in text


def test_what_a_run_did_not_ask_is_examined_afterwards(tmp_path):
    """With the context back, and on another task; the second time from what was kept."""
    from opd.cli.comparing_display import Lines

    shared = {"method": "sampled_token", "others": (), "settings": HERE}
    measures = {"context:under": "higher", "task:sums,seed=1": "higher"}
    cases = tuple(case(**shared, measure=measure, better=better) for measure, better in measures.items())
    found, said = Claim(says="S.", numbers="N.", here="H.", case=cases), []
    onlooker = lambda contest, jobs: Lines(0, jobs)
    result = reproduce("sampled_token", found, 1, 1, tmp_path, onlooker, said.append)
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 2 and len(said) == 4
    for outcome in result["cases"]:
        assert all(0 <= value["value"] <= 1 for value in outcome["values"].values())
        (gap,) = outcome["standings"]
        assert gap["difference"]["value"] == pytest.approx(
            outcome["values"]["sampled_token"]["value"] - outcome["values"]["sft"]["value"]
        )
    for file in tmp_path.glob("runs/sampled_token*/again-context.json"):
        file.write_text(json.dumps({"under": {"value": 0.25}}))
    again = reproduce("sampled_token", found, 1, 1, tmp_path, onlooker, said.append)
    assert again["cases"][0]["values"]["sampled_token"]["value"] == 0.25
    assert "with the context back" in page.section(again)


def test_a_made_model_is_made_once_and_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(copyist, "STAGES", ((2, 1e-3, 0.1), (1, 1e-3, 0.1)))
    said = []
    find = models.made(tmp_path, said.append)
    folder = find("made:copyist")
    assert find("made:copyist") == folder and len(said) == 1 and find("embedded:student") == "embedded:student"
    from opd.engines.hf_load import load_model, load_tokenizer

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = tokenizer("7 - 2 + 3 + 3 + 9 + 3 + 1 =", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_a_copyist_goes_on_from_half_a_solution_and_copies_a_whole_one():
    from random import Random

    from opd.cast import EMBEDDED, located
    from opd.engines.hf_load import load_tokenizer
    from opd.parts.views import template

    tokenizer = load_tokenizer(located(EMBEDDED))
    halves = 0
    for seed in range(40):
        ids, given = copyist.text(tokenizer, Random(seed), template("begun"))
        prompt, answer = tokenizer.decode(ids[:given]), tokenizer.decode(ids[given:-1]).strip()
        shown = prompt.partition("An example of an answer:\n")[2].partition("\nFinal answer: ")
        assert answer.startswith(shown[0]) and shown[2].partition("\n")[0] == answer.split(", ")[-1]
        assert shown[0] == answer or shown[0].endswith(",")  # so that it can tell a half from a whole
        halves += shown[0] != answer
    assert 10 < halves < 30


def test_only_the_copied_answer_is_learned_from(tmp_path):
    from random import Random

    from opd.cast import EMBEDDED, located
    from opd.engines.hf_load import load_tokenizer

    tokenizer = load_tokenizer(located(EMBEDDED))
    made = [
        copyist.text(tokenizer, Random(seed), wording)
        for seed, wording in enumerate(["{prompt}", "{context} {prompt}"])
    ]
    ids, labels = texts.padded(made, tokenizer.pad_token_id)
    for row, (one, given) in enumerate(made):
        learned = labels[row][labels[row] != texts.IGNORED]
        assert learned.tolist() == one[given:]
        assert ids[row, : len(one)].tolist() == one


def test_the_page_of_all_claims(tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "methods.md"
    assert main(["reproduce", "--out", str(out), "--page", str(file)]) == 2
    assert "nothing was tried" in capsys.readouterr().err and not file.exists()
    (out / "gkd").mkdir(parents=True)
    value, better = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.8, "low": None, "high": None}
    tried = {
        "method": "gkd", "seeds": 2, "verdict": "not shown", "says": "S.", "numbers": "N.", "here": "H.",
        "cases": [{
            "case": case().model_dump(mode="json"), "values": {"gkd:lam=1": better, "sft": value}, "holds": False,
            "rates": {"gkd:lam=1": 1e-3, "sft": 3e-3}, "broken": [],
            "standings": [{"other": "sft", "difference": {"value": 0.0, "low": -0.1, "high": 0.1}, "word": "worse"}],
        }],
    }  # fmt: skip
    (out / "gkd" / "claim.json").write_text(json.dumps(tried))
    (out / "side_by_side.md").write_text("All methods.")
    assert main(["reproduce", "--out", str(out), "--page", str(file)]) == 0
    text = file.read_text()
    assert "| [`gkd`](#gkd) | S. | not shown | 2 |" in text
    assert "| `sft` | 0.003 | 50.0 (40.0 to 60.0) | +0.0 (-10.0 to +10.0) | worse |" in text
    assert "## Side by side\n\nAll methods." in text and "](methods/gkd.svg)" in text


def test_a_drawing_places_values_and_intervals_on_one_scale(tmp_path):
    value, better = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.8, "low": None, "high": None}
    one = {"case": case().model_dump(mode="json"), "values": {"gkd:lam=1": better, "sft": value}}
    drawn = ElementTree.fromstring(figure({"method": "gkd", "verdict": "v", "cases": [one]}, {"sampled": 100.0}, {}))
    name = "{http://www.w3.org/2000/svg}"
    dots = [float(dot.get("cx")) for dot in drawn.iter(f"{name}circle")]
    (line,) = drawn.iter(f"{name}line")
    assert dots == [LEFT + WIDTH, LEFT + WIDTH / 4] and [float(line.get(x)) for x in ("x1", "x2")] == [300.0, 490.0]
    assert {"80.0", "50.0"} <= {text.text for text in drawn.iter(f"{name}text")}
    nothing = {"case": case().model_dump(mode="json"), "values": {}}
    ElementTree.fromstring(figure({"method": "<&>", "verdict": "not shown", "cases": [nothing]}, {}, {}))


def test_the_command_lists_claims_and_refuses_what_has_none(capsys, tmp_path):
    assert main(["reproduce", "--out", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in claims.names()) and "not tried here" in listed
    assert main(["reproduce", "shuffled", "--out", str(tmp_path)]) == 2
    assert "no claim to try" in capsys.readouterr().err
    assert main(["reproduce", "sampled_tokens"]) == 2
    assert "Did you mean 'sampled_token'?" in capsys.readouterr().err


def test_unknown_keys_and_models_are_named(tmp_path):
    with pytest.raises(OpdError, match="no such model can be made"):
        models.made(tmp_path, print)("made:singing")
    file = json.dumps({})
    with pytest.raises(OpdError):
        from opd.settings import checked

        checked(Claim, json.loads(file))
    assert set(claims.names()) <= set(recipes.names())
