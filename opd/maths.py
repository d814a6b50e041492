"""The formulas of on-policy distillation: how far a student is from its teacher at one decision, and which way is down.

They are about whole distributions; what a single drawn word tells is in `estimators`.

Conventions. `lp` are log-probabilities of the student, `lq` of the teacher. A divergence takes both over one last axis
(the whole vocabulary, or what `supports.close` gives) and returns one number per row. N rows, V vocabulary, K support.
Nothing is computed below float32. Mass 0 contributes exactly 0, whatever it is multiplied by; mass where the other side
has none gives +inf, because that is its value. Teachers are constants.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

Gradient = Literal["pathwise", "score"]
Scale = Literal["usual", "continuous"]


def demand(condition: bool, message: str) -> None:
    """Raises ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


# ---------------------------------------------------------------------------------------------------------- precision


def upcast(x: Tensor) -> Tensor:
    """`x` in float32 at least; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_softmax(logits: Tensor) -> Tensor:
    """log p = logits - logsumexp(logits) over the last axis, in float32 at least.

    Shapes: [..., V] -> [..., V]. A logit of -inf is a word that does not exist: probability 0, gradient 0.
    """
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


# -------------------------------------------------------------------------------------------------------- divergences


_ValueAndSlope = tuple[Tensor, Callable[[], Tensor]]
_Formula = Callable[[Tensor, Tensor], _ValueAndSlope]


class _Divergence(torch.autograd.Function):
    """D, slope = formula(lp, lq) with dD/dlp = slope(), made at once from what D left behind: one [N, K] is kept."""

    @staticmethod
    def forward(ctx: Any, lp: Tensor, lq: Tensor, formula: _Formula) -> Tensor:
        value, slope = formula(lp, lq)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(slope())
        return value

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad_outputs[0].unsqueeze(-1), None, None


def _divergence(lp: Tensor, lq: Tensor, formula: _Formula) -> Tensor:
    demand(
        lp.shape == lq.shape,
        f"a divergence got lp {tuple(lp.shape)} and lq {tuple(lq.shape)}, expected one shape: "
        "read both models at the same words.",
    )
    demand(
        not (lq.requires_grad and torch.is_grad_enabled()),
        "a divergence got a teacher lq that requires grad, expected a constant: detach it, or exchange the roles.",
    )
    return _Divergence.apply(upcast(lp), upcast(lq), formula)  # type: ignore[no-any-return]


def _sum(terms: Tensor, mass: Tensor) -> Tensor:
    # The sum of terms = mass * something; mass 0 gives 0, where 0 * inf was nan, and is mended in the terms too. Only
    # a sum that is not finite says that there is something to mend: to look for it takes longer than all the rest.
    total = terms.sum(-1)
    return total if bool(total.isfinite().all()) else terms.masked_fill_(mass == 0, 0).sum(-1)


def reverse_kl(lp: Tensor, lq: Tensor, gradient: Gradient = "pathwise") -> Tensor:
    """KL(p || q) = sum_v p (log p - log q), the divergence that a student minimises on its own samples.

    "pathwise" differentiates the formula, "score" holds the bracket still: sum_v p sg(log p - log q). They agree for
    masses that sum to one; on a dropped support they differ by grad p(S), which lowers every word with q < e p.
    Shapes: [N, K], [N, K] -> [N]. Raises ValueError for another gradient form. Source: arXiv 2306.08543, 2605.11182.
    """
    demand(
        gradient in ("pathwise", "score"),
        f"got gradient={gradient!r}, expected 'pathwise' or 'score': name one of them.",
    )

    def formula(lp: Tensor, lq: Tensor) -> _ValueAndSlope:
        mass = lp.exp()
        terms = (lp - lq).mul_(mass)
        return _sum(terms, mass), lambda: terms.add_(mass) if gradient == "pathwise" else terms

    return _divergence(lp, lq, formula)


def forward_kl(lp: Tensor, lq: Tensor) -> Tensor:
    """KL(q || p) = sum_v q (log q - log p), the divergence of supervised distillation.

    Shapes: [N, K], [N, K] -> [N]. Source: Hinton et al., arXiv 1503.02531.
    """

    def formula(lp: Tensor, lq: Tensor) -> _ValueAndSlope:
        mass = lq.exp()
        return _sum((lq - lp).mul_(mass), mass), mass.neg_

    return _divergence(lp, lq, formula)


def clipped_forward_kl(lp: Tensor, lq: Tensor, tau: float) -> Tensor:
    """sum_v min(q (log q - log p), tau): forward KL of which no single word may bring more than tau.

    A word at the bound has no gradient of its own, and what the others pull up is taken from it: it is *lowered*.
    `clipped_words` says which these are. tau = inf is forward KL.
    Shapes: [N, K], [N, K] -> [N]. Raises ValueError unless tau > 0. Source: OPSD, arXiv 2601.18734, version 3.
    """
    demand(tau > 0, f"got tau={tau}, expected more than 0: use forward_kl where nothing is to be clipped.")

    def formula(lp: Tensor, lq: Tensor) -> _ValueAndSlope:
        mass = lq.exp()
        terms = product(mass, lq - lp)
        slope = mass.masked_fill(terms > tau, 0).neg_()
        return terms.clamp_(max=tau).sum(-1), lambda: slope

    return _divergence(lp, lq, formula)


def clipped_words(lp: Tensor, lq: Tensor, tau: float) -> Tensor:
    """Which words bring more than tau to the forward KL, so that `clipped_forward_kl` cuts them.

    Shapes: [N, K], [N, K] -> [N, K] bool.
    """
    lp, lq = upcast(lp).detach(), upcast(lq).detach()
    return product(lq.exp(), lq - lp) > tau


def cross_entropy(lp: Tensor, lq: Tensor) -> Tensor:
    """H(q, p) = -sum_v q log p: forward KL without the teacher's entropy, with the same gradient.

    Shapes: [N, K], [N, K] -> [N]. Source: Hinton et al., arXiv 1503.02531.
    """

    def formula(lp: Tensor, lq: Tensor) -> _ValueAndSlope:
        mass = lq.exp()
        return -_sum(lp * mass, mass), mass.neg_

    return _divergence(lp, lq, formula)


def entropy(lp: Tensor) -> Tensor:
    """H(p) = -sum_v p log p, which is minus the reverse KL to the counting measure. Shapes: [N, K] -> [N]."""

    def formula(lp: Tensor, _: Tensor) -> _ValueAndSlope:
        mass = lp.exp()
        terms = lp * mass
        return -_sum(terms, mass), lambda: terms.add_(mass).neg_()

    return _divergence(lp, lp.detach(), formula)


def linear_mix(lp: Tensor, lq: Tensor, beta: float) -> Tensor:
    """(1 - beta) KL(q || p) + beta KL(p || q): forward at beta = 0, reverse at beta = 1.

    Shapes: [N, K], [N, K] -> [N]. Raises ValueError unless 0 <= beta <= 1.
    """
    _require_beta(beta)
    if beta == 0:
        return forward_kl(lp, lq)
    if beta == 1:
        return reverse_kl(lp, lq)
    return (1 - beta) * forward_kl(lp, lq) + beta * reverse_kl(lp, lq)


def jsd(lp: Tensor, lq: Tensor, beta: float, scale: Scale = "usual") -> Tensor:
    """beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p: generalised Jensen-Shannon.

    The formula vanishes at both ends. "usual" puts forward KL at beta = 0 and reverse KL at beta = 1 all the same, as
    everybody does, so that the knob jumps there; "continuous" divides by beta (1 - beta) and tends to those two KLs.
    Shapes: [N, K], [N, K] -> [N]. Raises ValueError unless 0 <= beta <= 1. Source: GKD, arXiv 2306.13649.
    """
    _require_beta(beta)
    _require_scale(scale)
    if beta in (0, 1):
        return linear_mix(lp, lq, beta)
    size = 1.0 if scale == "usual" else 1 / (beta * (1 - beta))

    # In the posterior odds of "the teacher wrote v": log q/m and log p/m without forming m, exact for beta near 0 or 1.
    def formula(lp: Tensor, lq: Tensor) -> _ValueAndSlope:
        odds, mass = _odds(lp, lq, beta), lq.exp()
        teacher = _sum(logsigmoid(odds).sub_(math.log(beta)).mul_(mass), mass)
        mass = lp.exp()
        terms = logsigmoid(odds.neg_()).sub_(math.log1p(-beta)).mul_(mass)
        value = (_sum(terms, mass) * (1 - beta)).add_(teacher, alpha=beta).mul_(size)
        # m depends on p too, but what that adds to the slope cancels.
        return value, lambda: terms.mul_(size * (1 - beta))

    return _divergence(lp, lq, formula)


def disagreement(lps: Sequence[Tensor]) -> Tensor:
    """H(mean of the p_m) - mean of H(p_m): the Jensen-Shannon divergence of M distributions, 0 to log M.

    Shapes: M times [N, V] -> [N]. Source: Lin, IEEE Trans. Inf. Theory 37 (1991), equal weights.
    """
    mean = torch.logsumexp(torch.stack([upcast(lp) for lp in lps]), 0) - math.log(len(lps))
    return entropy(mean) - torch.stack([entropy(lp) for lp in lps]).mean(0)


def skew_kl(lp: Tensor, lq: Tensor, alpha: float | Tensor) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p), forward KL at alpha = 0 and never above -log alpha.

    Shapes: [N, K], [N, K], alpha a number or [N] -> [N]. Raises ValueError unless 0 <= alpha < 1, above 0 where there
    are several. Source: DistiLLM, arXiv 2402.03898.
    """
    _require_skew(alpha)
    if not isinstance(alpha, Tensor) and alpha == 0:
        return forward_kl(lp, lq)
    log_alpha, odds_alpha = _share(alpha, lp)

    def formula(lp: Tensor, lq: Tensor) -> _ValueAndSlope:
        odds, mass = (lq - lp).add_(odds_alpha), lq.exp()
        value = _sum(logsigmoid(odds).sub_(log_alpha).mul_(mass), mass)
        return value, lambda: product(mass, odds.neg_().sigmoid_()).neg_()

    return _divergence(lp, lq, formula)


