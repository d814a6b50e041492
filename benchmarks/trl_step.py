"""Seconds and memory of one on-policy step of TRL's GKDTrainer, with models, batch and lengths of opd_step.py.

    .venv-bench/bin/python benchmarks/trl_step.py --vocab 32000 --steps 6

Two defaults of the trainer are changed in its favour: bfloat16 and gradient checkpointing are off (the second alone
makes its step three times slower, because it switches off the cache while writing).
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import trl
from common import STUDENT, TEACHER, Sizes, best, llama, prompts, report, resident, tokenizer
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer


class Clock(TrainerCallback):
    """Seconds of every step, and of the calls inside it that are told to it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.inside: dict[str, float] = defaultdict(float)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.last, self.last_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        sample, teach = self.inside["sample"], self.inside["teach"]
        total = now - self.last
        own = {"learn": total - sample - teach, "cpu": cpu - self.last_cpu}
        self.steps.append({"total": total, "sample": sample, "teach": teach, **own})
        self.inside.clear()
        self.last, self.last_cpu = now, cpu

    def timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.inside[name] += time.perf_counter() - start

        return inner


def trainer(sizes: Sizes, clock: Clock, folder: str) -> GKDTrainer:
    """Reverse KL over the whole vocabulary on what the student writes: lmbda 1 and beta 1."""
    texts = prompts(sizes, sizes.batch * (sizes.steps + sizes.warmup + 1))
    data = [
        {"prompt": text, "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}
        for text, answer in zip(texts, reversed(texts), strict=True)
    ]
    settings = GKDConfig(
        output_dir=folder, max_steps=sizes.steps + sizes.warmup, per_device_train_batch_size=sizes.batch,
        gradient_accumulation_steps=1, learning_rate=1e-4, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to="none", logging_steps=10**9, save_strategy="no", disable_tqdm=True, seed=sizes.seed,
        max_new_tokens=sizes.new, lmbda=1.0, beta=1.0, temperature=1.0,
    )  # fmt: skip
    made = GKDTrainer(
        model=llama(sizes, STUDENT), teacher_model=llama(sizes, TEACHER), args=settings,
        train_dataset=Dataset.from_list(data), processing_class=tokenizer(sizes, eos=True), callbacks=[clock],
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    made.generation_config.eos_token_id = None
    made.model.generate = clock.timed(made.model.generate, "sample")
    made.teacher_model.forward = clock.timed(made.teacher_model.forward, "teach")
    return made


def main() -> None:
    sizes = Sizes.parse()
    imported = resident()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer(sizes, clock, folder).train()
    kept = clock.steps[sizes.warmup :]
    split = {phase: best(step[phase] for step in kept) for phase in ("total", "sample", "teach", "learn", "cpu")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(
        sizes,
        who=f"trl {trl.__version__}",
        seconds=split,
        mib={"imported": round(imported), "peak": round(peak - imported)},
    )


if __name__ == "__main__":
    main()
