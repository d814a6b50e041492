"""Policies in environments: episodes are rows like any other, and whoever executes is not whoever labels."""

import json
import shutil
import zipfile
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from opd import Run, Settings, recipes
from opd.cli.main import main
from opd.contract import distance
from opd.engines import world as worlds
from opd.engines.policy import Policy, loaded, made
from opd.engines.world import World
from opd.errors import OpdError
from opd.protocols import Want
from opd.rollout import STUDENT, TEACHER, Problem, Rollout, Sampling, Visit
from opd.step import gradient, prepare
from opd.tasks import load_task
from opd.teachers import sb3
from opd.teachers.exact import Table, expert, greedy, tabular
from opd.teachers.expert import Expert

FROZEN = "gymnasium:FrozenLake-v1"
SEEDS = [[11, 12], [13], [14, 15]]
PROMPTS = [np.array([n]) for n in (3, 4, 5)]


@pytest.fixture(scope="module")
def lake():
    return World("FrozenLake-v1")


@pytest.fixture(scope="module")
def pole():
    return World("CartPole-v1")


def same(a, b):
    parts = [
        (a.tokens, b.tokens),
        (a.inputs, b.inputs),
        (a.behaviour, b.behaviour),
        *zip(a.columns, b.columns, strict=True),
    ]
    return all(np.array_equal(x, y) for x, y in parts) and str(a.tags) == str(b.tags) and a.end == b.end


# ---- episodes


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CartPole-v1", "Blackjack-v1"])
def test_an_episode_depends_on_its_seeds_alone(name):
    world = World(name)
    policy = made("mlp:8", world, 0, 40)
    together = policy.write(PROMPTS, Sampling(), SEEDS)
    alone = policy.write([PROMPTS[1]], Sampling(), [SEEDS[1]])[0][0]
    assert same(alone, together[1][0])
    assert not np.array_equal(together[0][0].tokens, together[0][1].tokens) or name == "Blackjack-v1"
    assert together[0][0].inputs.shape[0] == len(together[0][0].tokens) + 1
    played = sum(len(piece.tokens) for some in together for piece in some) + len(alone.tokens)
    assert world.steps == played


def test_reading_an_episode_gives_the_log_probs_it_was_drawn_with(pole):
    policy = made("mlp:8", pole, 0, 30)
    (piece,) = policy.write([PROMPTS[0]], Sampling(temperature=0.7), [[1]])[0]
    who = np.r_[0, np.ones(len(piece.tokens), np.int8)].astype(np.int8)
    rollout = Rollout(np.r_[3, piece.tokens].astype(np.int32), who, Problem("p", "p"), inputs=piece.inputs)
    answer = policy.read([rollout], Want(chosen=True, dist=True))
    assert np.allclose(answer.chosen, piece.untruncated, atol=1e-6)
    assert np.allclose(answer.dist.tempered(0.7).chosen, piece.behaviour, atol=1e-6)
    forward = policy.trunk([rollout.fed], [rollout.positions], ())
    assert torch.allclose(forward.hidden @ forward.head.T, answer.dist.logits(), atol=1e-6)


def test_inputs_must_fit_the_positions():
    with pytest.raises(ValueError, match="inputs: got 2 for 3 positions"):
        Rollout(np.array([3, 0, 1]), np.array([0, 1, 1]), Problem("p", "p"), inputs=np.zeros((2, 4)))


def test_the_time_limit_and_the_own_limit_both_count_as_cut_off(lake):
    stuck = tabular(lake, np.tile([1.0, 0, 0, 0], (16, 1)), epsilon=1e-9)  # always left
    world = World("FrozenLake-v1", {"is_slippery": False})
    forever = tabular(world, np.tile([1.0, 0, 0, 0], (16, 1)), epsilon=1e-9)
    for limit, length in ((1000, 100), (7, 7)):
        (piece,) = forever.write([PROMPTS[0]], Sampling(max_new=limit), [[1]])[0]
        assert (len(piece.tokens), str(piece.end), piece.tags["return"]) == (length, "length", 0.0)
    assert stuck.write([PROMPTS[0]], Sampling(max_new=100), [[1]])[0][0].end in ("stop", "length")


