"""Tasks: what loads, what is said about what does not, and that no problem is on both sides."""

import json
import random

import pytest

from opd.errors import DataError, SettingError
from opd.tasks import load_task, parse


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def only(path, row):
    """The problem that a file of one row gives."""
    return load_task(f"jsonl:{write(path / 'one.jsonl', row)}").train[0]


def ids(problems):
    return [problem.id for problem in problems]


# ---- the spec


def test_spec_is_kind_target_and_typed_options():
    spec = "jsonl:a,b.jsonl,train=3,held_out=x=1.jsonl,rate=.5,on=true,grader=m:f"
    options = {"train": 3, "held_out": "x=1.jsonl", "rate": 0.5, "on": True, "grader": "m:f"}
    assert parse(spec) == ("jsonl", "a,b.jsonl", options)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("jsnl:x", "Did you mean 'jsonl'?"),
        ("data/x.jsonl", "Did you mean 'jsonl:data/x.jsonl'?"),
        ("sums,trian=3", "Did you mean 'train'?"),
        ("sums,train=-1", "got -1, expected a whole number from 0"),
        ("sums,train=many", "got 'many'"),
        ("sums,seed=0.5", "got 0.5"),
        ("sums,train=1,train=2", "given twice"),
        ("sums:x", "takes options only"),
        ("jsonl", "Write jsonl:FILE"),
        ("sums,grader=exakt", "Did you mean 'exact'?"),
    ],
)
def test_a_wrong_spec_is_a_setting_error_with_a_remedy(spec, says):
    with pytest.raises(SettingError) as error:
        load_task(spec)
    assert says in str(error.value)


# ---- the embedded task


def test_the_embedded_task_has_256_and_512_problems_that_never_meet():
    task = load_task("sums")
    assert (len(task.train), len(task.held_out)) == (256, 512)
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.held_out}
    assert load_task("sums,train=5,held_out=2").train == task.train[:5]
    assert load_task("sums,train=5", train=6).train == task.train[:6]
    assert load_task("sums,seed=1").train != task.train


def test_the_embedded_task_grades_the_last_number():
    task = load_task("sums,train=1,held_out=1")
    problem = task.train[0]
    assert problem.answer is not None
    assert task.grade(problem, problem.privileged_context) == 1.0
    assert task.grade(problem, f"{problem.answer}, 100") == 0.0
    assert load_task("sums,train=1,held_out=1,grader=none").grade(problem, problem.answer) is None


# ---- files: what loads


def test_every_alias_of_a_column_is_read(tmp_path):
    for name in ("prompt", "question", "problem", "query", "input"):
        assert only(tmp_path, {name: "q"}).prompt == "q"
    for row in (
        {"answer": 7},
        {"solution": "7"},
        {"label": "7"},
        {"reward_model": {"style": "rule", "ground_truth": "7"}},
        {"extra_info": {"answer": "7"}},
        {"answer": None, "label": "7"},
        {"answer": "7", "solution": "because"},
    ):
        assert only(tmp_path, {"prompt": "q", **row}).answer == "7", row
    for name in ("privileged_context", "teacher_prompt"):
        assert only(tmp_path, {"prompt": "q", name: "hint"}).privileged_context == "hint"
    for row in (
        {"teacher_id": "math"},
        {"data_source": "math"},
        {"metadata": {"opd_teacher": "math"}},
        {"teacher_id": "math", "data_source": "other"},
    ):
        assert only(tmp_path, {"prompt": "q", **row}).data["teacher_id"] == "math", row


def test_other_columns_are_kept_for_the_grader_and_nothing_is_invented(tmp_path):
    problem = only(tmp_path, {"prompt": "q", "answer": "", "extra_info": {"index": 3}, "tests": ["t"]})
    assert problem.data == {"extra_info": {"index": 3}, "tests": ["t"]}
    assert problem.answer is None and problem.privileged_context is None


def test_the_users_own_column_names(tmp_path):
    path = write(tmp_path / "own.jsonl", {"q": "a", "gold": "b", "demo": "c", "prompt": "no"})
    problem = load_task(f"jsonl:{path},input_key=q,label_key=gold,teacher_input_key=demo").train[0]
    assert (problem.prompt, problem.answer, problem.privileged_context) == ("a", "b", "c")


def test_a_last_assistant_message_is_the_answer(tmp_path):
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    problem = only(tmp_path, {"messages": [*asked, {"role": "assistant", "content": "7", "name": None}]})
    assert problem.messages == tuple(asked) and problem.answer == "7"
    assert only(tmp_path, {"prompt": asked}).messages == tuple(asked)


