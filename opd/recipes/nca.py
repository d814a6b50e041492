"""Context distillation that keeps working when the context comes back: the student is also tied to itself under it.

Paper: No-Context Anchoring, "When Context Returns", Wang et al., arXiv 2606.11627.

When: what a prompt says should go into the weights, and the prompt may come back later.

Equation: L = mean_n KL(p_x || q) + beta mean_n KL(sg[p_x] || p_c),  p_x = pi(.|x, y_<n),  p_c = pi(.|x, c, y_<n)

q = teacher(.|x, c, y_<n), y ~ pi(.|x). Every answer is learned from twice, under the plain prompt and under the one
with the context; only the first KL moves p_x and only the second p_c, but they share their weights. beta=0 is plain
on-policy context distillation and costs no second pass. What putting the context back does to answers, their length
and the hidden states is examined with `opd eval MODEL --task T --context`.

Uncertain: only notes on the paper were at hand. From them: beta 0.5, top 256 renormalised. INFERRED: that the 256 are
the teacher's in the first KL and those of sg[p_x] in the second, the mean over all tokens, temperature 1, and a teacher
that stays as it was at the start, where none is named. The prompt is ours: the context, then the question.
"""

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term
from opd.parts.means import named
from opd.parts.sample import OneTurn
from opd.parts.support_losses import compared
from opd.parts.twins import Apart, OfWritten, Twins, as_written
from opd.parts.views import Privileged, template
from opd.rollout import Sampling


def nca(
    *,
    beta: float = 0.5,
    k: int = 256,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    beta: of the term that ties the student with the context to itself without [paper: 0 or 0.1 to 1]
    k: best tokens on which two distributions are compared, renormalised; 0 for the whole vocabulary
    n: answers per prompt
    temperature: at which the student writes
    top_p: nucleus from which the student writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(beta >= 0, "the weight beta of the anchor", got=beta, expected="0 or more")
    sample, shown = OneTurn(n, Sampling(temperature=temperature, top_p=top_p)), Privileged(template("context"))
    match, want = compared(maths.reverse_kl, k)
    ask = Ask("teacher", "teacher", want, view=OfWritten(shown), optional=beta > 0)
    if not beta:
        return Method(
            sample=sample, teach=(ask,), terms={"match": Term(match, named(mean))}, casting={"teacher": "self:frozen"}
        )
    anchor, _ = compared(maths.forward_kl, k, teacher="own")
    return Method(
        sample=Twins(sample, shown),
        teach=(ask, Ask("own", "student", want, view=as_written, optional=True)),
        credit=Apart(),
        terms={
            "match": Term(match, named(mean), rows="written"),
            "anchor": Term(anchor, named(mean), beta, rows="repeated"),
        },
        casting={"teacher": "self:frozen"},
    )
