"""Login, refresh and logout: verifies passwords, issues access tokens, exchanges refresh tokens."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from gatekeeper_grpc.auth.lockout import LoginGuard
from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.auth.tokens import AccessTokens, Clock, Token, utc_now
from gatekeeper_grpc.domain.admin_user import Credentials
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import Unauthenticated

REFRESH_TTL = timedelta(days=30)

_REFRESH_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedTokens:
    """The tokens that a client receives for its credentials."""

    access: Token
    refresh: Token
    role: Role


class LoginRecords(Protocol):
    """Keeps logins, which are families of refresh tokens. A Protocol: `auth` does not import the store."""

    def credentials(self, username: str) -> Credentials:
        """Return the enabled admin user of a name, if there is one, and its hash."""
        ...

    def begin(
        self,
        username: str,
        *,
        password_hash: str,
        new_hash: str | None,
        refresh_token: str,
        expire_time: datetime,
        peer: str,
    ) -> Caller:
        """Begin a family.

        Raises:
            Unauthenticated: The admin user is no longer enabled with that password.
        """
        ...

    def redeem(self, refresh_token: str, *, successor: str, expire_time: datetime, peer: str) -> Caller:
        """Spend a refresh token for its successor.

        Raises:
            Unauthenticated: It is unknown, spent, revoked or expired.
        """
        ...

    def revoke(self, refresh_token: str, *, peer: str) -> None:
        """Revoke the family of a refresh token, if there is one."""
        ...

    def record_failure(self, username: str, *, peer: str, locked_out: bool) -> None:
        """Record a failed login under a name, and whether the next try has to wait."""
        ...


class Sessions:
    """Exchanges credentials for tokens. Holds no state and no lock.

    An access token stays valid until it expires, even after a logout or the loss of a role. Mutations also check its
    epoch in the database.

    Args:
        logins: Keeps refresh tokens.
        passwords: Verifies passwords.
        access_tokens: Issues access tokens.
        guard: Refuses tries that have to wait, before any work is done for them.
        refresh_ttl: How long a refresh token is valid; each exchange starts a new period.
        clock: Returns the current aware time.
    """

    def __init__(
        self,
        logins: LoginRecords,
        passwords: Passwords,
        access_tokens: AccessTokens,
        guard: LoginGuard,
        *,
        refresh_ttl: timedelta = REFRESH_TTL,
        clock: Clock = utc_now,
    ) -> None:
        self._logins = logins
        self._passwords = passwords
        self._access_tokens = access_tokens
        self._guard = guard
        self._refresh_ttl = refresh_ttl
        self._clock = clock

    def log_in(self, username: str, password: str, *, peer: str = "") -> IssuedTokens:
        """Exchange a username and password for tokens. Success and every failure take as long as one password check.

        Raises:
            Unauthenticated: The password is wrong, or the name is unknown or disabled; one text for all.
            ResourceExhausted: There were too many failures, whether the name exists or not.
            Unavailable: The database is unavailable.
        """
        found = self._logins.credentials(username)
        account = username if found.admin_id is None else found.admin_id
        self._guard.admit(account, peer)
        # Verified even without a hash: the response time must not reveal whether the name exists.
        matches = self._passwords.verify(password, found.password_hash, highest_cost=found.highest_cost)
        if found.password_hash is None or not matches:
            self._logins.record_failure(username, peer=peer, locked_out=self._guard.failed(account, peer))
            raise Unauthenticated.credentials()
        issued = self._begin_unless_rehashed(username, password, found.password_hash, peer=peer)
        self._guard.succeeded(account, peer)
        return issued

    def _begin_unless_rehashed(self, username: str, password: str, password_hash: str, *, peer: str) -> IssuedTokens:
        """Begin a login; begin it again with the newest hash if another login has hashed the password in between."""
        try:
            return self._begin(username, password, password_hash, peer=peer)
        except Unauthenticated:
            newest = self._logins.credentials(username).password_hash
            if newest in (None, password_hash) or not self._passwords.verify(password, newest):
                raise
            return self._begin(username, password, newest, peer=peer)

    def _begin(self, username: str, password: str, password_hash: str, *, peer: str) -> IssuedTokens:
        """Begin a login whose password matches this hash; hash it again if the hash is outdated."""
        is_outdated = self._passwords.is_outdated(password_hash)
        refresh = self._new_refresh_token()
        caller = self._logins.begin(
            username,
            password_hash=password_hash,
            new_hash=self._passwords.rehash(password) if is_outdated else None,
            refresh_token=refresh.text,
            expire_time=refresh.expire_time,
            peer=peer,
        )
        return self._issue(caller, refresh)

    def refresh(self, refresh_token: str, *, peer: str = "") -> IssuedTokens:
        """Exchange a refresh token for new tokens with the current role.

        Raises:
            Unauthenticated: It is unknown, spent, revoked or expired; one text for all. A spent one revokes its family.
            Unavailable: The database is unavailable.
        """
        refresh = self._new_refresh_token()
        caller = self._logins.redeem(refresh_token, successor=refresh.text, expire_time=refresh.expire_time, peer=peer)
        return self._issue(caller, refresh)

    def log_out(self, refresh_token: str, *, peer: str = "") -> None:
        """Revoke all refresh tokens of one login; an unknown token is no error.

        Raises:
            Unavailable: The database is unavailable.
        """
        self._logins.revoke(refresh_token, peer=peer)

    def _new_refresh_token(self) -> Token:
        return Token(text=secrets.token_urlsafe(_REFRESH_TOKEN_BYTES), expire_time=self._clock() + self._refresh_ttl)

    def _issue(self, caller: Caller, refresh: Token) -> IssuedTokens:
        return IssuedTokens(access=self._access_tokens.issue(caller), refresh=refresh, role=caller.role)
