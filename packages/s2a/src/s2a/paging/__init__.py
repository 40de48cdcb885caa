"""Frozen weights that lie in host memory or a file and are copied to the device while they are used."""

from s2a.paging.layers import is_plain, paged_apply, paged_forward, refuse_trained, set_home
from s2a.paging.pager import Page, Pager, host_bytes, page_of, paged_weights, pager_of

__all__ = [
    "Page",
    "Pager",
    "host_bytes",
    "is_plain",
    "page_of",
    "paged_apply",
    "paged_forward",
    "paged_weights",
    "pager_of",
    "refuse_trained",
    "set_home",
]
