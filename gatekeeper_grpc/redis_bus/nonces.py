"""Nonces of signed calls that all instances remember, in Redis."""

from typing import Final

from gatekeeper_grpc.redis_bus.link import RedisLink

# A mark is a hash over the id of a client key, which no other installation has: no two need different names.
_PREFIX: Final = "gatekeeper:nonce:"


class RedisNonces:
    """Remembers each mark of a nonce as a key that expires.

    Args:
        link: The way to Redis.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    def use(self, mark: bytes, *, keep_s: float) -> bool:
        """Use a nonce; return False when any instance has used it within the last `keep_s`.

        Raises:
            Unavailable: Redis failed, or failed within the last second. It may have remembered the nonce.
        """
        key, keep_ms = _PREFIX + mark.hex(), round(keep_s * 1_000)
        return bool(self._link.ask(lambda client: client.set(key, 1, nx=True, px=keep_ms)))