# ---- who executes and who labels


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_coin_per_decision_says_who_executes_and_the_label_is_always_kept(lake, share):
    student, teacher = made("mlp:8", lake, 0, 60), expert(lake, epsilon=0.5)
    seeds = [list(range(40))]
    pieces = student.take_turns(teacher, share, [PROMPTS[0]], Sampling(), seeds)[0]
    token, label, author, behaviour, states = (
        np.concatenate(column)
        for column in zip(
            *((p.tokens, p.columns["label"], p.author, p.behaviour, p.columns["state"]) for p in pieces), strict=True
        )
    )
    assert np.array_equal(token[author == TEACHER], label[author == TEACHER])
    assert abs((author == TEACHER).mean() - share) < 0.08
    seen = torch.from_numpy(states)
    ours, theirs = student.logprobs(seen).exp().detach(), teacher.logprobs(seen).exp()
    drawn = (1 - share) * ours + share * theirs
    assert np.allclose(behaviour, drawn.gather(1, torch.from_numpy(token).long()[:, None]).squeeze(1).log(), atol=1e-5)
    best = teacher.probabilities(seen).argmax(-1).numpy()
    assert abs((label == best).mean() - 0.625) < 0.06 or share < 1  # .5 + .5 / 4; ties are rare where an expert walks
    if share == 1:
        assert set(author) == {TEACHER} and np.array_equal(token, label)
    if share == 0:
        assert set(author) == {STUDENT} and (token != label).any()


def test_dagger_gathers_all_rounds_and_a_loaded_aggregate_goes_on_alike(lake):
    def batch(method, step):
        student, teacher = made("table", lake, 0, 30), expert(lake, max_new=30)
        problems = [Problem(f"{step}/{i}", f"from seed {10 * step + i}") for i in range(3)]
        return method.sample({"student": student, "teacher": teacher}, [Visit(p, 0, 7) for p in problems], step)

    first, second = recipes.load("dagger")(replay=2), recipes.load("dagger")(replay=2)
    sizes = [len(batch(first, step)) for step in range(3)]
    assert sizes == [3, 3 + 3, 3 + 6]
    second.state["rounds"].load_state_dict(first.state["rounds"].state_dict())
    one, other = batch(first, 3), batch(second, 3)
    assert len(one) == 9
    for a, b in zip(one, other, strict=True):
        assert a.problem == b.problem and same_rollouts(a.rollouts, b.rollouts)
    fresh = [a for a in one if a.problem.id.startswith("3/")]
    assert len(fresh) == 3, "what is drawn again comes from earlier rounds"


def test_the_aggregate_forgets_the_oldest_and_a_loaded_one_goes_on_alike(lake):
    def batch(method, step):
        student, teacher = made("table", lake, 0, 30), expert(lake, max_new=30)
        problems = [Problem(f"{step}/{i}", f"from seed {10 * step + i}") for i in range(3)]
        return method.sample({"student": student, "teacher": teacher}, [Visit(p, 0, 7) for p in problems], step)

    first, second = (recipes.load("dagger")(replay=9, memory=9, n=2) for _ in range(2))
    assert [len(batch(first, step)) for step in range(5)] == [3, 6, 7, 7, 7]
    kept = first.state["rounds"]
    assert [group.problem.id for group in kept.kept.groups] == ["3/2", "4/0", "4/1", "4/2"]
    second.state["rounds"].load_state_dict(kept.state_dict())
    one, other = batch(first, 5), batch(second, 5)
    assert all(
        a.problem == b.problem and same_rollouts(a.rollouts, b.rollouts) for a, b in zip(one, other, strict=True)
    )
    assert not {group.problem.id for group in one} & {"0/0", "1/0", "2/0", "3/0", "3/1"}
    single = recipes.load("dagger")(replay=1, memory=1, n=4)
    assert [len(batch(single, step)) for step in range(3)] == [3, 4, 4], "one problem's episodes are kept at least"


def same_rollouts(a, b):
    def parts(r):
        return [r.tokens, r.author, r.inputs, *(r.columns[name] for name in sorted(r.columns))]

    return all(
        x.tags == y.tags
        and all(np.array_equal(p, q) and p.dtype == q.dtype for p, q in zip(parts(x), parts(y), strict=True))
        for x, y in zip(a, b, strict=True)
    )


