"""Passwords are never shown: every message of an error, and every line of a log, goes through `scrub`."""

import logging
import re
from urllib.parse import unquote, unquote_plus

SECRET = r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|credential|access_?key|api_?key)"
VALUE = r"""'[^']*'|"[^"]*"|(?!\*\*\*|valid:|did you )[^\s'",;}\])]+"""
CREDENTIALS = re.compile(r"(//[^:/]*:)(.*)@")  # of a URL by itself: to the last @, rather too much hidden than too little
IN_QUERY = re.compile(rf"([?&][^=&\s]*{SECRET}[^=&\s]*=)([^&\s]*)", re.IGNORECASE)
IN_TEXT = (
    re.compile(r"(//[^:/\s]*:)(\S*)(?=@)"),  # scheme://me:password@
    re.compile(r"(//[^:/\s@]*:)(?!\*\*\*|\d*(?:[^\w%]|$))([^\s'\"]+)"),  # the same, cut off before the @; no port
    re.compile(r"((?:^|(?<=[\s'\"(=\[{,]))[\w.+%-]+:)(?=[^\s/*])(\S+)(?=@)"),  # me:password@host, without a scheme
    IN_QUERY,
    re.compile(
        rf"({SECRET}\w*['\"]?[ \t]*[=:][ \t]*)('[^']*'|\"[^\"]*\"|(?!\*\*\*|valid:|did you )[^\s'\",;}}\])]+)", re.IGNORECASE
    ),
)

_passwords: set[str] = set()  # of the storages that were named here, so that no message can hold one


def scrub(text: str, url: str = "") -> str:
    """A text without anything that looks like a password, and without those of `url` and of all that was remembered."""
    for password in sorted(_passwords | _secrets(url), key=len, reverse=True):
        text = re.sub("".join(map(_spellings, password)), "***", text)
    for pattern in IN_TEXT:
        text = pattern.sub(r"\1***", text)
    return text


def safe_url(url: str) -> str:
    """A storage URL that may be shown: without its password, also where it stands in the query."""
    return scrub(IN_QUERY.sub(r"\1***", CREDENTIALS.sub(r"\1***@", url)))


def remember(url: str) -> None:
    """From now on, `scrub` knows the password of a storage's URL, however it is spelled."""
    _passwords.update(_secrets(url))


class Redacting(logging.Formatter):
    """A log's lines without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def _secrets(url: str) -> set[str]:
    raw = {match[2] for way in (CREDENTIALS, IN_QUERY) for match in way.finditer(url)}
    raw |= {word.split("@")[0] for word in raw}  # an @ further on, in the query, is none of the password's end
    return {decode(word) for word in raw for decode in (unquote, unquote_plus)} - {""}


def _spellings(letter: str) -> str:
    """A pattern for a letter of a password: as it is, behind a backslash, percent-encoded."""
    encoded = "".join(f"%{byte:02X}" for byte in letter.encode())
    return rf"(?:\\?{re.escape(letter)}|(?i:{encoded}){'|[+]' if letter == ' ' else ''})"
