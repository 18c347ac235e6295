"""Order by hashing and the plan of rows: pure functions, exact shares, every question once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmframe.data.order import hash64, permutation, systematic_counts, uniform
from mmframe.data.records import Record
from mmframe.data.rows import SourcePlan
from mmframe.errors import UserError


def records(answers: list[list[str]], wording: str = "q{q}") -> list[Record]:
    return [
        Record(f"r{r}", (Path("x"),), None, tuple((wording.format(q=q), a) for q, a in enumerate(row)))
        for r, row in enumerate(answers)
    ]


def rows_of(plan: SourcePlan, passed: int = 0) -> list[tuple[int, tuple[int, ...]]]:
    return [plan.row(passed, place) for place in range(plan.num_rows)]


def test_hash_is_the_same_on_every_machine() -> None:
    assert hash64(3, 7, 0).tolist() == [679864316719078211, 10221096115935525395, 4978547874147398127]
    assert permutation(8, 1, 2).tolist() == [1, 3, 4, 0, 7, 6, 5, 2]
    assert 0 <= uniform(3, 4) < 1 and uniform(3, 4) != uniform(3, 5)


def test_permutations_are_permutations_and_depend_on_every_part_of_the_key() -> None:
    seen = [tuple(permutation(50, *key)) for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]]
    assert all(sorted(order) == list(range(50)) for order in seen)
    assert len(set(seen)) == len(seen)


def test_places_are_uniform() -> None:
    firsts = Counter(int(permutation(10, seed, 5)[0]) for seed in range(2000))
    assert all(140 < firsts[i] < 260 for i in range(10))


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.999])
def test_systematic_counts_are_exact_shares(offset: float) -> None:
    weights = np.array([1, 1, 2, 4, 0, 8.0])
    counts = systematic_counts(weights, 100, offset)
    assert counts.sum() == 100
    assert (np.abs(counts - 100 * weights / weights.sum()) < 1).all()


def test_every_question_is_asked_once_a_pass() -> None:
    plan = SourcePlan(records([["a"] * n for n in (1, 2, 3, 7, 10)]), per_row=3)
    assert plan.num_rows == 1 + 1 + 1 + 3 + 4
    for passed in range(3):
        rows = rows_of(plan, passed)
        every = [(r, q) for r, n in enumerate((1, 2, 3, 7, 10)) for q in range(n)]
        assert sorted((r, q) for r, qs in rows for q in qs) == every
        assert max(len(qs) for _, qs in rows) <= 3
        assert {len(qs) for r, qs in rows if r == 4} == {2, 3}  # dealt evenly: 3 3 2 2
    assert rows_of(plan, 0) != rows_of(plan, 1)


def test_a_plan_depends_on_seed_and_pass_alone() -> None:
    made = records([["a", "b", "c"]] * 9)
    plan, again = SourcePlan(made, 2, seed=3), SourcePlan(made, 2, seed=3)
    backwards = [rows_of(again, passed) for passed in (2, 1, 0)]
    assert [rows_of(plan, passed) for passed in (0, 1, 2)] == backwards[::-1]
    assert rows_of(SourcePlan(made, 2, seed=4)) != rows_of(plan)
    assert rows_of(SourcePlan(made, 2, seed=3, stream=1)) != rows_of(plan)


def test_without_shuffling_the_order_is_the_file_s() -> None:
    plan = SourcePlan(records([["a", "b", "c"]] * 2), per_row=2, shuffle=False)
    assert rows_of(plan, 0) == rows_of(plan, 5) == [(0, (0, 1)), (0, (2,)), (1, (0, 1)), (1, (2,))]


def test_a_conversation_is_one_row() -> None:
    plan = SourcePlan([Record("c", (), ({"from": "human", "value": "x"},), ())] * 3)
    assert sorted(rows_of(plan)) == [(0, ()), (1, ()), (2, ())]


def drawn_answers(plan: SourcePlan, made: list[Record], passed: int) -> Counter:
    return Counter(made[r].questions[q][1] for r, qs in plan._rows(passed) for q in qs)


def test_balance_by_answer_is_exact() -> None:
    made = records([["yes"] * 6 + ["no"] * 3 + ["red"]] * 30)
    plan = SourcePlan(made, per_row=3, balance="answer")
    for passed in range(3):
        assert drawn_answers(plan, made, passed) == {"yes": 100, "no": 100, "red": 100}
    twice = Counter((r, q) for r, qs in plan._rows(0) for q in qs)
    assert max(twice.values()) > 1  # the rare answer is asked more than once


def test_balance_by_question_makes_the_wording_worthless() -> None:
    made = records([["yes", "red"]] * 40 + [["no", "red"]] * 10)
    plan = SourcePlan(made, balance="question")
    assert drawn_answers(plan, made, 0) == {"yes": 25, "no": 25, "red": 50}


def test_conversations_come_once_whatever_the_balance() -> None:
    talk = Record("c", (), ({"from": "human", "value": "x"},), ())
    made = [*records([["yes"] * 9 + ["no"]] * 4), talk, talk]
    rows = SourcePlan(made, per_row=2, balance="answer")._rows(0)
    assert [row for row in rows if not row[1]] == [(4, ()), (5, ())]
    assert Counter(made[r].questions[q][1] for r, qs in rows for q in qs) == {"yes": 20, "no": 20}
    assert SourcePlan([talk, talk], balance="answer").num_rows == 2


def test_a_repeated_question_falls_into_another_row() -> None:
    made = records([["a", "b", "b", "b"]])
    for passed in range(5):
        for _, questions in SourcePlan(made, per_row=3, balance="answer")._rows(passed):
            assert len(set(questions)) == len(questions)


def test_bad_settings_are_errors() -> None:
    with pytest.raises(UserError, match="balance='answers'"):
        SourcePlan(records([["a"]]), balance="answers")
    with pytest.raises(UserError, match="questions_per_image=0"):
        SourcePlan(records([["a"]]), per_row=0)
    with pytest.raises(UserError, match="no questions are left"):
        SourcePlan([])
