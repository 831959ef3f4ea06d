"""What happens at login, refresh and logout: passwords are checked, tokens issued, refresh tokens exchanged."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from gatekeeper_grpc.auth.tokens import Clock, Token, utc_now
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import Unauthenticated

REFRESH_TTL = timedelta(days=30)

# The text of the store's refusals, too: which of them it was is nobody's business.
_REFRESH_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedTokens:
    """What a client gets for its credentials."""

    access: Token
    refresh: Token
    role: Role


class PasswordVerifier(Protocol):
    """Checks passwords in a time that tells nothing."""

    def verify(self, password: str, password_hash: str | None) -> bool:
        """Tell whether they match; None stands for nobody's hash, and takes as long."""
        ...


class TokenIssuer(Protocol):
    """Makes access tokens."""

    def issue(self, caller: Caller) -> Token:
        """Sign who the caller is."""
        ...


class TryGuard(Protocol):
    """Keeps the guessing of passwords slow."""

    def admit(self, username: str, peer: str) -> None:
        """Let a try pass; `ResourceExhausted` when it has to wait."""
        ...

    def failed(self, username: str, peer: str) -> bool:
        """Count a failure; tell whether the next try has to wait."""
        ...

    def succeeded(self, username: str, peer: str) -> None:
        """Forgive failures."""
        ...


class LoginStore(Protocol):
    """Remembers logins: families of refresh tokens."""

    def password_hash(self, username: str) -> str | None:
        """Return the hash of an enabled admin user; None when there is no such."""
        ...

    def begin(
        self, username: str, *, password_hash: str, refresh_token: str, expire_time: datetime, peer: str
    ) -> Caller:
        """Begin a family; `Unauthenticated` when the admin user is no longer enabled with that password."""
        ...

    def redeem(self, refresh_token: str, *, successor: str, expire_time: datetime, peer: str) -> Caller:
        """Spend a refresh token for its successor; `Unauthenticated` unless it is unspent and good."""
        ...

    def revoke(self, refresh_token: str, *, peer: str) -> None:
        """Revoke the family of a refresh token, if there is one."""
        ...

    def record_failure(self, username: str, *, peer: str, locked_out: bool) -> None:
        """Record that somebody failed to log in under a name, and whether the next try has to wait."""
        ...


class Sessions:
    """Turns credentials into tokens. Holds no state and no lock.

    An access token outlives a logout, and the loss of a role, until it expires; mutations check its epoch besides.

    Args:
        logins: Where refresh tokens live.
        passwords: Checks passwords.
        access_tokens: Issues access tokens.
        guard: Says which tries have to wait, before any work is done for them.
        refresh_ttl: How long a refresh token is good; each exchange begins anew.
        clock: Tells the time, aware.
    """

    def __init__(
        self,
        logins: LoginStore,
        passwords: PasswordVerifier,
        access_tokens: TokenIssuer,
        guard: TryGuard,
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
        """Exchange a username and password for tokens; takes as long as one password check, for every failure too.

        Raises:
            Unauthenticated: Wrong, unknown or disabled; one text for all.
            ResourceExhausted: Too many failures, whether anybody has that name or not.
            Unavailable: The database is away.
        """
        self._guard.admit(username, peer)
        password_hash = self._logins.password_hash(username)
        # Before asking whether there is a hash at all, or the time of the answer would tell.
        matches = self._passwords.verify(password, password_hash)
        if password_hash is None or not matches:
            self._logins.record_failure(username, peer=peer, locked_out=self._guard.failed(username, peer))
            raise Unauthenticated.credentials()
        refresh = self._new_refresh_token()
        caller = self._logins.begin(
            username,
            password_hash=password_hash,
            refresh_token=refresh.text,
            expire_time=refresh.expire_time,
            peer=peer,
        )
        self._guard.succeeded(username, peer)
        return self._issue(caller, refresh)

    def refresh(self, refresh_token: str, *, peer: str = "") -> IssuedTokens:
        """Exchange a refresh token for new tokens, with the role of now.

        Raises:
            Unauthenticated: Unknown, spent, revoked or expired; one text for all. A spent one has revoked its family.
            Unavailable: The database is away.
        """
        refresh = self._new_refresh_token()
        caller = self._logins.redeem(refresh_token, successor=refresh.text, expire_time=refresh.expire_time, peer=peer)
        return self._issue(caller, refresh)

    def log_out(self, refresh_token: str, *, peer: str = "") -> None:
        """Revoke all refresh tokens of the login that one belongs to; an unknown one is no error.

        Raises:
            Unavailable: The database is away.
        """
        self._logins.revoke(refresh_token, peer=peer)

    def _new_refresh_token(self) -> Token:
        return Token(text=secrets.token_urlsafe(_REFRESH_TOKEN_BYTES), expire_time=self._clock() + self._refresh_ttl)

    def _issue(self, caller: Caller, refresh: Token) -> IssuedTokens:
        return IssuedTokens(access=self._access_tokens.issue(caller), refresh=refresh, role=caller.role)
