"""Tables in Markdown, and the results file that they are filled into."""

from pathlib import Path

import pytest
from harness import rlrun_here
from synthetic import MADE, write_run

from rlrun.analysis.compare import compare, comparison_of
from rlrun.analysis.markdown import fill, report, results
from rlrun.analysis.provenance import about, commands, made
from rlrun.errors import UserError

BEGIN, END = "<!-- rlrun compare: results -->", "<!-- end of results -->"


def filled(*arguments: str) -> str:
    """Compare in this process, in the present folder; return the results file."""
    assert compare(list(arguments)) == 0
    return Path("docs/results.md").read_text()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with runs of two algorithms and a results file with two sections. No figures are drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlrun.analysis.compare._figures", lambda comparison, out: ["sample_efficiency"])
    for algo in ("a2c", "ppo"):
        for seed in range(2):
            write_run(tmp_path / "outputs", algo=algo, seed=seed, final=100.0 * (seed + 1))
    (tmp_path / "docs").mkdir()
    other = BEGIN.replace("results", "atari") + "\nmine\n" + END.replace("results", "atari")
    (tmp_path / "docs" / "results.md").write_text(f"# Results\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n{other}\n")
    return tmp_path


def test_a_section_is_filled_and_all_other_text_stays(project: Path) -> None:
    text = filled("outputs", "into=docs/results.md")
    before, rest = text.split(BEGIN)
    block, after = rest.split(END)
    assert before == "# Results\n\nBefore.\n\n"
    assert after.startswith("\n\nAfter.\n<!-- rlrun compare: atari -->\nmine\n")
    assert "\nold\n" not in text
    assert "| environment | group | finished | steps | mean | median | IQM | optimality gap |" in block
    assert "| cartpole | ppo | 2 of 2 | 1,000 | 150.0 [100.0, 200.0] |" in block
    assert "Protocol: cartpole: id=CartPole-v1, max\\_episode\\_steps=500, actions greedy, 100 episodes a run." in block
    assert "Made by `rlrun compare outputs into=docs/results.md` from 4 runs that ended 2026-01-02." in block
    assert "Machine: Abacus 3000, 2 cores, cpu, 1 thread." in block
    assert "Versions: Python 3.11.7, torch 2.13.0, gymnasium 1.4.0. rlrun: commit abcdef012345." in block
    assert "Trained by `rlrun algo=a2c env=cartpole seed=…`, `rlrun algo=ppo env=cartpole seed=…`." in block


def test_filling_again_changes_nothing(project: Path) -> None:
    first = filled("outputs", "into=docs/results.md")
    assert filled("outputs", "into=docs/results.md") == first


def test_the_learning_curves_are_shown_where_the_figures_lie_beside_the_file(project: Path) -> None:
    inside = filled("outputs", "into=docs/results.md", "out=docs/images/all")
    assert "![Learning curves](images/all/sample_efficiency.png)" in inside
    assert "Learning curves" not in filled("outputs", "into=docs/results.md", "out=elsewhere")


def test_a_missing_marker_is_refused_before_anything_is_written(project: Path) -> None:
    path = project / "docs" / "results.md"
    before = path.read_text()
    done = rlrun_here(["compare", "outputs", "into=docs/results.md", "section=cartpole"], project)
    assert done.returncode == 2
    for expected in (
        "section=cartpole",
        "results, atari",
        "<!-- rlrun compare: cartpole -->",
        "<!-- end of cartpole -->",
    ):
        assert expected in done.stderr
    assert path.read_text() == before
    assert not (project / "report").exists()


@pytest.mark.parametrize("content", [f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n", f"{BEGIN}\n", ""])
def test_markers_must_be_there_once_and_in_order(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.md"
    path.write_text(content)
    with pytest.raises(UserError, match="once each, in order"):
        fill(path, "results", "block")
    assert path.read_text() == content


def test_the_ends_of_lines_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    path.write_bytes(f"a\r\n{BEGIN}\r\n{END}\r\n".encode())
    fill(path, "results", "x\ny")
    assert path.read_bytes() == f"a\r\n{BEGIN}\r\n\r\nx\r\ny\r\n{END}\r\n".encode()


def test_names_are_shown_as_they_are_and_cannot_break_the_table(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    evil = "*a*|<b>`-->"
    (run / "run.json").write_text((run / "run.json").read_text().replace('"algo": "ppo"', f'"algo": "{evil}"'))
    found = comparison_of([tmp_path])
    for text in (report(found), results(found, "rlrun compare a`-->")):
        assert "<b>" not in text
        assert "| \\*a\\*\\|&lt;b&gt;\\`--&gt; |" in text
        assert "-->" not in text.replace("<!--", "")


def test_provenance_lists_what_differs_and_says_what_is_not_recorded() -> None:
    other = {**MADE, "python": "3.12.1", "ended": "2026-03-04T00:00:00+00:00", "code": {"sha256": "f" * 64}}
    facts = about([made(MADE), made(other), made(MADE)])
    assert facts["ended"] == "2026-01-02 to 2026-03-04"
    assert facts["rlrun"] == "code ffffffffffff; commit abcdef012345"
    assert facts["versions"].startswith("Python 3.11.7, torch 2.13.0")
    assert set(about([made({})]).values()) == {"not recorded"}
    dirty = {**MADE, "code": {"commit": "abcdef0123456789", "dirty_diff": "+x"}}
    assert made(dirty).commit == "commit abcdef012345 with uncommitted changes"
    assert commands([made({"command": f"rlrun seed={seed} a=1"}) for seed in range(3)]) == ["rlrun seed=… a=1"]
