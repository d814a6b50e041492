"""The whole program on models and tasks that nobody fitted to it: a generator's questions, a real vocabulary's size."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd.cli.main import main
from opd.metrics import about
from opd.record import read_metrics

WORDS = 151_669  # entries of Qwen3's tokenizer; its models pad them to 151,936, larger Qwen2.5 ones to 152,064


def losses(folder):
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


def test_local_support_on_a_generator_with_the_shipped_models(tmp_path):
    pytest.importorskip("reasoning_gym")
    out = tmp_path / "run"
    words = ["train", "local_support", "--task", "reasoning_gym:chain_sum,train=24,held_out=8", "--out", str(out)]
    small = ["--steps", "3", "--batch", "3", "--n", "2", "--max-new", "12", "--eval-problems", "4", "--lr", "1e-3"]
    assert main([*words, *small]) == 0
    assert len(losses(out)) == 3
    for line in read_metrics(out):
        assert [name for name in line if name != "step" and about(name) is None] == []
        assert "loss" not in line or line["engine.gap.max"] < 1e-3
    summary = json.loads((out / "summary.json").read_text())
    assert summary["student_after"]["problems"] == 4
    assert AutoModelForCausalLM.from_pretrained(out / "model").num_parameters() > 0


@pytest.fixture(scope="module")
def large_vocabulary(tmp_path_factory):
    """A student and a teacher of Qwen3's architecture, with vocabularies that differ only in padding."""
    root = tmp_path_factory.mktemp("qwen")
    words = {word: i for i, word in enumerate(["<unk>", "<|im_end|>", *(f"w{i}" for i in range(WORDS - 2))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    for name, padded, width in (("student", 151_936, 8), ("teacher", 152_064, 12)):
        torch.manual_seed(len(name))
        config = Qwen3Config(
            vocab_size=padded, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=4, max_position_embeddings=64, tie_word_embeddings=name == "student",
            eos_token_id=1, pad_token_id=1, bos_token_id=None,
        )  # fmt: skip
        Qwen3ForCausalLM(config).save_pretrained(root / name)
        fast.save_pretrained(root / name)
    lines = [json.dumps({"prompt": f"w{i} w{i + 1}", "answer": f"w{i + 2}"}) for i in range(20)]
    (root / "problems.jsonl").write_text("\n".join(lines))
    return root


def test_a_vocabulary_of_151936_with_a_teacher_padded_to_152064(large_vocabulary, tmp_path):
    root, out = large_vocabulary, tmp_path / "run"
    words = ["train", "local_support", "--student", str(root / "student"), "--teacher", str(root / "teacher")]
    task = ["--task", f"jsonl:{root / 'problems.jsonl'},held_out=4", "--out", str(out)]
    small = ["--steps", "2", "--batch", "2", "--n", "2", "--max-new", "4", "--eval-problems", "2", "--drafts", "2"]
    assert main([*words, *task, *small, "--lr", "1e-2"]) == 0
    assert len(losses(out)) == 2 and all(loss >= 0 for loss in losses(out))
    assert len(AutoTokenizer.from_pretrained(out / "model")) == WORDS
