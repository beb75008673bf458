"""report.html in a real browser: it draws, answers, fits every screen, and lets nothing in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import CHROMIUM, MISSING, Seen, launched, opened
from playwright.sync_api import Browser
from synthetic import ACROBOT, write_run, write_study

from rlrun.analysis.compare import comparison_of
from rlrun.analysis.report_html import page

EVIL = "<img src=x onerror=\"document.title='caught'\">'{{data}}</script><script>document.title='caught'</script>"
TIP = ".tip:visible"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with launched() as found:
        yield found


def write_page(folder: Path, by: str = "algo,variant") -> Path:
    path = folder / "report" / "report.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(comparison_of([folder / "outputs"], by=by), path.parent))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    write_study(folder / "outputs", num_seeds=3)
    stopped = {"final": None, "status": "interrupted", "protocol": ACROBOT, "total_steps": 100_000}
    write_run(folder / "outputs", "acrobot", "ppo", "sparse", **stopped)
    return write_page(folder)


@pytest.fixture
def shown(browser: Browser, study: Path) -> Iterator[Seen]:
    """Return the study on a desktop's screen, and assert that the page neither asks the network nor complains."""
    with opened(browser, study) as seen:
        yield seen
        assert seen.requests == [study.resolve().as_uri()]
        assert seen.complaints == []


# --- Without a browser ----------------------------------------------------------------------------------


def test_the_page_names_nothing_on_the_network(study: Path) -> None:
    text = study.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "{{" not in text


def test_verdict_chips_tables_and_a_sparkline_for_each_run_need_no_script(study: Path) -> None:
    text = study.read_text()
    assert text.count("<svg class=spark") == 28
    assert text.count("<svg class=bar") == 3 * 3 + 3  # three groups in each environment, and overall
    for expected in (
        "27 of 28",
        "runs finished",
        "highest IQM",
        "threshold-normalised",
        "<b>overall</b>: ppo, default has",
    ):
        assert expected in text


