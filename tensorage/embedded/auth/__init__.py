"""The Auth API: the part of GoTrue's protocol with which users sign up, log in and stay logged in.

Modules
-------
api         the endpoints
params      request bodies: read within a limit, and checked
bearer      who an access token says is asking
passwords   hashed and checked
users       ``auth.users`` and ``auth.identities``
sessions    ``auth.sessions`` and ``auth.refresh_tokens``
answers     users, sessions and errors as GoTrue writes them
"""

from tensorage.embedded.auth.api import AuthApi

__all__ = ["AuthApi"]
