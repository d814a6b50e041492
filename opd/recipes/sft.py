"""Copy the teacher's own answers, the baseline that everyone compares to.

Paper: sequence-level knowledge distillation, Kim and Rush, arXiv 1606.07947.

When: the teacher gives text only; the baseline of everything here.

Equation: L = - E_{y ~ q(.|x)} mean_n log pi(y_n | x, y_<n)

Differs from the paper: answers are sampled, not found by beam search, because a sampled answer makes the expected loss
the full forward KL on the teacher's states (up to the teacher's entropy). One trace per problem is written the first
time and kept, as a data set would be; `fresh` writes a new one at every visit. The teacher is never asked for a
probability. With `solution` nobody is needed at all: what is copied came with the problem.
"""

from opd.errors import require
from opd.method import Method, Term
from opd.parts.losses import CrossEntropy
from opd.parts.means import named
from opd.parts.sample import OneTurn, Solutions, Traces
from opd.rollout import OTHER, Sampling


def sft(*, solution: str = "", fresh: bool = False, temperature: float = 1.0, mean: str = "token_mean") -> Method:
    """
    solution: column of the text that is copied, privileged_context or answer too; empty: what the teacher writes
    fresh: a new trace at every visit instead of one fixed trace per problem
    temperature: at which the teacher writes
    mean: token_mean, sequence_mean or sequence_sum
    """
    terms = {"copy": Term(CrossEntropy(), named(mean))}
    if solution:
        require(not fresh, "fresh", got=f"fresh with solution={solution}", expected="traces that a teacher writes")
        return Method(sample=Solutions(solution, OTHER), terms=terms, casting={"teacher": "none"})
    sampling = Sampling(temperature=temperature)
    traces = Traces(sampling)
    return Method(
        sample=OneTurn(1, sampling, writer="teacher") if fresh else traces,
        terms=terms,
        state={} if fresh else {"traces": traces},
    )
