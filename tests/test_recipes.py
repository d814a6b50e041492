"""The contract that every method keeps; a new recipe is one new file and one new row of this table."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from opd import Run, Settings, recipes
from opd.cli.methods import toy_build
from opd.cli.wording import needed
from opd.contract import anatomy, check, distance, gradients, toy_cast, toy_groups
from opd.errors import OpdError
from opd.lab.toy import ToyModel
from opd.parts.means import MEANS
from opd.step import prepare

MATCHES = "teacher = student gives a zero gradient"

# name -> (parameters for a vocabulary of 7, model passes per batch, facts)
TABLE = {
    "ar_opd": ({"skip": 1}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "constant_negative": ({"threshold": 0.3}, {"student writes": 1, "student learns": 1}, set()),
    "aggrevate": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "dagger": ({"beta": 0.5, "fade": 2}, {"student writes": 1, "teacher writes": 1, "student learns": 4}, set()),
    "dapo": ({"n": 4, "updates": 2}, {"student writes": 1, "student learns": 2}, set()),
    "decoupled": ({"lam": 0.5}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "distillm": (
        {"start": 1.0},
        {"student writes": 1, "teacher reads": 1, "student learns": 1},
        {MATCHES},
    ),
    "distillm2": (
        {},
        {"teacher writes": 1, "reference writes": 1, "teacher reads": 1, "student learns": 1},
        set(),
    ),
    "extrapolated": (
        {},
        {"student writes": 1, "teacher reads": 1, "reference reads": 1, "student learns": 1},
        set(),
    ),
    "gkd": ({"lam": 1.0}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "grpo": ({"beta": 0.1}, {"student writes": 1, "reference reads": 1, "student learns": 1}, set()),
    "iw_opd": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "kickstarting": ({"gate": True, "n": 2}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "lightning": ({}, {"reference writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "local_support": ({"k": 3}, {"student writes": 1, "teacher reads": 1, "student learns": 2}, {MATCHES}),
    "minillm": (
        {},
        {"student writes": 1, "teacher writes": 1, "teacher reads": 1, "student learns": 4},
        set(),
    ),
    "nail": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "nailgun": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "nca": (
        {"k": 4},
        {"student writes": 1, "teacher reads": 1, "student reads": 1, "student learns": 1},
        set(),
    ),
    "on_policy_distillation": (
        {},
        {"student writes": 1, "student reads": 1, "teacher reads": 1, "student learns": 1},
        {MATCHES},
    ),
    "opcd": ({"k": 3}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "opsd": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "pbsd": (
        {},
        {"student writes": 1, "teacher writes": 1, "teacher reads": 1, "student reads": 1, "student learns": 1},
        set(),
    ),
    "opsd_ectr": ({"k": 3}, {"student writes": 1, "teacher reads": 2, "student learns": 1}, set()),
    "policy_distillation": ({"tau": 0.5}, {"teacher writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "power": ({"alpha": 1.0}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "raps_da": (
        {},
        {"student writes": 1, "student reads": 1, "teacher reads": 1, "student learns": 1},
        set(),
    ),
    "reinforce": ({}, {"student writes": 1, "student learns": 1}, set()),
    "representation": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "rlcsd": ({}, {"student writes": 1, "teacher reads": 2, "student learns": 4}, set()),
    "rlsd": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "rlsd_ectr": ({}, {"student writes": 1, "teacher reads": 2, "student learns": 1}, set()),
    "rethinking": ({"k": 3}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "sampled_token": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "sc_grpo": ({}, {"student writes": 1, "student reads": 1, "teacher reads": 1, "student learns": 1}, set()),
    "sdft": ({"skip": 1}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "sdpo": ({"k": 3}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, set()),
    "sequence_kl": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
    "sft": ({}, {"teacher writes": 1, "student learns": 1}, set()),
    "stable_opd": (
        {},
        {"student writes": 1, "teacher reads": 1, "reference reads": 1, "student learns": 1},
        set(),
    ),
    "shuffled": ({}, {"student writes": 1, "teacher reads": 1, "student learns": 1}, {MATCHES}),
}


def build(name, **parameters):
    return partial(recipes.load(name), **{**TABLE[name][0], **parameters})


def test_every_recipe_has_a_row():
    assert set(TABLE) == set(recipes.names())


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("mean", MEANS)
def test_contract(name, mean):
    tried = [what for what, _ in check(build(name, mean=mean))]
    assert len(tried) == 8


@pytest.mark.parametrize("name", TABLE)
def test_model_passes(name):
    assert anatomy(build(name)).passes == TABLE[name][1]


@pytest.mark.parametrize("name", [name for name in TABLE if MATCHES in TABLE[name][2]])
def test_no_gradient_when_the_teacher_is_the_student(name):
    method = build(name)()
    cast = {"student": ToyModel(seed=1), "teacher": ToyModel(seed=1)}
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    gradient = gradients(method, cast["student"], rows, sequences)
    assert max(float(g.abs().max()) for g in gradient.values()) < 1e-14


@pytest.mark.parametrize("name", TABLE)
def test_order_of_problems_does_not_matter(name):
    method = build(name)()
    cast = toy_cast(method)
    groups = toy_groups(method, cast)
    one = gradients(method, cast["student"], *prepare(groups, method, cast, 0))
    other = gradients(method, cast["student"], *prepare(groups[::-1], method, cast, 0))
    assert distance(one, other) < 1e-12


@pytest.mark.parametrize("name", TABLE)
def test_file_is_short_and_says_its_paper_and_equation(name):
    from importlib import resources

    text = resources.files("opd.recipes").joinpath(f"{name}.py").read_text()
    described = recipes.describe(name)
    assert "arXiv" in described.paper or "Lab" in described.paper
    assert described.equation.startswith("L =") and described.when.endswith(".")
    code = text.split('"""\n', 1)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    assert all(parameter.help for parameter in described.parameters), "every parameter has a line of help"


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("sampled_token", ["the teacher's log-probs"]),
        ("sft", ["the teacher's text"]),
        ("gkd", ["the teacher's distribution", "the teacher's text"]),
        ("local_support", ["the teacher's best K"]),
        ("extrapolated", ["the teacher's log-probs", "the teacher's best K", "a copy of the student"]),
        ("opsd", ["a copy of the student", "references"]),
        ("stable_opd", ["the teacher's log-probs", "a copy of the student", "references"]),
        ("rlsd", ["a copy of the student", "references", "a verifier"]),
        ("representation", ["the teacher's hidden states"]),
        ("constant_negative", []),
    ],
)
def test_what_a_method_needs(name, needs):
    assert needed(recipes.load(name)(), anatomy(toy_build(name, {})).passes) == needs


