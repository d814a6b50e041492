"""What single drawn words tell: estimates of a divergence, rewards, surrogates for a policy gradient, sums over time.

Conventions as in `maths`: `lp` and `logp` are log-probabilities of the student, `lq` of the teacher, each of the word
that was drawn; one number per row, N rows. Advantages, teachers and who drew the words are constants for the gradient.
"""

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from opd.maths import demand, upcast

# -------------------------------------------------------------------------------------------- estimates of a divergence


def k1(lp: Tensor, lq: Tensor) -> Tensor:
    """log p - log q for y ~ p. Mean: reverse KL. Mean of the gradient: 0, so it teaches nothing as a loss.

    Shapes: [N], [N] -> [N]. Source: Schulman, "Approximating KL Divergence" (2020).
    """
    return upcast(lp) - upcast(lq)


def k2(lp: Tensor, lq: Tensor) -> Tensor:
    """(log p - log q)^2 / 2 for y ~ p. Mean: reverse KL to second order only. Mean of the gradient: that of reverse KL.

    Shapes: [N], [N] -> [N]. Source: Schulman, "Approximating KL Divergence" (2020).
    """
    return 0.5 * k1(lp, lq).square()


def k3(lp: Tensor, lq: Tensor) -> Tensor:
    """q/p - 1 - log(q/p) for y ~ p, never negative. Mean: reverse KL. Mean of the gradient: that of *forward* KL.

    Shapes: [N], [N] -> [N]. Source: Schulman, "Approximating KL Divergence" (2020).
    """
    log_ratio = k1(lp, lq)
    return torch.expm1(-log_ratio) + log_ratio


# -------------------------------------------------------------------------------------------------------------- rewards


def extrapolated_reward(lp: Tensor, lq: Tensor, lb: Tensor, lam: float | Tensor) -> Tensor:
    """lam log(q/b) - log(p/b) for the chosen word; a constant for the gradient.

    Its mean is least bad at p ~ q^lam b^(1 - lam): the base b at lam = 0, the teacher q at 1 whatever b, beyond the
    teacher above 1. Shapes: [N], [N], [N], lam a number or [N] -> [N]. Source: G-OPD, arXiv 2602.12125.
    """
    further = (upcast(lq) - upcast(lb)).detach()
    extra = (torch.as_tensor(lam, dtype=further.dtype, device=further.device) - 1).expand_as(further)
    return (upcast(lq) - upcast(lp)).detach() + torch.where(extra == 0, 0.0, extra * further)


def extrapolation_limit(lq: Tensor, lb: Tensor, c: float) -> Tensor:
    """lam* = 1 + log(1 + (c - 1)/q) / (logit q - logit b): beyond it p ~ q^lam b^(1-lam) is too sure of a word.

    q and b are what teacher and base give the teacher's best word. At lam* the other words together have (1 - q)/c:
    the teacher's weight on any of them, q/p, reaches c. inf where q = b, nan where q < b: there the theorem does not
    hold, and lam > 1 makes the word *less* likely.
    Shapes: log-probs [N], [N] -> [N]. Raises ValueError unless c >= 1.
    Source: arXiv 2605.08737, Eq. 4, which writes the same as a quotient of two differences of log-odds.
    """
    demand(c >= 1, f"extrapolation_limit got c={c}, expected at least 1: it is the cap of an importance ratio.")
    lq, lb = upcast(lq).detach(), upcast(lb).detach()
    gain = torch.log1p((c - 1) * (-lq).exp()) / (_logit(lq) - _logit(lb))
    return torch.where(lq > lb, 1 + gain, torch.where(lq == lb, math.inf, math.nan))


def _logit(lp: Tensor) -> Tensor:
    # log p/(1 - p) from log p, exact for p near 1.
    return lp - (-torch.expm1(lp)).log()


# -------------------------------------------------------------------------------------------- score-function surrogates


def policy_gradient(logp: Tensor, advantage: Tensor) -> Tensor:
    """-A log p(y): the gradient of -E[A] when y was drawn from p itself; A is held still.

    Shapes: [N], [N] -> [N]. Source: Williams, REINFORCE (1992).
    """
    return -advantage.detach() * upcast(logp)


def importance_gradient(logp: Tensor, behaviour: Tensor, advantage: Tensor) -> Tensor:
    """-A p(y) / mu(y): the same for y ~ mu, the distribution that really drew the word; A and mu are held still.

    Shapes: [N], [N], [N] -> [N]. Source: Thinking Machines, "On-Policy Distillation" (2025).
    """
    return -advantage.detach() * _ratio(logp, behaviour)


def squared_ratio(logp: Tensor, logq: Tensor) -> Tensor:
    """(log q(y) - log p(y))^2 / 2, whose gradient is the policy gradient -A grad log p(y) with A = log q(y) - log p(y).

    For words that were drawn some time ago and whose advantage is taken from p as it is now.
    Shapes: [N], [N] -> [N]. Source: Lightning OPD, arXiv 2604.13010, whose surrogate has this gradient.
    """
    return 0.5 * (upcast(logq).detach() - upcast(logp)).square()


def weighted_ratio(logp: Tensor, old: Tensor, logq: Tensor) -> Tensor:
    """w (log p(y) - log q(y) - 1) + 1, w = p(y)/old(y); its gradient is -w A grad log p(y), A as in squared_ratio.

    For y ~ old its mean is the reverse KL(p || q), and its mean gradient that of the reverse KL, wherever p has gone.
    Shapes: [N], [N], [N] -> [N]. Source: Lightning OPD, arXiv 2604.13010, the weight pi/pi_ref.
    """
    return _ratio(logp, old) * (upcast(logp) - upcast(logq).detach() - 1) + 1


