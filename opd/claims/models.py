"""Students and teachers made for a claim, once, from those that come with the package; `opd/claims/taught.py` has more.

    made:reading   the embedded student after some minutes of learning to copy a solution that its prompt holds, in any
                   of the wordings in opd/recipes/*.txt, right or wrong; without one it answers as before
    made:copyist   the same, but wording after wording, so that it masters all of them; it goes on from half a solution

The embedded student has never seen a prompt with more than a question in it, so that no method which shows a copy of
it a solution could work at all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opd.cast import EMBEDDED, located
from opd.checkpoint import write_folder
from opd.claims.conflicts import CONFLICTS
from opd.claims.own import OWN
from opd.claims.strayed import STRAYED
from opd.claims.taught import TAUGHT
from opd.claims.texts import IGNORED, copied, padded, save, written
from opd.errors import SettingError, nearest
from opd.tasks import sums

MADE = re.compile(r"\bmade:(\w+)")
STEPS, BATCH, RATE = 1500, 48, 2e-3
WRONG = 0.3  # share of the shown solutions with a slip
PLAIN = 0.4  # share of the texts without a solution

Say = Callable[[str], None]


def made(folder: Path, say: Say) -> Callable[[str], str]:
    """A function that turns made:NAME in a text into the folder of that model, made now if it is not there."""

    def place_of(found: re.Match[str]) -> str:
        name = found[1]
        if name not in MAKERS:
            raise SettingError("no such model can be made", got=repr(found[0]), remedy=nearest(name, MAKERS))
        target = folder / name
        if not (target / "config.json").is_file():
            say(f"making the model {name} (once, some minutes)")
            write_folder(target, lambda place: MAKERS[name](place, say))
        return str(target)

    return lambda spec: MADE.sub(place_of, spec)


def templates() -> list[str]:
    """Every wording in which a recipe shows a solution."""
    files = (file for file in resources.files("opd.recipes").iterdir() if file.name.endswith(".txt"))
    texts = [file.read_text(encoding="utf-8").rstrip("\n") for file in sorted(files, key=lambda file: file.name)]
    return [text for text in texts if "{prompt}" in text and "{context}" in text]


def reading(folder: Path, say: Say) -> None:
    """Saves the embedded student after it has learned to copy what it is shown."""
    from opd.engines.hf_load import load_model, load_tokenizer

    path = located(EMBEDDED)
    torch.manual_seed(0)
    model, before = (load_model(path, torch.float32, "cpu", False) for _ in range(2))
    tokenizer: Any = load_tokenizer(path, False)
    rng, wordings = random.Random(0), templates()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for step in range(STEPS):
        shown = rng.random() >= PLAIN
        texts = [text(tokenizer, rng, rng.choice(wordings) if shown else "{prompt}") for _ in range(BATCH)]
        ids, labels = padded(texts, tokenizer.pad_token_id)
        logits = model(ids).logits[:, :-1]
        loss = copied(logits, labels) if shown else kept(logits, before, ids, labels)
        optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            say(f"  reading, step {step + 1} of {STEPS}: loss {loss.item():.3f} ({'shown' if shown else 'plain'})")
    save(model, tokenizer, EMBEDDED, folder)


def text(tokenizer: Any, rng: random.Random, wording: str) -> tuple[list[int], int]:
    """Ids of a question with a solution shown in this wording and then copied, and how many of them are given."""
    terms = sums.draw(rng)
    chain = sums.totals(terms)
    if rng.random() < WRONG:
        place = rng.randrange(len(chain))
        chain[place:] = [(total + rng.randint(1, 9)) % sums.MODULUS for total in chain[place:]]
    answer = sums.chain_text(chain)
    prompt = wording.replace("{context}", answer.strip()).replace("{prompt}", sums.question_text(terms))
    return written(tokenizer, prompt, answer)


def kept(logits: Tensor, before: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """KL(before || now) where an answer is written: without a solution it goes on as it did."""
    with torch.no_grad():
        old = before(ids).logits[:, :-1].log_softmax(-1)
    here = labels != IGNORED
    return F.kl_div(logits.log_softmax(-1)[here], old[here], log_target=True, reduction="batchmean")


def copyist(folder: Path, say: Say) -> None:
    from opd.claims import copyist

    copyist.copyist(folder, say)


MAKERS: dict[str, Callable[[Path, Say], None]] = {
    "reading": reading,
    "copyist": copyist,
    **TAUGHT,
    **STRAYED,
    **CONFLICTS,
    **OWN,
}