# ---- the same core


IMITATION = ("dagger", "aggrevate", "policy_distillation", "on_policy_distillation", "kickstarting")


@pytest.mark.parametrize("name", [*IMITATION, "gkd", "local_support", "sampled_token", "sft"])
def test_methods_for_texts_and_for_policies_share_the_core(name, lake):
    """Same rows, asks, credit, losses and step; the gradient does not depend on the partition."""
    method = recipes.load(name)(**({"k": 2} if name == "local_support" else {}))
    student = made("mlp:6", lake, 0, 25)
    student = Policy(lake, student.net.double(), max_new=25)
    cast = {"student": student, "teacher": expert(lake, epsilon=0.1, max_new=25)}
    groups = method.sample(cast, [Visit(Problem(f"{i}", f"seed {i}"), 0, 5) for i in range(5)], 0)
    rows, sequences = prepare(groups, method, cast, 0)
    found = []
    for micro, chunk in ((10**6, 10**6), (1, 3)):
        student.net.zero_grad()
        gradient(student, rows, sequences, method, micro, chunk)
        found.append({key: p.grad.clone() for key, p in student.weights().items()})
    assert distance(*found) < 1e-12
    assert max(float(g.abs().max()) for g in found[0].values()) > 0


# ---- exact values


def test_values_of_worlds_that_are_known():
    gamma = 0.99
    plain = Table.of(World("FrozenLake-v1", {"is_slippery": False}), gamma).best()
    assert plain[0].max() == pytest.approx(gamma**5, abs=1e-12)  # six steps, and only the last one pays
    cliff = Table.of(World("CliffWalking-v1"), gamma).best()
    assert cliff[36].max() == pytest.approx(-sum(gamma**k for k in range(13)), abs=1e-9)
    slippery = Table.of(World("FrozenLake-v1"), gamma).best()
    assert slippery[0].max() == pytest.approx(0.5420, abs=1e-4)  # a number that many have published


def test_the_value_of_a_policy_is_what_it_earns(lake):
    table = Table.of(lake, 0.9)
    noisy = 0.7 * greedy(table.best()) + 0.3 / 4
    value = (noisy * table.values(noisy)).sum(-1)[0]
    teacher = tabular(lake, noisy, epsilon=1e-9, max_new=100)
    pieces = [
        p
        for some in teacher.write([np.array([s]) for s in range(600)], Sampling(), [[s] for s in range(600)])
        for p in some
    ]
    earned = [float((0.9 ** np.arange(len(p.tokens)) * p.columns["earned"]).sum()) for p in pieces]
    error = np.std(earned) / np.sqrt(len(earned))
    assert abs(np.mean(earned) - value) < 4 * error and error < 0.02


# ---- experts of stable-baselines3


COMMON, DQN = "stable_baselines3.common.policies", "stable_baselines3.dqn.policies"


def saved(file, module, layers, beside=("value_net.weight", "value_net.bias"), **options):
    """A .zip as stable-baselines3 writes it: JSON with pickles beside a readable form, and tensors."""
    about = {"policy_class": {":type:": "<class 'abc.ABCMeta'>", ":serialized:": "gAU=", "__module__": module}}
    about["policy_kwargs"] = {":type:": "<class 'dict'>", ":serialized:": "gAU=", **options} if options else {}
    weights = {
        f"{name}.{part}": value for name, (w, b) in layers.items() for part, value in (("weight", w), ("bias", b))
    }
    weights |= {name: torch.ones(1) for name in beside}
    held = BytesIO()
    torch.save(weights, held)
    with zipfile.ZipFile(file, "w") as inside:
        inside.writestr("data", json.dumps(about))
        inside.writestr("policy.pth", held.getvalue())
    return file


def layers(names, *widths):
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=draw)
    return {name: (normal(b, a), normal(b)) for name, (a, b) in zip(names, pairwise(widths), strict=True)}


ACTOR = ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")


