"""The doctor's report, as text and as JSON. No I/O."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Report"]

#: Version of the form of the JSON. It goes up when a name changes its meaning or goes away.
FORMAT = 1

_WIDTH = 110
_MARGIN = 10


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a project.

    Parameters
    ----------
    level
        "error" for a project that does not work, or keeps something unsafe. "warning" for one that may.
    code
        Name of the kind of finding, which stays the same: ``rls-off``.
    about
        The thing that is wrong: ``public.tensors``.
    """

    level: Literal["error", "warning"]
    code: str
    about: str
    message: str
    remedy: str

    def as_json(self) -> dict[str, str]:
        return {
            "level": self.level,
            "code": self.code,
            "about": self.about,
            "message": self.message,
            "remedy": self.remedy,
        }


@dataclass
class Report:
    """All that the doctor says of a project.

    Parameters
    ----------
    facts
        By their subject, facts that were seen and are not wrong.
    unseen
        By their subject, reasons why something was not seen.
    """

    url: str
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """True if no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def error(self, code: str, about: str, message: str, remedy: str) -> None:
        self.findings.append(Finding("error", code, about, message, remedy))

    def warn(self, code: str, about: str, message: str, remedy: str) -> None:
        self.findings.append(Finding("warning", code, about, message, remedy))

    def as_json(self) -> dict[str, Any]:
        """Return the form that the page "tensorage doctor" of the documentation describes."""
        return {
            "format": FORMAT,
            "url": self.url,
            "healthy": self.is_healthy,
            "findings": [finding.as_json() for finding in self.findings],
            "facts": self.facts,
            "unseen": self.unseen,
        }

    def as_text(self) -> str:
        """Return the report for a terminal: facts, then what was not seen, then findings, the worst last."""
        lines = [f"project   {self.url}"]
        for about, text in self.facts.items():
            lines += _entry("ok", f"{about}: {text}")
        for about, why in self.unseen.items():
            lines += _entry("not seen", f"{about}: {why}")
        # In reverse, "warning" comes before "error": the worst ends up next to the prompt.
        for finding in sorted(self.findings, key=lambda finding: finding.level, reverse=True):
            mark = "ERROR" if finding.level == "error" else "warning"
            lines += ["", *_entry(mark, f"{finding.about}: {finding.message} [{finding.code}]")]
            lines += _entry("remedy", finding.remedy)
        errors = sum(finding.level == "error" for finding in self.findings)
        count = f"{_number(errors, 'error')}, {_number(len(self.findings) - errors, 'warning')}"
        if not self.findings:
            count = "no findings"
        return "\n".join([*lines, "", f"{count}, {len(self.unseen)} not seen"])


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _entry(mark: str, text: str) -> Iterator[str]:
    """Yield the lines of a text with a mark in front of them. Nothing is broken in the middle of a word."""
    wrapped = textwrap.wrap(text, _WIDTH - _MARGIN, break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(wrapped):
        yield f"{mark if number == 0 else '':<{_MARGIN}}{line}"