def test_links_lead_to_run_folders_and_videos(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs", variant="50% #1?")
    (folder / "videos").mkdir()
    for name in ("step-1-seed-0.mp4", ".step-2-seed-0.mp4", "notes.txt"):  # the second is being written
        (folder / "videos" / name).touch()
    path = write_page(tmp_path)
    rows = path.read_text().partition('id="runs"')[2]
    links = re.findall(r'<a href="([^"]*)"', rows)
    targets = [(path.parent / unquote(link)).resolve() for link in links]
    assert targets == [folder.resolve(), (folder / "videos" / "step-1-seed-0.mp4").resolve()]
    assert not any(sign in link for link in links for sign in "#?:")


def test_what_run_folders_say_is_escaped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs", "cartpole", "ppo")
    record = json.loads((folder / "run.json").read_text())
    evil = {"env": EVIL, "algo": EVIL, "variant": EVIL, "python": EVIL, "command": EVIL, "ended": EVIL}
    (folder / "run.json").write_text(json.dumps(record | evil))
    text = write_page(tmp_path).read_text()
    assert "<img" not in text
    assert text.count("<script") == 2


# --- In a browser ---------------------------------------------------------------------------------------


def test_a_hostile_name_runs_nothing(browser: Browser, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs", "cartpole", "ppo")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"env": EVIL, "algo": EVIL, "variant": EVIL}))
    with opened(browser, write_page(tmp_path)) as seen:
        assert seen.page.title() == "rlrun compare"
        assert seen.count("path.mean") == 2  # the curve and the profile: its own script still runs
        assert seen.complaints == []


def test_curves_are_drawn_for_each_environment_and_group(shown: Seen) -> None:
    titles = shown.all(".chart h3").all_text_contents()
    assert titles[:4] == ["overall, 3 environments", "acrobot", "breakout", "cartpole"]
    assert titles[4].startswith("performance profile")
    assert shown.count("path.mean") == shown.count("path.band") == 5 * 3
    assert shown.count("path.run") == 0
    assert shown.count(".goal") == 3


def test_toggles_hide_groups_and_bring_them_back(shown: Seen) -> None:
    button = shown.all("#groups button").first
    button.click()
    assert shown.count("path.mean") == 5 * 2
    assert button.get_attribute("aria-pressed") == "false"
    shown.all(".plot").nth(1).hover()
    assert "a2c" not in shown.all(TIP).inner_text()
    button.click()
    assert shown.count("path.mean") == 5 * 3


def test_single_runs_and_the_clock_are_shown_when_asked_for(shown: Seen) -> None:
    shown.all("#single").click()
    assert shown.count("path.run") == 28  # the interrupted one as well
    assert "environment steps" in shown.all("#charts").inner_text()
    shown.all("#axis").click()
    assert "environment steps" not in shown.all("#charts").inner_text()
    assert "hours of training" in shown.all("#charts").inner_text()
    assert "share of each environment's longest run" in shown.all("#charts").inner_text()


def test_pointing_at_a_chart_shows_the_values_there(shown: Seen, study: Path) -> None:
    assert shown.count(TIP) == 0
    plot = shown.all(".plot").nth(3)  # cartpole
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    shown.page.mouse.move(box["x"] + box["width"] - 18, box["y"] + 50)  # the last point
    curves = comparison_of([study.parents[1] / "outputs"]).environments[2].over_steps
    lines = shown.all(f"{TIP} div").all_inner_texts()
    assert shown.all(TIP).inner_text().startswith("100k")
    expected = []
    for algo in ("ppo", "dqn", "a2c"):  # the highest first
        curve = curves[algo]
        assert curve.low is not None
        assert curve.high is not None
        expected.append([curve.mean[-1], curve.low[-1], curve.high[-1]])
    found = [[float(text) for text in re.findall(r"-?[\d.]+", line.partition(": ")[2])] for line in lines]
    assert found == [pytest.approx(values, rel=1e-3) for values in expected]
    shown.page.mouse.move(5, 5)
    assert shown.count(TIP) == 0


def test_pointing_at_a_single_run_names_its_seed(shown: Seen) -> None:
    shown.all("#single").click()
    plot = shown.all(".plot").nth(3)
    plot.scroll_into_view_if_needed()
    end = plot.evaluate(
        "plot => { const path = plot.querySelector('path.run'), end = path.getPointAtLength(path.getTotalLength());"
        "const place = plot.getBoundingClientRect(); return [place.left + end.x, place.top + end.y]; }"
    )
    shown.page.mouse.move(*end)
    assert re.search(r"seed \d of a2c, default: \d", shown.all(TIP).inner_text())


def test_the_keyboard_moves_through_a_chart(shown: Seen) -> None:
    plot = shown.all(".plot").nth(1)
    plot.focus()
    plot.press("ArrowRight")
    first = shown.all(TIP).inner_text()
    plot.press("ArrowRight")
    assert shown.all(TIP).inner_text() != first


def test_runs_are_filtered_and_sorted_by_value(shown: Seen) -> None:
    shown.all("#filter").fill("acrobot")
    shown.all(".runs th").nth(4).click()
    scores = shown.all("#runs tr:visible td:nth-child(5)").all_inner_texts()
    assert len(scores) == 10
    assert scores[-1] == "-"  # a run without a score comes last either way
    values = [float(text) for text in scores[:-1]]
    assert values == sorted(values)
    shown.all(".runs th").nth(4).click()
    scores = shown.all("#runs tr:visible td:nth-child(5)").all_inner_texts()
    assert [float(text) for text in scores[:-1]] == sorted(values, reverse=True)
    assert scores[-1] == "-"


def test_a_link_opens_the_folder_of_the_run(browser: Browser, study: Path) -> None:
    with opened(browser, study) as seen:
        seen.all("#runs a").first.click()
        seen.page.wait_for_url("**/seed=0/")
        assert "metrics.jsonl" in seen.page.content()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_sticks_out_of_the_screen(browser: Browser, study: Path, width: int) -> None:
    with opened(browser, study, width=width) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") == width


def test_a_phone_shows_the_numbers_without_scrolling_sideways_and_answers_a_tap(browser: Browser, study: Path) -> None:
    with opened(browser, study, width=390) as seen:
        ends = seen.all(".numbers td, #runs td").evaluate_all("all => all.map(c => c.getBoundingClientRect().right)")
        assert len(ends) > 300
        assert max(ends) <= 390
        assert int(float(seen.style("body", "font-size").removesuffix("px"))) >= 15
        plot = seen.all(".plot").nth(1)
        plot.tap()
        assert "ppo, default: " in seen.all(TIP).inner_text()
        seen.all("h1").tap()
        assert seen.count(TIP) == 0
        assert seen.complaints == []


@pytest.mark.parametrize("dark", [False, True])
def test_all_texts_can_be_read_in_light_and_in_dark_mode(browser: Browser, study: Path, dark: bool) -> None:
    with opened(browser, study, dark=dark) as seen:
        background = luminance(seen.style("body", "background-color"))
        assert (background < 0.1) == dark
        for selector in ("body", ".quiet", "th", ".status.finished", ".status.interrupted", "a", ".chip span"):
            assert contrast(luminance(seen.style(selector, "color")), background) >= 4.5, selector
        for line in ("path.mean", ".spark polyline"):  # WCAG asks less of a picture than of a text
            assert contrast(luminance(seen.style(line, "stroke")), background) >= 2.0, line
        assert seen.complaints == []


def luminance(color: str) -> float:
    """Return the relative luminance of "rgb(20, 22, 26)", as WCAG 2.2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
