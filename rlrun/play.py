"""`rlrun play`: watch a stored policy, in a window where there is a display, else in a video file."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from rlrun.envs.base import Array, Envs
from rlrun.errors import UserError
from rlrun.inspect_run import LoadedRun, load, parse
from rlrun.seeding import REPORT_SEEDS

KNOWN = {"episodes": 1, "checkpoint": "best", "seed": 0, "out": "", "fps": 30, "window": True}
GIF_FRAMES = 900  # Pillow holds all frames of a GIF in memory, and browsers choke on longer ones
SMALLEST_HEIGHT = 400  # pixels; smaller pictures are enlarged, since video codecs blur single pixels
VIDEO_REMEDY = "pip install 'rlrun[video]'"


class Screen(Protocol):
    """Where frames [H, W, 3] uint8 go, one by one."""

    wants_more: bool  # whether another frame would be shown

    def show(self, frame: Array) -> None: ...

    def close(self) -> None: ...


class WindowClosed(Exception):
    """The person watching closed the window."""


def play(arguments: list[str]) -> int:
    """rlrun play RUN [episodes=1] [checkpoint=best|last|STEP] [seed=N] [out=PATH] [fps=30] [window=true]

    Plays episodes and prints the return of each; without a display, or with out=, it writes a video.
    """
    path, options = parse(arguments, KNOWN, "play")
    for key in ("episodes", "fps"):
        if options[key] < 1:
            raise UserError(f"{key}={options[key]} is out of range: expected at least 1")
    if not display():
        draw_without_display()
    run = load(path, options["checkpoint"])
    window = open_window(f"{run.path}, step {run.step:,}", options["fps"]) if options["window"] else None
    target = video_path(run, options) if options["out"] or window is None else None
    with ExitStack() as stack:
        screens: list[Screen] = []
        if window is not None:
            stack.callback(window.close)
            screens.append(window)
        if target is not None:
            screens.append(stack.enter_context(video(target, options["fps"])))
        play_episodes(run, options["episodes"], options["seed"], screens)
    if target is not None:
        print(target)
    return 0


# --- Episodes -------------------------------------------------------------------------------------------


def play_episodes(run: LoadedRun, num_episodes: int, seed: int, screens: list[Screen]) -> None:
    """Play the episodes on all screens and print their returns, until they end or the window is closed."""
    # Seeds that nothing was trained or selected on; each drawn by itself, so that episodes=2 plays the
    # episode of episodes=1 first.
    seeds = [run.agent.seeds.episodes(f"play {seed} {k}", REPORT_SEEDS, 1)[0] for k in range(num_episodes)]
    envs = run.agent.spec.make(1, render=True)
    returns: list[float] = []
    try:
        for number, episode_seed in enumerate(seeds, 1):
            episode_return, length = play_episode(run, envs, episode_seed, screens)
            returns.append(episode_return)
            print(f"episode {number}: return {episode_return:.2f} in {length:,} steps", flush=True)
    except WindowClosed:
        _note("the window was closed: stopping here")
    finally:
        envs.close()
    if len(returns) > 1:
        print(f"return {np.mean(returns):.2f} ± {np.std(returns):.2f} over {len(returns)} episodes")


def play_episode(run: LoadedRun, envs: Envs, seed: int, screens: list[Screen]) -> tuple[float, int]:
    """Play one episode; return its return and its length in steps."""
    run.reset()
    obs = envs.reset(np.ones(1, bool), np.array([seed]))
    show(envs, run, screens)
    episode_return, length, over = 0.0, 0, False
    while not over:
        transition = envs.step(to_vector(run.act(obs[0]), envs.action_space))
        obs, over = transition.obs, bool(transition.over[0])
        episode_return += float(transition.reward[0])
        length += 1
        show(envs, run, screens)
    return episode_return, length


def to_vector(action: Any, space: spaces.Space) -> Array:
    """Return a single environment's action as [1, *act], counted from 0 where the space is discrete."""
    start = space.start if isinstance(space, spaces.Discrete) else 0
    return np.asarray(action)[None] - start


def show(envs: Envs, run: LoadedRun, screens: list[Screen]) -> None:
    """Draw once, for the screens that want it. Raises UserError where the environment has no picture."""
    wanting = [screen for screen in screens if screen.wants_more]
    if not wanting:
        return
    try:
        frame = envs.render()
    except Exception as error:  # each library of drawing raises its own
        raise UserError(
            f"env={run.agent.spec.name} cannot be drawn here ({type(error).__name__}: {error}). Where pygame is "
            "missing: pip install 'rlrun[classic]'. MuJoCo without a display: MUJOCO_GL=egl or MUJOCO_GL=osmesa"
        ) from error
    if frame.ndim != 3 or frame.shape[-1] != 3:
        raise UserError(f"env={run.agent.spec.name} cannot be shown: it has no render_mode rgb_array")
    for screen in wanting:
        screen.show(enlarged(frame))