def test_an_actor_of_stable_baselines_acts_as_it_did(tmp_path, lake, pole):
    told = {"activation_fn": "<class 'torch.nn.modules.activation.ReLU'>", "net_arch": "[8, 6]"}
    for options, between in (({}, torch.tanh), (told, torch.relu)):
        one, two, last = (own := layers(ACTOR, 4, 8, 6, 2)).values()
        seen = torch.randn(20, 4)
        inner = between(between(seen @ one[0].T + one[1]) @ two[0].T + two[1])
        wanted = (inner @ last[0].T + last[1]).softmax(-1)
        found = sb3.expert(str(saved(tmp_path / "a.zip", COMMON, own, **options)), pole, epsilon=1e-9)
        assert torch.allclose(found.logprobs(seen).exp().float(), wanted, atol=1e-6)
        assert "values" not in found.can
    one, two, last = (own := layers(ACTOR, 16, 5, 5, 4)).values()
    by_state = sb3.expert(str(saved(tmp_path / "b.zip", COMMON, own)), lake)
    third = torch.tanh(torch.tanh(one[0][:, 3] + one[1]) @ two[0].T + two[1]) @ last[0].T + last[1]
    assert torch.allclose(by_state.probabilities(torch.tensor([3]))[0], third.softmax(-1), atol=1e-6)


def test_a_q_network_of_stable_baselines_takes_the_best_action_and_gives_values(tmp_path, pole):
    own = layers(("q_net.q_net.0", "q_net.q_net.2"), 4, 8, 2)
    teacher = sb3.expert(str(saved(tmp_path / "q.zip", DQN, own, ("q_net_target.q_net.0.weight",))), pole, max_new=20)
    (piece,) = teacher.write([PROMPTS[0]], Sampling(), [[1]])[0]
    who = np.r_[0, np.ones(len(piece.tokens), np.int8)].astype(np.int8)
    episode = Rollout(np.r_[3, piece.tokens].astype(np.int32), who, Problem("p", "p"), inputs=piece.inputs)
    values = teacher.read([episode], Want(values=True)).values
    (one, two), seen = own.values(), torch.from_numpy(piece.inputs[:-1])
    assert torch.allclose(values.float(), torch.relu(seen @ one[0].T + one[1]) @ two[0].T + two[1], atol=1e-6)
    assert np.array_equal(values.argmax(-1).numpy(), piece.tokens)


