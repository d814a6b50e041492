"""Which method is better here: same start, same problems in the same order, same budget, same examination.

plan       methods, seeds and rates become trials, each the settings of one run
pool       trials as processes side by side, each in a folder of its own
outcome    what the run folders say, as tables of grades by seed and problem
verdicts   what may be concluded, in sentences
table      the same as a table of text
page       the same as a page with curves

comparison = compare(contest)    # trials that are done are left, broken ones cost nobody else
"""

from opd.compare.course import compare as compare
from opd.compare.plan import Contest as Contest
from opd.compare.plan import Entrant as Entrant
