"""The rollout hash: the bucket of a user in the draw of a flag.

A compatibility contract; vectors in tests/golden/bucketing.json.
"""

from gatekeeper_grpc.draws.hashing import first_uint32, new_hash

BUCKETS = 100


def bucket(user_id: str, flag_key: str) -> int:
    """Place a user in one of 100 equal slots of a flag.

    Same inputs, same slot, on every machine and release: raising a rollout never removes anybody. The flag key salts
    the hash, so being early in one rollout says nothing about another.

    Args:
        user_id: The user, 1 to 256 bytes of UTF-8.
        flag_key: Salt.

    Returns:
        A slot in ``[0, 100)``.

    Source: the product's hash contract; vectors in tests/golden/bucketing.json.
    """
    return bucket_of(user_id.encode(), salt(flag_key))


def salt(flag_key: str) -> bytes:
    """Return the salt of a flag; computed once per flag."""
    return f":{flag_key}".encode()


def bucket_of(user: bytes, flag_salt: bytes) -> int:
    """Place a user, given in UTF-8, by a flag's `salt`: `bucket` in a third of the time, for the hot path."""
    # The first 8 hex digits of the digest are its first 4 bytes, big-endian.
    return first_uint32(new_hash(user + flag_salt).digest())[0] % BUCKETS  # type: ignore[no-any-return]
