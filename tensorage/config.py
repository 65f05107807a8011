"""Look-up of the project's URL and key, and of the user's e-mail and password.

An explicit argument beats the environment, the environment beats a ``.env`` file, and a ``.env`` file beats the
project that `tensorage.link_to` saved.

A key or a password must not reach a server that somebody else has chosen. An argument, the environment and the saved
project are the user's own words. A ``.env`` belongs to the folder that the program is in, and may have come with a
copy of somebody's files. Hence these rules:

1. Keys and passwords of the environment are not sent to a URL of a ``.env``.
2. A saved value belongs to the URL that it was saved with, and is used with no other URL.
3. An argument is used with the configured project, wherever that comes from.
4. A *profile*, a saved project with a name, comes before the environment, whose user is used with it unless the
   environment names a project as well. No ``.env`` counts then.

A value that rule 1 or 2 holds back counts as missing, and an error tells why. No value of another place is used
instead.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from tensorage import dotenv
from tensorage.errors import ConfigurationError, InvalidInputError
from tensorage.private_files import flaw_of_file, flaw_on_way, make_private_folder
from tensorage.warnings import warn_once
from tensorage.wording import one_line, quote, sentences

__all__ = [
    "ENVIRONMENT",
    "IS_LOCAL_WANTED",
    "SERVICE_KEY_VARIABLE",
    "Configuration",
    "check_key",
    "check_text",
    "check_url",
    "configure",
    "is_unread",
    "note_user",
    "redact_url",
    "require",
    "save",
    "saved_path",
]

#: Environment variable of each value.
ENVIRONMENT = {
    "backend_url": "SUPABASE_URL",
    "backend_key": "SUPABASE_KEY",
    "email": "USER_EMAIL",
    "password": "USER_PASSWORD",
}

#: Question to users for whom nothing is configured.
IS_LOCAL_WANTED = (
    "If you have no Supabase project: is tensorage.local() what you want? It starts a database of your own on this "
    "machine and keeps the arrays in a folder here, without an account, a URL or a key"
)

#: Environment variable of the key that passes by every policy. Only commands for administrators look for it.
SERVICE_KEY_VARIABLE = "SUPABASE_SERVICE_ROLE_KEY"

_VARIABLES = {**ENVIRONMENT, "service_key": SERVICE_KEY_VARIABLE}

#: Values that must not reach a server of somebody else's choice.
_SECRETS = frozenset({"backend_key", "password", "service_key"})

#: Most characters of a setting. Keys, the longest of them, are tokens of a few hundred.
MAX_SETTING_LENGTH = 4096

#: Paths at which a project has its parts, with the name of each.
_PARTS = {
    "rest": "REST API",
    "auth": "Auth server",
    "storage": "Storage server",
    "realtime": "Realtime server",
    "functions": "Edge Functions",
    "graphql": "GraphQL API",
}
_PART_PATH = re.compile(rf"/({'|'.join(_PARTS)})/v1(?:/.*)?$")

#: Hosts at which Supabase has pages for people, and the path of a project's page.
_DASHBOARDS = frozenset({"supabase.com", "www.supabase.com", "app.supabase.com", "app.supabase.io"})
_DASHBOARD_PATH = re.compile(r"/project/([a-z0-9]+)(?:/|$)")

#: Hosts of a hosted project's parts other than its API, such as its database and its Storage.
_PART_HOST = re.compile(r"(?:db\.([a-z0-9]+)|([a-z0-9]+)\.storage)\.supabase\.co")


@dataclass(frozen=True)
class Configuration:
    """Settings of the project and the user. A setting that is not known is ``None``.

    Parameters
    ----------
    held_back
        By the name of a setting, the reason why it is ``None`` although it is configured.
    """

    backend_url: str | None = None
    backend_key: str | None = field(default=None, repr=False)
    email: str | None = None
    password: str | None = field(default=None, repr=False)
    service_key: str | None = field(default=None, repr=False)
    held_back: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class _Place:
    """A place in which values are looked up.

    Parameters
    ----------
    kind
        "argument", "environment", ".env" or "saved".
    words
        Name of the place for people.
    """

    kind: str
    words: str
    values: Mapping[str, str] = field(repr=False)


def configure(
    *, for_administrator: bool = False, profile: str | None = None, **explicit: str | None
) -> Configuration:
    """Look up all settings that are not given.

    Parameters
    ----------
    for_administrator
        Look up the service key, too. `save` never keeps it.
    profile
        Name of a saved project, in place of what is configured.
    explicit
        `backend_url`, `backend_key`, `email`, `password`, `service_key`; ``None`` means "not given".

    Raises
    ------
    ConfigurationError
        If a ``.env`` or the saved project is needed, but others can change it or it cannot be read.
    InvalidInputError
        If a setting is no text.
    """
    for name, value in explicit.items():
        check_text(name, value)
    # An empty string counts as not given, as an empty variable of the environment does.
    given = {name: value for name, value in explicit.items() if value}
    variables = _VARIABLES if for_administrator else ENVIRONMENT
    places = [_Place("argument", "an argument", given)]
    looks: tuple[Callable[[], _Place], ...] = (
        partial(_environment, variables), partial(_dotenv_file, variables), _saved_project,
    )  # fmt: skip
    if profile is not None:
        looks = (partial(_profile, profile), partial(_user_of_environment, variables))
    for look in looks:
        # A file that makes no difference is not read, so that none of its flaws stops the program.
        if not all(any(name in place.values for place in places) for name in variables):
            places.append(look())
    # The place of the URL decides which other values may be used with it.
    values, held_back = {}, {}
    url_place = _first_place(places, "backend_url")
    for name in variables:
        place = _first_place(places, name)
        if place is None:
            continue
        if url_place is not None and (why := _why_held_back(name, place, url_place)):
            held_back[name] = why
        else:
            values[name] = place.values[name]
    return Configuration(**values, held_back=held_back)


def saved_path(profile: str | None = None) -> Path:
    """Return the path of the file in which `tensorage.link_to` saves a project: one for each user of the machine.

    Raises
    ------
    ConfigurationError
        If the name of the profile is none.
    """
    # Not needed where the environment has all settings.
    import platformdirs

    folder = platformdirs.user_config_path("tensorage")
    if profile is None:
        return folder / "project.json"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", profile):
        raise ConfigurationError(
            f"{profile[:80]!r} is no name of a profile: take up to 64 letters, digits, '_', '-' and '.'"
        )
    return folder / "profiles" / f"{profile}.json"


def require(name: str, value: str | None, held_back: Mapping[str, str] | None = None) -> str:
    """Return a value, or raise an error that says how to configure it."""
    if value:
        return value
    if held_back and name in held_back:
        raise ConfigurationError(held_back[name])
    remedy = f"set {_VARIABLES[name]} in the environment or in a .env file, or give {name}="
    if name in {"backend_url", "backend_key"}:
        remedy += ". tensorage.link_to(url, key) remembers both"
    raise ConfigurationError(
        sentences(f"no {name} is configured: {remedy}", IS_LOCAL_WANTED if name == "backend_url" else "")
    )


def check_text(name: str, value: object) -> None:
    """Refuse a setting that is no text, or that is longer than any. None stands for one that is not given.

    Raises
    ------
    InvalidInputError
        The message shows no value: it may be a secret, or a file's content.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} is text, and not of the type {type(value).__name__}")
    if len(value) > MAX_SETTING_LENGTH:
        raise InvalidInputError(
            f"{name} has {len(value)} characters, and {MAX_SETTING_LENGTH} is the most: is it the content of a file?"
        )


