"""Operations of the API, each with its kind, the things that it aims at, and a probe that sends it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx
from matrix.rules import Kind, Subject, is_allowed
from matrix.world import SHARED_KEYS, Person, World


@dataclass(frozen=True)
class Outcome:
    """The answers that a probe got, and whether it had its way: got the bytes, or made its change."""

    answers: list[httpx.Response]
    is_done: bool


Probe = Callable[[World, Person], Outcome]


@dataclass(frozen=True)
class Operation:
    """An operation of the API.

    Parameters
    ----------
    name
        Words for the test's id.
    covers
        The function, the right on a table (``"datasets select"``), or the route of Storage that is probed.
    kind
        Kind of the operation, which decides who may.
    probe
        Sends the requests, and looks whether they did anything.
    needs
        Things of the owner that are made before it is first sent, and again after it has changed them.
    is_quiet
        True if it answers who may not with nothing, such as an empty list, and without an error.
    names_keys
        True if an error may name the key, which its caller gave when it began.
    is_function
        True if it is called over REST, where the service key is nobody's login.
    """

    name: str
    covers: str
    kind: Kind
    probe: Probe
    needs: tuple[str, ...] = ()
    is_quiet: bool = False
    is_function: bool = True
    names_keys: bool = False


def violations(world: World, operation: Operation, people: Iterable[Person]) -> Iterable[str]:
    """Send an operation as each of some people, and tell all that the rules forbid."""
    world.make(*operation.needs)
    before, of_bystander = world.state(), world.state_of_bystander()
    people = list(people)
    for person, following in zip(people, [*people[1:], None], strict=True):
        allowed = is_allowed(operation.kind, person.subject, is_function=operation.is_function)
        outcome = operation.probe(world, person)
        where = f"{operation.name} by {person.name}"
        if allowed:
            yield from _failures_of_allowed(where, outcome)
        else:
            yield from _failures_of_refused(where, outcome, operation, person)
        yield from _leaks(where, outcome, operation, world.marks(person, is_open=operation.kind is Kind.OPEN))
        if following is not None and person.subject is following.subject is Subject.BAD_TOKEN:
            # All of them change nothing: looked at after the last one.
            continue
        after = world.state()
        if after != before and not _may_change(operation, person, allowed=allowed):
            changed = sorted(set(after) ^ set(before))
            yield f"{where}: something of the owner's has changed: {changed[:2]}"
        # After the last one, the next operation makes what it needs, but for settings, which are everybody's.
        if after != before and (following is not None or operation.kind is Kind.ADMINISTER):
            world.make(*operation.needs)
            before = world.state()
    # The service key may change settings, which are everybody's.
    if operation.kind is not Kind.ADMINISTER and world.state_of_bystander() != of_bystander:
        yield f"{operation.name}: something of a bystander's has changed"


def _may_change(operation: Operation, person: Person, *, allowed: bool) -> bool:
    # An operation on the caller's own things leaves the owner's as they are, though it is allowed to everybody.
    return allowed and (operation.kind is not Kind.OWN or person.subject is Subject.OWNER)


def _failures_of_allowed(where: str, outcome: Outcome) -> Iterable[str]:
    refused = [answer for answer in outcome.answers if answer.status_code >= 400]
    for answer in refused:
        yield f"{where}: refused: {answer.status_code} {answer.text[:200]}"
    if not outcome.is_done and not refused:
        yield f"{where}: answered as if it was done, and it was not"


def _failures_of_refused(where: str, outcome: Outcome, operation: Operation, person: Person) -> Iterable[str]:
    if outcome.is_done:
        yield f"{where}: it was done, and nobody may"
    may_be_quiet = operation.is_quiet and person.subject is not Subject.BAD_TOKEN
    for answer in outcome.answers:
        if answer.status_code >= 500:
            yield f"{where}: the server failed: {answer.status_code} {answer.text[:200]}"
        elif answer.status_code < 400 and not (may_be_quiet and _is_empty(answer)):
            yield f"{where}: answered {answer.status_code} {answer.text[:200]}"


def _is_empty(answer: httpx.Response) -> bool:
    """True if an answer tells nothing: no content, an empty list, false, null, zero, or members that are such."""
    if not answer.content:
        return True
    try:
        said: Any = json.loads(answer.content)
    except ValueError:
        return False
    return not any(said.values()) if isinstance(said, dict) else not said


def _leaks(where: str, outcome: Outcome, operation: Operation, marks: Iterable[str]) -> Iterable[str]:
    for answer in outcome.answers:
        said = answer.content.decode("latin-1") + str(answer.headers)
        # The caller said these, and is told nothing by their echo.
        asked = answer.request.content.decode("latin-1") + str(answer.request.url)
        for mark in marks:
            if mark in said and mark not in asked and not (operation.names_keys and mark in SHARED_KEYS):
                yield f"{where}: the answer holds {mark!r}: {answer.text[:300]}"
