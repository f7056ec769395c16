"""The words of a rule, taken one after another by what reads it (core/trace/text)."""

from __future__ import annotations

import re
from ipaddress import ip_address

_TOKEN = re.compile(r'"[^"]*"|[{}(),]|[^\s{}(),"]+')
_NAMED = re.compile(r"@([A-Za-z][\w-]*)")
CHAIN = re.compile(r"[A-Za-z][\w-]*")
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")


class Words:
    """The words of a rule, taken from the front. What is not as it must be raises ValueError."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.left = _TOKEN.findall(text)

    def unknown(self) -> ValueError:
        """Return the error that what comes next is not understood."""
        place = f"at {' '.join(self.left[:4])!r}" if self.left else "at its end"
        return ValueError(f"a rule is not understood {place}: {self._text}")

    def begins(self, *words: str) -> bool:
        """Tell whether words come next."""
        return tuple(self.left[: len(words)]) == words

    def given(self, *words: str) -> bool:
        """Take words if they come next."""
        if not self.begins(*words):
            return False
        del self.left[: len(words)]
        return True

    def need(self, *words: str) -> None:
        """Take words, which must come next."""
        if not self.given(*words):
            raise self.unknown()

    def match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Take one word that fits."""
        found = pattern.fullmatch(self.left[0]) if self.left else None
        if found is None:
            raise self.unknown()
        del self.left[0]
        return found

    def number(self) -> int:
        """Take a number, decimal or hexadecimal."""
        return int(self.match(_NUMBER)[0], 0)

    def name(self) -> str:
        """Take the name of a map, without its @."""
        return self.match(_NAMED)[1]

    def address(self) -> str:
        """Take an address and return it in normal form."""
        try:
            address = str(ip_address(self.left[0]))
        except (ValueError, IndexError):
            raise self.unknown() from None
        del self.left[0]
        return address
