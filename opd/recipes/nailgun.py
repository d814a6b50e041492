"""Walk greedily, ask a noisy teacher what it would do there, and learn its answers: the majority outvotes the noise.

Paper: NAILGUN, Sriraman, Liu, Hsu and Block, arXiv 2606.30923.

When: the teacher's actions are noisy but right more often than any other, and nobody knows how noisy.

Equation: L = - mean_n E_{a ~ q(.|c_n)} log pi(a|c_n),  y = argmax pi at every step

For noise that nobody knows and a clean teacher that is deterministic: what is learned is the noisy policy, and acting
by its argmax is acting cleanly, as long as the clean token stays the most frequent one. So take the result greedily.

From notes by others: unknown noise, deterministic clean expert. INFERRED, since the text was not at hand: all else,
that is plain cross-entropy to the labels, greedy roll-in and acting by argmax. Where one noise token is more frequent
than the clean one this learns the wrong token, and only `nail`, told the noise, finds the right one.
"""

from typing import Literal

from opd import maths
from opd.method import Ask, Method, Term
from opd.parts.losses import CrossEntropy, Everywhere
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import Want
from opd.rollout import Sampling


def nailgun(*, answer: Literal["whole", "label"] = "whole", mean: str = "token_mean") -> Method:
    """
    answer: the teacher's whole distribution, or one label drawn from it
    mean: token_mean, sequence_mean or sequence_sum
    """
    is_label = answer == "label"
    return Method(
        sample=OneTurn(1, Sampling(temperature=0.0)),
        teach=(Ask("teacher", "teacher", Want(label=is_label, dist=not is_label)),),
        terms={
            "copy": Term(CrossEntropy("teacher.label") if is_label else Everywhere(maths.forward_kl), named(mean)),
        },
    )
