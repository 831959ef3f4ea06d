"""Login, refresh and logout: verifies passwords, issues access tokens, exchanges refresh tokens."""

import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from gatekeeper_grpc.auth.addresses import address_of
from gatekeeper_grpc.auth.lockout import LoginGuard
from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.auth.tokens import AccessTokens, Clock, Token, utc_now
from gatekeeper_grpc.domain.admin_user import SESSION_MAX_AGE, Credentials, Exchange, Exchanged
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import Unauthenticated
from gatekeeper_grpc.instrumentation.counters import LOGINS

REFRESH_TTL = timedelta(days=30)

_REFRESH_TOKEN_BYTES = 32
_CHANGE_WITHIN = timedelta(minutes=1)


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
        address: str,
        to_change_password: bool,
    ) -> Caller:
        """Begin a family.

        Raises:
            FailedPrecondition: The password must be changed first.
            Unauthenticated: The admin user is no longer enabled with that password.
        """
        ...

    def redeem(self, exchange: Exchange, *, peer: str, is_awaited: Callable[[], bool]) -> Exchanged:
        """Spend a refresh token for its successor, or repeat an exchange whose response was lost.

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

    An access token names its session and the state of its admin user; each transaction of a call compares them.

    Args:
        logins: Keeps refresh tokens.
        passwords: Verifies passwords.
        access_tokens: Issues access tokens.
        guard: Refuses tries that have to wait, before any work is done for them.
        refresh_ttl: How long a refresh token is valid; each exchange starts a new period.
        session_max_age: How long after its login a session ends, whatever is exchanged.
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
        session_max_age: timedelta = SESSION_MAX_AGE,
        clock: Clock = utc_now,
    ) -> None:
        self._logins = logins
        self._passwords = passwords
        self._access_tokens = access_tokens
        self._guard = guard
        self._refresh_ttl = min(refresh_ttl, session_max_age)
        self._session_max_age = session_max_age
        self._clock = clock

    def log_in(self, username: str, password: str, *, peer: str = "") -> IssuedTokens:
        """Exchange a username and password for tokens. Success and every failure take as long as one password check.

        Raises:
            Unauthenticated: The password is wrong, or the name is unknown or disabled; one text for all.
            FailedPrecondition: The password is right and must be changed first.
            ResourceExhausted: There were too many failures, whether the name exists or not.
            Unavailable: The database is unavailable.
        """
        refresh = self._new_refresh_token()
        caller = self._log_in(username, password, refresh, peer=peer)
        LOGINS.labels("succeeded").inc()
        return self._issue(caller, refresh)

    def begin_password_change(self, username: str, password: str, *, peer: str = "") -> Caller:
        """Begin a session without tokens, for an admin user who must change the password before a login.

        The change ends the session; without one it ends after a minute.

        Raises:
            GatekeeperError: As `log_in`, but no `FailedPrecondition`.
        """
        refresh = Token(text=secrets.token_urlsafe(_REFRESH_TOKEN_BYTES), expire_time=self._clock() + _CHANGE_WITHIN)
        return self._log_in(username, password, refresh, peer=peer, to_change_password=True)

    def _log_in(
        self, username: str, password: str, refresh: Token, *, peer: str, to_change_password: bool = False
    ) -> Caller:
        found = self._logins.credentials(username)
        account = username if found.admin_id is None else found.admin_id
        self._guard.admit(account, peer)
        # Verified even without a hash: the response time must not reveal whether the name exists.
        matches = self._passwords.verify(password, found.password_hash, highest_cost=found.highest_cost)
        if found.password_hash is None or not matches:
            LOGINS.labels("failed").inc()
            self._logins.record_failure(username, peer=peer, locked_out=self._guard.failed(account, peer))
            raise Unauthenticated.credentials()
        begin = partial(self._begin, username, password, refresh, peer=peer, to_change_password=to_change_password)
        try:
            caller = begin(found.password_hash)
        except Unauthenticated:
            # Another login may have hashed the same password again in between.
            newest = self._logins.credentials(username).password_hash
            if newest in (None, found.password_hash) or not self._passwords.verify(password, newest):
                raise
            caller = begin(newest)
        self._guard.succeeded(account, peer)
        return caller

    def _begin(
        self, username: str, password: str, refresh: Token, password_hash: str, *, peer: str, to_change_password: bool
    ) -> Caller:
        """Begin a login whose password matches this hash; hash it again if the hash is outdated."""
        is_outdated = self._passwords.is_outdated(password_hash)
        return self._logins.begin(
            username,
            password_hash=password_hash,
            new_hash=self._passwords.rehash(password) if is_outdated else None,
            refresh_token=refresh.text,
            expire_time=refresh.expire_time,
            peer=peer,
            address=address_of(peer),
            to_change_password=to_change_password,
        )

    def refresh(
        self,
        refresh_token: str,
        *,
        peer: str = "",
        arrived_at: float | None = None,
        is_awaited: Callable[[], bool] = lambda: True,
    ) -> IssuedTokens:
        """Exchange a refresh token for new tokens with the current role.

        The same client may repeat an exchange once within 10 s, if it has not used the new refresh token: it gets the
        same one again.

        Args:
            refresh_token: The token.
            peer: The client as gRPC names it.
            arrived_at: When the call arrived, in monotonic seconds; None: now.
            is_awaited: Whether the client still waits for the answer. If not, the token is not spent.

        Raises:
            Unauthenticated: It is unknown, spent, revoked or expired; one text for all. A spent one revokes its family.
            Unavailable: The database is unavailable, or the client no longer waits.
        """
        nonce = secrets.token_bytes(_REFRESH_TOKEN_BYTES)
        exchange = Exchange(
            token=refresh_token,
            successor=_successor(refresh_token, nonce),
            nonce=nonce,
            expire_time=self._clock() + self._refresh_ttl,
            session_max_age=self._session_max_age,
            address=address_of(peer),
            arrived_at=time.monotonic() if arrived_at is None else arrived_at,
        )
        done = self._logins.redeem(exchange, peer=peer, is_awaited=is_awaited)
        refresh = Token(text=_successor(refresh_token, done.nonce), expire_time=done.expire_time)
        return self._issue(done.caller, refresh)

    def log_out(self, refresh_token: str, *, peer: str = "") -> None:
        """End a session: all refresh and access tokens of one login. An unknown token is no error.

        Raises:
            Unavailable: The database is unavailable.
        """
        self._logins.revoke(refresh_token, peer=peer)

    def _new_refresh_token(self) -> Token:
        return Token(text=secrets.token_urlsafe(_REFRESH_TOKEN_BYTES), expire_time=self._clock() + self._refresh_ttl)

    def _issue(self, caller: Caller, refresh: Token) -> IssuedTokens:
        return IssuedTokens(access=self._access_tokens.issue(caller), refresh=refresh, role=caller.role)


def _successor(refresh_token: str, nonce: bytes) -> str:
    """Derive the refresh token that replaces another: 256 bits that nobody knows who lacks the token or the nonce."""
    derived = hmac.digest(refresh_token.encode(), nonce, "sha256")
    return urlsafe_b64encode(derived).rstrip(b"=").decode()
