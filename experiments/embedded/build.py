"""Rebuild the teacher and the student that ship with the package.

    python -m experiments.embedded.build --out opd/embedded

The teacher learns to judge as well as to write: in 15 % of the places its training chain carries a wrong total (no
loss on that total) and goes on correctly from it. The student sees only clean chains and is stopped early, while it
is still learning to copy and to add.

One seed and one thread give the same weights again on the same machine and library versions. Other processors and
other versions of torch round differently, and the early stop amplifies that: expect an equivalent pair there.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd.tasks import sums

EOS, PAD = "<eos>", "<pad>"
LENGTH = 512
NEW = 2 * (sums.TERMS - 1) + 1  # answer tokens: two for each total, then the end
SIZES = {
    "teacher": {"hidden_size": 80, "num_hidden_layers": 3, "intermediate_size": 240, "initializer_range": 0.02},
    "student": {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 144, "initializer_range": 0.05},
}
TRAINING = {
    "teacher": {"steps": 500, "batch": 192, "slips": 0.15, "target": None, "every": 100},
    "student": {"steps": 2000, "batch": 96, "slips": 0.0, "target": 18.0, "every": 10},
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, so that every text has tokens, and a few merges that give question and answer two tokens per step.

    `7 - 2 + 3 =` is `7| - |2| + |3| =`, and ` 5, 8, 11` is ` |5|, |8|, 1|1`: the k-th term stays at a constant
    distance from the k-th total, which rotary positions learn at once.
    """
    alphabet = bytes_to_unicode()
    space = alphabet[ord(" ")]
    merges = [(space, "+"), (space, "-"), (space + "+", space), (space + "-", space), (space, "="), (",", space)]
    for digit in "0123456789":
        merges += [(space, digit), ("," + space, digit)]
    tokens = [PAD, EOS, *alphabet, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    steps = Regex(r" [+-] (?=[0-9])| =|,? [0-9](?=[0-9])|,? (?=[0-9])|[0-9]")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(steps, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )


def bytes_to_unicode() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def build_model(size: dict[str, int | float], tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=size["hidden_size"] // 4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **size,
    )
    return Qwen3ForCausalLM(config)


def training_chain(terms: list[int], rng: random.Random, slips: float) -> tuple[list[int], list[bool]]:
    """Totals, and for each whether it is to be learned. A slip is not, and the chain goes on from it."""
    written, learned, total = [], [], terms[0]
    for place, term in enumerate(terms[1:], start=2):
        slip = place < len(terms) and rng.random() < slips
        total = rng.randrange(sums.MODULUS) if slip else (total + term) % sums.MODULUS
        written.append(total)
        learned.append(not slip)
    return written, learned


def training_batch(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int, slips: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T], and labels [B, NEW] with -100 where nothing is to be learned."""
    questions = [sums.draw(rng) for _ in range(size)]
    chains = [training_chain(q, rng, slips) for q in questions]
    texts = [sums.question_text(q) + sums.chain_text(c) + EOS for q, (c, _) in zip(questions, chains, strict=True)]
    ids = torch.tensor(tokenizer(texts).input_ids)  # one length: the tensor would not form otherwise
    learned = torch.tensor([[flag for place in flags for flag in (place, place)] + [True] for _, flags in chains])
    return ids, ids[:, -NEW:].masked_fill(~learned, -100)


@torch.no_grad()
def accuracy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, seed: int, sample: bool) -> float:
    """Per cent of held-out problems answered correctly, greedily or sampled at temperature 1 without truncation."""
    rows = sums.problems("test", count, seed)
    prompts = tokenizer([r["prompt"] for r in rows], return_tensors="pt", padding=True, return_token_type_ids=False)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    with torch.random.fork_rng():
        torch.manual_seed(4242)
        out = model.generate(**prompts, max_new_tokens=NEW, **sampling)
    texts = tokenizer.batch_decode(out[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
    return 100 * sum(sums.grade(t, r["answer"]) for t, r in zip(texts, rows, strict=True)) / count


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    steps: int,
    batch: int,
    slips: float,
    target: float | None,
    every: int,
) -> None:
    """Muon on the matrices, AdamW on the rest, cosine to 5 %; stops once `target` per cent of samples are right."""
    inner = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in inner)]
    optimizers = [
        torch.optim.Muon(inner, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    shape = lambda s: min(1, (s + 1) / 50) * (0.05 + 0.475 * (1 + math.cos(math.pi * s / steps)))
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, shape) for o in optimizers]
    rng, start = random.Random(seed), time.perf_counter()
    for step in range(1, steps + 1):
        ids, labels = training_batch(tokenizer, rng, batch, slips)
        logits = model(ids[:, :-1], logits_to_keep=NEW).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % every == 0 or step == steps:
            greedy, sampled = (accuracy(model, tokenizer, 256, 1, s) for s in (False, True))
            passed = f"{time.perf_counter() - start:.0f} s"
            print(f"step {step}: loss {loss:.4f}, {greedy:.1f} % greedy, {sampled:.1f} % sampled, {passed}", flush=True)
            if target and sampled >= target:
                return


def build(what: str, out: Path, seed: int) -> None:
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(out / what)  # before use: a padded call leaves its padding in the file
    model = build_model(SIZES[what], tokenizer)
    print(f"{what}: {model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    train(model, tokenizer, seed, **TRAINING[what])
    model.save_pretrained(out / what)
    greedy, sampled = (accuracy(model, tokenizer, 2048, 2, s) for s in (False, True))
    print(f"{what}: {greedy:.1f} % greedy, {sampled:.1f} % sampled on 2048 held-out problems", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("opd/embedded"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", choices=["teacher", "student", "all"], default="all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for what in ("teacher", "student") if args.what == "all" else (args.what,):
        build(what, args.out, args.seed)


if __name__ == "__main__":
    main()
