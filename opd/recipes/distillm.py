"""Match a teacher that is mixed with the student, on fixed texts and, as these wear out, on the student's own.

Paper: DistiLLM, Ko et al., arXiv 2402.03898.

When: writing is expensive, so that old answers must be used again, and the teacher's distribution is at hand.

Equation: L = mean_n KL(pi || (1-alpha) q + alpha pi)  (skew_reverse) or KL(q || alpha q + (1-alpha) pi)  (skew_forward)

The skew bounds the divergence by -log alpha and its gradient with it. A batch holds the teacher's texts, one per
problem, or with a chance the student's: that chance starts at 0 and rises by 0.1 whenever the loss on held-back texts
has risen by 0.1. The student's batches are written anew ever more rarely, and drawn from a memory otherwise.

Differs: the held-back texts are other answers of the teacher to `held` of the problems, looked at every `every` batches
(the paper: a validation set, every epoch). Text is sampled, not found by a beam of 2. The share of new
text falls to 0 over `fade` batches, which in the code is the whole run. No term on a pre-training corpus.
Uncertain: which of the two divergences the paper's main table uses for every model; the scripts that we know use the
reverse one.
"""

from functools import partial
from typing import Literal

from opd import maths
from opd.errors import one_of, require
from opd.method import Ask, Method, Term
from opd.parts.curriculum import Replay, Rising
from opd.parts.fading import Fading
from opd.parts.losses import Everywhere
from opd.parts.means import named
from opd.parts.memory import Memory
from opd.parts.sample import OneTurn, Traces
from opd.protocols import Want
from opd.rollout import Sampling

DIVERGENCES = {"skew_reverse": maths.skew_reverse_kl, "skew_forward": maths.skew_kl}


def distillm(
    *,
    divergence: Literal["skew_reverse", "skew_forward"] = "skew_reverse",
    alpha: float = 0.1,
    start: float = 0.0,
    every: int = 10,
    held: int = 64,
    fade: int = 100,
    memory: int = 1000,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    divergence: which way the skewed divergence points
    alpha: share of the other model that is mixed into the one compared to
    start: chance of the student's own text in the first batch
    every: batches between two looks at the held-back texts
    held: of these there are so many
    fade: batches over which the student stops writing anew and only memory is drawn from
    memory: answers of the student that are kept, the oldest go first
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    one_of("divergence", divergence, DIVERGENCES)
    require(0 <= alpha < 1, "the skew alpha", got=alpha, expected="a number in [0, 1)")
    traces, kept = Traces(), Memory(memory)
    rising = Rising(OneTurn(1, writer="teacher"), start, every, held)
    fresh = OneTurn(1, Sampling(temperature=temperature, top_p=top_p))
    return Method(
        sample=Replay(traces, fresh, kept, rising, Fading(1.0, fade)),
        teach=(Ask("teacher", "teacher", Want(dist=True)),),
        terms={"match": Term(Everywhere(partial(DIVERGENCES[divergence], alpha=alpha)), named(mean))},
        hooks=(rising,),
        state={"traces": traces, "memory": kept, "rising": rising},
        fit=rising,
    )