def check_key(key: str) -> str:
    """Refuse a key with characters that no key has, as one that was copied with a line break has.

    Raises
    ------
    ConfigurationError
        The message does not show the key.
    """
    check_text("backend_key", key)
    for place, letter in enumerate(key):
        is_at_end = place in {0, len(key) - 1}
        if not " " <= letter <= "~" or (is_at_end and letter == " "):
            raise ConfigurationError(
                f"the key of the project has the character {letter!r} at position {place}, and keys have ASCII "
                "letters, digits and punctuation only: copy it again (in the dashboard: Project Settings, API Keys)"
            )
    return key


def check_url(url: str) -> str:
    """Refuse a URL that cannot be a project's, and warn of a URL that sends passwords unencrypted.

    Raises
    ------
    ConfigurationError
        If the URL is not of HTTP, is that of a part or a page of a project, or holds a user name or password, which
        errors and logs would show.
    """
    check_text("backend_url", url)
    shown = f"the backend URL {quote(redact_url(url))}"
    try:
        parts = urlsplit(url)
        _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{shown} is no URL ({one_line(str(error))})") from error
    for flaw in _flaws_of_url(url, parts):
        raise ConfigurationError(f"{shown} {flaw}")
    if not is_unread(url):
        warn_once(
            f"{url} is not encrypted: whoever is on the way to it can read and change passwords, tokens and arrays. "
            "Use https://, or a tunnel that ends at a port of this machine"
        )
    return url


