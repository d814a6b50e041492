"""How much of a verdict a token gets: formulas that scale or shift an advantage and never turn it around.

Advantages and evidence are constants for the gradient. Axes: N rows, K hints or support, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def saturating(distance: Tensor, half: Tensor) -> Tensor:
    """D / (D + c) in [0, 1): one half at D = c. A divergence that rounding left below 0 counts as 0.

    Shapes: [N], [N] or [] -> [N]. Source: SC-GRPO, arXiv 2606.18810.
    """
    distance = distance.clamp(min=0)
    return distance / (distance + half)


def percentile(values: Tensor, share: float, scope: Tensor) -> Tensor:
    """[N] the percentile (0 to 100, linear between ranks) of all values that share a row's scope; nan is nobody's.

    Shapes: [N], [N] -> [N]; nan where a scope holds no number.
    """
    found = torch.full_like(values, torch.nan)
    for one in torch.unique(scope):
        here = scope == one
        known = values[here & ~values.isnan()].cpu().numpy()
        if len(known):  # numpy, because torch's quantile refuses more than 2^24 values
            found[here] = float(np.percentile(known, share))
    return found


def bounded(advantage: Tensor, evidence: Tensor, width: float, share: float) -> tuple[Tensor, Tensor]:
    """A [(1 - s) + s clip(exp(sign(A) Delta), 1 - e, 1 + e)], and where the clip was needed [N] bool.

    Delta is how much likelier the token is to a reader who knows the reference, so exp(Delta) is the factor by which
    the token speaks for it; e is `width`, s is `share`. Shapes: [N], [N] -> [N], [N].
    Source: RLSD, arXiv 2604.03128, Eqs. 13 to 15; s = 0, e = 0 or Delta = 0 give A itself, bit for bit.
    """
    factor = (advantage.sign() * evidence).exp()
    inside = factor.clamp(1 - width, 1 + width)
    return advantage * (1 + share * (inside - 1)), inside != factor


def contrast(right: Tensor, wrong: Tensor) -> Tensor:
    """log p(y | right hint) - log mean_k p(y | wrong hint k): what all hints do to a token alike cancels.

    Shapes: [N], [N, K] -> [N]. Source: RLCSD, arXiv 2606.11709.
    """
    return right - together(wrong)


def together(hints: Tensor) -> Tensor:
    """log mean_k p_k of log p [..., K]: a mixture of probabilities, not a mean of log-probs.

    A nan is a hint that was not there, and nan comes out where none was. Shapes: [..., K] -> [...].
    """
    there = ~hints.isnan()
    mixed = torch.where(there, hints, -torch.inf).logsumexp(-1) - there.sum(-1).to(hints).log()
    return torch.where(there.any(-1), mixed, torch.nan)


def shifted(advantage: Tensor, evidence: Tensor, size: float, tau: float) -> tuple[Tensor, Tensor]:
    """A + r with r = size tanh(e / tau), stopped at 0 rather than cross it, and r itself; A = 0 stays 0.

    Shapes: [N], [N] -> [N], [N]. Source: RLCSD, arXiv 2606.11709, whose lam and beta enter as their product `size`.
    """
    shift = size * (evidence / tau).tanh()
    moved = advantage + shift
    return torch.where(advantage * moved > 0, moved, 0.0), shift


def with_rest(lp: Tensor) -> Tensor:
    """Log-masses [N, K] of a support, and last that of everything else: [N, K + 1].

    A rest below 4 sqrt(K) eps is rounding and counts as that size, so that three readers can be compared and none of
    them gives a bucket nothing that another gives something (supports.close does this for two).
    """
    least = 4 * lp.shape[-1] ** 0.5 * torch.finfo(lp.dtype).eps
    rest = -lp.logsumexp(-1, keepdim=True).expm1()
    return torch.cat([lp, rest.clamp(min=least).log()], -1)


def sharpened(right: Tensor, wrong: Tensor, strength: float, floor: float) -> Tensor:
    """log softmax((1 + a) log p_right - a max(log p_wrong, floor)): away from what wrong hints make likely, too.

    The floor keeps a token that no wrong hint allows from taking all. Shapes: [N, K], [N, K] -> [N, K].
    Source: RLCSD, arXiv 2606.11709, its plug-in for OPSD.
    """
    return ((1 + strength) * right - strength * wrong.clamp(min=floor)).log_softmax(-1)
