"""Tokens per second of opd's writing against transformers' generate, for a small and a larger vocabulary.

    python benchmarks/sampling.py

Same weights, same prompts, 64 new tokens at temperature 1. opd also gives the log-probability of every token;
transformers is not asked for it.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from common import STUDENT, Sizes, llama, prompts, report, seconds, tokenizer

from opd.engines.hf import HFModel
from opd.rollout import Sampling

CASES = (64, 16), (64, 64), (32_000, 16)  # vocabulary, sequences


def compare(vocab: int, batch: int) -> dict[str, float]:
    """Median tokens per second of both, measured in turn."""
    sizes = Sizes(vocab=vocab, batch=batch)
    words = tokenizer(sizes, eos=False)
    model = HFModel(llama(sizes, STUDENT), words, "student", max_new=sizes.new)
    ids = [np.asarray(words.encode(text), np.int32) for text in prompts(sizes, batch)]
    padded = torch.from_numpy(np.stack(ids)).long()

    def ours() -> None:
        model.write(ids, Sampling(), [[i] for i in range(batch)])

    def theirs() -> None:
        with torch.no_grad():
            model.model.generate(
                padded, attention_mask=torch.ones_like(padded), max_new_tokens=sizes.new, do_sample=True, top_k=0
            )  # pyright: ignore[reportCallIssue]

    taken: dict[str, list[float]] = {"opd": [], "transformers": []}
    for _ in range(3):
        taken["opd"] += seconds(ours, 1)
        taken["transformers"] += seconds(theirs, 1)
    speed = {name: round(sizes.tokens / statistics.median(values)) for name, values in taken.items()}
    return {**speed, "ratio": round(speed["opd"] / speed["transformers"], 2)}


def main() -> None:
    torch.manual_seed(0)
    cases = {f"V={vocab:,}, B={batch}": compare(vocab, batch) for vocab, batch in CASES}
    report(unit="tokens per second", cases=cases)


if __name__ == "__main__":
    main()
