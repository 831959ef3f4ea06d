"""Builds the samples of docs/clients with plain tools, in a folder of a test's own."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "docs" / "clients"
PROTOS = ROOT / "protos"


def go_sample(folder: Path, *more: Path) -> Path:
    """The folder of the Go sample, with its stubs and `more` files, for `go build`."""
    sample = _copied("go", folder, more)
    tools = sample / "tools"
    run("go", "build", "-o", f"{tools}/", "tool", cwd=sample)
    plugins = [f"--plugin={tools / name}" for name in ("protoc-gen-go", "protoc-gen-go-grpc")]
    protos = sorted((PROTOS / "gatekeeper" / "v1").glob("*.proto"))
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", PROTOS, *plugins]
    run(*protoc, f"--go_out={sample}", f"--go-grpc_out={sample}", *protos, cwd=sample)
    return sample


def java_classes(folder: Path, *more: Path) -> str:
    """The class path of the Java sample, compiled together with `more` files."""
    sample = _copied("java", folder, more)
    run("mvn", "-B", "-q", f"-Dprotos={PROTOS}", "compile", cwd=sample)
    return f"{sample / 'target' / 'classes'}:{sample / 'target' / 'dependency'}/*"


def node_sample(folder: Path, *more: Path) -> Path:
    """The folder of the Node sample, with its packages and `more` files."""
    sample = _copied("node", folder, more)
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=sample)
    return sample


def _copied(language: str, into: Path, more: tuple[Path, ...]) -> Path:
    sample = into / language
    shutil.copytree(SAMPLES / language, sample)
    for file in more:
        shutil.copy(file, sample)
    return sample


def run(*command: Any, cwd: Path) -> None:
    """Run a build tool; a tool that is not there fails the test."""
    assert shutil.which(str(command[0])), f"{command[0]} is not installed: the samples of docs/clients need it"
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
