"""`opd list`, `opd show`, `opd check`: which methods there are, what each is made of, whether it keeps the contract."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opd import recipes
from opd.cli import options
from opd.errors import MethodError, SettingError

if TYPE_CHECKING:
    from opd.contract import Anatomy
    from opd.method import Method

TOY_VOCABULARY, TOY_K = 7, 3
PAPER_ID = re.compile(r"\d{4}\.\d{4,5}")


STATUS = (
    "known: from its paper or released code; open: some details were not found; inferred: some parts are our own.\n"
    "'opd show METHOD' says which."
)


def list_(words: list[str]) -> int:
    """All methods: name, paper, status, first sentence."""
    if options.asks_help(words):
        print(
            options.page(
                ["opd list"],
                f"All methods, one line each: name, paper, how much of it is sure, what it does.\n{STATUS}",
            )
        )
        return 0
    options.no_places(options.parse(words, (), "list")[0], "list")
    found = [recipes.describe(name) for name in recipes.names()]
    rows = [(one.name, paper_id(one.paper), status(one.text), one.summary) for one in found]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1, 2)]
    for *columns, summary in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(columns, wide, strict=True)), summary, sep="  ")
    print(f"\n{STATUS}")
    return 0


def status(text: str) -> str:
    """How much of a method is sure, from the words of its docstring."""
    if "INFERRED" in text:
        return "inferred"
    return "open" if "\nUncertain:" in text else "known"


def paper_id(paper: str) -> str:
    """The arXiv number of the first paper that has one, or who wrote it."""
    found = PAPER_ID.search(paper)
    return found[0] if found else paper.rpartition('",')[2].split("(")[0].strip(" .")[:24]


def show(words: list[str]) -> int:
    """One method, taken apart."""
    if options.asks_help(words):
        text = "A method: what its docstring says, its slots, the columns and model passes of a batch, its parameters."
        print(options.page(["opd show METHOD"], text))
        return 0
    from opd import contract
    from opd.cli.wording import needed
    from opd.prompts import prompts

    name = options.one_place(options.parse(words, (), "show")[0], "method", "show")
    described = recipes.describe(name)
    print(f"{name}\n{'=' * len(name)}\n\n{described.text}\n")
    method, seen = recipes.load(name)(), contract.anatomy(toy_build(name, {}))
    print("Slots")
    table([("needs", ", ".join(needed(method, seen.passes)) or "nothing but a student and problems"), *slots(method)])
    for shown in prompts(method):
        print(f"\nAsked for {', '.join(shown.asks)}, a reader is shown ({shown.name}.txt, version {shown.version})")
        print(textwrap.indent(shown.text, "  | ", lambda line: True))
    print("\nColumns and model passes of one batch")
    table(anatomy(seen))
    print(options.listed(options.of_method(name)))
    return 0


def slots(method: Method) -> list[tuple[str, str]]:
    """The five slots of a built method, in words."""
    from opd.cli.wording import asked, worded

    lines = [("sample", worded(method.sample))]
    lines += [("teach", asked(ask)) for ask in method.teach] or [("teach", "nobody is asked")]
    lines += [("credit", worded(method.credit))]
    for name, term in method.terms.items():
        scale = "" if term.scale == 1.0 else f", times {worded(term.scale)}"
        rows = "" if term.rows == "keep" else f", over rows {term.rows!r}"
        lines += [("loss", f"{name}: {worded(term.loss)}{scale}{rows}"), ("mean", worded(term.mean))]
    epochs, parts = method.updates.epochs, method.updates.parts
    how = f" ({epochs} epochs of {parts} parts)" if epochs > 1 else ""
    lines += [("updates", f"{epochs * parts} per batch{how}")]
    lines += [("observe", ", ".join(worded(one) for one in method.observe))] if method.observe else []
    lines += [("hooks", ", ".join(worded(one) for one in method.hooks))] if method.hooks else []
    lines += [("state", ", ".join(sorted(method.state)))] if method.state else []
    lines += [(who, f"{spec}, unless --{who} says otherwise") for who, spec in method.casting.items()]
    return lines


def anatomy(seen: Anatomy) -> list[tuple[str, str]]:
    """What one batch on the toy read, wrote and cost."""
    return [
        ("read", ", ".join(seen.reads) or "none beside the built-in ones"),
        ("written", ", ".join(seen.writes) or "none"),
        ("measured", ", ".join(seen.measures)),
        *((who, f"{n} {'time' if n == 1 else 'times'}") for who, n in seen.passes.items()),
    ]


def toy_build(name: str, parameters: dict[str, Any]) -> Callable[[], Method]:
    """The recipe with a support that fits into the toy's vocabulary."""
    recipe = recipes.load(name)
    small = {p.name: TOY_K for p in recipes.describe(name).parameters if p.name == "k" and (p.default or 0) > TOY_K}
    return lambda: recipe(**{**small, **parameters})


def table(lines: Sequence[tuple[str, str]]) -> None:
    left = max(len(head) for head, _ in lines) + 4
    print("\n".join(line for head, text in lines for line in options.columns(head, text, left)))


def check(words: list[str]) -> int:
    """The contract, line by line; 1 when it is broken."""
    target = options.target_of(words)
    known = options.of_method(target) if target else []
    if options.asks_help(words):
        text = "Runs the contract on a toy in float64: one gradient under any partition, nothing poisoned, it learns."
        print(options.page([f"opd check {target or 'METHOD'} [--parameter value ...]"], text, known))
        return 0
    places, given = options.parse(words, known, f"check {target}".strip())
    name = options.one_place(places, "method", "check")

    from opd import contract
    from opd.settings import checked_parameters

    parameters = checked_parameters(name, given)
    build = toy_build(name, parameters)
    if build().support > TOY_VOCABULARY:
        got, expected = f"k={build().support}", f"at most {TOY_VOCABULARY}"
        raise SettingError("the toy's vocabulary is smaller than the support", got=got, expected=expected)
    start = time.perf_counter()
    try:
        for tried, seen in contract.check(build):
            print(f"✓ {tried}: {seen}", flush=True)
    except MethodError as error:
        print(f"✗ {error}")
        return 1
    print(f"{name} keeps the contract ({time.perf_counter() - start:.1f} s)")
    return 0
