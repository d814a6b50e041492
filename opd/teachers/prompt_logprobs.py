"""What vLLM says of the tokens of a prompt becomes arrays, after a look at every number.

Axes: n rows of one text, K best tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opd.rollout import Array, Rollout

CERTAIN = 1e-4  # nats by which rounding may lift a log-prob above 0
MASS = 1e-3  # by which rounding may lift the K best together above 1
NEVER = -9998.0  # vLLM writes -9999 for a probability of 0
ENTRY = 256  # bytes of one token in JSON at most, in the mean: it is spelled there, too


class Malformed(ValueError):
    """An answer that cannot be about this text; the message is half a sentence."""


def rows_of(choice: Mapping[str, Any], text: Rollout, k: int, vocab: int) -> dict[str, Array]:
    """`chosen` [n] for the text's rows, and with k the K best: `top` [n, K], `ids` [n, K], most probable first.

    choice: an element of `choices`, asked with prompt_logprobs=k and return_token_ids. Its log-probs are those of the
    model itself at temperature 1. Raises Malformed for numbers that cannot be, and for ids from `vocab` on.
    """
    entries, ids = choice.get("prompt_logprobs"), text.tokens.tolist()
    if choice.get("prompt_token_ids") != ids:
        raise Malformed("read another text than it was sent")
    if not isinstance(entries, list) or len(entries) != len(ids):
        raise Malformed(f"gave log-probs of {len(entries or [])} tokens, expected {len(ids)}")
    found = [_row(entries[place], ids[place], k) for place in text.positions.tolist()]
    chosen = np.array([own for own, _, _ in found], np.float32)
    _check(chosen)
    if not k:
        return {"chosen": chosen}
    top = np.array([values for _, values, _ in found], np.float32)
    best = np.array([tokens for _, _, tokens in found], np.int64)
    _check(top)
    if (mass := float(np.exp(top).sum(1).max())) > 1 + MASS:
        raise Malformed(f"gave {k} best tokens of mass {mass:.4g} (start it with --logprobs-mode raw_logprobs)")
    if best.min() < 0 or best.max() >= vocab:
        raise Malformed(f"named token {int(best.max())}, which the student does not have")
    return {"chosen": chosen, "top": top, "ids": best}


def _row(entry: Any, token: int, k: int) -> tuple[float, list[float], list[int]]:
    """The log-prob of the token itself, and the K best by rank; the token is there even when it is none of them."""
    try:
        own = float(entry[str(token)]["logprob"])
        best = [(int(told["rank"]), float(told["logprob"]), int(name)) for name, told in entry.items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Malformed(f"gave no log-prob of token {token}") from None
    if len(best) == k + 1:
        best = [one for one in best if one[2] != token]
    best.sort()
    if k and [rank for rank, _, _ in best] != [*range(1, k + 1)]:
        raise Malformed(f"gave {len(best)} best tokens, expected ranks 1 to {k}")
    return own, [value for _, value, _ in best], [name for _, _, name in best]


def _check(x: Array) -> None:
    if not np.isfinite(x).all():
        raise Malformed("gave numbers that are not finite")
    if float(x.max()) > CERTAIN:
        raise Malformed(f"gave a log-prob of {float(x.max()):.3g} (start it with --logprobs-mode raw_logprobs)")
    if float(x.min()) < NEVER:
        raise Malformed("gave a probability of 0, of which no log-prob can be learned from")
