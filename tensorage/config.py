"""Where the project's URL and key, and the user's e-mail and password come from.

An explicit argument beats the environment, which beats a ``.env`` file, which beats what
`tensorage.link_to` saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
from dotenv import dotenv_values, find_dotenv

from tensorage.errors import ConfigurationError

__all__ = ["ENVIRONMENT", "Configuration", "configure", "required", "save", "saved_path"]

#: Environment variable of each value.
ENVIRONMENT = {
    "backend_url": "SUPABASE_URL",
    "backend_key": "SUPABASE_KEY",
    "email": "USER_EMAIL",
    "password": "USER_PASSWORD",
}


@dataclass(frozen=True)
class Configuration:
    """What is known of the project and the user; ``None`` where nothing is."""

    backend_url: str | None = None
    backend_key: str | None = field(default=None, repr=False)
    email: str | None = None
    password: str | None = field(default=None, repr=False)


def configure(**explicit: str | None) -> Configuration:
    """Look up every value that is not given.

    Parameters
    ----------
    explicit
        `backend_url`, `backend_key`, `email`, `password`; ``None`` is "not given".
    """
    environment: Mapping[str, str | None] = os.environ
    # From the working directory upwards, as python-dotenv's own command line does: not from this file's folder.
    dotenv = dotenv_values(find_dotenv(usecwd=True))
    saved = _read_saved()
    values = {}
    for name, variable in ENVIRONMENT.items():
        candidates = (explicit.get(name), environment.get(variable), dotenv.get(variable), saved.get(name))
        values[name] = next((value for value in candidates if value), None)
    return Configuration(**values)


def saved_path() -> Path:
    """File in which `tensorage.link_to` remembers a project: one per user of the machine."""
    return platformdirs.user_config_path("tensorage") / "project.json"


def required(name: str, value: str | None) -> str:
    """The value, or an error that says how to configure it."""
    if value:
        return value
    remedy = f"set {ENVIRONMENT[name]} in the environment or in a .env file, or give {name}="
    if name in {"backend_url", "backend_key"}:
        remedy += ". tensorage.link_to(url, key) remembers both; tensorage.local() needs neither"
    raise ConfigurationError(f"no {name} is configured: {remedy}")


def save(configuration: Configuration) -> Path:
    """Remember a project, readable by this user of the machine only."""
    path = saved_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {name: getattr(configuration, name) for name in ENVIRONMENT}
    # Made with mode 0600 and renamed: neither half a file nor a readable one exists at any time.
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


def _read_saved() -> dict[str, str]:
    path = saved_path()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the saved project in {path} cannot be read ({error}): call tensorage.link_to(url, key) again, "
            "or delete the file"
        ) from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} does not hold a saved project: delete it, or link_to again")
    return {name: str(value) for name, value in values.items() if name in ENVIRONMENT and value}
