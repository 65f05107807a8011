"""The Auth API: the part of GoTrue's protocol to sign up, log in and stay logged in.

Modules
-------
answers     users, sessions and errors in GoTrue's JSON
params      request bodies: read within a limit, and checked
bearer      access tokens to users and sessions
passwords   passwords, hashed and checked
users       the tables ``auth.users`` and ``auth.identities``
sessions    the tables ``auth.sessions`` and ``auth.refresh_tokens``
api         the endpoints
"""

from tensorage.embedded.auth.api import AuthApi

__all__ = ["AuthApi"]
