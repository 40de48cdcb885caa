"""Renders images with numpy: anti-aliased sprites, smooth backgrounds and textures.

Places and sizes are in units of a 32 x 32 image, whatever the size that is rendered.

The same seeds must give the same images on every platform: only uniform numbers are drawn, single-precision
arithmetic is elementwise (no BLAS and no reductions, whose order may vary), and transcendental functions are
evaluated in double precision, so that remaining differences are far below one grey level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

SIZE = 32
"""Side of an image in the units that scenes are drawn in, and in pixels where no size is given."""
_SUB = 2  # samples per pixel and axis, on top of edges that are soft over one sample

Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Signed distance of ``(u, v)`` to a shape of about radius 1, given a free parameter in [0, 1)."""

REACH = 1.25
"""No shape of radius 1 goes farther than this from its centre, its soft edge included."""


def draw_uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> np.ndarray:
    """Uniform numbers in [low, high)."""
    return low + (high - low) * rng.random(shape)


def draw_integers(rng: np.random.Generator, n: int, *shape: int) -> np.ndarray:
    """Uniform whole numbers in 0..n-1."""
    return (n * rng.random(shape)).astype(np.int64)


def draw_permutation(rng: np.random.Generator, n: int) -> np.ndarray:
    """A permutation of 0..n-1."""
    return np.argsort(rng.random(n), kind="stable")


def average_subsamples(samples: np.ndarray) -> np.ndarray:
    """Mean over the samples of each pixel, in a fixed order of summation."""
    total = sum(samples[..., i::_SUB, j::_SUB] for i in range(_SUB) for j in range(_SUB))
    return np.asarray(total / np.float32(_SUB * _SUB))


# --- Sprites ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sprites:
    """One shape in each of ``M`` images; pixels, y downwards, angles in radians from +x towards +y.

    Attributes:
        image: ``(M,)`` which image.
        x: ``(M,)`` centre.
        y: ``(M,)`` centre.
        radius: ``(M,)``.
        angle: ``(M,)``.
        kind: ``(M,)`` index into the shapes painted with.
        free: ``(M,)`` free parameter of the shape, in [0, 1).
    """

    image: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    kind: np.ndarray
    free: np.ndarray

    def scale(self, factor: float) -> Sprites:
        """The sprites of images ``factor`` times as large."""
        return dataclasses.replace(self, x=self.x * factor, y=self.y * factor, radius=self.radius * factor)

    def select(self, which: np.ndarray) -> Sprites:
        """The sprites selected by an index or mask."""
        return Sprites(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))


def _disc(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - np.float32(1)


def _square(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.85)


def _bar(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) - np.float32(1), np.abs(v) - np.float32(0.45))