def skew_reverse_kl(lp: Tensor, lq: Tensor, alpha: float | Tensor, detach_mixture: bool = False) -> Tensor:
    """KL(p || (1 - alpha) q + alpha p), reverse KL at alpha = 0 and never above -log alpha.

    `detach_mixture` holds the alpha p of the mixture still in the gradient, as the released DistiLLM-2 does.
    Shapes and errors: as `skew_kl`. Source: arXiv 2402.03898, 2503.07067.
    """
    _require_skew(alpha)
    if not isinstance(alpha, Tensor) and alpha == 0:
        return reverse_kl(lp, lq)
    log_alpha, odds_alpha = _share(alpha, lp)

    def formula(lp: Tensor, lq: Tensor) -> _ValueAndSlope:
        odds, mass = (lq - lp).sub_(odds_alpha), lp.exp()
        terms = logsigmoid(-odds).sub_(log_alpha).mul_(mass)
        value = _sum(terms, mass)
        return value, lambda: terms.add_(mass if detach_mixture else product(mass, odds.sigmoid_()))

    return _divergence(lp, lq, formula)


def adaptive_skew(gap: Tensor, base: float) -> Tensor:
    """1 - (1 - base) m / gap, m the mean gap: the share of each answer in a skew KL before it is cut to [floor, base].

    An answer on which the two models are as far apart as on average gets `base`, one on which they are nearer less: it
    is compared almost unmixed. Where gap and mean are both 0 it is `base`.
    Shapes: [B] -> [B]. Source: the code of arXiv 2503.07067. INFERRED: the mean is over the batch.
    """
    share = 1 - (1 - base) * gap.mean() / gap
    return share.masked_fill(share.isnan(), base)


