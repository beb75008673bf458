import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlrun.difference import first_difference, first_row_difference, num_tensors, rows


def test_equal_values_have_no_difference() -> None:
    nan = float("nan")
    value = {"a": [1, (2.0, None)], "w": torch.tensor([1.0, nan]), "n": nan, "e": torch.empty(0), "s": torch.tensor(1)}
    other = {"a": [1, (2.0, None)], "w": torch.tensor([1.0, nan]), "n": nan, "e": torch.empty(0), "s": torch.tensor(1)}
    assert first_difference(value, other) is None


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a > b"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "a > 1"),
        ([1], [1.0], "0"),
        ([1], [1, 2], ""),
        ({"a": 1}, {"b": 1}, ""),
        ({"w": torch.zeros(3)}, {"w": torch.tensor([0.0, 0.0, -0.0])}, "w[2] (first of 1 in 3)"),
        ({"w": torch.zeros(2, 2)}, {"w": torch.ones(2, 2)}, "w[0] (first of 4 in 4)"),
        ({"w": torch.tensor(True)}, {"w": torch.tensor(False)}, "w[0] (first of 1 in 1)"),
        ({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, "w"),
        ({"w": torch.zeros(2)}, {"w": torch.zeros(2, dtype=torch.float64)}, "w"),
    ],
)
def test_a_difference_of_one_bit_type_or_shape_is_found_and_placed(one: Any, other: Any, where: str) -> None:
    found = first_difference(one, other)
    assert found is not None
    assert found.where == where
    assert str(found.one) != str(found.other)


def test_the_first_differing_row_is_named_with_its_step_and_key() -> None:
    one = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 3.0}]
    other = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.5}, {"step": 30, "loss": 9.0}]
    found = first_row_difference(one, other, "metrics")
    assert found is not None
    assert (found.step, found.where, found.one, found.other) == (20, "metrics > loss", 2.0, 2.5)
    missing = first_row_difference(one, one[:2], "metrics")
    assert missing is not None
    assert (missing.step, missing.other) == (30, "no row")
    assert first_row_difference(one, one, "metrics") is None


def test_rows_leave_out_the_clock_and_an_unfinished_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(json.dumps({"step": 1, "time/fps": 3.0, "x": 2}) + '\n{"step": 2, "x"')
    assert rows(tmp_path / "log") == [{"step": 1, "x": 2}]
    assert rows(tmp_path / "none") == []


def test_tensors_are_counted_however_deep() -> None:
    assert num_tensors({"a": torch.zeros(1), "b": [torch.zeros(1), {"c": (torch.zeros(1), 1)}]}) == 3
