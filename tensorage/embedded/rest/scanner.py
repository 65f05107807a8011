"""A position in a text that is being parsed, and the error of a text that cannot be parsed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from tensorage.embedded.rest.errors import ApiError


@dataclass
class Scanner:
    """A position in a text that is being parsed.

    Parameters
    ----------
    text
        The text.
    what
        Name of the text in error messages.
    columns_before
        Number of characters that PostgREST counts before the text.
    """

    text: str
    what: str
    columns_before: int = 0
    position: int = field(default=0, init=False)

    def peek(self, literal: str) -> bool:
        return self.text.startswith(literal, self.position)

    def take(self, literal: str) -> bool:
        """Step over `literal`, and tell whether it was next."""
        found = self.peek(literal)
        if found:
            self.position += len(literal)
        return found

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Step over the match of a pattern at this position, and return it, or None."""
        found = pattern.match(self.text, self.position)
        if found:
            self.position = found.end()
        return found

    def expect(self, literal: str) -> None:
        if not self.take(literal):
            self.fail(f'"{literal}"')

    @property
    def at_end(self) -> bool:
        return self.position >= len(self.text)

    def fail(self, expecting: str) -> NoReturn:
        # The message is that of PostgREST's own parser.
        seen = "end of input" if self.at_end else f'"{self.text[self.position]}"'
        column = self.columns_before + self.position + 1
        raise ApiError(
            400,
            "PGRST100",
            f'"failed to parse {self.what} ({self.text})" (line 1, column {column})',
            details=f"unexpected {seen} expecting {expecting}",
        )
