"""Style sheet of the figures: what the names of their colours are on light pages, on dark ones and on paper."""

from __future__ import annotations

from collections.abc import Iterable

from s2a_bench.reports.figures import method_styles
from s2a_bench.reports.markup import Markup

CURVES = (("#0069b4", "#62b5f5"), ("#00866a", "#3fcfa6"), ("#b8478a", "#ee9ccb"), ("#9c7400", "#e9c84f"))
"""Light and dark colour of curves that are no methods; their names stand beside them."""

_LIGHT = "--quiet:#5c5c5c;--grid:#e2e2e2;--front:#8a8a8a;--tie:#b4b4b4;--wrong:#c4462d;"
_DARK = "--quiet:#a8a8a8;--grid:#34363a;--front:#8d8d8d;--tie:#66696e;--wrong:#c4462d;"

ALONE = ".fig{--page:#fff}@media (prefers-color-scheme:dark){.fig{--page:#17181a}}@media print{.fig{--page:#fff}}"
"""The page's colour, for files that lie on none."""


def css(methods: Iterable[str]) -> Markup:
    """Style of the figures.

    Args:
        methods: Whose colours are needed.
    """
    light, dark = method_styles.css(methods)
    light += "".join(f"--curve{k}:{pair[0]};" for k, pair in enumerate(CURVES))
    dark += "".join(f"--curve{k}:{pair[1]};" for k, pair in enumerate(CURVES))
    return Markup(
        ".fig{display:block;width:100%;height:auto;font-family:system-ui,'Segoe UI',Roboto,Arial,sans-serif;"
        f"color:#222;{_LIGHT}{light}--tile:#0069b4}}"
        # A rim of the page's colour lifts names off the lines.
        ".fig .name text{paint-order:stroke;stroke:var(--page,transparent);stroke-width:3px}"
        ".panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,13rem),1fr));gap:.25rem .75rem}"
        "figure:has(.panels){grid-column:1/-1}"
        f"@media (prefers-color-scheme:dark){{.fig{{color:#ddd;{_DARK}{dark}}}}}"
        # Printed pages are white in a dark colour scheme as well.
        f"@media print{{.fig{{color:#222;{_LIGHT}{light}}}}}"
    )