def mixture(lp: Tensor, ln: Tensor, rate: float) -> Tensor:
    """log((1 - rate) p + rate nu): `p` with a share `rate` of its draws replaced by draws from `nu`, with gradient.

    Shapes: log-probs [N, K], [N, K] (or broadcast) -> [N, K]. Rate 0 gives lp itself, bit for bit. Raises ValueError
    unless 0 <= rate < 1. Source: the model of a noisy expert in arXiv 2606.30923.
    """
    demand(0 <= rate < 1, f"a mixture got rate={rate}, expected a number in [0, 1): lower it.")
    if rate == 0:
        return lp
    return torch.logaddexp(lp + math.log1p(-rate), ln + math.log(rate))


def anchored(anchor: Tensor, full: Tensor, lam: float, clip: float) -> Tensor:
    """log softmax(log a + lam clip(log f - log a)): from what a partial view says, some way towards what the full says.

    Each word's residual is cut to [-clip, clip]. Where none is, this is the geometric mixture a^(1-lam) f^lam, the
    distribution r with the least (1-lam) KL(r||a) + lam KL(r||f).
    Shapes: log-probs [N, V], [N, V] -> [N, V]. Raises ValueError unless lam >= 0 and clip >= 0.
    Source: AR-OPD, arXiv 2606.10385.
    """
    demand(lam >= 0 and clip >= 0, f"got lam={lam} and clip={clip}, expected 0 or more: 0 leaves the anchor.")
    anchor, full = upcast(anchor), upcast(full)
    if lam == 0 or clip == 0:
        return log_softmax(anchor)
    residual = (full - anchor).masked_fill_(full == anchor, 0)  # also where both are -inf
    return log_softmax(anchor + residual.clamp_(-clip, clip).mul_(lam))


def product(mass: Tensor, x: Tensor) -> Tensor:
    """mass * x, written over x; mass 0 gives 0 also where x is nan."""
    return x.mul_(mass).masked_fill_(mass == 0, 0)


def _odds(lp: Tensor, lq: Tensor, beta: float) -> Tensor:
    # log beta q / ((1 - beta) p), so that sigmoid is the share of the teacher in m = beta q + (1 - beta) p.
    return (lq - lp).add_(math.log(beta) - math.log1p(-beta))


