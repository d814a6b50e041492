"""Walk greedily, ask a noisy teacher what it would do there, and explain its answers through the known noise.

Paper: NAIL, Sriraman, Liu, Hsu and Block, arXiv 2606.30923.

When: the teacher's actions are known to be noisy, and how noisy is known.

Equation: L = - mean_n E_{a ~ q(.|c_n)} log((1 - rate) pi(a|c_n) + rate nu(a|c_n)),  y = argmax pi at every step

The teacher is a clean policy of which a share `rate` of the answers is replaced by noise nu. A student that samples
what it has learned leaves the clean path as often as the teacher does, and never learns what lies deep on it; a greedy
one does not. With the noise inside the logarithm the optimum is the clean policy; without, it is the noisy one.

From the abstract and notes by others: greedy roll-in, a KL between trajectories with labels added. INFERRED, since the
text was not at hand: that this KL is the loss above, the default rate, and learning from each batch once instead of
from all labels so far. At rate 0 this is forward KL on greedy answers; with sampled answers that is `gkd --lam 1 --beta
0`, the paper's OPD-F, and `gkd --lam 1 --beta 1` is its OPD-R. If the noise is not known, see `nailgun`.
"""

from typing import Literal

from opd.method import Ask, Method, Term
from opd.parts.channel import Channel, Tempered, uniform
from opd.parts.losses import ThroughChannel
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def nail(
    *,
    rate: float = 0.1,
    noise: Literal["uniform", "teacher"] = "uniform",
    noise_temperature: float = 2.0,
    answer: Literal["whole", "label"] = "whole",
    mean: str = "token_mean",
) -> Method:
    """
    rate: share of the teacher's answers that are noise
    noise: any token alike, or the teacher's own words at noise_temperature
    noise_temperature: of the teacher's words where they are the noise
    answer: the teacher's whole distribution, or one label drawn from it
    mean: token_mean, sequence_mean or sequence_sum
    """
    is_label, of_teacher = answer == "label", noise == "teacher"
    channel = Channel(rate, Tempered(noise_temperature) if of_teacher else uniform)
    want = Want(label=is_label, dist=of_teacher or not is_label)
    return Method(
        sample=OneTurn(1, Sampling(temperature=0.0)),
        teach=(Ask("teacher", "teacher", want),),
        terms={"explain": Term(ThroughChannel(channel, "teacher.label" if is_label else ""), named(mean))},
    )
