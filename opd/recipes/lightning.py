"""On-policy distillation without a teacher at hand: the student writes once, the answers are stored, and it learns.

Paper: Lightning OPD, Wu, Han and Cai, arXiv 2604.13010.

When: the teacher is dear, far away or soon gone, and there are many problems: each is read once, before the run.

Equation: L = mean_n (log q(y_n) - log pi(y_n))^2 / 2,  y ~ pi_ref, one text per problem, written once

pi_ref is the student as it is before the first step, q(y_n) one stored number per token, and pi the student as it is
now. The gradient is the paper's, -A_n grad log pi(y_n) with A_n = log q(y_n) - log pi(y_n) scored anew at every step:
at pi = pi_ref that of sampled_token, and the pull of a token ends where it is as likely as the teacher finds it. It
drifts away from that of fresh texts as pi leaves pi_ref. `weighted` multiplies it by pi/pi_ref, which corrects the
token and not the path to it.

`opd store` writes and asks, then --teacher stored:FOLDER. With a teacher that reads, the texts are written when a
problem is first met, by a copy of the student as it was, and the teacher is asked about them again in every epoch.

Teacher consistency, says the paper, is what the method stands on: the student must have been fine-tuned (SFT) on texts
of this very teacher, or the gradient has a bias that does not go away.

Differs: the paper's PPO surrogate has this gradient and another value; with its one update per batch the ratio is 1 and
nothing is ever clipped.
Uncertain: whether the released stored student log-probs are used for anything but the weight that `weighted` is.
"""

from opd.method import Ask, Method, Term
from opd.parts.losses import TowardsTeacher
from opd.parts.means import named
from opd.parts.sample import Traces
from opd.protocols import Want
from opd.rollout import Sampling


def lightning(
    *, weighted: bool = False, temperature: float = 1.0, top_p: float = 1.0, mean: str = "token_mean"
) -> Method:
    """
    weighted: every token counts by pi/pi_ref, which undoes that it was drawn from the student of before
    temperature: at which the texts are written, where no store has them
    top_p: nucleus from which they are written
    mean: token_mean, sequence_mean or sequence_sum
    """
    traces = Traces(Sampling(temperature=temperature, top_p=top_p), writer="reference")
    return Method(
        sample=traces,
        teach=(Ask("teacher", "teacher", Want(chosen=True)),),
        terms={"advantage": Term(TowardsTeacher("behaviour" if weighted else ""), named(mean))},
        state={"traces": traces},
        casting={"reference": "self:frozen"},
    )
