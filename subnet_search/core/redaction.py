"""Remove passwords from text. Every error message and log line goes through `scrub`."""

import logging
import re
from urllib.parse import unquote, unquote_plus

SECRET = r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|credential|access_?key|api_?key)"
VALUE = r"""'[^']*'|"[^"]*"|(?!\*\*\*|valid:|did you )[^\s'",;}\])]+"""
CREDENTIALS = re.compile(r"(//[^:/]*:)(.*)@")  # of a URL by itself: up to the last @
IN_QUERY = re.compile(rf"([?&][^=&\s]*{SECRET}[^=&\s]*=)([^&\s]*)", re.IGNORECASE)
IN_TEXT = (
    re.compile(r"(//[^:/\s]*:)(\S*)(?=@)"),  # scheme://me:password@
    re.compile(r"(//[^:/\s@]*:)(?!\*\*\*|\d*(?:[^\w%]|$))([^\s'\"]+)"),  # the same, truncated before the @; not a port
    re.compile(r"((?:^|(?<=[\s'\"(=\[{,]))[\w.+%-]+:)(?=[^\s/*])(\S+)(?=@)"),  # me:password@host, without a scheme
    IN_QUERY,
    re.compile(rf"({SECRET}\w*['\"]?[ \t]*[=:][ \t]*)({VALUE})", re.IGNORECASE),
)

SHORT = 3  # shorter passwords are removed where they look like one, and not from every word that has the same letters

_passwords: set[str] = set()  # of all storage URLs this process has seen


def scrub(text: str, url: str = "") -> str:
    """Replace passwords by ***: anything that looks like one, that of `url`, and all given to `remember`."""
    for password in sorted(_passwords | _secrets(url), key=len, reverse=True):
        if len(password) < SHORT:
            continue
        text = re.sub("".join(map(_spellings, password)), "***", text)
    for pattern in IN_TEXT:
        text = pattern.sub(r"\1***", text)
    return text


def safe_url(url: str) -> str:
    """A storage URL without its password, in the user part or in the query."""
    return scrub(IN_QUERY.sub(r"\1***", CREDENTIALS.sub(r"\1***@", url)))


def remember(url: str) -> None:
    """Make `scrub` remove the password of this storage URL from now on, in any encoding."""
    _passwords.update(_secrets(url))


class Redacting(logging.Formatter):
    """Log formatter that removes passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def _secrets(url: str) -> set[str]:
    raw = {match[2] for way in (CREDENTIALS, IN_QUERY) for match in way.finditer(url)}
    raw |= {word.split("@")[0] for word in raw}  # the last @ may belong to the query
    return {decode(word) for word in raw for decode in (unquote, unquote_plus)} - {""}


def _spellings(letter: str) -> str:
    """A pattern for one character of a password: plain, after a backslash, or percent-encoded."""
    encoded = "".join(f"%{byte:02X}" for byte in letter.encode())
    return rf"(?:\\?{re.escape(letter)}|(?i:{encoded}){'|[+]' if letter == ' ' else ''})"