def is_unread(url: str) -> bool:
    """Tell whether nobody on the way can read requests to a URL: they are encrypted, or stay on this machine."""
    parts = urlsplit(url)
    return parts.scheme != "http" or _is_this_machine(parts.hostname or "")


def _flaws_of_url(url: str, parts: SplitResult) -> Iterator[str]:
    """Yield what is wrong with a URL, and what to give instead; nothing if it may be that of a project."""
    path = parts.path.rstrip("/")
    if project := _named_project(parts, path):
        yield f"is not that of the project's API. Give {quote(f'https://{project}.supabase.co')}"
    if not url.startswith(("http://", "https://")):
        yield "does not begin with https:// or http://"
    if not all("!" <= letter <= "~" for letter in url):
        yield "holds a space, a line break or a letter that is not ASCII. Copy it again"
    if "@" in parts.netloc:
        yield "has a user name or a password in it, which errors and logs would show: leave them out"
    if parts.hostname in _DASHBOARDS:
        yield "is a page for people. Give the project's own URL, https://<project>.supabase.co"
    if not parts.hostname:
        yield "names no host. A project's URL is https://<project>.supabase.co, or that of your own server"
    if (part := _PART_PATH.search(path)) or parts.query or parts.fragment:
        what = f"the project's {_PARTS[part[1]]}" if part else "a page, with a query or a fragment"
        own = f"{parts.scheme}://{parts.netloc}{path[: part.start()] if part else path}"
        yield f"is that of {what}. Give the project's own: {quote(own)}"


def _named_project(parts: SplitResult, path: str) -> str | None:
    """Return the project of a URL of the dashboard, or of another part of a hosted project than its API."""
    host = parts.hostname or ""
    if host in _DASHBOARDS and (page := _DASHBOARD_PATH.search(path)):
        return page[1]
    if named := _PART_HOST.fullmatch(host):
        return named[1] or named[2]
    return None


def redact_url(url: str) -> str:
    """Remove a user name and password from a URL, for messages."""
    # `urlsplit` would refuse some of the wrong URLs that messages are about.
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def save(configuration: Configuration, profile: str | None = None) -> Path:
    """Save a project in a file that only this user of the machine can read.

    Parameters
    ----------
    profile
        Name of the project, if it is one of several.

    Raises
    ------
    ConfigurationError
        If others could replace the file. Nothing is written then.
    """
    path = saved_path(profile)
    if flaw := flaw_on_way(path):
        otherwise = f"set {', '.join(ENVIRONMENT.values())} in the environment instead"
        raise ConfigurationError(
            f"the project is not saved in {path}: {flaw}, so that others could replace what is saved. "
            f"{flaw.advice(otherwise)}"
        )
    make_private_folder(path.parent)
    known = {name: getattr(configuration, name) for name in ENVIRONMENT}
    import tempfile

    # `mkstemp` makes the file with mode 0600. Renaming it in the end means that no half-written file is ever read.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({name: value for name, value in known.items() if value}, file, indent=2)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    return path


