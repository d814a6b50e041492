"""What it saves to read a prompt of several answers once: seconds with and without, and how far the numbers differ.

python benchmarks/shared_prompts.py
"""

from __future__ import annotations

import time
from importlib import resources

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opd.engines.hf import HFModel, load_tokenizer
from opd.protocols import Want
from opd.rollout import Problem, Rollout

# width, layers, prompt, answers per prompt, answer, prompts
CASES = [
    (128, 4, 16, 4, 64, 16),
    (128, 4, 32, 4, 64, 16),
    (128, 4, 64, 4, 64, 16),
    (128, 4, 128, 4, 64, 16),
    (256, 6, 256, 8, 64, 4),
    (256, 6, 512, 8, 128, 2),
]


def engine(width: int, layers: int) -> HFModel:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(resources.files("opd").joinpath("embedded", "teacher")))
    config = LlamaConfig(
        vocab_size=1 + max(tokenizer.get_vocab().values()), hidden_size=width, intermediate_size=5 * width // 2,
        num_hidden_layers=layers, num_attention_heads=width // 32, num_key_value_heads=width // 32,
        max_position_embeddings=2048, initializer_range=0.08,
    )  # fmt: skip
    return HFModel(LlamaForCausalLM(config).eval(), tokenizer, "random")


def texts(prompt: int, n: int, answer: int, prompts: int) -> list[Rollout]:
    rng, found = np.random.default_rng(0), list[Rollout]()
    for _ in range(prompts):
        given = rng.integers(3, 200, rng.integers(0.7 * prompt, prompt + 1))
        for _ in range(n):
            own = rng.integers(3, 200, rng.integers(answer // 2, answer + 1))
            author = np.r_[np.zeros(len(given), np.int8), np.ones(len(own), np.int8)]
            found.append(Rollout(np.r_[given, own].astype(np.int32), author, Problem("", "")))
    return found


def read(model: HFModel, contexts: list[Rollout], share: bool) -> tuple[torch.Tensor, float]:
    """[N] log-probs, and the shortest of three times."""
    starts, best = np.cumsum([0, *(c.n for c in contexts)]), float("inf")
    found = torch.zeros(int(starts[-1]))
    for _ in range(3):
        begin = time.perf_counter()
        for batch, parts in model.answers(contexts, Want(chosen=True), share):
            rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
            found[torch.from_numpy(rows)] = parts["chosen"]
        best = min(best, time.perf_counter() - begin)
    return found, best


def main() -> None:
    torch.set_num_threads(1)
    print("| P | n | R | prompts | whole | shared | faster | largest difference, nats | of the mean |")
    print("|---|---|---|---|---|---|---|---|---|")
    for width, layers, prompt, n, answer, prompts in CASES:
        model, contexts = engine(width, layers), texts(prompt, n, answer, prompts)
        (plain, slow), (shared, fast) = (read(model, contexts, share) for share in (False, True))
        apart = f"{float((plain - shared).abs().max()):.1g} | {abs(float((plain - shared).double().mean())):.1g}"
        row = f"| {prompt} | {n} | {answer} | {prompts} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f}x | {apart} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
