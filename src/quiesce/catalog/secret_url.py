"""The URL of a database, which may have a password. The password is never in a text that quiesce shows."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

HIDDEN = "***"
_SECRET = re.compile(r"pass|pwd|secret|token|key", re.IGNORECASE)
_MISPLACED = re.compile(r"(?<=:).*(?=@)|(?<=%3A).*(?=%40)")
"""The password of a mistyped URL, as `postgres//user:password@host`."""


class SecretUrl:
    """`whole` is the URL with its password; str() is the URL without it."""

    def __init__(self, whole: str) -> None:
        self.whole = whole
        self._misplaced = False
        try:
            url = sa.make_url(whole)
        except (sa.exc.SQLAlchemyError, ValueError):
            # Not a URL that SQLAlchemy understands: whatever stands before the host may be a password.
            self._shown = f"{whole.partition('://')[0]}://{HIDDEN}" if "://" in whole else HIDDEN
            self._secrets = {part for part in re.split(r"[:/@?&=]+", whole.partition("://")[2]) if part}
            return
        named = {name: value for name, value in url.query.items() if _SECRET.search(name)}
        values = [value for item in named.values() for value in ([item] if isinstance(item, str) else item)]
        hidden = url.set(query={**url.query, **dict.fromkeys(named, HIDDEN)})
        shown = hidden.render_as_string(hide_password=True).replace(quote_plus(HIDDEN), HIDDEN)
        scheme, separator, rest = shown.partition("://")
        self._shown = f"{scheme}{separator}{_MISPLACED.sub(HIDDEN, rest)}"
        self._misplaced = any(map(_MISPLACED.search, (url.host or "", url.database or "")))
        self._secrets = {text for text in (url.password, *values) if text}

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"SecretUrl({self._shown})"

    def without_secrets(self, error: Exception) -> str:
        """What the error says, with each secret of the URL hidden. If that cannot be done safely, only the error's kind."""
        if self._misplaced:  # a part of it may be in the text
            return getattr(error, "strerror", None) or type(error).__name__
        text = str(error).replace(self.whole, self._shown)
        spellings = {
            form
            for secret in self._secrets
            for form in (secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1])
        }
        for spelling in sorted(spellings, key=len, reverse=True):
            if len(spelling) < 3 and spelling in text:
                return type(error).__name__
            text = text.replace(spelling, HIDDEN)
        return text
