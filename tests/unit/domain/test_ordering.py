from itertools import pairwise

import pytest

from gatekeeper_grpc.domain.ordering import instant, semver_precedence


def test_the_specifications_own_examples_of_precedence_come_in_order() -> None:
    releases = ["1.0.0", "2.0.0", "2.1.0", "2.1.1"]
    prereleases = ["alpha", "alpha.1", "alpha.beta", "beta", "beta.2", "beta.11", "rc.1"]
    for chain in (releases, [f"1.0.0-{prerelease}" for prerelease in prereleases] + ["1.0.0"]):
        assert all(semver_precedence(lower) < semver_precedence(higher) for lower, higher in pairwise(chain))


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        pytest.param("1.9.0", "1.10.0", id="numbers, not text"),
        pytest.param("1.0.0-9", "1.0.0-10", id="numeric identifiers as numbers"),
        pytest.param("1.0.0-999", "1.0.0-1a", id="numeric identifiers below the others"),
        pytest.param("1.0.0-10a", "1.0.0-9a", id="identifiers with a letter as text"),
        pytest.param("1.0.0-B", "1.0.0-a", id="by ASCII, capitals first"),
        pytest.param("1.0.0--", "1.0.0-0-", id="a hyphen before a digit"),
        pytest.param("1.0.0-a", "1.0.0-a.0", id="fewer identifiers first"),
        pytest.param("1.0.0", "1.0.1-0", id="the patch before the pre-release"),
        pytest.param(f"{'9' * 80}.0.0", f"1{'0' * 80}.0.0", id="numbers of any length"),
    ],
)
def test_lower_version_precedes_higher(lower: str, higher: str) -> None:
    assert semver_precedence(lower) < semver_precedence(higher)


def test_build_metadata_does_not_count() -> None:
    assert semver_precedence("1.0.0-rc.1+001.sha-5") == semver_precedence("1.0.0-rc.1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2",
        "1.2.3.4",
        "v1.2.3",
        "01.2.3",
        "1.02.3",
        "1.2.03",
        "1.2.3-01",
        "1.2.3-",
        "1.2.3-a..b",
        "1.2.3-a_b",
        "1.2.3+",
        "1.2.3+a+b",
        "-1.2.3",
        " 1.2.3",
        "1.2.3\n",
        "1.2.\u0663",
        pytest.param(f"1.2.{'3' * 253}", id="257 characters"),
    ],
)
def test_what_is_not_semver_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a SemVer 2\.0\.0 version"):
        semver_precedence(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("2026-01-31T12:00:00Z", "2026-01-31T14:00:00+02:00", id="east"),
        pytest.param("2026-01-01T03:30:00Z", "2025-12-31T23:00:00-04:30", id="west, over the year's end"),
        pytest.param("2026-01-31T12:00:00Z", "2026-01-31t12:00:00z", id="lower case"),
        pytest.param("2026-01-31T12:00:00Z", "2026-01-31T12:00:00-00:00", id="unknown local offset is UTC"),
        pytest.param("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z", id="fraction of zero"),
        pytest.param("2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00.500000000Z", id="trailing zeros"),
        pytest.param("2016-12-31T23:59:60Z", "2016-12-31T15:59:60-08:00", id="leap second"),
        pytest.param("0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00+23:59", id="before the first day in UTC"),
    ],
)
def test_same_instant_compares_equal(one: str, other: str) -> None:
    assert instant(one) == instant(other)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        pytest.param("2026-01-31T12:00:00.123456788Z", "2026-01-31T12:00:00.123456789Z", id="one nanosecond"),
        pytest.param("2026-01-31T12:00:00.49Z", "2026-01-31T12:00:00.5Z", id="fractions of different lengths"),
        pytest.param("2026-01-31T12:00:00Z", f"2026-01-31T12:00:00.{'0' * 99}1Z", id="the hundredth digit"),
        pytest.param("2026-01-31T13:00:00+02:00", "2026-01-31T12:00:00Z", id="instants, not wall clocks"),
        pytest.param("2016-12-31T23:59:59.9Z", "2016-12-31T23:59:60Z", id="leap second after the last"),
        pytest.param("2016-12-31T23:59:60.9Z", "2017-01-01T00:00:00Z", id="leap second before the next day"),
        pytest.param("1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", id="before 1970"),
        pytest.param("2024-02-29T23:59:59Z", "2024-03-01T00:00:00Z", id="leap day"),
    ],
)
def test_earlier_instant_precedes_later(earlier: str, later: str) -> None:
    assert instant(earlier) < instant(later)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-01-31T12:00Z",
        "2026-01-31 12:00:00Z",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00,5Z",
        "2026-01-31T12:00:00+0200",
        "2026-01-31T12:00:00+24:00",
        "2026-01-31T12:00:00+02:60",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:60:00Z",
        "2026-01-31T12:00:61Z",
        "2025-02-29T12:00:00Z",
        "2026-13-01T12:00:00Z",
        "0000-01-01T00:00:00Z",
        "20260131T120000Z",
        "2026-W05-6T12:00:00Z",
        "2026-01-31T12:00:00Z\n",
        "\u0662026-01-31T12:00:00Z",
        pytest.param(f"2026-01-31T12:00:00.{'0' * 236}Z", id="257 characters"),
    ],
)
def test_what_is_not_rfc3339_with_offset_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an RFC 3339 time with an offset"):
        instant(text)


@pytest.mark.parametrize("text", ["2016-12-31T12:00:60Z", "2016-12-31T23:59:60+01:00"])
def test_leap_second_is_refused_outside_the_last_minute_of_a_utc_day(text: str) -> None:
    with pytest.raises(ValueError, match="second 60"):
        instant(text)
