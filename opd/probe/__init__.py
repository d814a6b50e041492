"""Can this student be its teacher at all, and which of SFT, OPD or neither is worth paying for? `probe` measures it.

plan.py        how much is looked at; which problem serves for what
texts.py       graded answers, and how likely student and teacher find them
fit.py         a copy of the student learns the teacher's text, at several rates
alignment.py   do the teacher's scores of the student's own answers go with their grades
verdict.py     what these numbers favour
report.py      all of it together
notes.py       what a reader must know before believing it
course.py      a probe from beginning to end
"""

from opd.probe.course import probe as probe
from opd.probe.plan import Plan as Plan
from opd.probe.report import Report as Report
