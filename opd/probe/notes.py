"""What a reader must know before believing a verdict, where the numbers give cause."""

from __future__ import annotations

from collections.abc import Iterator

from opd.probe.plan import Plan
from opd.probe.report import Report
from opd.probe.verdict import state

CUT = 0.2  # share of answers without an end from which it is worth a note
CONFOUNDED = 0.3  # correlation of length with grade from which it is


def notes(found: Report, plan: Plan) -> Iterator[str]:
    yield from of_gap(found, plan)
    if found.verdict.favoured != "SFT":
        yield from of_fit(found)
    yield from of_scores(found)


def of_gap(found: Report, plan: Plan) -> Iterator[str]:
    """Is it the student that is too small, or the text that is too little? Its loss on text that it knows says which.

    In expectation what the best student of this kind would leave lies between the gap on text that was learned from
    and the gap on text that was not.
    """
    if "left" not in (state(found.gap, plan.nats), state(found.shortfall, plan.points)):
        return
    number, more = found.gap_learned, 2 * found.problems["learned"]
    if number <= plan.nats:
        yield (
            f"On text that it learned from, the copy has closed the gap ({number:+.2f} nats): what is missing may be "
            f"text, not ability, and SFT on more of it may do as well (--problems {more})."
        )
    else:
        yield (
            f"Even on text that it learned from, {number:.2f} nats are left: a student of this kind, or this budget of "
            f"{found.steps} updates, does not get there, however much text there is."
        )


def of_fit(found: Report) -> Iterator[str]:
    best, steps = min(found.fits, key=lambda fit: fit.tuning), found.steps
    if not best.best:
        yield "No fit made new text of the teacher likelier than it was: fitted copies say little here; see --rates."
    elif best.best == steps:
        yield f"The best fit was still improving when its {steps} updates were used up; try --steps {2 * steps}."
    if not found.inside:
        yield f"The best learning rate, {best.rate:.2g}, is the outermost that was tried; see --rates."


def of_scores(found: Report) -> Iterator[str]:
    decides, partial = found.alignments[0], found.alignments[1]
    length = found.alignments[-1].within
    confounded = length is not None and abs(length.value) > CONFOUNDED
    if confounded and decides.within and decides.within.is_above and not (partial.within and partial.within.is_above):
        yield "At equal length the scores say nothing sure about the grades: what they go with may be length."
    if found.lead.is_below:
        yield "The teacher grades below the student: whichever way it is copied, grades are likely to fall."
    elif not found.lead.is_above:
        yield "That the teacher grades above the student cannot be told: there may be nothing to win."
    for who, share in found.cut.items():
        if share > CUT:
            yield f"{share:.0%} of the answers of the {who} end at the limit of tokens; give more --max-new."
