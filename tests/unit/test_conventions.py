"""How code is laid out: few rooms, helpers of tests in tests/support, and a name of a test is a clause. No forks."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "gatekeeper_grpc"
MAX_ROOMS = 21
MAX_NAME_CHARS = 70
# With any of them, `subprocess` forks instead of starting a process with vfork.
FORKING = {"preexec_fn", "user", "group", "extra_groups"}
STARTING = {"Popen", "run", "call", "check_call", "check_output"}


def test_the_package_has_21_rooms_at_most() -> None:
    rooms = {path.parent if path.name == "__init__.py" else path for path in PACKAGE.glob("*.py")}
    rooms |= {path.parent for path in PACKAGE.glob("*/__init__.py")}

    assert len(rooms - {PACKAGE, PACKAGE / "__main__.py"}) <= MAX_ROOMS, "find the room where it belongs"


def imported_modules(source: str) -> list[str]:
    """Return the modules that a source imports, and `module.name` for each name that it takes from one."""
    nodes = [*ast.walk(ast.parse(source))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    taken = [
        (node.module or "", alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    return [*names, *(module for module, _ in taken), *(f"{module}.{name}" for module, name in taken)]


def is_test_module(module: str) -> bool:
    *packages, name = module.split(".")
    return packages[:1] == ["tests"] and (name.startswith("test_") or name == "conftest")


def test_no_module_imports_from_a_test_module_or_a_conftest() -> None:
    found = [
        f"{path.relative_to(TESTS)} imports {module}"
        for path in TESTS.rglob("*.py")
        for module in imported_modules(path.read_text(encoding="utf-8"))
        if is_test_module(module)
    ]

    assert not found, "move what is shared to tests/support/"


def test_an_import_from_a_test_module_is_found() -> None:
    sources = ("from tests.unit.test_a import b", "import tests.unit.test_a", "from tests import conftest")

    assert all(any(is_test_module(module) for module in imported_modules(source)) for source in sources)


def test_no_name_of_a_test_is_longer_than_70_characters() -> None:
    names = [
        f"{path.relative_to(TESTS)}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > MAX_NAME_CHARS
    ]

    assert not names, "a promise is a clause: say the rest in ids or in the docstring"


def forks(source: str) -> list[int]:
    """Return the lines of a source that fork, or have `subprocess` fork by an option, also one that is passed on."""
    nodes = [*ast.walk(ast.parse(source))]
    calls = [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]
    keys = [key for node in nodes if isinstance(node, ast.Dict) for key in node.keys]
    starting = {f"subprocess.{name}" for name in STARTING}
    found: list[ast.expr] = [call for name, call in calls if name == "os.fork"]
    found += [call for name, call in calls if name in starting and any(each.arg in FORKING for each in call.keywords)]
    found += [key for key in keys if isinstance(key, ast.Constant) and key.value in {"preexec_fn", "extra_groups"}]
    return [node.lineno for node in found]


def test_nothing_forks_next_to_threads_of_grpc() -> None:
    found = [
        f"{path.relative_to(TESTS.parent)}:{line}"
        for path in (*PACKAGE.rglob("*.py"), *TESTS.rglob("*.py"))
        for line in forks(path.read_text(encoding="utf-8"))
    ]

    assert not found, "another account: tests.support.processes.under"


def test_what_forks_is_found() -> None:
    source = "os.fork()\nsubprocess.Popen([], cwd=a, user=b)\nrun({'extra_groups': []})\nsubprocess.run([])\nf(user=b)"

    assert forks(source) == [1, 2, 3]
