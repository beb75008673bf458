"""Drawing with Pillow: shapes and text with smooth edges, and numbers as colours. All lengths in pixels."""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rlrun.envs.base import Array

SMOOTH = 2  # drawn so many times larger and averaged: Pillow's edges are jagged

Color = tuple[int, int, int]
Point = tuple[float, float]
INK: Color = (30, 30, 30)
PAPER: Color = (255, 255, 255)
# From dark blue over green to yellow, evenly brighter: what matplotlib's viridis passes through.
RAMP: tuple[Color, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


class Painter:
    """A sheet of paper of the given size."""

    def __init__(self, width: float, height: float) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height = int(width), int(height)
        self._image = Image.new("RGB", (self.width * SMOOTH, self.height * SMOOTH), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def rectangle(self, corner: Point, size: Point, fill: Color | None, *, border: Color | None = None) -> None:
        """`border` is drawn inside, a twentieth of the width strong."""
        (x, y), (width, height) = corner, size
        strength = max(1, round(SMOOTH * width / 20)) if border else 0
        box = [SMOOTH * x, SMOOTH * y, SMOOTH * (x + width) - 1, SMOOTH * (y + height) - 1]
        self._draw.rectangle(box, fill, border, strength)

    def polygon(self, points: list[Point], fill: Color) -> None:
        self._draw.polygon([(SMOOTH * x, SMOOTH * y) for x, y in points], fill)

    def line(self, start: Point, end: Point, color: Color, strength: float) -> None:
        points = [(SMOOTH * x, SMOOTH * y) for x, y in (start, end)]
        self._draw.line(points, color, round(SMOOTH * strength))

    def text(self, center: Point, text: str, color: Color, size: float, *, bold: bool = False) -> None:
        font = _font(round(SMOOTH * size))
        for aside in (0, 1) if bold else (0,):  # printed twice: the font has no bold face
            self._draw.text((SMOOTH * center[0] + aside, SMOOTH * center[1]), text, color, font, anchor="mm")

    def png(self) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        # A palette looks the same and takes half the room: a run keeps these pictures by the hundred.
        palette = self._image.reduce(SMOOTH).quantize(256, method=Image.Quantize.MEDIANCUT)
        palette.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


@dataclass(frozen=True)
class Colors:
    """Colours for the numbers from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Array) -> "Colors":
        """Return the colours that the finite ones of `values` span."""
        finite = values[np.isfinite(values)]
        return cls(float(finite.min()), float(finite.max())) if finite.size else cls(0.0, 0.0)

    def __call__(self, value: float) -> Color:
        span = self.high - self.low
        place = (len(RAMP) - 1) * ((value - self.low) / span if span > 0 else 0.5)
        index = min(int(place), len(RAMP) - 2)
        before, after, weight = RAMP[index], RAMP[index + 1], place - index
        red, green, blue = (round(a + (b - a) * weight) for a, b in zip(before, after, strict=True))
        return red, green, blue


def readable_on(color: Color) -> Color:
    """Return ink or paper, whichever stands out from the colour."""
    red, green, blue = color
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else PAPER


def short_number(value: float) -> str:
    """Return a number in about five characters."""
    if abs(value) < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 999.95 else f"{value:.2g}"


@lru_cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