def test_parquet_gives_the_same_problems_as_jsonl(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"prompt": [{"role": "user", "content": f"q{i}"}], "reward_model": {"ground_truth": str(i)}, "data_source": "d"}
        for i in range(30)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    ours, theirs = load_task(f"parquet:{tmp_path}/x.parquet"), load_task(f"jsonl:{write(tmp_path / 'x.jsonl', *rows)}")
    assert (ours.train, ours.held_out) == (theirs.train, theirs.held_out)


# ---- files: who is held out


def test_the_split_and_the_ids_do_not_depend_on_the_order(tmp_path):
    rows = [{"prompt": f"question {i}", "answer": i} for i in range(1000)]
    task = load_task(f"jsonl:{write(tmp_path / 'a.jsonl', *rows)}")
    random.Random(0).shuffle(rows)
    mixed = load_task(f"jsonl:{write(tmp_path / 'b.jsonl', *rows)}")
    assert set(ids(task.held_out)) == set(ids(mixed.held_out)) and set(ids(task.train)) == set(ids(mixed.train))
    assert 70 <= len(task.held_out) <= 130
    assert len({*ids(task.train), *ids(task.held_out)}) == 1000
    assert set(ids(load_task(f"jsonl:{tmp_path}/a.jsonl,seed=1").held_out)) != set(ids(task.held_out))


def test_counts_are_kept_and_a_growing_file_moves_nobody(tmp_path):
    rows = [{"prompt": f"question {i}"} for i in range(5600)]
    path = write(tmp_path / "a.jsonl", *rows)
    task = load_task(f"jsonl:{path}")
    assert len(task.held_out) == 512
    small = load_task(f"jsonl:{path},held_out=7,train=11")
    assert (len(small.held_out), ids(small.train)) == (7, ids(load_task(f"jsonl:{path},held_out=7").train)[:11])
    half = load_task(f"jsonl:{write(tmp_path / 'b.jsonl', *rows[:3000])}")
    assert not set(ids(half.train)) & set(ids(task.held_out))
    assert ids(load_task(f"jsonl:{path},held_out=7,seed=1").held_out) != ids(small.held_out)
    assert len(load_task(f"jsonl:{write(tmp_path / 'c.jsonl', *rows[:2])}").held_out) == 1


def test_a_prompt_that_occurs_twice_is_kept_once_and_counted(tmp_path):
    message = [{"role": "user", "content": "p1"}]
    rows = [{"prompt": f"p{i % 50}", "answer": i % 50} for i in range(100)] + [{"prompt": message, "answer": "other"}]
    task = load_task(f"jsonl:{write(tmp_path / 'a.jsonl', *rows)},held_out=10")
    assert (len(task.train), len(task.held_out)) == (40, 10)
    assert not set(ids(task.train)) & set(ids(task.held_out))
    assert len(task.notes) == 1 and "51 rows" in task.notes[0] and "(1 with another answer)" in task.notes[0]


def test_a_second_file_is_held_out_and_taken_from_train(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"prompt": f"p{i}"} for i in range(10)))
    exam = write(tmp_path / "b.jsonl", *({"prompt": f"p{i}"} for i in range(8, 12)))
    task = load_task(f"jsonl:{path},held_out={exam}")
    assert (len(task.train), len(task.held_out)) == (8, 4)
    assert "2 problems" in task.notes[0]
    with pytest.raises(DataError, match="every problem"):
        load_task(f"jsonl:{path},held_out={path}")


