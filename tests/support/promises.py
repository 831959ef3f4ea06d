"""What Gatekeeper promises, and which tests show it: `python -m tests.support.promises` prints docs/promises.md.

A test says what it shows with `@pytest.mark.promise("D6")`, a module with `pytestmark = pytest.mark.promise("D6")`.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[2]
PROMISES: Mapping[str, str] = MappingProxyType(
    {
        "A1": "An acknowledged write survives `kill -9` of the server and of PostgreSQL, together with its audit "
        "entry. Neither exists without the other.",
        "A2": "`min_revision` is honoured or refused on every instance, even if notifications are delayed or lost.",
        "A3": "No update is lost: a stale etag is refused, and racing editors leave one chain of versions.",
        "A4": "Answers are fresh within 100 ms (p99), or within a poll and a second when no notification arrives. "
        "Without the database they say `stale` after the bound.",
        "A5": "The revision of an instance never goes back, an answer shows one revision, and instances converge.",
        "A6": "Every process and every release gives the same answer.",
        "A7": "A preview of a change tells of each user what evaluation answers before the change and after it, and "
        "writes nothing.",
        "B1": "Evaluation never fails while the database is down, hung, restarting or failing over.",
        "B2": "Admin calls fail within about 1 s and 4 round trips while the database is away, within about 3 s on a "
        "busy machine, and work within two seconds of its return.",
        "B3": "Without Redis, evaluation is unaffected and logins stay limited.",
        "B4": "A start without the database serves the last-known-good snapshot, is not ready for admin calls, and "
        "recovers by itself. A corrupt snapshot is refused and reported.",
        "B5": "On a full disk, writes are refused, evaluation continues, and nothing needs repair afterwards.",
        "C1": "Half-open calls, silent streams and unread responses do not keep other clients from being served.",
        "C2": "A call above capacity is refused with RESOURCE_EXHAUSTED, and accepted calls are served.",
        "C3": "A flood of logins slows down no other calls and keeps nobody out: from other addresses, new ones among "
        "them, 90 % of the right passwords are accepted within 5 s.",
        "C4": "A rolling restart fails no call of a client that retries. A process exits within its grace period and "
        "a second.",
        "C5": "Idle watchers cost other calls nothing, and a slow watcher delays nobody else.",
        "C6": "Refused, cancelled and timed-out calls leave no memory, descriptor or thread behind.",
        "D1": "A forged, malformed or replayed token or signature is refused.",
        "D2": "Keys rotate without refusing a valid token, and an old key is refused once it is dropped.",
        "D3": "Of clients that race to redeem one refresh token, one wins. Reuse ends the login and is recorded.",
        "D4": "Neither the text nor the time of an answer tells which accounts exist. Guessing is limited per account, "
        "per address and globally, and no owner is locked out for good.",
        "D5": "Every RPC admits its roles and kinds of token, and refuses all others.",
        "D6": "Bad input is refused by the name of its field: never UNKNOWN or INTERNAL, and nothing is written.",
        "D7": "No secret appears in a log, a response, an audit entry, an export or an error.",
        "D8": "The application's role cannot rewrite the audit log, and verification finds what a superuser rewrites, "
        "deletes or exchanges.",
        "D9": "After an erasure nothing in the database or its dumps names the person, except keys and names of "
        "accounts and attributes, and the audit log verifies. This holds after restoring an older backup.",
        "D10": "An admin user is an id, not a name: nothing of a deleted one passes to the next one of that name.",
        "D11": "Who reads or exports what is stored about people is recorded, with whom and when, and an erasure "
        "leaves no id in it. What cannot be recorded is not shown.",
        "E1": "Migrations up, down and up give the same schema. An interrupted migration resumes, and of two runners "
        "one migrates.",
        "E2": "After a restore no revision is issued twice, and running instances and watchers notice the loss.",
        "F1": "What strangers can occupy is bounded and stated: messages that are not admitted hold at most 64 MiB, "
        "and connections, watchers and admitted bulk have limits of their own. Clients at other addresses are served.",
        "F2": "Nothing above capacity ends as CANCELLED: it is RESOURCE_EXHAUSTED with RetryInfo and counted, or "
        "UNAVAILABLE by REFUSED_STREAM, which never ran.",
        "F3": "An admin user who is demoted, disabled, deleted, logged out or given another password reads nothing "
        "after 1 s on any instance, nor does a revoked API token, or one whose maker may no longer.",
        "F4": "Erasing any id touches what people wrote about that person, and nothing else. A document that is "
        "missing without an erasure is named.",
        "F5": "A slow database, a locked row, a full disk, a refused password and an absent server are told apart, "
        "each within its bound; a busy machine is none of them.",
        "F6": "One bulk stream at full speed raises the p99 of unary calls at most 3 times. The CPU that an evaluation "
        "and a bulk message may take is bounded, and a client that has left costs none.",
        "G1": "Restarts, rolls and new certificates fail no evaluation and no read of a client with the recommended "
        "config, and apply each mutation with a request_id once. In plaintext that holds for evaluations without any "
        "retry.",
    }
)
_HEAD = """\
# Promises

What Gatekeeper promises, and the tests that show it. `make docs` writes this page from the markers of the tests
(`@pytest.mark.promise`) and the texts in `tests/support/promises.py`. `make test-faults` runs the tests in
`tests/faults/`, `make check` all others.

| | promise | tests |
|---|---|---|
"""


def promised_tests() -> dict[str, list[str]]:
    """Return the tests of each promise that is marked somewhere: `folder/file.py`, or `folder/file.py::test`."""
    tests: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for promise, name in _marks(path):
            tests.setdefault(promise, []).append(f"{path.relative_to(ROOT)}{name}")
    return tests


def _marks(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each promise that a file shows, with "" for the whole file or "::test"."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from ((promise, "") for promise in _promises(node.value))
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                yield from ((promise, f"::{node.name}") for promise in _promises(decorator))


def _promises(expression: ast.expr) -> Iterator[str]:
    for call in ast.walk(expression):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.promise":
            yield from (str(ast.literal_eval(argument)) for argument in call.args)


def promises_markdown() -> str:
    """Write docs/promises.md."""
    tests = promised_tests()
    rows = (f"| {promise} | {text} | {_links(tests.get(promise, []))} |\n" for promise, text in PROMISES.items())
    return _HEAD + "".join(rows)


def _links(tests: list[str]) -> str:
    """Link to each file once, with the tests that it shows the promise by; none: all of them."""
    by_file: dict[str, list[str]] = {}
    for file, _, name in (test.partition("::") for test in tests):
        by_file.setdefault(file, []).extend([f"`{name}`"] if name else [])
    links = (
        f"[{file.removeprefix('tests/')}](../{file})" + (": " + ", ".join(names) if names else "")
        for file, names in by_file.items()
    )
    return "<br>".join(links)


if __name__ == "__main__":
    sys.stdout.write(promises_markdown())
