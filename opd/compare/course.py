"""The course of a comparison: check, tune, run, look, write down."""

from __future__ import annotations

import json

from opd import report
from opd.checkpoint import write_text
from opd.compare import check, page, verdicts
from opd.compare.comparison import Comparison
from opd.compare.outcome import Difference, Field, Line, Measure, Ran, look
from opd.compare.plan import Contest, Trial
from opd.compare.pool import Onlooker, Pool, is_finished
from opd.compare.tuning import Tried, better, choose, outward, rates
from opd.run import Stopped


def compare(contest: Contest, jobs: int, onlooker: Onlooker) -> Comparison:
    """Runs whatever is not done yet and writes comparison.json and comparison.html; raises Stopped after Ctrl-C."""
    aside = check.check(contest)
    check.check_folders([*contest.tuning(aside), *possible(contest, aside)])
    contest.out.mkdir(parents=True, exist_ok=True)
    tried = choose(tuned(contest, aside, jobs, onlooker), contest.goal)
    own = rates(tried) if contest.rates else {e.label: contest.settings(e).lr for e in contest.entrants}
    field = Field(tuple(finish(contest.reported(own, aside), jobs, onlooker)))
    comparison = concluded(contest, field, tried, aside)
    write(comparison)
    return comparison


def possible(contest: Contest, aside: int) -> list[Trial]:
    """Every further trial that the first could lead to."""
    grid = contest.reachable_rates or (contest.settings(contest.entrants[0]).lr,)
    reported = [t for rate in grid for t in contest.reported({e.label: rate for e in contest.entrants}, aside)]
    tuning = contest.tuning_again({e.label: list(contest.reachable_rates) for e in contest.entrants}, aside)
    return [*tuning, *reported]


def tuned(contest: Contest, aside: int, jobs: int, onlooker: Onlooker) -> list[Ran]:
    """Every rate with one seed, and further ones; where there are more tuning seeds, the better with all of them."""
    first = finish(contest.tuning(aside), jobs, onlooker)
    for _ in range(contest.further_rates):
        first += finish(contest.tuning_further(outward(first, contest.goal), aside), jobs, onlooker)
    return [*first, *finish(contest.tuning_again(better(first, contest.goal), aside), jobs, onlooker)]


def finish(trials: list[Trial], jobs: int, onlooker: Onlooker) -> list[Ran]:
    """Brings trials to their end, and looks at them."""
    pool = Pool(jobs, onlooker)
    pool.run(trials)
    if pool.stopping:
        raise Stopped
    return [look(trial, pool.errors) for trial in trials]


def concluded(contest: Contest, field: Field, tried: list[Tried], aside: int) -> Comparison:
    lines = [field.line(label) for label in field.labels]
    for label in (entrant.label for entrant in contest.entrants if entrant.label not in field.labels):
        errors = tuple(f"lr {one.lr:g}: {one.error}" for one in tried if one.label == label)
        lines.append(Line("method", label, {}, errors=errors))
    order = [entrant.label for entrant in contest.entrants]
    lines.sort(key=lambda line: order.index(line.label))
    before, teacher = field.examined(field.before()), field.examined(field.teacher())
    lines = [Line("before", "student before", before), *lines] if before else lines
    lines = [*lines, Line("teacher", "teacher", teacher)] if teacher else lines
    return Comparison(
        contest, field, lines, tried, aside, differences(contest, field),
        verdicts.verdicts(contest, field), verdicts.notes(contest, field),
    )  # fmt: skip


def differences(contest: Contest, field: Field) -> list[Difference]:
    """Every other method against the baseline."""
    measures: tuple[Measure, ...] = ("sampled", "greedy", "return", "reverse_kl")
    reference = contest.reference.label
    found = [field.difference(e, reference, m) for e in field.labels if e != reference for m in measures]
    return [one for one in found if one]


def write(comparison: Comparison) -> None:
    """comparison.json, the page of every finished run that has none, and comparison.html."""
    out = comparison.contest.out
    write_text(out / "comparison.json", json.dumps(comparison.to_json(), indent=1))
    for run in comparison.field.runs:
        if is_finished(run.trial) and not (run.trial.folder / "report.html").is_file():
            report.write(run.trial.folder)
    write_text(out / "comparison.html", page.render(comparison))