def power_reward(lp: Tensor, lq: Tensor, alpha: float, scale: Scale = "usual") -> Tensor:
    """q^alpha - p^alpha for the chosen word: bounded by 1, with the sign of the log-ratio; a constant for the gradient.

    alpha = 0 is log q - log p in both scales, the limit of "continuous", which divides by alpha.
    Shapes: any one shape. Raises ValueError unless alpha >= 0. Source: PowerOPD, arXiv 2606.17199.
    """
    _require_power(alpha)
    _require_scale(scale)
    return _box_cox(upcast(lp).detach(), upcast(lq).detach(), alpha).mul_(_power_size(alpha, scale))


def power_divergence(lp: Tensor, lq: Tensor, alpha: float, scale: Scale = "usual") -> Tensor:
    """1/(1+alpha) sum_v [p^(1+alpha) - (1+alpha) q^alpha p + alpha q^(1+alpha)]: `power_reward` made exact.

    The Bregman divergence whose slope is p (p^alpha - q^alpha); half the squared distance at alpha = 1. alpha = 0 is
    reverse KL, sum_v p log(p/q) - p + q, in both scales, the limit of "continuous", which divides by alpha.
    Shapes: [N, K], [N, K] -> [N]. Raises ValueError unless alpha >= 0.
    Source: the reward is PowerOPD, arXiv 2606.17199; the divergence is Basu et al., Biometrika 85 (1998).
    """
    _require_power(alpha)
    _require_scale(scale)
    size = _power_size(alpha, scale)

    def formula(lp: Tensor, lq: Tensor) -> _ValueAndSlope:
        gain = product(lp.exp(), _box_cox(lp, lq, alpha))
        linear = (lp.exp() - lq.exp()).mul_(lq.mul(alpha).exp_()) if alpha else lp.exp() - lq.exp()
        return linear.add_(gain).sum(-1).mul_(-size / (1 + alpha)), lambda: gain.mul_(-size)

    return _divergence(lp, lq, formula)


def _box_cox(lp: Tensor, lq: Tensor, alpha: float) -> Tensor:
    # (q^alpha - p^alpha) / alpha, with the larger power factored out: its digits survive both small and large alpha.
    gap = (lq - lp).masked_fill_(lq == lp, 0)  # also where both are -inf
    if alpha == 0:
        return gap
    larger = torch.maximum(lp, lq).mul_(alpha).exp_().div_(alpha)
    return larger.mul_(gap.abs().mul_(-alpha).expm1_().neg_().copysign_(gap))


def _power_size(alpha: float, scale: Scale) -> float:
    return alpha if alpha and scale == "usual" else 1.0


def _require_beta(beta: float) -> None:
    demand(0 <= beta <= 1, f"got beta={beta}, expected 0 (forward KL) to 1 (reverse KL): choose a value in between.")


def _require_skew(alpha: float | Tensor) -> None:
    fits = bool(((alpha > 0) & (alpha < 1)).all()) if isinstance(alpha, Tensor) else 0 <= alpha < 1
    demand(fits, f"got alpha={alpha}, expected 0 <= alpha < 1: at 1 a skew KL is identically zero.")


def _share(alpha: float | Tensor, like: Tensor) -> tuple[Any, Any]:
    """log alpha and log alpha / (1 - alpha), as numbers or as [N, 1]."""
    if not isinstance(alpha, Tensor):
        return math.log(alpha), math.log(alpha) - math.log1p(-alpha)
    column = upcast(alpha.to(like.device)).unsqueeze(-1)
    return column.log(), column.logit()


def _require_power(alpha: float) -> None:
    demand(alpha >= 0, f"got alpha={alpha}, expected alpha >= 0: use 0 for the log-ratio, which is unbounded.")


def _require_scale(scale: Scale) -> None:
    demand(
        scale in ("usual", "continuous"), f"got scale={scale!r}, expected 'usual' or 'continuous': name one of them."
    )


# -------------------------------------------------------------------------------------------- decisions by their values


def value_policy(values: Tensor, temperature: float) -> Tensor:
    """log softmax(Q / tau): the policy that a table of values stands for (1511.06295, section 4.1: tau = 0.01).

    Shapes: [N, V] -> [N, V]. A tau far below 1 sharpens, because values of different actions differ little.
    """
    demand(temperature > 0, f"value_policy got temperature={temperature}, expected a number above 0.")
    return log_softmax(upcast(values) / temperature)


def expected_loss(lp: Tensor, values: Tensor) -> Tensor:
    """sum_a p(a) (max Q - Q(a)): what the student's next decision costs on average, and its gradient.

    Minus sum_a p(a) Q(a) up to a constant (1406.5979; differentiable: Sun et al. 2017, Eq. 5); 0 at the best action.
    Shapes: [N, V], [N, V] -> [N].
    """
    values = upcast(values)
    return product(lp.exp(), values.amax(-1, keepdim=True) - values).sum(-1)
