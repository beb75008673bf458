"""report.html in a real browser, where there is one: it draws, answers, and lets nothing in."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
from synthetic import ACROBOT, write_run, write_study

from rlrun.analysis.groups import grouped
from rlrun.analysis.report_html import page
from rlrun.analysis.runs import read_runs
from rlrun.analysis.summary import summarize

CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
EVIL = "<img src=x onerror=\"document.title='caught'\">'{{data}}</script><script>document.title='caught'</script>"


def write_page(folder: Path, notices: tuple[str, ...] = ()) -> Path:
    runs, _ = read_runs([folder / "outputs"])
    comparison = summarize(grouped(runs, "algo,variant", "final"), "algo,variant", "final", notices)
    path = folder / "report" / "report.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(comparison, path.parent))
    return path


def dom(path: Path, script: str = "", width: int = 1200) -> str:
    """Return the page as the browser has it after it ran, and after it ran `script`."""
    probe = path.with_name("probe.html")
    probe.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"),
            *(f"--window-size={width},900", f"--user-data-dir={path.parent / 'profile'}", probe.resolve().as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<html" in done.stdout, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    write_study(folder / "outputs", num_seeds=3)
    write_run(folder / "outputs", "acrobot", "ppo", "sparse", final=None, status="interrupted", protocol=ACROBOT)
    return write_page(folder, ("mind the gap",))


def test_the_page_needs_no_network(study: Path) -> None:
    text = study.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched


def test_chips_tables_and_a_sparkline_for_each_run_need_no_script(study: Path) -> None:
    text = study.read_text()
    assert text.count("<svg class=spark") == 28
    for expected in ("27 of 28", "runs finished", "highest IQM", "mind the gap", "threshold-normalised"):
        assert expected in text


def test_links_lead_to_run_folders_and_videos(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs", variant="50% #1?")
    (folder / "videos").mkdir()
    (folder / "videos" / "step-1-seed-0.mp4").touch()

    path = write_page(tmp_path)
    links = re.findall(r'<a href="([^"]*)"', path.read_text())
    targets = [(path.parent / unquote(link)).resolve() for link in links]
    assert targets == [folder.resolve(), (folder / "videos" / "step-1-seed-0.mp4").resolve()]
    assert not any(sign in link for link in links for sign in "#?:")


def test_what_run_folders_say_is_escaped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs", "cartpole", "ppo")
    record = (folder / "run.json").read_text()
    evil = {"env": EVIL, "algo": EVIL, "variant": EVIL, "status": "finished"}
    (folder / "run.json").write_text(json.dumps(json.loads(record) | evil))
    path = write_page(tmp_path, (EVIL,))
    text = path.read_text()
    assert "<img" not in text
    assert text.count("<script") == 2
    if CHROMIUM:
        shown = dom(path)
        assert "<title>rlrun compare</title>" in shown
        assert 'class="mean"' in shown  # its own script still runs


@in_browser
def test_curves_are_drawn_for_each_environment_and_group(study: Path) -> None:
    shown = dom(study)
    assert shown.count('class="chart"') == 4  # three environments and the profile
    assert shown.count('class="mean"') == 12
    assert shown.count('class="band"') == 12
    assert 'class="run"' not in shown


@in_browser
def test_toggles_hide_groups_show_runs_and_change_the_axis(study: Path) -> None:
    shown = dom(
        study,
        "document.querySelector('#groups button').click(); byId('single').click(); byId('axis').click();",
    )
    assert shown.count('class="mean"') == 8
    assert shown.count('class="run"') == 19  # 27 finished and one stopped, less 9 of the hidden group
    assert 'aria-pressed="false"' in shown
    assert "hours of training" in shown
    assert "environment steps" not in shown.partition('id="charts"')[2].partition("<h2>Runs")[0]


@in_browser
def test_pointing_at_a_chart_shows_the_values_there(study: Path) -> None:
    shown = dom(
        study,
        "const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect();"
        "plot.dispatchEvent(new PointerEvent('pointermove', "
        "{clientX: box.left + box.width / 2, clientY: box.top + 9}));",
    )
    tip = shown.partition('class="tip" style="display: block')[2].partition("</svg>")[0]
    assert all(re.search(rf"{algo}, default: -[\d.]+ \[-[\d.]+, -[\d.]+\]", tip) for algo in ("a2c", "dqn", "ppo")), tip


@in_browser
def test_runs_are_filtered_and_sorted(study: Path) -> None:
    script = (
        "const words = byId('filter'); words.value = 'cartpole ppo'; words.dispatchEvent(new Event('input'));"
        "document.querySelectorAll('.runs th')[4].click();"
        "const left = [...byId('runs').rows].filter(row => !row.hidden).map(row => +row.cells[4].dataset.sort);"
        "document.title = JSON.stringify(left);"
    )
    found = re.search(r"<title>\[(.*?)\]</title>", dom(study, script))
    assert found is not None
    scores = [float(text) for text in found[1].split(",")]
    assert len(scores) == 3
    assert scores == sorted(scores)


@in_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_sticks_out_of_the_screen(study: Path, width: int) -> None:
    # A window cannot be made as narrow as a phone: a frame can.
    frame = study.with_name("frame.html")
    copy = study.with_name("framed.html")
    copy.write_text(
        study.read_text().replace(
            "</body>",
            "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth], '*')</script></body>",
        )
    )
    frame.write_text(
        f"<body><iframe src=framed.html style='width:{width}px;height:800px;border:0'></iframe>"
        "<script>onmessage = e => { document.title = e.data.join(' ') }</script></body>"
    )
    found = re.search(r"<title>(\d+) (\d+)</title>", dom(frame, width=1300))
    assert found is not None
    assert int(found[1]) <= int(found[2]) <= width


def test_the_page_follows_the_system_into_dark_mode(study: Path) -> None:
    assert "@media (prefers-color-scheme: dark)" in study.read_text()
