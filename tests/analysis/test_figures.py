"""Figures: what stands in them, whatever groups are called and however many there are."""

from pathlib import Path

import pytest
from synthetic import write_run

from rlrun.analysis.compare import comparison_of
from rlrun.analysis.figures import draw_all
from rlrun.analysis.palette import DARK, DASHES, LIGHT
from rlrun.analysis.plotting import MOST_LISTED, Look, count, steps

LONG = "lr=0.001" * 10


@pytest.mark.filterwarnings("error")
def test_names_of_any_kind_are_drawn_and_figures_of_an_earlier_report_removed(tmp_path: Path) -> None:
    for i, variant in enumerate(("_hidden", "a$b$", LONG)):
        for seed in range(2):
            write_run(tmp_path / "outputs", variant=variant, seed=seed, final=100.0 * i + seed)
    (tmp_path / "wall_clock_overall.pdf").touch()  # of several environments: here is one
    names = draw_all(comparison_of([tmp_path / "outputs"], by="variant"), tmp_path)
    assert names == [
        "sample_efficiency",
        "wall_clock",
        "performance_profiles",
        "intervals",
        "probability_of_improvement",
    ]
    assert not (tmp_path / "wall_clock_overall.pdf").exists()
    for name in ("sample_efficiency", "performance_profiles", "intervals"):
        text = (tmp_path / f"{name}.svg").read_text()
        for expected in ("_hidden", "a$b$", LONG[:39] + "…"):
            assert expected in text, name


def test_one_run_gives_lines_without_bands(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs", curve=[5.0])
    assert "sample_efficiency" in draw_all(comparison_of([tmp_path / "outputs"]), tmp_path)


def test_of_too_many_groups_the_best_are_drawn_and_the_legend_says_so() -> None:
    labels = [f"g{i}" for i in range(50)]
    look = Look(labels, ranking=labels[::-1])
    assert look.drawn(labels) == labels[-MOST_LISTED:]
    assert look.left_out == "the 30 of 50 groups with the highest IQM"
    assert Look(labels[:3]).left_out == ""
    assert Look(labels[:3]).drawn(["g1"]) == ["g1"]


def test_no_two_of_the_first_groups_look_alike() -> None:
    look = Look([f"g{i}" for i in range(len(LIGHT) * len(DASHES))])
    looks = {(line["color"], line["linestyle"]) for i in range(28) if (line := look.line(f"g{i}"))}
    assert len(looks) == 28
    assert len(DARK) == len(LIGHT)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (500, "500"), (2500, "2.5k"), (1e6, "1M"), (1.25e7, "12.5M")])
def test_steps_on_an_axis(value: float, text: str) -> None:
    assert steps(value, 0) == text


@pytest.mark.parametrize(("value", "text"), [(0.25, "0.25"), (-1200, "-1,200"), (20000, "20,000"), (2.5e6, "2.5M")])
def test_returns_on_an_axis(value: float, text: str) -> None:
    assert count(value, 0) == text
