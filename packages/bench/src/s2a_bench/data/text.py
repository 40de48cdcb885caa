"""Text of files that others wrote: with or without a byte order mark, with any line ends."""

from __future__ import annotations

import codecs

from s2a_bench.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, what: str) -> str:
    """The text of a file: UTF-8, or as its byte order mark says, which is left out; lines end as on Unix.

    Args:
        data: The file's content.
        what: Its name in error messages.

    Raises:
        InputError: It is not text.
    """
    coding = next((coding for mark, coding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(coding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is not text ({error.reason} at byte {error.start}); save it as UTF-8, or get it again."
        ) from error
    if data and not text:
        raise InputError(f"{what} is not text (nothing follows its byte order mark); get it again.")
    if "\0" in text:
        raise InputError(f"{what} is not text (a zero at character {text.index(chr(0))}); save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