def note_user(profile: str, email: str) -> None:
    """Make an account that of a profile. A password that was saved for another one is dropped."""
    saved = _profile(profile).values
    if saved.get("email") != email:
        save(Configuration(saved.get("backend_url"), saved.get("backend_key"), email), profile=profile)


# Places --------------------------------------------------------------------------------------------------


def _environment(variables: Mapping[str, str]) -> _Place:
    values = {name: os.environ[variable] for name, variable in variables.items() if os.environ.get(variable)}
    return _Place("environment", "the environment", values)


def _dotenv_file(variables: Mapping[str, str]) -> _Place:
    found = dotenv.find(frozenset(variables.values()))
    if found is None:
        return _Place(".env", "no file", {})
    values = {
        name: found.values[variable] for name, variable in variables.items() if variable in found.values
    }
    return _Place(".env", str(found.path), values)


def _user_of_environment(variables: Mapping[str, str]) -> _Place:
    """Look the user up for a profile: a password beside another project's URL is that project's."""
    place = _environment(variables)
    return _Place(place.kind, place.words, {} if "backend_url" in place.values else place.values)


def _profile(name: str) -> _Place:
    place = _saved_project(name)
    if not place.values:
        raise ConfigurationError(
            f"there is no profile {name!r}: `tensorage link URL KEY --profile {name}` makes one"
        )
    return place


def _saved_project(profile: str | None = None) -> _Place:
    path = saved_path(profile)
    otherwise = "call tensorage.link_to(url, key) again, or delete the file"
    try:
        flaw = flaw_on_way(path)
        with path.open("rb") as file:
            # The status of the open file: the one of its name may be another by now.
            status = os.fstat(file.fileno())
            content = file.read()
        values = json.loads(content)
    except FileNotFoundError:
        return _Place("saved", "no file", {})
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the saved project in {path} cannot be read ({one_line(str(error))}): {otherwise}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} does not hold a saved project: delete it, or link_to again")
    flaw = flaw or flaw_of_file(path, status, is_private="password" in values)
    if flaw is not None:
        raise ConfigurationError(
            f"the saved project in {path} is not used: {flaw}, and it says where passwords are sent. "
            f"{flaw.advice('delete it and call tensorage.link_to(url, key) again')}"
        )
    # A later version may save settings that this one does not know.
    known = {name: str(value) for name, value in values.items() if name in ENVIRONMENT and value}
    return _Place("saved", f"what tensorage.link_to saved in {path}", known)


def _first_place(places: list[_Place], name: str) -> _Place | None:
    return next((place for place in places if name in place.values), None)


def _why_held_back(name: str, place: _Place, url_place: _Place) -> str | None:
    """Return the reason why a value must not be used with the URL; None if it may be."""
    url, own_url = url_place.values["backend_url"], place.values.get("backend_url")
    is_from_dotenv = url_place.kind == ".env"
    if place.kind == "saved" and own_url is not None and not _is_same(url, own_url):
        pair = f"It is for {redact_url(own_url)}, with which it was saved"
    elif place.kind == "saved" and own_url is None and is_from_dotenv:
        pair = "It was saved without a URL"
    elif place.kind == "environment" and name in _SECRETS and is_from_dotenv:
        pair = "A .env may be anybody's, and your environment is yours"
    else:
        return None
    return (
        f"the {name} in {place.words} is not sent to {redact_url(url)}, the URL in {url_place.words}. {pair}. If it "
        f"belongs to that URL, put both in one place: set {ENVIRONMENT['backend_url']} and {_VARIABLES[name]} in the "
        f"environment, or give backend_url= and {name}="
    )


def _is_same(url: str, other: str) -> bool:
    # Users copy a URL with and without its last slash.
    return url.rstrip("/") == other.rstrip("/")


def _is_this_machine(host: str) -> bool:
    """Tell whether requests to a host stay on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Any other name may resolve to another machine.
        return host == "localhost"
