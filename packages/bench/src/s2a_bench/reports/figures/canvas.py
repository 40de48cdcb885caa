"""From a matplotlib figure to SVG for a page: colours through CSS, titles for the mouse, the same bytes every time.

matplotlib is imported when the first figure is drawn, and never its ``pyplot``. A figure is made of colours that stand
for names (``Canvas.ink``); the SVG that matplotlib writes then refers to the names, so that one drawing has the colours
of the page it lies on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from s2a_bench.reports.markup import Markup, element

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 440.0, 330.0
"""Usual size of a figure, in SVG units; a unit is a point of matplotlib's."""

FONT, SMALL = 12.0, 11.0
"""Sizes of names and of all other text."""

MISSING = "There are no figures: matplotlib is not installed (pip install matplotlib)."

_RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "s2a",
    "text.parse_math": False,  # a "$" in a name is a "$"
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that sizes are the same everywhere
    "font.size": SMALL,
    "path.simplify": False,
}

_LOCK = threading.RLock()
"""matplotlib's settings belong to the process; an early report is drawn in a thread of its own."""

_SVG = "{http://www.w3.org/2000/svg}"


def is_available() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


@contextlib.contextmanager
def open_canvas(width: float = WIDTH, height: float = HEIGHT) -> Iterator[Canvas]:
    """A canvas with settings of its own: what the user has set in ``matplotlibrc`` or the process changes no figure.

    Args:
        width: In SVG units.
        height: In SVG units.
    """
    with _LOCK:
        matplotlib = _import_matplotlib()
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)
            yield Canvas(width, height)


