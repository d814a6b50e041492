"""Lower the reverse KL of whole answers by policy gradient, on texts that student and teacher write token by token.

Paper: MiniLLM, Gu, Dong, Wei and Huang, arXiv 2306.08543.

When: a mode-seeking student is wanted that keeps whole answers likely, and the teacher can write along.

Equation: L = - mean_n min(r_n A_n, clip(r_n, 1-eps, 1+eps) A_n) + mean_n KL(pi || q),  r_n = pi(y_n) / p~(y_n)

p~ = mix q + (1-mix) pi draws every token; r_n is the single weight w_n of the token times PPO's ratio, not a product
over the text. A_n is the log-ratio (log q - log pi) / scaling, cut to +-bound (metric reward.cut), summed with gamma
from n on, divided by the number of tokens left and whitened over the batch. The second term is the exact KL of one step
over the whole vocabulary. The published batch is 256 answers for 4 epochs, after supervised training of the student.
The third term of the paper keeps the student a language model on a pre-training corpus: --corpus FILE adds one window
of plain text per problem, half cross-entropy and half distillation as released (the paper's equation has the first).

Differs: without --corpus, the default since a run knows no corpus of its own, the third term is left out; with it, a
batch's windows serve all its updates. Defaults are the released code's; there a token's own reward counts in A_n
although the second term holds it already: `own=false` counts only what follows, as in the paper's derivation. Whitening
sees no padding. At mix 0.2 a weight is at most 1.25, so that PPO's clip at 1.2 also cuts tokens that the mixture alone
made rare.
Uncertain: the paper weights its one-step term by w_n, the released code does not, and neither do we.
"""

from opd import maths
from opd.errors import require
from opd.method import Ask, Method, Term, Updates, chain
from opd.parts.corpus import Aside, WithCorpus, on_corpus
from opd.parts.credit import Clamped, LogRatio, MeanToGo
from opd.parts.groups import Whitened
from opd.parts.losses import Everywhere, PolicyGradient
from opd.parts.means import named
from opd.parts.observe import Clipped, Noted
from opd.parts.rounds import TakeTurns
from opd.protocols import Want
from opd.rollout import Sampling


def minillm(
    *,
    mix: float = 0.2,
    scaling: float = 0.5,
    bound: float = 100.0,
    gamma: float = 0.95,
    own: bool = True,
    single: float = 1.0,
    corpus: str = "",
    window: int = 512,
    distilled: float = 0.5,
    clip: float = 0.2,
    epochs: int = 4,
    n: int = 1,
    temperature: float = 1.0,
    mean: str = "token_mean",
) -> Method:
    """
    mix: the teacher's share of every token while writing
    scaling: what the log-ratio is divided by
    bound: the log-ratio so divided is cut to plus and minus this
    gamma: discount of later log-ratios
    own: a token's own log-ratio counts in its advantage
    single: weight of the exact KL of one step
    corpus: a file of plain text, or JSON lines with a column text, of which the student stays a model; none if empty
    window: tokens of one piece of the corpus
    distilled: share of the teacher's distribution in what is learned from the corpus; the rest is cross-entropy
    clip: PPO's clip range around weight 1
    epochs: updates per batch
    n: answers per prompt
    temperature: at which the student writes its share
    mean: token_mean, sequence_mean or sequence_sum
    """
    require(0 <= mix <= 1, "the teacher's share of the mixture (mix)", got=mix, expected="a number in [0, 1]")
    require(scaling > 0, "what rewards are divided by (scaling)", got=scaling, expected="more than 0")
    require(clip > 0, "PPO's clip range", got=clip, expected="more than 0")
    turns = TakeTurns(mix, n, Sampling(temperature=temperature))
    step = {"single": Term(Everywhere(maths.reverse_kl), named(mean), single)} if single else {}
    plain = on_corpus(distilled, named(mean)) if corpus else {}
    reward = LogRatio(scale=1 / scaling), Clamped(bound, "reward.cut")
    return Method(
        sample=WithCorpus(corpus, window, fresh=turns) if corpus else turns,
        teach=(Ask("teacher", "teacher", Want(chosen=True, dist=bool(step) or "soft" in plain)),),
        credit=chain(Aside(), *reward, MeanToGo(gamma, own), Whitened()),
        terms={"later": Term(PolicyGradient(clip, "behaviour"), named(mean)), **step, **plain},
        updates=Updates(epochs),
        lookup=(Clipped(clip, clip, "behaviour"), Noted(("reward.cut",))),
    )
