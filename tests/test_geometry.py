"""The geometry of updates: closed forms, invariances, and chance levels."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.geometry import compare
from opd import Run, Settings, geometry
from opd.cli.main import main
from opd.errors import OpdError
from opd.geometry import Lens


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(seed, n):
    return torch.linalg.qr(normal(seed, n, n)).Q


LENS = Lens(k=4, rank=4, tail=6)


def test_stable_rank_of_rank_one_of_an_orthogonal_matrix_and_of_any_scale():
    values = torch.linalg.svdvals
    assert geometry.stable_rank(values(torch.outer(normal(0, 8), normal(1, 6)))) == pytest.approx(1)
    assert geometry.stable_rank(values(orthogonal(0, 7))) == pytest.approx(7)
    a = normal(2, 8, 6)
    assert geometry.stable_rank(values(1e-6 * a)) == pytest.approx(geometry.stable_rank(values(a)))


def test_a_scaled_matrix_has_not_turned_and_has_drifted_by_its_scale():
    w = normal(0, 12, 9)
    shape = LENS(w, 1.3 * w)
    assert shape.rotation == pytest.approx(0, abs=1e-6) and shape.drift == pytest.approx(0.3)
    assert shape.size == pytest.approx(0.3 * float(w.norm())) and shape.unchanged == 0


def test_a_rotation_turns_the_directions_and_leaves_the_spectrum():
    w, q = normal(0, 12, 9), orthogonal(3, 9)
    shape = Lens(k=2, rank=4)(w, w @ q)
    assert shape.drift < 1e-12 and shape.rotation > 5


def test_angles_are_exact_near_zero_and_at_right_angles():
    basis = torch.eye(4, dtype=torch.float64)
    for degrees in (1e-9, 1e-3, 1.0, 45.0, 89.0, 90.0):
        turned = math.cos(math.radians(degrees)) * basis[:, :1] + math.sin(math.radians(degrees)) * basis[:, 1:2]
        assert float(geometry.angles(basis[:, :1], turned)) == pytest.approx(degrees, rel=1e-6)


def test_spectral_drift_is_bounded_by_the_size_of_the_change():
    for seed in range(5):
        w, change = normal(seed, 10, 7), 0.3 * normal(seed + 9, 10, 7)
        assert LENS(w, w + change).drift <= float(change.norm() / w.norm())


def test_what_bfloat16_cannot_see_is_unchanged():
    w = torch.linspace(1, 2, 64).double().view(8, 8)
    near = w * (1 + 1e-5)
    assert LENS(w, w).unchanged == 1 and math.isnan(LENS(w, w).principal)
    assert LENS(w, near).unchanged > 0.9
    one = w.clone()
    one[0, 0] *= 1.5
    assert LENS(w, one).unchanged == pytest.approx(63 / 64)


def test_overlaps_of_random_changes_are_at_chance():
    w, where = normal(0, 60, 60), torch.rand(60, 60, generator=torch.Generator().manual_seed(1)) < 0.3
    for share in (0.3, 0.5):
        shape = Lens(k=4, rank=8, share=share)(w, torch.where(where, 2 * w, w))
        assert shape.principal == pytest.approx(share, abs=0.05) and shape.small == pytest.approx(share, abs=0.05)


def test_overlaps_of_planted_changes():
    w = normal(0, 20, 20)
    small = w.abs() < w.abs().median()
    shape = LENS(w, torch.where(small, w + 0.5, w))
    assert shape.small == 1 and shape.principal < 0.5


def test_similarity_of_subspaces():
    a = normal(0, 30, 40)
    assert geometry.similarity(a, 3 * a, 8) == pytest.approx(1)
    chance = [geometry.similarity(normal(s, 30, 40), normal(s + 50, 30, 40), 8) for s in range(20)]
    assert sum(chance) / 20 == pytest.approx(8 / 40, abs=0.02)


def test_two_changes_of_the_same_weights_are_as_alike_as_their_matrices_in_the_mean():
    before = {name: normal(seed, 6, 5) for seed, name in enumerate("qv")}
    first, second = (torch.outer(normal(7, 6), torch.eye(5, dtype=torch.float64)[k]) for k in (0, 1))
    one = {"q": before["q"] + first, "v": before["v"] + first}
    other = {"q": before["q"] + 3 * first, "v": before["v"] + second}
    assert geometry.alike(before, one, other, 1) == pytest.approx(0.5)
    assert geometry.alike(before, one, other, 99) == pytest.approx(1)  # all five directions


def test_runs_are_compared_where_they_are_as_far_from_the_start_as_the_nearest_of_them_ends():
    course = lambda *sizes: [{"step": step, "mean": {"size": size}} for step, size in enumerate(sizes)]
    found = compare.matched({"near": course(0.1, 0.2, 0.3), "far": course(0.2, 0.33, 0.9)})
    assert {name: line["step"] for name, line in found.items()} == {"near": 2, "far": 1}


def test_hills_estimate_of_a_power_law():
    values = torch.arange(1, 400, dtype=torch.float64).pow(-1 / 2.5)
    assert geometry.hill(values, 300) == pytest.approx(2.5, rel=0.03)
    assert math.isnan(geometry.hill(torch.zeros(4), 3))


def test_a_mean_counts_every_matrix_alike_and_in_the_unchanged_share_every_entry():
    wide = normal(0, 6, 6)
    one, other = LENS(normal(1, 2, 2), 1.5 * normal(1, 2, 2)), LENS(wide, torch.cat([1.1 * wide[:3], wide[3:]]))
    mean = geometry.averaged([one, other])
    assert (one.unchanged, other.unchanged, mean.unchanged) == (0, 0.5, 18 / 40)
    assert (one.entries, other.entries, mean.entries) == (4, 36, 40)
    assert mean.drift == pytest.approx((0.5 + other.drift) / 2) and mean.size == pytest.approx(
        (one.size + other.size) / 2
    )
    assert mean.stable_rank == pytest.approx((one.stable_rank + other.stable_rank) / 2)


def test_matrices_leave_embeddings_out_and_take_fused_ones_apart():
    state = {
        "model.embed_tokens.weight": normal(0, 9, 4), "lm_head.weight": normal(0, 9, 4), "norm.weight": normal(0, 4),
        "layers.0.q_proj.weight": normal(0, 4, 4), "h.0.attn.c_attn.weight": normal(0, 4, 12),
    }  # fmt: skip
    assert sorted(geometry.matrices(state)) == [
        "h.0.attn.c_attn.weight.k", "h.0.attn.c_attn.weight.q", "h.0.attn.c_attn.weight.v", "layers.0.q_proj.weight",
    ]  # fmt: skip


def test_impossible_lenses():
    for wrong in ({"k": 0}, {"rank": 0}, {"share": 1.0}, {"tail": 0}):
        with pytest.raises(OpdError):
            Lens(**wrong)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("geometry") / "run"
    settings = Settings.of(
        method="sft", steps=3, batch=4, max_new=8, lr=1e-2, eval_problems=4, drafts=0, checkpoint_every=1,
        keep_checkpoints=5, out=str(folder),
    )  # fmt: skip
    Run.new(settings).train()
    return folder


def test_the_command_tells_every_checkpoint(finished, capsys):
    assert main(["geometry", str(finished), "--directions", "8"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("step", "unchanged", "stable rank", "rotation", "of all their entries"))
    found = json.loads((finished / "geometry.json").read_text())
    assert [one["step"] for one in found["checkpoints"]] == [1, 2, 3]
    sizes = [one["mean"]["size"] for one in found["checkpoints"]]
    assert 0 < sizes[0] < sizes[2]
    assert found["checkpoints"][-1]["similarity"] == pytest.approx(1)
    assert 0 < found["checkpoints"][0]["similarity"] < 1
    shapes = found["checkpoints"][0]["matrices"].values()
    assert len(shapes) == 14  # two layers of q, k, v, o, gate, up, down
    assert found["checkpoints"][0]["mean"]["unchanged"] == pytest.approx(
        sum(one["entries"] * one["unchanged"] for one in shapes) / sum(one["entries"] for one in shapes)
    )


def test_ctrl_c_ends_it_with_one_sentence_and_no_file(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("geometry.json"))
    words = [sys.executable, "-m", "opd", "geometry", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    for _ in range(2):  # the second one while it ends
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (130, "", "opd: interrupted\n")
    assert not [file.name for file in folder.iterdir() if "geometry" in file.name]


def test_the_command_refuses_what_has_no_weights_of_its_own(tmp_path, capsys):
    assert main(["geometry", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
    (tmp_path / "run.toml").write_text('method = "sft"\nlora = 4\n')
    assert main(["geometry", str(tmp_path)]) == 2
    assert "adapters" in capsys.readouterr().err
    (tmp_path / "run.toml").write_text('method = "sft"\n')
    assert main(["geometry", str(tmp_path)]) == 2
    assert "checkpoint" in capsys.readouterr().err