def test_published_defaults():
    """A recipe called with no argument is the paper's setting."""
    defaults = {name: {p.name: p.default for p in recipes.describe(name).parameters} for name in recipes.names()}
    assert defaults["local_support"] == {
        "k": 32, "source": "teacher", "sampled": False, "outside": "renormalise", "cap": 0.0,
        "n": 8, "temperature": 1.0, "top_p": 0.9, "updates": 2, "only_named": False, "mean": "token_mean",
    }  # fmt: skip
    assert (defaults["gkd"]["lam"], defaults["gkd"]["beta"], defaults["gkd"]["mean"]) == (0.5, 0.5, "sequence_mean")
    assert (defaults["sampled_token"]["gamma"], defaults["sampled_token"]["n"]) == (0.0, 4)
    assert [defaults["opsd"][name] for name in ("beta", "tau", "k", "n")] == [0.0, 0.05, 0, 1]
    assert [defaults["sdft"][name] for name in ("alpha", "k", "skip", "n")] == [1.0, 0, 3, 1]
    assert [defaults["sdpo"][name] for name in ("alpha", "k", "threshold", "cap", "n")] == [0.5, 100, 0.5, 2.0, 8]
    assert [defaults["opcd"][name] for name in ("k", "renorm", "temperature")] == [256, False, 0.6]
    assert [defaults["ar_opd"][name] for name in ("lam", "clip", "rho", "skip")] == [0.8, 5.0, 0.5, 3]
    assert [defaults["nca"][name] for name in ("beta", "k")] == [0.5, 256]
    assert (defaults["nail"]["noise"], defaults["nail"]["answer"]) == ("uniform", "whole")
    assert (defaults["power"]["alpha"], defaults["power"]["top_p"], defaults["power"]["top_k"]) == (5.0, 0.95, 20)
    assert (defaults["extrapolated"]["lam"], defaults["extrapolated"]["c"]) == (1.25, 5.0)
    assert [defaults["rethinking"][name] for name in ("k", "words", "form")] == [16, "only_stu", "equation"]
    assert (defaults["iw_opd"]["gain"], defaults["iw_opd"]["n"], defaults["stable_opd"]["n"]) == (0.5, 1, 4)
    assert [defaults["lightning"][name] for name in ("weighted", "temperature", "top_p")] == [False, 1.0, 1.0]
    assert (defaults["representation"]["last"], defaults["representation"]["layers"]) == (2000, (0,))