# ---- files: what is said about the others


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"prompt": "a"}', '{"prompt": "b",}'], ["x.jsonl line 2 is not valid JSON", "column"]),
        (['{"prompt": "a"}', "", "[1]"], ["line 3 is not an object", "got a list"]),
        ([], ["holds no problem"]),
        (["", " "], ["holds no problem"]),
        (['{"text": "a", "id": 1}'], ["line 1 has no prompt", "['id', 'text']", "prompt, messages, question"]),
        (['{"prompt": " "}'], ["line 1, column 'prompt' is empty"]),
        (['{"prompt": null}'], ["column 'prompt' is empty"]),
        (['{"messages": []}'], ["column 'messages' is empty"]),
        (['{"prompt": 3}'], ["got a number", "text or a list"]),
        (['{"prompt": ["a"]}'], ["message 1 is no message", "got text"]),
        (['{"prompt": [{"content": "a"}]}'], ["message 1 has no role"]),
        (['{"prompt": [{"role": "user", "content": [1]}]}'], ["has no content", "got a list"]),
        (['{"messages": [{"role": "assistant", "content": "a"}]}'], ["holds only an answer"]),
        (['{"prompt": "a", "answer": [1]}'], ["column 'answer' has the wrong type", "got a list", "label_key="]),
        (['{"prompt": "a", "teacher_prompt": {}}'], ["column 'teacher_prompt'", "got an object"]),
    ],
)
def test_a_broken_file_is_a_data_error_that_says_where(tmp_path, lines, says):
    with pytest.raises(DataError) as error:
        load_task(f"jsonl:{write(tmp_path / 'x.jsonl', *lines)}")
    assert all(words in str(error.value) for words in says), error.value
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_of_another_kind(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        load_task(f"jsonl:{tmp_path}/none.jsonl")
    with pytest.raises(DataError, match="a folder"):
        load_task(f"jsonl:{tmp_path}")
    with pytest.raises(DataError, match="can't be read as parquet"):
        load_task(f"parquet:{write(tmp_path / 'x.parquet', {'prompt': 'a'})}")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    with pytest.raises(DataError, match=r"latin.jsonl line 2 is not UTF-8"):
        load_task(f"jsonl:{tmp_path}/latin.jsonl")


def test_counts_that_a_file_can_not_give(tmp_path):
    path = write(tmp_path / "x.jsonl", *({"prompt": f"p{i}"} for i in range(5)))
    with pytest.raises(SettingError, match="leaves nothing to learn from"):
        load_task(f"jsonl:{path},held_out=5")
    with pytest.raises(SettingError, match="asks too much"):
        load_task(f"jsonl:{path},held_out=2,train=4")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = write(tmp_path / "x.parquet", {"prompt": "a"})
    for spec in (f"parquet:{path}", "reasoning_gym:chain_sum", "sums,grader=math_verify"):
        with pytest.raises(SettingError, match=r"pip install opd\[tasks\]"):
            load_task(spec)


# ---- reasoning_gym


def test_generated_questions_never_overlap_and_are_reproducible():
    pytest.importorskip("reasoning_gym")
    spec = "reasoning_gym:basic_arithmetic,min_terms=2,max_terms=2,max_digits=1,min_digits=1,held_out=50"
    task = load_task(f"{spec},train=60")
    questions = [p.data["entry"]["question"] for p in (*task.train, *task.held_out)]
    assert (len(task.train), len(task.held_out), len(set(questions))) == (60, 50, 110)
    longer = load_task(f"{spec},train=70")
    assert longer.held_out == task.held_out and longer.train[:60] == task.train
    assert set(ids(load_task(f"{spec},train=60,seed=1").train)) != set(ids(task.train))


def test_a_generator_without_enough_questions_says_so():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(DataError, match="too few different questions"):
        load_task("reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1,train=2000")


def test_the_scorer_gets_the_bare_answer():
    pytest.importorskip("reasoning_gym")
    task = load_task("reasoning_gym:chain_sum,train=3,held_out=1")
    problem = task.train[0]
    right = problem.answer
    assert "<answer>" in problem.prompt
    assert "<answer>" not in load_task("reasoning_gym:chain_sum,train=1,held_out=1,tags=false").train[0].prompt
    for text in (f"<answer> {right} </answer> so", f"first this\n{right}", f"{right}\n", f"<think>5</think>{right}"):
        assert task.grade(problem, text) == 1.0, text
    assert task.grade(problem, f"<answer>{right}</answer> no: <answer>x</answer>") < 0.1


def test_a_scorer_that_breaks_is_counted():
    pytest.importorskip("reasoning_gym")
    task = load_task("reasoning_gym:prime_factorization,train=1,held_out=1")
    assert task.grade(task.train[0], "hello world") == 0.0
    assert task.errors == {"ValueError in the scorer": 1}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("chainsum", "Did you mean 'chain_sum'?"),
        ("chain_sum,min_term=2", "Did you mean 'min_terms'?"),
        ("chain_sum,min_terms=9", "max_terms must be >= min_terms"),
        ("chain_sum,min_terms=abc", "refuses its options"),
    ],
)
def test_a_wrong_generator_is_a_setting_error(spec, says):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(SettingError) as error:
        load_task(f"reasoning_gym:{spec}")
    assert says in str(error.value)