def _triangle(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    half, root = np.float32(0.5), np.float32(np.sqrt(0.75))
    return np.maximum(-u, half * u + root * np.abs(v)) - half


def _cross(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    u, v, one, arm = np.abs(u), np.abs(v), np.float32(1), np.float32(0.36)
    return np.minimum(np.maximum(u - one, v - arm), np.maximum(v - one, u - arm))


def _ring(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(u * u + v * v) - np.float32(0.68)) - np.float32(0.32)


def _dart(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Arrowhead with its tip at +u; ``free`` widens it."""
    width = np.float32(0.45) + np.float32(0.3) * free
    flank, depth, v = np.float32(1.8), np.float32(0.7), np.abs(v)
    sides = (width * (u - np.float32(1)) + flank * v) / np.sqrt(width * width + flank * flank)
    notch = (width * (u + np.float32(0.35)) + depth * v) / np.sqrt(width * width + depth * depth)
    return np.maximum(np.maximum(sides, -np.float32(0.8) - u), -notch)


def _key(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Disc with a bar towards +u; ``free`` thickens the disc."""
    radius = np.float32(0.4) + np.float32(0.2) * free
    disc = np.sqrt((u + np.float32(0.45)) ** 2 + v * v) - radius
    bar = np.maximum(np.abs(u - np.float32(0.3)) - np.float32(0.7), np.abs(v) - np.float32(0.16))
    return np.minimum(disc, bar)


POINTERS: tuple[Distance, ...] = (_dart, _key)
"""Shapes without rotational symmetry."""
SHAPES: tuple[Distance, ...] = (_disc, _square, _bar, _triangle, _cross, _ring)
"""Shapes whose centre is well defined, for locations and counts."""


def _compute_coverage(
    sprites: Sprites, shape: Distance, window: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fraction of each pixel that a sprite covers, ``(M, window, window)``, and the window's corners x, y ``(M,)``."""
    left, top = (
        (np.floor(centre).astype(np.int64) - window // 2).clip(0, size - window) for centre in (sprites.x, sprites.y)
    )
    # Coordinates of the subsamples relative to the centre, in units of the radius, rotated by the angle.
    offsets = (np.arange(window * _SUB) + 0.5) / _SUB
    x, y = (
        ((corner[:, None] + offsets - centre[:, None]) / sprites.radius[:, None]).astype(np.float32)
        for corner, centre in ((left, sprites.x), (top, sprites.y))
    )
    cos, sin = (f(sprites.angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    u = x[:, None, :] * cos + y[:, :, None] * sin
    v = y[:, :, None] * cos - x[:, None, :] * sin
    # Soft edge: coverage falls from 1 to 0 over one subsample around distance 0.
    distance = shape(u, v, sprites.free.astype(np.float32)[:, None, None])
    samples = distance * (sprites.radius * _SUB).astype(np.float32)[:, None, None]
    return average_subsamples(np.clip(np.float32(0.5) - samples, 0, 1)), left, top


def paint_sprites(canvas: np.ndarray, sprites: Sprites, colour: np.ndarray, shapes: tuple[Distance, ...]) -> None:
    """Paints sprites onto images, in place; at most one sprite per image and call.

    Args:
        canvas: ``(N, 3, S, S)`` float32 in [0, 1].
        sprites: ``M`` sprites, ``M <= N``, in units of 32 to a side.
        colour: ``(M, 4)`` red, green, blue and opacity.
        shapes: What ``sprites.kind`` points into.
    """
    if not len(sprites.image):
        return
    size = canvas.shape[-1]
    if size != SIZE:
        sprites = sprites.scale(size / SIZE)
    window = min(size, 2 * int(np.ceil(sprites.radius.max() * REACH)) + 2)
    for kind, shape in enumerate(shapes):
        chosen = np.flatnonzero(sprites.kind == kind)
        for part in np.array_split(chosen, len(chosen) // 128 + 1):
            cover, left, top = _compute_coverage(sprites.select(part), shape, window, size)
            inside = np.arange(window)
            where = (
                sprites.image[part][:, None, None, None],
                np.arange(3)[:, None, None],
                (top[:, None] + inside)[:, None, :, None],
                (left[:, None] + inside)[:, None, None, :],
            )
            tint = colour[part].astype(np.float32)[:, :, None, None]
            below = canvas[where]
            canvas[where] = below + (tint[:, :3] - below) * (cover[:, None] * tint[:, 3:])


# --- Backgrounds and colours -----------------------------------------------------------------------------------------


def interpolate_smoothly(lattice: np.ndarray, samples: int) -> np.ndarray:
    """Interpolates a ``(..., c + 1, c + 1)`` lattice at ``(..., samples, samples)`` points.

    Between lattice values along each axis with the smoothstep weight ``w(t) = t^2 (3 - 2 t)``, t in [0, 1).
    """
    cells = lattice.shape[-1] - 1
    position = (np.arange(samples) + 0.5) * cells / samples
    low = np.floor(position).astype(np.int64)
    t = position - low
    t = (t * t * (3 - 2 * t)).astype(lattice.dtype)
    rows = lattice[..., low, :] + (lattice[..., low + 1, :] - lattice[..., low, :]) * t[:, None]
    return rows[..., low] + (rows[..., low + 1] - rows[..., low]) * t


def draw_distant_colours(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """``(N, 3)`` random colours away from ``base``: the farthest of eight draws."""
    draws = rng.random((len(base), 8, 3))
    red, green, blue = np.moveaxis((draws - base[:, None]) ** 2, 2, 0)
    distance = red + green + blue
    return draws[np.arange(len(base)), distance.argmax(axis=1)]


def add_opacity(colour: np.ndarray) -> np.ndarray:
    """``(M, 4)`` from ``(M, 3)`` colours."""
    return np.concatenate([colour, np.ones((len(colour), 1))], axis=1)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Sprites that are painted at once.

    Attributes:
        sprites: At most one per image.
        colour: ``(M, 4)`` red, green, blue and opacity.
        shapes: What ``sprites.kind`` points into.
    """

    sprites: Sprites
    colour: np.ndarray
    shapes: tuple[Distance, ...]

    def select(self, images: np.ndarray) -> Layer:
        """Those of some images, ascending, which are counted anew from 0."""
        where = np.searchsorted(images, self.sprites.image).clip(0, max(len(images) - 1, 0))
        chosen = images[where] == self.sprites.image if len(images) else np.zeros(len(where), bool)
        sprites = dataclasses.replace(self.sprites.select(chosen), image=where[chosen])
        return Layer(sprites, self.colour[chosen], self.shapes)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What ``N`` images show, before it is painted at any size.

    Attributes:
        lattice: ``(N, 3, 5, 5)`` colours of the background.
        layers: Painted one over the other.
    """

    lattice: np.ndarray
    layers: tuple[Layer, ...]

    def paint(self, images: np.ndarray | None = None, size: int = SIZE) -> np.ndarray:
        """Images ``(n, 3, size, size)`` float32 in [0, 1] of some of the scenes, ascending; ``None``: of all."""
        lattice = self.lattice if images is None else self.lattice[images]
        canvas = interpolate_smoothly(lattice.astype(np.float32), size)
        for layer in self.layers:
            painted = layer if images is None else layer.select(images)
            paint_sprites(canvas, painted.sprites, painted.colour, painted.shapes)
        return canvas


def draw_backgrounds(rng: np.random.Generator, n: int, clutter: int) -> tuple[Scene, np.ndarray]:
    """Smoothly varying backgrounds with ``clutter`` faint discs each, and their base colours ``(N, 3)``."""
    base = draw_uniform(rng, 0.15, 0.85, n, 3)
    lattice = base[:, :, None, None] + draw_uniform(rng, -0.2, 0.2, n, 3, 5, 5)
    layers = []
    for _ in range(clutter):
        x, y = draw_uniform(rng, 0, SIZE, n), draw_uniform(rng, 0, SIZE, n)
        zero = np.zeros(n)
        discs = Sprites(np.arange(n), x, y, draw_uniform(rng, 1, 4, n), zero, zero.astype(np.int64), zero)
        colour = np.concatenate([rng.random((n, 3)), draw_uniform(rng, 0.1, 0.3, n, 1)], axis=1)
        layers.append(Layer(discs, colour, (_disc,)))
    return Scene(lattice, tuple(layers)), base


def add_noise(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """``canvas`` in [0, 1] with a little noise, as uint8."""
    noise = rng.random(canvas.shape, dtype=np.float32) - np.float32(0.5)
    canvas = np.clip(canvas + noise * np.float32(0.1), 0, 1)
    return np.rint(canvas * np.float32(255)).astype(np.uint8)


# --- Textures --------------------------------------------------------------------------------------------------------

Pattern = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
"""Brightness in [0, 1] at ``(N, S, S)`` rotated coordinates counted in periods."""


def _wave(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(2 * np.pi * x)


def _to_integer(x: np.ndarray) -> np.ndarray:
    return x - np.rint(x)


def _stripes(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _wave(u)


def _zigzag(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _wave(u + 1.2 * np.abs(_to_integer(0.6 * v)))


def _checks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 3 * np.sin(np.pi * u) * np.sin(np.pi * v), 0, 1)


def _dots(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.clip(8 * (0.33 - np.sqrt(_to_integer(u) ** 2 + _to_integer(v) ** 2)) + 0.5, 0, 1)


def _rings(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    n = len(u)
    x, y = (c - c.mean(axis=(1, 2), keepdims=True) - draw_uniform(rng, -1.5, 1.5, n, 1, 1) for c in (u, v))
    return _wave(np.sqrt(x * x + y * y))


def _bricks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v)
    along, across = 0.6 * u + 0.5 * (row % 2), v
    joint = np.minimum(np.abs(_to_integer(along)) / 0.6, np.abs(_to_integer(across)))
    return np.clip(8 * (joint - 0.14) + 0.5, 0, 1)


def _cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Worley noise: how much nearer the nearest of the jittered grid points is than the second nearest."""
    n, table = len(u), 16
    jitter = draw_uniform(rng, 0.1, 0.9, 2, n, table, table)
    column, row = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    image = np.arange(n)[:, None, None]
    first, second = np.full(u.shape, np.inf), np.full(u.shape, np.inf)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            where = (image, (row + dy) % table, (column + dx) % table)
            x, y = column + dx + jitter[0][where] - u, row + dy + jitter[1][where] - v
            distance = np.sqrt(x * x + y * y)
            second = np.minimum(second, np.maximum(first, distance))
            first = np.minimum(first, distance)
    return np.clip(3 * (second - first), 0, 1)


def _clouds(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    n, samples = len(u), u.shape[-1]
    coarse, fine = (interpolate_smoothly(rng.random((n, cells + 1, cells + 1)), samples) for cells in (5, 11))
    return np.clip(0.5 + 1.6 * (coarse - 0.5) + 0.9 * (fine - 0.5), 0, 1)


PATTERNS: tuple[Pattern, ...] = (_stripes, _zigzag, _checks, _dots, _rings, _bricks, _cells, _clouds)
"""The classes of task ``textures`` in label order."""


def render_textures(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """``(N, 3, 32, 32)`` float32 textures in [0, 1] in two colours each.

    Direction, period (5 to 11 pixels), phase, colours, contrast and a gradient of light are random.

    Args:
        rng: Source of every random number.
        labels: ``(N,)`` indices into ``PATTERNS``.
    """
    n = len(labels)
    angle, period = draw_uniform(rng, 0, 2 * np.pi, n), draw_uniform(rng, 5, 11, n)
    phase = draw_uniform(rng, 0, 16, 2, n)
    axis = (np.arange(SIZE * _SUB) + 0.5) / _SUB - SIZE / 2
    cos, sin = ((f(angle) / period)[:, None, None] for f in (np.cos, np.sin))
    u = axis[None, None, :] * cos + axis[None, :, None] * sin + phase[0][:, None, None]
    v = axis[None, :, None] * cos - axis[None, None, :] * sin + phase[1][:, None, None]
    mix = np.empty((n, SIZE, SIZE))
    for label, pattern in enumerate(PATTERNS):
        chosen = np.flatnonzero(labels == label)
        mix[chosen] = average_subsamples(pattern(rng, u[chosen], v[chosen]))
    first = rng.random((n, 3))
    second = first + (draw_distant_colours(rng, first) - first) * draw_uniform(rng, 0.3, 1, n, 1)
    swap = rng.random(n) < 0.5
    mix[swap] = 1 - mix[swap]
    light = 1 + 0.5 * (interpolate_smoothly(rng.random((n, 1, 2, 2)), SIZE) - 0.5)
    canvas = first[:, :, None, None] + (second - first)[:, :, None, None] * mix[:, None]
    return (canvas * light).astype(np.float32)