class Runs:
    """Unpickled, it writes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_nothing_in_a_file_of_stable_baselines_is_run(tmp_path, pole):
    trap, file = (
        tmp_path / "touched",
        saved(tmp_path / "bad.zip", COMMON, {"action_net": (Runs(tmp_path / "touched"),) * 2}),
    )
    with pytest.raises(OpdError, match=r"no file of stable-baselines3 that can be read: got Weights only load failed"):
        sb3.expert(str(file), pole)
    assert not trap.exists()


# ---- runs


def test_a_run_from_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = (
        f"train dagger --task {FROZEN},is_slippery=false --teacher values --student table --steps 6 --batch 6 --lr 0.3"
    )
    assert main([*words.split(), "--eval-problems", "20", "--drafts", "2", "--out", "lake"]) == 0
    assert "return, sampled: " in capsys.readouterr().out
    summary = json.loads(Path("lake/summary.json").read_text())
    before, after = (summary[f"student_{when}"]["sampled"] for when in ("before", "after"))
    assert after["accuracy"]["value"] > 0.7 > 0.3 > before["accuracy"]["value"]
    assert after["returned"]["value"] == after["grade"], "on this lake the return is the success"
    assert summary["teacher"]["greedy"]["accuracy"]["value"] == 1.0
    drafts = json.loads(next(Path("lake/drafts").glob("*6.json")).read_text())["drafts"]
    assert {token["text"] for token in drafts[0]["tokens"]} <= set("←↓→↑")
    assert main(["eval", "lake", "--task", f"{FROZEN},is_slippery=false", "--problems", "10"]) == 0
    assert "return" in capsys.readouterr().out
    assert main(["report", "lake"]) == 0
    # the student of one run is the teacher of the next
    words = f"train gkd --lam 1 --task {FROZEN},is_slippery=false --teacher lake --steps 1 --batch 2 --out next"
    assert main([*words.split(), "--max-new", "30", "--eval-problems", "5"]) == 0


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    def settings(out):
        return Settings.of(
            method="dagger", task=FROZEN, teacher="values", student="mlp:8", steps=4, batch=3, lr=1e-2, drafts=0,
            eval_problems=4, checkpoint_every=2, keep_checkpoints=9, max_new=30, out=str(tmp_path / out),
        )  # fmt: skip

    Run.new(settings("whole")).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-000004")
    shutil.rmtree(tmp_path / "cut/model")
    Run.resume(tmp_path / "cut").train()
    one, other = (loaded(tmp_path / name / "model", World("FrozenLake-v1"), 30) for name in ("whole", "cut"))
    assert all(torch.equal(one.state_dict()[key], value) for key, value in other.state_dict().items())


def test_vectors_for_observations_and_an_expert_that_is_a_function(pole, tmp_path):
    """A hand-written balance; the student copies it from its own episodes."""
    controller = "import torch\ndef balance(x):\n    push = (x[:, 2] + 0.3 * x[:, 3] + 0.1 * x[:, 1] > 0).double()\n"
    (tmp_path / "experts.py").write_text(controller + "    return torch.stack([1 - push, push], -1)\n")
    run = Run.new(
        Settings.of(
            method="dagger",
            task="gymnasium:CartPole-v1,success=195",
            teacher=f"python:{tmp_path}/experts.py:balance",
            steps=8,
            batch=4,
            lr=1e-2,
            max_new=200,
            eval_problems=6,
            drafts=0,
            out=str(tmp_path / "pole"),
        )
    )
    summary = run.train()
    assert summary["teacher"]["greedy"]["accuracy"]["value"] == 1.0
    assert (
        summary["student_after"]["greedy"]["accuracy"]["value"]
        > summary["student_before"]["greedy"]["accuracy"]["value"] + 0.5
    )


@pytest.mark.parametrize("teacher", ["self:frozen", "self:ema=0.9", "self:trust=0.1"])
def test_a_copy_of_a_policy_teaches(tmp_path, teacher):
    settings = Settings.of(
        method="gkd", parameters={"lam": 1.0}, task=FROZEN, teacher=teacher, steps=2, batch=2, lr=1e-2, max_new=10,
        eval_problems=2, drafts=0, out=str(tmp_path / "run"),
    )  # fmt: skip
    assert Run.new(settings).train()["student_before"]["kl"]["per_token"] == pytest.approx(0, abs=1e-6)


# ---- bad input


BAD = {
    "--task gymnasium:Pendulum-v1 --teacher values": "the actions of Pendulum-v1: got Box",
    "--task gymnasium:CartPole-v1 --teacher values": "CartPole-v1 does not write its transitions out",
    "--task gymnasium:CartPole-v1 --student table --teacher self:frozen": "a table for CartPole-v1",
    "--task gymnasium:FrozenLake-v7 --teacher values": "environment FrozenLake-v7 cannot be made",
    "--task gymnasium:FrozenLak-v1 --teacher values": "Did you mean 'FrozenLake-v1'?",
    "--task gymnasium:FrozenLake-v1,slippery=true --teacher values": "unexpected keyword argument 'slippery'",
    "--task gymnasium: --teacher values": "needs an environment",
    "--task gymnasium:FrozenLake-v1": "needs a teacher: expected --teacher. Give values",
    "--task gymnasium:FrozenLake-v1 --teacher oracle": "no teacher 'oracle' for FrozenLake-v1",
    "--task gymnasium:FrozenLake-v1 --teacher cliff": "for another environment: got environment CliffWalking-v1",
    "--task gymnasium:FrozenLake-v1 --teacher values,epsilon=1.5": "got 1.5, expected between 0 and 1",
    "--task gymnasium:FrozenLake-v1 --teacher values,gamma=1": "the discount gamma of exact values: got 1",
    "--task gymnasium:FrozenLake-v1 --teacher values,noise=.1": "has no option 'noise'",
    "--task gymnasium:FrozenLake-v1 --teacher python:wrong.py:two": "got answers of shape (1, 2), expected",
    "--task gymnasium:FrozenLake-v1 --teacher python:wrong.py:one": "wrong.py has no function 'one'",
    "--task gymnasium:FrozenLake-v1 --teacher python:wrong.py:far": "fails on an observation of FrozenLake",
    "--task gymnasium:FrozenLake-v1 --teacher python:broken.py:two": "broken.py cannot be run: got NameError",
    "--task gymnasium:FrozenLake-v1 --teacher python:none.py:one": "no such file",
    "--task gymnasium:FrozenLake-v1 --teacher sb3:pole.zip": "for another environment: got 4 observed numbers",
    "--task gymnasium:CartPole-v1 --teacher sb3:cnn.zip": "is more than layers of neurons: got features_extractor.cnn",
    "--task gymnasium:CartPole-v1 --teacher sb3:own.zip": "is not one that is built again: got mine",
    "--task gymnasium:CartPole-v1 --teacher sb3:odd.zip": "has an option of its own: got features_extractor_class",
    "--task gymnasium:CartPole-v1 --teacher sb3:wave.zip": "activation of the policy in wave.zip: got Sine, expected",
    "--task gymnasium:CartPole-v1 --teacher sb3:broken.py": "no file of stable-baselines3 that can be read: got File",
    "--task gymnasium:CartPole-v1 --teacher sb3:none.zip": "teacher sb3:none.zip: got no such file",
    "--task gymnasium:FrozenLake-v1 --teacher values --student gpt": "no policy 'gpt' for FrozenLake-v1",
    "--task gymnasium:FrozenLake-v1 --teacher values --device cuda": "--device of a policy in an environment: got cuda",
    "--task gymnasium:FrozenLake-v1 --teacher values --lora 8": "--lora of a policy in an environment: got 8",
    "--task gymnasium:FrozenLake-v1 --teacher values --beta 2": "the teacher's share beta: got 2.0",
    "--task gymnasium:FrozenLake-v1 --teacher values --mask think": "--mask of a policy in an environment: got think",
    "--task gymnasium:FrozenLake-v1 --teacher values --stop-token mask": "--stop-token of a policy in an environment",
    "--task gymnasium:FrozenLake-v1 --teacher a=values,b=values": "in FrozenLake-v1: got several, expected one",
    "--task gymnasium:FrozenLake-v1 --teacher values --memory 0": "episodes that are kept (memory): got 0",
    "--task gymnasium:FrozenLake-v1 --teacher self:frozen": "decision by decision: got a Frozen as teacher",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "cliff").mkdir()
    made("table", World("CliffWalking-v1"), 0, 10).save(folder / "cliff")
    two, far = "def two(x):\n    return torch.full((len(x), 2), 0.5)\n", "def far(x):\n    return x[:, 3]\n"
    four = "def four(x):\n    return torch.full((len(x), 4), 0.25)\n"
    (folder / "wrong.py").write_text(f"import torch\n{two}{far}{four}")
    (folder / "broken.py").write_text("two = three")
    actor = layers(ACTOR, 4, 8, 6, 2)
    saved(folder / "pole.zip", COMMON, actor)
    saved(folder / "cnn.zip", COMMON, actor, ("features_extractor.cnn",))
    saved(folder / "own.zip", "mine", actor)
    saved(folder / "odd.zip", COMMON, actor, features_extractor_class="<class 'mine.Scaled'>")
    saved(folder / "wave.zip", COMMON, actor, activation_fn="<class 'mine.Sine'>")
    return folder


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_sentence(words, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["train", "dagger", *words.split(), "--steps", "1"]) == 2
    out, err = capsys.readouterr()
    assert BAD[words] in err and err.count("\n") == 1 and not out
    assert not (place / "runs").exists()


def test_values_must_be_known_for_aggrevate(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = f"train aggrevate --task {FROZEN} --teacher python:wrong.py:four"
    assert main(words.split()) == 2
    assert "can't answer ['values']" in capsys.readouterr().err
    words = "train aggrevate --task gymnasium:CartPole-v1 --teacher sb3:pole.zip"
    assert main(words.split()) == 2
    assert "can't answer ['values']" in capsys.readouterr().err


def test_gymnasium_is_an_extra(monkeypatch):
    monkeypatch.setattr(worlds, "find_spec", lambda name: None)
    with pytest.raises(OpdError, match=r"need the package gymnasium. pip install opd\[environments\]"):
        load_task(FROZEN)


def test_probabilities_that_are_none_are_refused(lake):
    with pytest.raises(OpdError, match="gave no probabilities: got sums from 2 to 2"):
        Expert(lake, lambda seen: torch.full((len(seen), 4), 0.5))