def enlarged(frame: Array) -> Array:
    """Return the frame at least SMALLEST_HEIGHT high and of even size, as H.264 requires."""
    factor = -(-SMALLEST_HEIGHT // frame.shape[0])
    frame = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    return np.ascontiguousarray(frame[:height, :width])


# --- Video files ----------------------------------------------------------------------------------------


def video_path(run: LoadedRun, options: dict[str, Any]) -> Path:
    """Return the file to write. Raises UserError if it is of a kind that cannot be written here."""
    kind = ".mp4" if mp4_possible() else ".gif"
    name = f"step-{run.step}-seed-{options['seed']}{kind}"
    path = Path(str(options["out"])) if options["out"] else run.path / "videos" / name
    if path.is_dir():
        path /= name
    if path.suffix not in (".mp4", ".gif"):
        raise UserError(f"out={path} must end in .mp4 or .gif, or be a folder that exists")
    if path.suffix == ".mp4" and kind == ".gif":
        raise UserError(f"out={path} needs the extra video: {VIDEO_REMEDY}, or choose {path.with_suffix('.gif')}")
    if kind == ".gif" and not options["out"]:
        _note(f"the extra video is not installed, so this will be a GIF; for an mp4: {VIDEO_REMEDY}")
    return path


def mp4_possible() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("imageio", "imageio_ffmpeg"))


@contextmanager
def video(path: Path, fps: int) -> Iterator[Screen]:
    """Give the block a screen that is the file. The file appears as a whole, at the block's end."""
    unfinished = path.with_stem(f".{path.stem}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        screen: Screen = Mp4(unfinished, fps) if path.suffix == ".mp4" else Gif(unfinished, fps)
        try:
            yield screen
        finally:
            screen.close()
        unfinished.replace(path)
    except BrokenPipeError:  # of stdout; imageio reports ffmpeg's as another
        raise
    except OSError as error:
        reason = str(error).splitlines()[0]  # imageio appends ffmpeg's whole command
        raise UserError(f"out={path} cannot be written ({reason}); choose another with out=...") from error
    finally:
        unfinished.unlink(missing_ok=True)


class Mp4:
    """H.264 by ffmpeg, to which the frames go at once: memory does not grow with the episode."""

    def __init__(self, path: Path, fps: int) -> None:
        import imageio.v2

        self.wants_more = True
        # Sizes are even already; imageio's default of multiples of 16 would stretch the picture.
        self._writer = imageio.v2.get_writer(path, fps=fps, codec="libx264", quality=8, macro_block_size=2)

    def show(self, frame: Array) -> None:
        self._writer.append_data(frame)

    def close(self) -> None:
        self._writer.close()


class Gif:
    """An animated GIF of the first GIF_FRAMES frames, by Pillow."""

    def __init__(self, path: Path, fps: int) -> None:
        self.wants_more = True
        self._path, self._fps = path, fps
        self._frames: list[Any] = []

    def show(self, frame: Array) -> None:
        from PIL import Image

        # A palette at once saves memory; the octree's colours are a little off, and it is the fastest.
        palette = Image.Quantize.FASTOCTREE
        self._frames.append(Image.fromarray(frame).quantize(method=palette, dither=Image.Dither.NONE))
        if len(self._frames) == GIF_FRAMES:
            self.wants_more = False
            _note(f"the GIF ends after {GIF_FRAMES} frames; for whole episodes write an mp4 ({VIDEO_REMEDY})")

    def close(self) -> None:
        if self._frames:
            first, *others = self._frames
            milliseconds = 1000 / self._fps
            first.save(self._path, save_all=True, append_images=others, duration=milliseconds, loop=0)


# --- The window -----------------------------------------------------------------------------------------


def display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def draw_without_display() -> None:
    """Tell the libraries that draw, before they are imported, not to look for a display and fail."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame
    if find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def open_window(title: str, fps: int) -> "Window | None":
    """Return a window, or None where there is no display or it cannot be opened."""
    if not display():
        return None
    try:
        return Window(title, fps)
    except Exception as error:  # whatever a display server can do wrong, a file still works
        _note(f"no window ({error}): writing a file instead")
        return None


class Window:
    """A window that shows frames at `fps` frames per second."""

    def __init__(self, title: str, fps: int) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        import pygame

        self.wants_more = True
        self._pygame, self._title, self._fps = pygame, title, fps
        self._clock = pygame.time.Clock()
        pygame.display.init()
        driver = pygame.display.get_driver()
        if driver in ("offscreen", "dummy") and driver != os.environ.get("SDL_VIDEODRIVER"):
            # SDL falls back to a window that nobody sees.
            raise OSError("the display does not answer")

    def show(self, frame: Array) -> None:
        """Show the frame for 1 / fps seconds. Raises WindowClosed once the window was closed."""
        surface = self._surface((frame.shape[1], frame.shape[0]))
        # pygame counts x first.
        self._pygame.surfarray.blit_array(surface, frame.swapaxes(0, 1))
        self._pygame.display.flip()
        self._clock.tick(self._fps)
        if any(event.type == self._pygame.QUIT for event in self._pygame.event.get()):
            raise WindowClosed

    def close(self) -> None:
        self._pygame.display.quit()

    def _surface(self, size: tuple[int, int]) -> Any:
        # Gymnasium's environments end pygame as a whole when they are closed, as each seeded reset does.
        self._pygame.display.init()
        surface = self._pygame.display.get_surface()
        if surface is None or surface.get_size() != size:
            surface = self._pygame.display.set_mode(size)
            self._pygame.display.set_caption(self._title)
        return surface


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
