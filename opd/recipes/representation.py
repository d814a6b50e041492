"""Match the teacher's hidden states on the student's own answers; no vocabulary-sized tensor appears at all.

Paper: OPRD, "On-Policy Representation Distillation", Yang et al., arXiv 2606.06021.

Equation: L = mean_n (1/|L|) sum_l (1/D) || h_S^l(n) - h_T^l(n) ||^2, over the last `last` tokens of each answer

States are those after the token was read, as in the released code (the text says before). The head gets no gradient.

Differs: the mean over tokens is per sequence as in the paper's equation; mean=token_mean is the released code.
Vanilla form, not normalised: models of unequal width need the paper's bridge, which is not here yet. Matching only
makes sense when both models come from one origin.
"""

from opd.credit import LastOnly
from opd.losses import StateDistance
from opd.means import named
from opd.method import Ask, Method, Term
from opd.protocols import Want
from opd.rollout import Sampling
from opd.sample import OneTurn


def representation(
    *,
    layers: tuple[int, ...] = (0,),
    last: int = 2000,
    n: int = 2,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "sequence_mean",
) -> Method:
    """
    layers: transformer blocks to match, from 1; -1 the last, 0 every one
    last: tokens at the end of an answer that are learned from
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    return Method(
        sample=OneTurn(n, Sampling(temperature=temperature, top_p=top_p)),
        teach=(Ask("teacher", "teacher", Want(layers=layers)),),
        credit=LastOnly(last),
        terms={"states": Term(StateDistance(layers), named(mean))},
    )