@functools.cache
def _import_matplotlib() -> Any:
    """Imports matplotlib without its remarks on a home folder that cannot be written and on fonts that it looks up."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib
        import matplotlib.backends.backend_svg
        import matplotlib.figure
    finally:
        logger.setLevel(level)
    return matplotlib


class Canvas:
    """A figure in the making.

    Attributes:
        figure: matplotlib's figure, with a point as its unit.
        width: In points.
        height: In points.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.figure: Figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)
        self.width, self.height = width, height
        self._inks: dict[str, str] = {}
        self._tags: dict[str, tuple[str | None, str | None]] = {}

    def resize(self, width: float, height: float) -> None:
        """Before anything is drawn, for figures whose size depends on that of texts."""
        self.figure.set_size_inches(width / 72, height / 72)
        self.width, self.height = width, height

    def ink(self, name: str = "ink") -> str:
        """A colour that becomes the CSS variable ``--name``; ``ink`` is the colour of the page's text."""
        return self._inks.setdefault(name, f"#{0x0D0000 + 37 * len(self._inks):06x}")

    def tag(self, artist: Artist, *, title: str | None = None, class_: str | None = None) -> None:
        """Gives what is drawn for an artist a text that appears when it is pointed at, and a CSS class."""
        key = f"tag-{len(self._tags)}"
        artist.set_gid(key)
        self._tags[key] = (title, class_)

    def add_axes(self, left: float, right: float, top: float, bottom: float) -> Axes:
        """A plot with margins in points: no frame, quiet ticks, nothing cut off at its edge."""
        width, height = self.width - left - right, self.height - top - bottom
        axes = self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))
        axes.patch.set_visible(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(which="both", length=0, left=False, bottom=False, pad=4, labelcolor=self.ink("quiet"))
        axes.set_axisbelow(True)
        return axes

    def write(self, x: float, y: float, text: str, **options: Any) -> Any:
        """Text at a point counted from the upper left corner, in the quiet colour unless ``color`` says otherwise."""
        options = {"color": self.ink("quiet"), "fontsize": SMALL, **options}
        return self.figure.text(x, self.height - y, text, transform=None, **options)

    def measure(self, lines: Sequence[str], size: float, bold: bool = False) -> tuple[float, float]:
        """Width and height of lines of text, in points."""
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import text_to_path

        font = FontProperties(size=size, weight=700 if bold else 400)
        widths = [text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines]
        return float(max(widths)), size * 7 / 6 * len(lines)

    def draw_line(self, start: tuple[float, float], end: tuple[float, float], **options: Any) -> Artist:
        """A line between two points counted from the lower left corner."""
        from matplotlib.lines import Line2D

        line = Line2D([start[0], end[0]], [start[1], end[1]], transform=None, **options)
        self.figure.add_artist(line)
        return line

    def draw_point(self, axes: Axes, x: float, y: float, size: float, colour: str, *, title: str) -> None:
        """A dot of ``size`` points from its middle to its edge, with a text for the mouse."""
        from matplotlib.patches import Circle

        across, up = map(float, axes.transData.transform((x, y)))
        dot = Circle((across, up), size, transform=None, facecolor=colour, linewidth=0, zorder=5, clip_on=False)
        self.tag(axes.add_artist(dot), title=title, class_="point")

    def label(self, axes: Axes, x_label: str, y_label: str) -> None:
        """The name of the horizontal axis below it, that of the vertical one above it."""
        box = axes.get_position()
        middle = (box.x0 + box.x1) / 2 * self.width
        self.write(middle, self.height - 8, x_label, ha="center")
        self.write(6, (1 - box.y1) * self.height - 12, y_label)

    def to_svg(self, title: str) -> Markup:
        """The drawing.

        Args:
            title: For screen readers.
        """
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        held = io.StringIO()
        absent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(self.figure).print_svg(held, metadata=absent)
        root = ET.fromstring(held.getvalue())
        colours = {placeholder: _css_colour(name) for name, placeholder in self._inks.items()}
        parts = [markup for child in root for markup in self._convert(child, colours)]
        box = f"0 0 {self.width:g} {self.height:g}"
        return element("svg", *parts, viewBox=box, class_="fig", role="img", aria_label=title)

    def _convert(self, node: ET.Element, colours: dict[str, str]) -> list[Markup]:
        """An element of the drawing as markup, without what a page does not need; bare groups are dissolved."""
        name = node.tag.removeprefix(_SVG)
        if name in ("metadata", "style", "clipPath"):
            return []
        title, class_ = self._tags.get(node.get("id", ""), (None, None))
        children = [markup for child in node for markup in self._convert(child, colours)]
        if name in ("g", "defs") and not (title or class_):
            return children
        attributes: dict[str, Any] = {}
        for key, value in node.attrib.items():
            if key in ("id", "clip-path"):  # nothing is drawn outside its axes
                continue
            value = _shorten_numbers(_clean_style(value, colours) if key == "style" else value)
            if key == "transform" and re.fullmatch(r"rotate\(-?0( [-\d.]+ [-\d.]+)?\)", value):
                continue
            attributes[key] = value.strip()
        head = [element("title", title)] if title else []
        body = [node.text] if name == "text" and node.text else []
        return [element(name, *head, *body, *children, class_=class_, **attributes)]


def stand_alone(drawing: Markup, style: Markup, title: str) -> Markup:
    """A drawing of ``Canvas.to_svg`` as a file of its own.

    Args:
        drawing: An ``svg`` element.
        style: ``style.css`` of what it shows.
        title: What a browser shows as the file's name.
    """
    head, _, rest = drawing.partition(">")
    opened = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return Markup(f"{opened}>{element('title', title)}{element('style', style)}{rest}")


def _css_colour(name: str) -> str:
    return "currentColor" if name == "ink" else f"var(--{name})"


def _clean_style(style: str, colours: dict[str, str]) -> str:
    """Declarations without the font's family (the page's is used) and with colours by name."""
    kept = []
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            # "600 12px 'DejaVu Sans'": weight and size stay.
            weight, size = re.fullmatch(r"(?:(\S+) )?([\d.]+px) .*", value).groups()  # type: ignore[union-attr]
            kept += [f"font-size:{size}", *([f"font-weight:{weight}"] if weight else [])]
        elif key and key != "font-family" and (key, value) not in _NEEDLESS:
            kept.append(f"{key}:{colours.get(value, value)}")
    return ";".join(kept)


_NEEDLESS = frozenset(
    {("stroke-linejoin", "miter"), ("stroke-linecap", "butt"), ("stroke-linecap", "square"), ("stroke-dashoffset", "0")}
)


def _shorten_numbers(text: str) -> str:
    """Two digits after the point are finer than any screen."""

    def shorten(found: re.Match[str]) -> str:
        value = f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
        return "0" if value == "-0" else value

    return re.sub(r"\s+", " ", re.sub(r"-?\d+\.\d{3,}", shorten, text))
