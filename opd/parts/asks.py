"""What the teacher is asked about tokens that the student names: K numbers a token instead of whole distributions."""

from __future__ import annotations

from opd.method import Ask, View, plain
from opd.protocols import Want

OWN = "own"  # the student's distributions at the start of the batch


def about_own_best(k: int, view: View = plain, chosen: bool = False) -> tuple[Ask, Ask]:
    """The teacher about the student's K best tokens of the start of the batch, and the student about which these are.

    To a loss the teacher's answer is its best K: a support with source "teacher" is the student's then. chosen: the
    decided token's log-prob is needed, too.
    """
    return Ask("teacher", "teacher", Want(gather=f"{OWN}.ids", chosen=chosen), view), Ask(OWN, "student", Want(topk=k))
