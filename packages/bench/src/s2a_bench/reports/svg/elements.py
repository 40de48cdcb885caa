"""The former place of ``reports.markup``."""

from s2a_bench.reports.markup import Markup, element, join

__all__ = ["Markup", "element", "join"]
