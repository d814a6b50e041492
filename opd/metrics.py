"""What every number of a run means and what is healthy, one sentence each: the page and the docs take theirs here.

python -m opd.metrics > docs/metrics.md
"""

from __future__ import annotations

from dataclasses import dataclass

INTRODUCTION = """# What a run measures

One line of `metrics.jsonl` per step. Nothing here costs a second pass over a model, and what cannot be measured is
absent, never zero: a teacher that gives one number per token leaves out its entropy, the supports and the reverse KL.
Logs are natural. What needs whole distributions is a mean over some hundred rows of every update, everything else a
mean over all rows. Written by `python -m opd.metrics`."""


@dataclass(frozen=True)
class Metric:
    """A number in metrics.jsonl. A name that ends in * stands for all that begin so."""

    unit: str
    meaning: str
    healthy: str = ""


GROUPS: dict[str, dict[str, Metric]] = {
    "The step": {
        "loss": Metric(
            "", "the sum of all terms, mean over the optimizer steps of the batch, on every method's own scale"
        ),
        "loss.*": Metric("", "one term of the loss", "terms of like size are both heard."),
        "grad_norm": Metric("", "the gradient's norm before it is cut", "steady or slowly falling; spikes want a cut."),
        "lr": Metric("", "the learning rate"),
        "refused": Metric("updates", "updates that were not taken because loss or gradient is not finite", "0."),
        "kept": Metric("share", "rows that are learned from", "1, unless the method leaves some out."),
        "masked.*": Metric("tokens", "rows of the batch that a mask of the run or the method left out, by the reason"),
        "masked.ungraded": Metric(
            "tokens",
            "rows of answers that could not be graded, which a reward says nothing about; a teacher's signal that it is"
            " added to is still learned there; absent where all were graded",
            "few; else look at what the grader refuses.",
        ),
        "empty": Metric("updates", "updates without a row to learn from", "0; else masks or views leave nothing."),
        "tail.cut": Metric("share", "tokens outside the support whose weight p(y)/mu(y) was cut to the cap", "near 0."),
        "bridge.cosine.*": Metric(
            "",
            "how well the student's states meet the teacher's over the fitted bridge, by layer; on the first step only",
            "near 1; near 0 the two models have nothing in common there.",
        ),
        "weight.cut": Metric("share", "tokens whose importance weight p(y)/mu(y) was cut to the cap", "near 0."),
        "entries.cut": Metric(
            "probability",
            "what the teacher (of two views: the partial one) gives to words whose part in the loss was cut to a bound",
            "near 0; where it is large the bound steers what is learned.",
        ),
        "pair.loss": Metric(
            "nats",
            "logistic loss of preferring the first answer of a pair, mean over pairs",
            "below 0.69 = log 2.",
        ),
        "pair.margin": Metric(
            "",
            "by how much the pair's first answer is preferred, measured from the teacher",
            "rising from below 0.",
        ),
        "clipped": Metric(
            "share",
            "tokens whose ratio to the batch's start has gone so far that PPO's clip takes their gradient away",
            "0 in the first update of a batch, then a few hundredths; far more means too many updates of one batch.",
        ),
        "reward.cut": Metric(
            "share",
            "tokens whose reward was cut to its bound before it was summed",
            "near 0; more means that the teacher rules out what the student writes.",
        ),
        "skew": Metric(
            "share",
            "the share of the other model that is mixed in before the two are compared, mean over tokens",
            "at most the one that was asked for.",
        ),
        "skew.cut": Metric("share", "tokens of answers whose share was cut to its bounds"),
        "written.chance": Metric(
            "share", "the chance that a batch holds the student's own text", "rises when `held_back.loss` does."
        ),
        "held_back.loss": Metric(
            "nats",
            "minus the student's mean log-prob of the teacher's text that it never learns from",
            "falling; a rise means that the fixed texts are being learned by heart.",
        ),
        "ladder.length": Metric("tokens", "the longest answer that the ladder of lengths allows", "climbing."),
        "ladder.entropy": Metric(
            "nats",
            "the student's mean entropy over the batches of a rung, when that rung ends",
            "above the floor; below it the ladder steps back and stays there.",
        ),
        "seconds.*": Metric("s", "wall time: writing, reading, learning with all measurements"),
    },
    "Teachers elsewhere": {
        "served.requests": Metric("requests", "questions sent to servers, those that were sent again among them"),
        "served.retries": Metric("requests", "questions that were not answered and were sent again", "0."),
        "served.left_out": Metric("servers", "servers that did not answer when they were last asked", "0."),
        "served.bytes.*": Metric("bytes", "what travelled to the servers (sent) and back (received)"),
        "served.seconds": Metric("s", "wall time of waiting for answers", "most of it is computing."),
        "ahead": Metric(
            "share",
            "of what the student wrote, the tokens of texts about which a server was asked while others were being"
            " written",
            "the more unequal the lengths, the higher; that share of the teacher's work costs no time.",
        ),
        "served.vain": Metric("texts", "texts that a server was asked about ahead, and that nobody then needed", "0."),
        "teacher.missed": Metric(
            "share",
            "named tokens of which a teacher that gives its best tokens alone said nothing; what these and the decided"
            " token leave over is spread evenly over all others",
            "near 0, and below `teacher_misses`, at which the run stops.",
        ),
        "teacher.missed.mass": Metric(
            "probability",
            "what the student gives to these tokens, mean over tokens written",
            "near 0; where it is large the student is taught by guesses.",
        ),
        "teacher.missed.rounded": Metric(
            "tokens",
            "of them, those where rounding left nothing over that could be spread",
            "any; they are improbable.",
        ),
        "chat.answers": Metric("answers", "texts that a chat endpoint gave, those that were kept among them"),
        "chat.cached": Metric("answers", "texts that were on the disk and cost nothing"),
        "chat.changed": Metric(
            "answers",
            "texts that the student's tokens do not spell as they were written; it learns the nearest that they do",
            "0; else the student's tokenizer lacks letters of the teacher's.",
        ),
        "chat.requests": Metric("requests", "questions sent to a chat endpoint, those that were sent again among them"),
        "chat.retried": Metric("requests", "questions that were sent again", "few; else ask for less in parallel."),
        "chat.read": Metric("tokens", "tokens of prompts, as the endpoint counts them"),
        "chat.written": Metric("tokens", "tokens of answers, as the endpoint counts them"),
        "chat.spent": Metric("", "what the whole run has cost so far, in the currency of its prices", "below budget."),
    },
    "A sampler, where a server writes what the student learns from": {
        "sampler.gap": Metric(
            "nats",
            "|log-prob by the student - by the server| of the tokens that it wrote, each under what draws: the student"
            " as it is before it learns from them",
            "about 0.00001 in float32, some 0.01 in bfloat16; a rising one means that the server no longer follows.",
        ),
        "sampler.gap.max": Metric("nats", "the largest of them"),
        "sampler.outside": Metric(
            "share",
            "tokens that the student's own top-p, top-k or min-p would never have drawn; they weigh 0",
            "near 0.",
        ),
        "sampler.weight": Metric("", "mean weight min(pi/mu, cap) of these tokens in the loss", "near 1."),
        "sampler.cut": Metric("share", "tokens whose weight was cut to the cap", "near 0."),
        "sampler.version": Metric(
            "batches", "batches that the weights had learned from that wrote the newest of the texts", "the step."
        ),
        "sampler.stale": Metric(
            "batches", "by how many batches the student was ahead of what wrote a token, mean", "0, but for replay."
        ),
        "sampler.push.gap": Metric(
            "nats", "the gap on a text that nobody wrote, right after weights were pushed", "as sampler.gap."
        ),
        "sampler.push.seconds": Metric("s", "to save the weights, have them loaded and verify them"),
        "sampler.requests": Metric("requests", "questions sent to the server, those that were sent again among them"),
        "sampler.retries": Metric("requests", "questions that were not answered and were sent again", "0."),
        "sampler.seconds": Metric("s", "wall time between questions and their answers"),
    },
    "Answers": {
        "tokens": Metric("tokens", "tokens decided in the batch"),
        "teacher_tokens": Metric("tokens", "tokens that teachers read, prompt and answer, or wrote"),
        "length": Metric("tokens", "mean length of an answer", "near the teacher's; a steady rise ends in loops."),
        "length.max": Metric("tokens", "the longest answer", "below the limit."),
        "truncated": Metric("share", "answers that the limit cut off", "near 0; a cut answer has no end to learn."),
        "repetitive": Metric(
            "share",
            "answers whose last 10,000 characters compress more than tenfold",
            "0; only a text of some hundred characters that says one thing for ever does.",
        ),
        "reward": Metric("", "mean grade of the answers that could be graded", "rising; flat at 0 tells nothing."),
        "groups.trivial": Metric(
            "share",
            "groups of several graded answers to one problem whose rewards are all the same",
            "well below 1; a method that compares siblings learns nothing from these.",
        ),
        "loops": Metric(
            "share",
            "tokens in a stretch that repeats itself: a period of at most 128 tokens, three times and eight tokens long"
            " at least",
            "near 0; rising means that the student has found something to say for ever.",
        ),
        "loops.teacher.inside": Metric(
            "nats",
            "the teacher's mean log-prob inside such loops",
            "below the one outside; above it the teacher agrees with the loop and no longer speaks against it.",
        ),
        "loops.teacher.outside": Metric("nats", "the teacher's mean log-prob outside loops"),
        "loops.student.inside": Metric("nats", "the student's mean log-prob inside loops"),
        "loops.student.outside": Metric("nats", "the student's mean log-prob outside loops"),
    },
    "Student and teacher": {
        "student.chosen": Metric(
            "nats",
            "the student's mean log-prob of the decided token, when it learns from it",
            "the teacher's comes to meet it; what lies between them is left to learn.",
        ),
        "teacher.chosen": Metric("nats", "the teacher's mean log-prob of the decided token", "rising."),
        "student.entropy": Metric("nats", "the student's mean entropy", "falls towards the teacher's, not to 0."),
        "teacher.entropy": Metric(
            "nats",
            "the teacher's mean entropy on the student's text",
            "steady or falling; rising means that it is lost in what it reads.",
        ),
        "entropy.gap": Metric("nats", "|teacher's entropy - student's|, per token", "falling towards 0."),
        "reverse_kl": Metric(
            "nats", "KL(student || teacher) per token, whole vocabulary, on the batch", "falling towards 0."
        ),
        "support.overlap": Metric("share", "what the K best tokens of student and teacher have in common", "rising."),
        "support.mass": Metric(
            "share",
            "what the student puts on the teacher's K best tokens",
            "rising towards 1; a support that the student leaves teaches it little.",
        ),
        "support.advantage": Metric(
            "nats",
            "minus KL(student || teacher), both renormalised on what their K best tokens share",
            "rising towards 0.",
        ),
        "support.empty": Metric(
            "share", "tokens where the two have no word of the support in common, or none of their own", "0."
        ),
        "support.outside": Metric(
            "share",
            "decided tokens that are not among the teacher's K best",
            "few and falling: a loss on the teacher's top K says nothing about such a token itself.",
        ),
    },
    "Several teachers, by their names": {
        "teacher.*": Metric(
            "",
            "teacher.NAME.rows: share of the learned tokens whose problem names that teacher; teacher.NAME.loss: their"
            " mean loss",
            "rows as the task deals them out; near 0 that teacher is starved, however healthy the mean loss looks.",
        ),
        "reference.*": Metric("", "the same of several references"),
    },
    "The signal": {
        "ratio": Metric(
            "nats",
            "mean of log q - log pi on the decided token, teacher against student: minus an estimate of the reverse KL",
            "below 0 and rising towards it.",
        ),
        "ratio.at.*": Metric(
            "nats",
            "the mean log-ratio by place in the answer (ratio.at.4: tokens 4 to 7)",
            "alike everywhere; far lower towards the end means a teacher that no longer follows the text.",
        ),
        "ratio.on.*": Metric(
            "nats",
            "the mean log-ratio by kind of token: digits, words, punctuation, space, special",
            "alike; special far below the rest means that the two models write special tokens differently.",
        ),
        "kinds.*": Metric("share", "tokens of that kind; a mean over few of them says little"),
        "advantage.negative": Metric(
            "share",
            "tokens that are learned from with a negative advantage (without one: a negative log-ratio)",
            "far from 1; near it the student is only told what not to write.",
        ),
        "advantage.cut": Metric("share", "tokens whose advantage was cut to its bound", "small."),
        "advantage.top1": Metric(
            "share",
            "what 1 % of the tokens carry of all absolute advantage",
            "even would be 0.01; the nearer to 1, the fewer tokens steer the run.",
        ),
        "advantage.top10": Metric(
            "share", "what 10 % of the tokens carry of all absolute advantage", "even would be 0.1; see advantage.top1."
        ),
        "reward.rank": Metric(
            "",
            "Spearman's correlation of the teacher's mean log-prob of an answer with its reward, over the batch",
            "above 0; at 0 or below the teacher prefers answers that are not better.",
        ),
    },
    "Hints, where a copy of the student knows more": {
        "hint.kl": Metric(
            "nats", "KL(copy that is shown an answer || student): how much a token depends on knowing it", "above 0."
        ),
        "hint.weight": Metric("", "mean weight D / (D + c) of the tokens whose copy was shown an answer", "steady."),
        "hint.faint": Metric(
            "share",
            "tokens whose divergence is below the floor",
            "well below 1; near it the model cannot read its own answers and stops learning in silence.",
        ),
        "evidence": Metric(
            "nats", "mean log-ratio of the decided token, a copy that knows the reference against the student"
        ),
        "evidence.cut": Metric(
            "share", "tokens whose factor was cut to its bounds", "some; 1 means only a sign is left."
        ),
        "contrast": Metric(
            "nats",
            "mean log-ratio of the decided token under a right hint over wrong ones",
            "near 0: most tokens do not care.",
        ),
        "contrast.selected": Metric("share", "tokens whose advantage the contrast shifts", "0.2 to 0.3 were reported."),
        "contrast.stopped": Metric(
            "share", "tokens whose shift was stopped before it turned the reward around", "few."
        ),
        "contrast.weight": Metric("", "mean weight D / (D + 1), D between right and wrong hints", "above 0."),
        "entry.cut": Metric("share", "tokens of the support whose part of the loss was cut to its bound", "few."),
        "importance.cut": Metric("share", "tokens whose weight pi(y)/mu(y) was cut to the cap", "near 0."),
    },
    "Extrapolation": {
        "lambda": Metric("", "the mean lambda that was used, per token", "what was asked for, less what was capped."),
        "lambda.limit": Metric("", "the mean of lambda*, where the teacher is surer than the base", "above lambda."),
        "lambda.beyond": Metric(
            "share",
            "tokens where lambda is beyond lambda*: there the student goes on sharpening past what weights can correct",
            "0 where a format must be kept.",
        ),
        "lambda.capped": Metric("share", "tokens where lambda was lowered to stay below lambda*"),
        "lambda.outside": Metric(
            "share",
            "tokens where the base is as sure as the teacher of the teacher's best: lambda above 1 lowers that token",
            "small; limit=cap takes 1 there.",
        ),
        "tail.saturated": Metric(
            "share",
            "of the tokens other than the teacher's best, those with q/pi >= c: too rare for weights cut at c",
            "0; it goes to 1 where lambda passes lambda*.",
        ),
    },
    "Engines": {
        "engine.gap": Metric(
            "nats",
            "|log-prob when learning - log-prob when writing| of the student's tokens, before the batch's first step",
            "0 up to rounding; more means that the model that writes is not the one that learns, or that earlier"
            " batches are replayed. Of a sampler, see sampler.gap.",
        ),
        "engine.gap.max": Metric("nats", "the largest of them", "about 0.00001 in float32."),
    },
    "Examinations, on held-out problems": {
        "eval.greedy*": Metric("", "accuracy of greedy answers with its 95 % interval, length and share cut off"),
        "eval.sampled*": Metric("", "the same of sampled answers"),
        "eval.reverse_kl": Metric("nats", "KL(student || teacher) per token on fresh samples", "falling."),
        "eval.reverse_kl.error": Metric("nats", "its standard error over problems"),
        "eval.entropy": Metric(
            "nats",
            "the student's mean entropy per token of fresh samples, at temperature 1",
            "falls towards the teacher's, not to 0.",
        ),
        "eval.entropy.error": Metric("nats", "its standard error over problems"),
    },
}
METRICS = {name: metric for group in GROUPS.values() for name, metric in group.items()}


def about(name: str) -> Metric | None:
    """What is known of a metric, of its own or of its family."""
    families = [known for known in METRICS if known.endswith("*") and name.startswith(known[:-1])]
    return METRICS.get(name) or (METRICS[max(families, key=len)] if families else None)


def sentence(name: str) -> str:
    """Meaning and what is healthy, to be read under a figure."""
    metric = about(name)
    if metric is None:
        return ""
    return f"{metric.meaning[0].upper()}{metric.meaning[1:]}." + (
        f" Healthy: {metric.healthy}" if metric.healthy else ""
    )


def document() -> str:
    """docs/metrics.md."""
    parts = [INTRODUCTION]
    for title, metrics in GROUPS.items():
        parts += ["", f"## {title}", "", "| name | unit | what it is | healthy |", "|---|---|---|---|"]
        cells = [(f"`{name}`", m.unit, m.meaning.replace("|", "\\|"), m.healthy) for name, m in metrics.items()]
        parts += [f"| {' | '.join(row)} |".replace("  ", " ") for row in cells]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(document(), end="")
