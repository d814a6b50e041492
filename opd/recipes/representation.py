"""Match the teacher's hidden states on the student's own answers; no vocabulary-sized tensor appears at all.

Paper: OPRD, "On-Policy Representation Distillation", Yang et al., arXiv 2606.06021.

When: the teacher is open, of the same tokenizer, and vocabularies are so large that logits cost too much.

Equation: L = mean_n (1/|L|) sum_l (1/D) || h_S^l(n) - h_T^l(n) ||^2, over the last `last` tokens of each answer

The states give the head no gradient. `mu` above 0 is the paper's sum L_OPD + mu L (it tries 1 and 10): sampled_token's
policy gradient, over whole answers, beside mu times the states; through it alone the head learns. mu=0 is not the
paper's 0, which would be sampled_token, but the states alone.

Models of unequal width, or origin, meet over a bridge of rank r (OPRD-Bridge, second version): per layer the teacher's
first r principal directions and a map of the student onto them, fitted before step 1 on the student's answers and then
frozen; both sides are brought to length 1 before the distance.

Differs: the mean over tokens is per sequence as in the paper's equation; mean=token_mean is the released code, and
normalised=true what its bridge branch does without a bridge too, where the distance is weighted 10. The bridge's map
is the least-squares solution instead of 20 epochs of AdamW towards it. With equal widths and a bridge the released code
ignores the bridge; here it is used. Without a bridge, matching only makes sense when both models come from one origin.
A state is what its block puts out: the released code's last one has had the model's final norm too.
Uncertain: states are those after the token was read, as in the released code; the text has those before it. That a
bridge carries over to another tokenizer is unproven: the released pipeline feeds the student's ids to the teacher. The
paper's theorem that the log-ratio's signal vanishes against its noise as the models meet does not hold when
enumerated.
"""

from dataclasses import replace

from opd.errors import require
from opd.method import Ask, Method, Term, chain
from opd.parts.bridge import Bridge, OverBridge
from opd.parts.credit import LastOnly, LogRatio
from opd.parts.hidden import StateDistance
from opd.parts.losses import PolicyGradient
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
    normalised: bool = False,
    mu: float = 0.0,
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
    normalised: both states are brought to length 1 before the distance, as over a bridge they always are
    mu: weight of the states beside sampled_token's policy gradient (1 and 10 in the paper); 0 for the states alone
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(mu >= 0, "the weight mu of the states", got=mu, expected="0 for the states alone, or more")
    sample = OneTurn(n, Sampling(temperature=temperature, top_p=top_p))
    span = Bridge(bridge, replace(sample, n=1), layers, prompts) if bridge else None
    distance = OverBridge(span) if span else StateDistance(layers, normalised=normalised)
    asked = Want(chosen=mu > 0, layers=(EVERY_LAYER,) if span else layers)
    alone, summed = Term(distance, named(mean)), Term(distance, named(mean), mu, rows="last")
    return Method(
        sample=sample,
        teach=(Ask("teacher", "teacher", asked),),
        credit=chain(LogRatio(), LastOnly(last, into="last")) if mu else LastOnly(last),
        terms={"states": summed, "advantage": Term(PolicyGradient(), named(mean))} if mu else {"states": alone},
        state={"bridge": span} if span else {},
        fit=span,
    )
