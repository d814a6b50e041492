// Draws the marked-up drafts: filter, sort, the worst words, and what both models thought of the word that is pointed at.
// Every text becomes a text node, so that whatever a model wrote stays text.
(() => {
  "use strict";
  const { marks: DATA, said: NAMES } = JSON.parse(document.getElementById("data").textContent);
  if (!DATA) return;
  const PAGE = 8, WORST = 8, STRONG = 0.5, EDGES = [0.05, 0.2, 0.5, 1, 2, 4];
  const WORD = 0, STUDENT = 1, TEACHER = 2, OBJECTION = 3, TOP = 4, OWN = 5; // places in a token, see marks.py
  const [form, host, more, tip] = ["controls", "problems", "more", "tip"].map((id) => document.getElementById(id));
  const written = (token) => DATA.words[token[WORD]];
  const problems = DATA.problems.map((problem, number) => ({ ...problem, number, text: searchable(problem) }));
  let room = PAGE, pinned = null;

  function make(name, className, ...content) {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(...content);
    return element;
  }

  /** One of our own texts as it fits the task: a policy writes no drafts, see words.py. */
  const said = (text) => text.replace(/[A-Za-z]+/g, (word) => (NAMES[word.toLowerCase()] ? like(word, NAMES[word.toLowerCase()]) : word));
  const like = (before, word) => (/^[A-Z]/.test(before) ? word[0].toUpperCase() + word.slice(1) : word);

  // ---- words

  const isSpecial = (text) => /^<[^<>\s]+>$/.test(text);
  const nats = (token) => (token[OBJECTION] === null ? Infinity : token[OBJECTION]);
  const level = (token) => EDGES.filter((edge) => nats(token) >= edge).length;
  const percent = (p) => (p === null || p <= 0 ? "0%" : p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(p < 0.0995 || p > 0.995 ? 1 : 0)}%`.replace(".0%", "%"));
  const number = (value) => (value === Infinity ? "∞" : value.toFixed(2));

  /** A text whose spaces, breaks and control characters can be seen. */
  function visible(text, breaks = false) {
    const out = document.createDocumentFragment();
    if (text === "") return make("span", "blank", "(empty)");
    if (isSpecial(text)) return make("span", "special", text);
    for (const [part] of text.matchAll(/[\s\p{C}]|[^\s\p{C}]+/gu)) {
      const sign = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" }[part];
      if (sign) out.append(make("span", "blank", sign));
      else if (/^[\s\p{C}]$/u.test(part)) out.append(make("span", "blank", `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`));
      else out.append(part);
      if (part === "\n" && breaks) out.append(make("br"));
    }
    return out;
  }

  /** What the teacher would have written, where it objects and would have written something else. */
  function preferred(token) {
    if (!token[TOP] || nats(token) < STRONG || token[TOP][0] === token[WORD]) return null;
    return token[TOP][1] > Math.exp(token[TEACHER] ?? -Infinity) ? DATA.words[token[TOP][0]] : null;
  }

  function word(token, place) {
    const instead = preferred(token);
    const text = written(token), isShort = text.length < 16 && !text.includes("\n");
    const element = make(instead === null ? "span" : "ruby", `t k${level(token)}${isShort ? " short" : ""}`, visible(text, instead === null));
    element.tabIndex = place === 0 ? 0 : -1;
    element.dataset.place = place;
    if (instead === null) return [element];
    element.append(make("rt", "", visible(instead))); // lines don't break inside a ruby, so they break after it
    return [element, ...Array.from(text.matchAll(/\n/g), () => make("br"))];
  }

  // ---- problems

  const latest = (problem) => problem.sides[problem.sides.length - 1] ?? problem.sides[0];
  const isRight = (side) => (side && side.reward !== null ? side.reward >= 1 : null);
  const worstOf = (side) => (side ? Math.max(0, ...side.tokens.map(nats)) : 0);
  const title = (at) => (at === 0 ? (DATA.steps[0] === 0 ? "Before training" : `After ${DATA.steps[0]} steps`) : `After ${DATA.steps[at]} steps`);

  function searchable(problem) {
    const texts = problem.sides.map((side) => (side ? side.tokens.map(written).join("") : ""));
    return [problem.id, problem.prompt, problem.expected ?? "", ...texts].join("\n").toLowerCase();
  }

  function grade(side) {
    const right = isRight(side);
    if (right === null) return make("span", "", "not graded");
    if (!right && side.reward > 0) return make("span", "grade", `grade ${side.reward}`);
    return make("span", right ? "grade is-right" : "grade", said(right ? "right" : "wrong"));
  }

  function drawSide(problem, side, at) {
    if (!side) return make("div", "side", make("h4", "", title(at)), make("p", "nothing", said("Nothing was written.")));
    const mean = side.tokens.reduce((sum, token) => sum + nats(token), 0) / side.tokens.length;
    const cut = side.end === "length" ? [make("span", "", "cut off")] : [];
    const text = make("div", "text", ...side.tokens.flatMap(word));
    text.dataset.problem = problem.number;
    text.dataset.side = at;
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", `${title(at)}. ${said("Arrow keys walk from word to word.")}`);
    return make("div", "side", make("h4", "", make("span", "", title(at)), grade(side), ...cut, make("span", "", `${number(mean)} ${said("nats per token")}`)), text);
  }

  function drawProblem(problem) {
    const expected = problem.expected === null ? [] : [make("span", "expected", "expected ", make("b", "", problem.expected))];
    const question = make("div", "question", make("div", "prompt", problem.prompt), ...expected);
    const element = make("article", "problem", question, make("div", "sides", ...problem.sides.map((side, at) => drawSide(problem, side, at))));
    element.id = `draft-${problem.number}`;
    return element;
  }

  // ---- filter and sort

  const KEEP = {
    all: () => true,
    wrong: (problem) => isRight(latest(problem)) === false,
    right: (problem) => isRight(latest(problem)) === true,
    changed: (problem) => isRight(problem.sides[0]) !== isRight(latest(problem)),
  };

  function chosen() {
    const text = form.text.value.trim().toLowerCase(), side = form.sort.value === "before" ? (problem) => problem.sides[0] : latest;
    const kept = problems.filter((problem) => KEEP[form.show.value](problem) && problem.text.includes(text));
    return form.sort.value === "task" ? kept : kept.sort((a, b) => worstOf(side(b)) - worstOf(side(a)) || a.number - b.number);
  }

  function draw() {
    hide();
    const kept = chosen(), shown = kept.slice(0, room);
    host.replaceChildren(...(kept.length ? shown.map(drawProblem) : [make("p", "nothing", said("No draft fits."))]));
    form.count.textContent = `${kept.length} of ${problems.length} ${said("drafts")}`;
    more.hidden = shown.length === kept.length;
    more.textContent = `Show all ${kept.length}`;
  }

  // ---- the worst words

  function drawWorst() {
    const lists = DATA.steps.map((_, at) => {
      const all = problems.flatMap((problem) => (problem.sides[at]?.tokens ?? []).map((token, place) => ({ problem, at, place, token })));
      const worst = all.filter((one) => nats(one.token) >= STRONG).sort((a, b) => nats(b.token) - nats(a.token)).slice(0, WORST);
      const items = worst.map((one) => make("li", "", worstItem(one)));
      const heads = make("div", "heads", ...["written", "the teacher wanted", "nats"].map((name) => make("span", "", said(name))));
      const list = items.length ? [heads, make("ol", "", ...items)] : [make("p", "quiet", "The teacher objected to nothing.")];
      return make("div", "", make("h3", "", `Most objected to, ${title(at)[0].toLowerCase()}${title(at).slice(1)}`), ...list);
    });
    document.getElementById("worst").replaceChildren(...lists);
  }

  /** Where the teacher would have written the same: the student was only too unsure of it. */
  const likewise = (token) => (token[TOP] && token[TOP][0] === token[WORD] ? [make("span", "same", `the same, ${percent(token[TOP][1])}`)] : []);

  function worstItem({ problem, at, place, token }) {
    const tokens = problem.sides[at].tokens, instead = preferred(token);
    const start = Math.max(0, place - 6), before = tokens.slice(start, place).map(written).join("");
    const after = tokens.slice(place + 1, place + 6).map(written).join("");
    const line = make("span", "place", start ? "… " : "", before, make("span", `t k${level(token)}`, visible(written(token))), after);
    const wanted = make("span", "wanted", ...(instead === null ? likewise(token) : [visible(instead), make("small", "", percent(token[TOP][1]))]));
    const button = make("button", "", line, wanted, make("span", "nats", number(nats(token))));
    button.type = "button";
    button.addEventListener("click", () => go(problem, at, place));
    return button;
  }

  /** Scrolls to a word and says what was thought of it; filters that hide its draft are lifted. */
  function go(problem, at, place) {
    const shown = chosen().slice(0, room);
    if (!shown.includes(problem)) {
      if (!chosen().includes(problem)) form.reset();
      room = problems.length;
      draw();
    }
    const element = host.querySelector(`[data-problem="${problem.number}"][data-side="${at}"] [data-place="${place}"]`);
    element.closest(".problem").scrollIntoView({ block: "center" });
    select(element);
  }

  // ---- what both thought of a word

  function tokenOf(element) {
    const text = element.closest(".text");
    return problems[text.dataset.problem].sides[text.dataset.side].tokens[element.dataset.place];
  }

  function options(who, heading, list, token, logprob) {
    const rows = [];
    for (let at = 0; at < list.length; at += 2) {
      if (at && list[at + 1] < 0.0005) continue;
      const row = make("div", "option", make("span", "word", visible(DATA.words[list[at]])), make("span", "", percent(list[at + 1])));
      row.style.setProperty("--share", list[at + 1]);
      if (list[at] === token[WORD]) row.classList.add("is-written");
      rows.push(row);
    }
    const named = rows.some((row) => row.classList.contains("is-written"));
    const p = logprob === null ? 0 : Math.exp(logprob);
    const rest = named ? [] : [make("div", "rest", said("what was written: "), percent(p))];
    return make("div", `of-${who}`, make("h5", "", heading), ...rows, ...rest);
  }

  function fill(token) {
    const unit = DATA.measure === "kl" ? "nats of reverse KL" : "nats of log-ratio";
    const head = make("div", "head", make("b", "", visible(written(token))), make("span", "", `${number(nats(token))} ${unit}`));
    if (token[TOP]) {
      const teacher = options("teacher", said("Teacher would write"), token[TOP], token, token[TEACHER]);
      const student = options("student", said("Student would write"), token[OWN], token, token[STUDENT]);
      tip.replaceChildren(head, make("div", "lists", teacher, student));
    } else {
      const [p, q] = [token[TEACHER], token[STUDENT]].map((logprob) => percent(logprob === null ? 0 : Math.exp(logprob)));
      tip.replaceChildren(head, make("div", "rest", `Teacher gives it ${p}, student ${q}.`));
    }
  }

  function show(element) {
    hide();
    fill(tokenOf(element));
    element.classList.add("is-shown");
    tip.hidden = false;
    const word = element.getClientRects()[0] ?? element.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const left = Math.max(12, Math.min(word.left - 24, innerWidth - box.width - 12));
    const below = word.bottom + 10 + box.height < innerHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${below ? word.bottom + 10 : Math.max(8, word.top - box.height - 22)}px`;
  }

  function hide() {
    document.querySelectorAll(".t.is-shown").forEach((each) => each.classList.remove("is-shown"));
    tip.hidden = true;
  }

  /** Makes a word the one that Tab finds, and keeps its box open. */
  function select(element) {
    element.closest(".text").querySelectorAll('.t[tabindex="0"]').forEach((each) => { each.tabIndex = -1; });
    element.tabIndex = 0;
    pinned = element;
    element.focus({ preventScroll: true });
    show(element);
  }

  const wordOf = (target) => (target instanceof Element ? target.closest(".text .t") : null);

  host.addEventListener("pointerover", (event) => {
    const element = wordOf(event.target);
    if (element && event.pointerType === "mouse") show(element);
    else if (pinned?.isConnected) show(pinned);
    else if (event.pointerType === "mouse") hide();
  });
  host.addEventListener("pointerleave", () => (pinned?.isConnected ? show(pinned) : hide()));
  host.addEventListener("focusin", (event) => { const element = wordOf(event.target); if (element) { pinned = element; show(element); } });
  host.addEventListener("focusout", () => { pinned = null; hide(); });
  document.addEventListener("click", (event) => {
    const element = wordOf(event.target);
    if (element) select(element);
    else if (!event.target.closest("button")) { pinned = null; hide(); }
  });
  host.addEventListener("keydown", (event) => {
    const element = wordOf(event.target);
    if (!element) return;
    const all = [...element.closest(".text").querySelectorAll(".t")], at = all.indexOf(element);
    const next = { ArrowRight: all[at + 1], ArrowLeft: all[at - 1], Home: all[0], End: all[all.length - 1] }[event.key];
    if (next) { event.preventDefault(); select(next); }
    if (event.key === "Escape") hide();
  });
  addEventListener("scroll", () => { if (!tip.hidden) pinned?.isConnected ? show(pinned) : hide(); }, { passive: true });
  form.addEventListener("input", () => { room = PAGE; draw(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { room = problems.length; draw(); });
  addEventListener("beforeprint", () => { hide(); });

  drawWorst();
  draw();
})();