def truncated_gradient(logp: Tensor, behaviour: Tensor, advantage: Tensor, cap: float) -> Tensor:
    """`importance_gradient` with the gradient -A min(p(y)/mu(y), cap) grad log p(y): no word weighs more than cap.

    Beyond the cap its value goes on as -A cap (1 + log(p / (mu cap))), which has that gradient.
    Shapes: [N], [N], [N] -> [N]. Raises ValueError unless cap > 0.
    Source: truncated importance sampling, Ionides (2008).
    """
    demand(0 < cap < math.inf, f"got cap={cap}, expected a positive number: use importance_gradient for none.")
    excess = upcast(logp) - upcast(behaviour).detach() - math.log(cap)
    return -advantage.detach() * cap * (excess.clamp(max=0).exp() + excess.clamp(min=0))


def ppo_clip(
    logp: Tensor, old: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.2, dual: float = 0.0
) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = p(y) / old(y), old being this model at the start of the batch.

    `dual` bounds a negative advantage's term by -dual A: a ratio beyond it is not lowered further; 0 for no bound.
    Shapes: [N], [N], [N] -> [N]. Raises ValueError unless 0 <= low <= 1, high >= 0, and dual is 0 or above 1 + high.
    Source: PPO, arXiv 1707.06347; unequal bounds, DAPO, arXiv 2503.14476; dual clip, arXiv 1912.09729.
    """
    demand(
        0 <= low <= 1 and high >= 0,
        f"got low={low} and high={high}, expected 0 <= low <= 1 and high >= 0: they are distances from 1, such as 0.2.",
    )
    demand(dual == 0 or dual > 1 + high, f"got dual={dual}, expected 0 for none, or more than 1 + high = {1 + high}.")
    ratio, advantage = _ratio(logp, old), advantage.detach()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss) if dual else loss


def preference(margin: Tensor, win: Tensor) -> Tensor:
    """-win log sigma(m) - (1 - win) log sigma(-m): what it costs to expect that the first of a pair is preferred.

    Its slope is sigma(m) - win. Shapes: [P], [P] -> [P]. Source: Bradley and Terry (1952); DPO, arXiv 2305.18290.
    """
    margin = upcast(margin)
    return -win * logsigmoid(margin) - (1 - win) * logsigmoid(-margin)


def importance_weight(old: Tensor, behaviour: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """min(old(y) / mu(y), cap), and where the cap was needed; both are constants for the gradient.

    Shapes: [N], [N] -> weight [N], truncated [N] bool. Raises ValueError unless cap > 0.
    Source: truncated importance sampling, Ionides (2008).
    """
    demand(cap > 0, f"got cap={cap}, expected a positive number: use math.inf for no truncation.")
    weight = _ratio(old, behaviour).detach()
    return weight.clamp(max=cap), weight > cap


def _ratio(logp: Tensor, reference: Tensor) -> Tensor:
    return (upcast(logp) - upcast(reference).detach()).exp()


# -------------------------------------------------------------------------------------------------------------- horizon


def mean_of(values: Tensor, key: Tensor) -> Tensor:
    """The mean of the values of all rows that share this row's key, a constant for the gradient. Shapes: [N] -> [N]."""
    place = cast(tuple[Tensor, Tensor], torch.unique(key, return_inverse=True))[1]  # pyright: ignore
    number = int(place.max()) + 1 if len(place) else 0
    sums = upcast(values.detach()).new_zeros(number).index_add(0, place, upcast(values.detach()))
    return (sums / torch.bincount(place, minlength=number))[place]


def returns(values: Tensor, segment: Tensor, time: Tensor, gamma: float) -> Tensor:
    """R_n = sum of gamma^(time_m - time_n) values_m over the rows m >= n of the same segment, in table order.

    gamma = 0 is exactly `values` (the immediate signal, even where rows share a time), gamma = 1 sums to the end.
    Segments may interleave; time (row number, position, turn) may not fall within one. A constant for the gradient.
    Shapes: [N], [N], [N] -> [N]. Raises ValueError unless 0 <= gamma <= 1 and time never falls.
    Source: arXiv 2603.25562 (0 is token level, 1 sequence level).
    """
    demand(0 <= gamma <= 1, f"got gamma={gamma}, expected 0 (immediate) to 1 (to the end): choose one in between.")
    result = upcast(values.detach())
    if gamma == 0:
        return result.clone()
    columns = [cast(list[float], x.detach().flip(0).tolist()) for x in (values, segment, time)]  # pyright: ignore
    after: dict[float, tuple[float, float]] = {}  # segment -> time and return of the row that follows in it
    total: list[float] = []
    for value, name, now in zip(*columns, strict=True):
        then, future = after.get(name, (now, 0.0))
        if then < now:
            raise ValueError(f"segment {name} got time {now} before {then}, expected no fall: sort its rows by time.")
        total.append(value + gamma ** (then - now) * future)
        after[name] = now, total[-1]
    return result.new_tensor(total[::-1])


def earliness(size: Tensor, segment: Tensor) -> Tensor:
    """1 - P_t / P with P_t = sum of the sizes before t in its segment, in table order, and P that of all of them.

    Falls from 1 in the first row of a segment; 1 throughout where every size is 0. A constant for the gradient.
    Shapes: [N] (not negative), [N] -> [N]. Source: IW-OPD, arXiv 2606.22600.
    """
    left = returns(size, segment, torch.arange(len(segment), device=segment.device), 1.0)
    place = cast(tuple[Tensor, Tensor], torch.unique(segment, return_inverse=True))[1]  # pyright: ignore
    whole = left.new_zeros(int(place.max()) + 1).scatter_reduce(0, place, left, "amax")[place]
    return torch.where(whole > 0, left / whole, 1.0)