def test_sampled_token_is_the_reverse_kl_gradient_in_expectation():
    """Over many draws at one state the importance-weighted k1 surrogate points along the reverse KL's gradient."""
    from opd import maths
    from opd.dist import TableDist
    from opd.parts.losses import PolicyGradient
    from opd.rows import Rows

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True)
    lq = torch.randn(6, dtype=torch.float64, generator=generator).log_softmax(-1)
    mu = torch.randn(6, dtype=torch.float64, generator=generator).log_softmax(-1)  # any behaviour with full support
    lp = logits.log_softmax(-1)
    token = torch.arange(6)  # every outcome once, weighted by how likely the behaviour draws it
    rows = Rows({"keep": torch.ones(6, dtype=torch.bool), "behaviour": mu, "advantage": (lq - lp).detach()})
    loss = (mu.exp() * PolicyGradient()(TableDist(lp.expand(6, 6), token), rows)).sum()
    (ours,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(maths.reverse_kl(lp[None], lq[None]).sum(), logits)
    assert torch.allclose(ours, exact, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gkd", {"lam": 1.5}),
        ("gkd", {"beta": -0.1}),
        ("gkd", {"mean": "median"}),
        ("local_support", {"k": 0}),
        ("local_support", {"k": 1}),
        ("local_support", {"outside": "forget"}),
        ("local_support", {"source": "nobody"}),
        ("local_support", {"outside": "sampled_tail", "sampled": True}),
        ("local_support", {"outside": "tail", "cap": 2.0}),
        ("local_support", {"outside": "sampled_tail", "cap": -1.0}),
        ("local_support", {"only_named": True}),
        ("opcd", {"only_named": True, "support": "both"}),
        ("opcd", {"only_named": True, "k": 0}),
        ("constant_negative", {"threshold": 0.0}),
        ("constant_negative", {"size": -1.0}),
        ("sampled_token", {"gamma": 2.0}),
        ("sampled_token", {"unit": "words"}),
        ("sampled_token", {"n": 0}),
        ("extrapolated", {"c": 0.9}),
        ("extrapolated", {"c": 1.0, "limit": "cap"}),
        ("extrapolated", {"limit": "cap", "margin": -0.1}),
        ("iw_opd", {"gain": -1.0}),
        ("power", {"alpha": -1.0}),
        ("power", {"reward": "clip", "bound": 0.0}),
        ("power", {"reward": "tanh", "tau": 0.0}),
        ("power", {"form": "full", "reward": "log"}),
        ("rethinking", {"k": 0}),
        ("rethinking", {"k": 1}),
        ("rethinking", {"form": "released", "k": 0}),
        ("rethinking", {"form": "released", "dual": 1.1}),
        ("rethinking", {"weight": "teacher_p"}),
        ("rethinking", {"reward": 1.0, "n": 1}),
        ("rethinking", {"only_named": True, "words": "union"}),
        ("stable_opd", {"near": -0.1}),
        ("ar_opd", {"lam": -0.1}),
        ("ar_opd", {"clip": -1.0}),
        ("ar_opd", {"rho": 0.0}),
        ("ar_opd", {"rho": 1.5}),
        ("nca", {"beta": -0.5}),
        ("nca", {"k": 1}),
        ("opsd", {"beta": 0.5}),
        ("opsd", {"beta": 2.0, "tau": 0.0}),
        ("opsd", {"k": 50}),
        ("opsd", {"tau": -1.0}),
        ("opsd", {"loss_temperature": 0.0}),
        ("pbsd", {"beta": 0.0}),
        ("pbsd", {"pair_label": "best"}),
        ("pbsd", {"n": 0}),
        ("sdft", {"alpha": -1.0}),
        ("sdpo", {"n": 1}),
        ("sdpo", {"cap": 0.0}),
        ("sdpo", {"alpha": 2.0}),
        ("nail", {"rate": 1.0}),
        ("nail", {"noise": "teacher", "noise_temperature": 0.0}),
    ],
)
def test_impossible_values_are_refused_when_the_method_is_built(name, parameters):
    with pytest.raises(OpdError):
        recipes.load(name)(**parameters)


def test_no_two_recipes_share_more_than_six_lines_in_a_row():
    """What several methods need is a part with a name; imports and the help of a parameter may read alike."""
    import ast
    from importlib import resources

    def body(name):
        tree = ast.parse(resources.files("opd.recipes").joinpath(f"{name}.py").read_text())
        kept = [node for node in tree.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:]
        return "\n".join(ast.unparse(node) for node in kept).splitlines()

    def runs(name):
        lines = body(name)
        return {tuple(line.strip() for line in lines[i : i + 7]) for i in range(len(lines) - 6)}

    seen = {}
    for name in recipes.names():
        for run in runs(name):
            assert run not in seen, f"{name} and {seen[run]}: {run}"
            seen[run] = name


@pytest.mark.parametrize(
    ("name", "more"),
    [("sc_grpo", {"n": 3}), ("sampled_token", {"n": 2, "reward": 1.0}), ("rethinking", {"n": 2, "reward": 1.0})],
)
def test_columns_that_are_one_and_the_same_are_kept_apart_on_disk(tmp_path, name, more):
    settings = Settings.of(
        method=name, parameters=more, steps=1, batch=2, max_new=8, eval_problems=4, drafts=0, checkpoint_every=0,
        teacher="" if name == "sc_grpo" else "embedded:teacher", threads=1, out=str(tmp_path / "run"),
    )  # fmt: skip
    Run.new(settings).train()
    (file,) = (tmp_path / "run" / "rows").iterdir()
    assert set(load_file(file)) > {"keep", "advantage"}
