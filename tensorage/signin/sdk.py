"""The auth part of the Supabase SDK under whichever of its two names is installed.

The package was called ``gotrue`` until supabase 2.18.0 and is called ``supabase_auth`` since. This is
the only module that knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supabase_auth.errors import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError
    from supabase_auth.types import AuthResponse, Session, User
else:
    try:
        from supabase_auth.errors import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError
        from supabase_auth.types import AuthResponse, Session, User
    except ModuleNotFoundError as missing:
        if missing.name != "supabase_auth":
            raise
        from gotrue.errors import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError
        from gotrue.types import AuthResponse, Session, User

__all__ = [
    "AuthApiError",
    "AuthError",
    "AuthResponse",
    "AuthRetryableError",
    "AuthUnknownError",
    "Session",
    "User",
]
