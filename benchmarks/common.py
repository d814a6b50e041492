"""What both sides of a comparison share: sizes, random models, prompts and the measuring of time and memory.

Imports torch and transformers only, so that it runs in an environment without opd too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
SPECIAL = ["<pad>", "<unk>", "<eos>"]
STUDENT, TEACHER = (128, 4, 4), (256, 6, 8)  # width, layers, heads


@dataclass(frozen=True)
class Sizes:
    """One configuration of the step; every completion has exactly `new` tokens because nothing ends it."""

    vocab: int = 64
    batch: int = 16
    prompt: int = 16
    new: int = 64
    steps: int = 12
    warmup: int = 2
    threads: int = 0  # 0: torch's own choice
    seed: int = 0

    @classmethod
    def parse(cls, **defaults: int) -> Sizes:
        """Sizes from the command line, --vocab 32000 and so on."""
        parser = argparse.ArgumentParser()
        for field in fields(cls):
            parser.add_argument(f"--{field.name}", type=int, default=defaults.get(field.name, field.default))
        sizes = cls(**vars(parser.parse_args()))
        if sizes.threads:
            torch.set_num_threads(sizes.threads)
        torch.manual_seed(sizes.seed)
        return sizes

    @property
    def tokens(self) -> int:
        """Tokens written per step."""
        return self.batch * self.new


def tokenizer(sizes: Sizes, eos: bool) -> PreTrainedTokenizerFast:
    """One id per word t0, t1, ...; without eos nothing can end a text."""
    words = {word: number for number, word in enumerate([*SPECIAL, *_words(sizes)])}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>"} | ({"eos_token": "<eos>"} if eos else {})
    made = PreTrainedTokenizerFast(tokenizer_object=model, padding_side="left", **special)
    made.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return made


def _words(sizes: Sizes) -> list[str]:
    return [f"t{i}" for i in range(sizes.vocab - len(SPECIAL))]


def prompts(sizes: Sizes, n: int) -> list[str]:
    """n prompts of `prompt` random words."""
    rng, words = random.Random(sizes.seed), _words(sizes)
    return [" ".join(rng.choices(words, k=sizes.prompt)) for _ in range(n)]


def llama(sizes: Sizes, shape: tuple[int, int, int]) -> LlamaForCausalLM:
    """A random Llama in float32 with tied embeddings."""
    width, layers, heads = shape
    config = LlamaConfig(
        vocab_size=sizes.vocab, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4 * (sizes.prompt + sizes.new),
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None
    return model


def resident() -> float:
    """MiB of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Peak:
    """The highest resident memory (MiB) while the block runs, above what it was on entry; sampled every 2 ms."""

    def __enter__(self) -> Peak:
        self.before = self.highest = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.highest = max(self.highest, resident())

    @property
    def above(self) -> float:
        return self.highest - self.before


def seconds(work: Callable[[], object], repeats: int = 5) -> list[float]:
    """Wall seconds of some calls after one that does not count."""
    work()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def best(values: Iterable[float]) -> dict[str, float]:
    """The two numbers that are reported: a noisy machine is slower than it can be, never faster."""
    values = list(values)
    return {"min": round(min(values), 4), "median": round(statistics.median(values), 4)}


def begun(repeats: str, times: int) -> tuple[argparse.Namespace, str]:
    """What was typed, `--write` and how often (`repeats` names it), and a sentence on what else the machine does."""
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{repeats}", type=int, default=times)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md too")
    return parser.parse_args(), f"Load of the machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."


def put(script: str, tables: str) -> None:
    """Puts what a script has measured into its place in docs/benchmarks.md."""
    page = HERE.parent / "docs" / "benchmarks.md"
    begin, end = f"<!-- tables: written by benchmarks/{script} -->", "<!-- end of tables -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{before}{begin}\n\n{tables}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def report(sizes: Any = None, **numbers: Any) -> None:
    """One JSON object on standard output."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0]}
    about = {"sizes": asdict(sizes)} if sizes else {}
    print(json.dumps({**about, **numbers, "threads": torch.get_num_threads(), "versions": versions}, indent=1))
