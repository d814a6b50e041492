"""Match the teacher's hidden states on the student's own answers; no vocabulary-sized tensor appears at all.

Paper: OPRD, "On-Policy Representation Distillation", Yang et al., arXiv 2606.06021.

When: the teacher is open, of the same tokenizer, and vocabularies are so large that logits cost too much.

Equation: L = mean_n (1/|L|) sum_l (1/D) || h_S^l(n) - h_T^l(n) ||^2, over the last `last` tokens of each answer

States are those after the token was read, as in the released code (the text says before). The head gets no gradient.

Models of unequal width, or origin, meet over a bridge of rank r (OPRD-Bridge, second version): per layer the teacher's
first r principal directions and a map of the student onto them, fitted before step 1 on the student's answers and then
frozen; both sides are brought to length 1 before the distance.

Differs: the mean over tokens is per sequence as in the paper's equation; mean=token_mean is the released code, which on
its bridge branch normalises the vanilla form too. The map is the least-squares solution instead of 20 epochs of AdamW
towards it. With equal widths and a bridge the released code ignores the bridge; here it is used. Without a bridge,
matching only makes sense when both models come from one origin.
"""

from dataclasses import replace

from opd.method import Ask, Method, Term
from opd.parts.bridge import Bridge, OverBridge
from opd.parts.credit import LastOnly
from opd.parts.hidden import StateDistance
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.protocols import EVERY_LAYER, Want
from opd.rollout import Sampling


def representation(
    *,
    layers: tuple[int, ...] = (0,),
    last: int = 2000,
    bridge: int = 0,
    prompts: int = 2000,
    n: int = 2,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "sequence_mean",
) -> Method:
    """
    layers: transformer blocks to match, from 1; -1 the last, 0 every one
    last: tokens at the end of an answer that are learned from
    bridge: rank of the bridge between unequal models (8 in the paper, 4 across families); 0 for none
    prompts: that the student answers for the bridge to be fitted on
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    sample, ask = OneTurn(n, Sampling(temperature=temperature, top_p=top_p)), Want(layers=layers)
    span = Bridge(bridge, replace(sample, n=1), layers, prompts) if bridge else None
    return Method(
        sample=sample,
        teach=(Ask("teacher", "teacher", Want(layers=(EVERY_LAYER,)) if span else ask),),
        credit=LastOnly(last),
        terms={"states": Term(OverBridge(span) if span else StateDistance(layers), named(mean))},
        state={"bridge": span} if span else {},
        fit=span,
    )
