"""Watching a stored policy: real commands on tiny runs, and the pictures that they write."""

from pathlib import Path

import numpy as np
import pytest
from harness import rlrun_here, the_run
from PIL import Image, ImageSequence

from rlrun import play
from rlrun.errors import UserError

TINY = ["eval.every=256", "eval.episodes=1", "eval.final_episodes=1", "log.console=false", "log.tensorboard=false"]
CARTPOLE = ["env=cartpole", "total_steps=256", "algo.num_epochs=1", *TINY]
BREAKOUT = [
    "env=breakout",
    "total_steps=64",
    "algo.num_envs=2",
    "algo.num_steps=16",
    "algo.batch_size=32",
    "algo.num_epochs=1",
    "env.max_frames=400",
    "network.hidden=16",
    "device.threads=1",
    *TINY,
]
NO_WINDOW = "window=false"


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored run; its path holds an equals sign, as all do."""
    return trained(CARTPOLE, tmp_path_factory.mktemp("cartpole"))


def trained(arguments: list[str], folder: Path) -> Path:
    done = rlrun_here(arguments, folder)
    assert done.returncode == 0, done.stderr
    return the_run(folder)


def frames_of(path: Path) -> np.ndarray:
    """Return the frames [T, H, W, 3] of a video file."""
    if path.suffix == ".gif":
        with Image.open(path) as image:
            return np.array([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    imageio = pytest.importorskip("imageio.v3")
    return imageio.imread(path)


def test_an_mp4_in_the_run_folder_holds_each_step_of_the_episode(cartpole: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    done = rlrun_here(["play", str(cartpole), "seed=3", NO_WINDOW], cartpole)
    assert done.returncode == 0, done.stderr
    episode, path = done.stdout.splitlines()
    steps = int(episode.split()[-2])
    assert Path(path).parent == cartpole / "videos"
    assert float(episode.split()[3]) == steps  # CartPole gives 1 a step
    frames = frames_of(Path(path))
    assert frames.shape == (steps + 1, 400, 600, 3)
    assert (frames[0] < 50).all(axis=-1).sum() > 500  # the black cart
    assert not np.array_equal(frames[0], frames[-1])
    assert list((cartpole / "videos").iterdir()) == [Path(path)]  # nothing unfinished is left


def test_a_seed_plays_the_same_episodes_whatever_their_number(
    cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for number in (1, 2):
        assert play.play([str(cartpole), f"out={tmp_path}/{number}.gif", f"episodes={number}", NO_WINDOW]) == 0
        shown.append(capsys.readouterr().out.splitlines())
    one, two = shown
    assert one[0] == two[0]
    assert "over 2 episodes" in two[2]
    assert len(frames_of(tmp_path / "1.gif")) > 5


def test_breakouts_picture_is_the_game_in_colour(tmp_path: Path) -> None:
    run = trained(BREAKOUT, tmp_path)
    assert play.play([str(run), "checkpoint=last", f"out={tmp_path}/game.gif", NO_WINDOW]) == 0
    frames = frames_of(tmp_path / "game.gif").astype(int)
    assert frames.shape[1:] == (420, 320, 3)
    red, blue = frames[:, 120, 160], frames[:, 181, 160]  # the first and the last row of bricks
    assert (red[:, 0] > red[:, 2] + 50).all()
    assert (blue[:, 2] > blue[:, 0] + 50).mean() > 0.8  # a brick may be hit
    assert any(not np.array_equal(frames[0, 370:], later[370:]) for later in frames[1:])  # the paddle moves


def test_without_the_extra_a_gif_is_written_and_the_extra_named(
    cartpole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(play, "mp4_possible", lambda: False)
    monkeypatch.setattr(play, "GIF_FRAMES", 5)
    assert play.play([str(cartpole), NO_WINDOW]) == 0
    shown = capsys.readouterr()
    assert "pip install 'rlrun[video]'" in shown.err
    assert "ends after 5 frames" in shown.err
    path = Path(shown.out.splitlines()[-1])
    assert path.suffix == ".gif"
    assert len(frames_of(path)) <= 5
    with pytest.raises(UserError, match=r"out=a\.mp4 needs the extra video"):
        play.play([str(cartpole), NO_WINDOW, "out=a.mp4"])


def test_a_window_is_shown_where_there_is_a_display(cartpole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("DISPLAY", ":77")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown: list[np.ndarray] = []
    show = play.Window.show
    monkeypatch.setattr(play.Window, "show", lambda self, frame: (shown.append(frame), show(self, frame)))
    before = set(cartpole.rglob("*.mp4"))
    # Two episodes: the second starts on a new environment, whose predecessor closes pygame.
    assert play.play([str(cartpole), "episodes=2", "fps=1000"]) == 0
    assert len(shown) > 10
    assert set(cartpole.rglob("*.mp4")) == before


def test_a_display_that_does_not_answer_leaves_the_file(
    cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("DISPLAY", ":77")
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    done = rlrun_here(["play", str(cartpole), f"out={tmp_path}/w.gif"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no window" in done.stderr
    assert (tmp_path / "w.gif").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("fps=0", "fps=0 is out of range"),
        ("out=a.avi", r"must end in \.mp4 or \.gif"),
        ("episode=2", "Did you mean episodes"),
        ("checkpoint=7", "checkpoint=7 is not there"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(cartpole: Path, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        play.play([str(cartpole), NO_WINDOW, argument])
