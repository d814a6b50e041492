"""The short way through a decoder gives what transformers gives, and is taken by nobody whom it does not know."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from opd.engines import hf_write
from opd.engines.hf import HFModel
from opd.engines.hf_lean import lean
from opd.rollout import Sampling
from tests.models import build, engine, tokenizer

PROMPTS = [np.arange(3, 3 + n, dtype=np.int32) for n in (2, 7, 4)]  # of unequal length: padding has to be masked
SEEDS = [[1, 2], [3], [4, 5]]


def model(kind: str) -> HFModel:
    return HFModel(build(kind, dtype=torch.float32), tokenizer(), kind, max_new=12)


@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[1]] * 3], ids=["padded", "of equal length"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_it_writes_what_transformers_would(kind: str, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    student = model(kind)
    assert lean(student.decoder, student.config) is not None
    short = student.write(prompts, Sampling(), SEEDS)
    monkeypatch.setattr(hf_write, "lean", lambda decoder, config: None)
    long = student.write(prompts, Sampling(), SEEDS)
    for ours, theirs in zip(chain(*short), chain(*long), strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_allclose(ours.behaviour, theirs.behaviour, atol=1e-5)


def test_it_sees_weights_that_are_worn_for_a_while():
    student = model("llama")
    other = {name: w * 1.5 for name, w in student.state_dict().items()}
    before = student.write(PROMPTS, Sampling(), SEEDS)
    with student.wearing(other):
        worn = student.write(PROMPTS, Sampling(), SEEDS)
    student.load_state_dict(other)
    loaded = student.write(PROMPTS, Sampling(), SEEDS)
    np.testing.assert_array_equal(worn[1][0].behaviour, loaded[1][0].behaviour)
    assert not np.array_equal(worn[1][0].behaviour, before[1][0].behaviour)


def test_strangers_go_the_long_way(tmp_path):
    gpt2 = model("gpt2")
    assert lean(gpt2.decoder, gpt2.config) is None
    for number, how in enumerate(({"dtype": torch.float64}, {"dtype": torch.float32, "lora": 2})):
        stranger = engine(tmp_path / str(number), **how)
        assert lean(stranger.decoder, stranger.config) is None
