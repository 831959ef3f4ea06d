"""The Kubernetes manifests: valid, and true to the image and to the settings. No cluster runs them here."""

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gatekeeper_grpc.config.secret_file import SUFFIX as FILE_SUFFIX
from gatekeeper_grpc.config.settings import Settings, variable_of

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml"))
VERSIONS = ("1.30.0", "1.37.0")
Manifest = dict[str, Any]


def built(folder: Path) -> list[Manifest]:
    """What kustomize makes of a folder."""
    text = subprocess.check_output([ROOT / ".venv" / "bin" / "kustomize", "build", folder], text=True)
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


BASE = built(KUBERNETES / "base")


def of_kind(kind: str, manifests: list[Manifest] = BASE) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


(DEPLOYMENT,) = of_kind("Deployment")
(JOB,) = of_kind("Job")
PODS = [DEPLOYMENT["spec"]["template"]["spec"], JOB["spec"]["template"]["spec"]]
SERVER, MIGRATION = (pod["containers"][0] for pod in PODS)


def variables(container: Manifest) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def ports(container: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: str(folder.relative_to(KUBERNETES)))
def test_every_manifest_is_valid(folder: Path, version: str) -> None:
    manifests = built(folder)

    assert len(manifests) == len(BASE)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_twin_a_misspelt_field_is_found() -> None:
    odd = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replica": 3}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(odd, VERSIONS[-1], strict=True)


def test_containers_set_only_variables_that_the_server_reads() -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    named = {name.removesuffix(FILE_SUFFIX) for container in (SERVER, MIGRATION) for name in variables(container)}

    assert named <= known


def test_secrets_are_files_of_a_mounted_secret() -> None:
    for pod in PODS:
        container = pod["containers"][0]
        files = {name: Path(value) for name, value in variables(container).items() if name.endswith(FILE_SUFFIX)}
        (mount,) = (each for each in container["volumeMounts"] if each["name"] == "secrets")

        assert files
        assert {path.parent for path in files.values()} == {Path(mount["mountPath"])}
        assert {name.removesuffix(FILE_SUFFIX) for name in files} == {
            variable_of(name) for name in Settings.model_fields if variable_of(name) + FILE_SUFFIX in files
        }


def test_pods_are_no_root_and_write_only_where_something_is_mounted() -> None:
    for pod in PODS:
        security, (container,) = pod["securityContext"], pod["containers"]

        assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, 10001, 10001)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
    assert f"--uid {PODS[0]['securityContext']['runAsUser']}" in (ROOT / "Dockerfile").read_text()


def test_probes_ask_what_the_operations_port_serves() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()

    assert {
        probe: (SERVER[probe]["httpGet"]["path"], ports(SERVER)[SERVER[probe]["httpGet"]["port"]])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    } == {"startupProbe": ("/readyz", 9464), "readinessProbe": ("/readyz", 9464), "livenessProbe": ("/livez", 9464)}
    for port in ports(SERVER).values():
        assert f"0.0.0.0:{port}" in dockerfile


def test_pods_have_the_time_to_drain() -> None:
    found = variables(SERVER)
    drain_s, grace_s = float(found["GATEKEEPER_DRAIN_S"]), float(found["GATEKEEPER_GRACE_S"])

    assert drain_s + grace_s + 1 < DEPLOYMENT["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


def test_the_erasure_ledger_is_on_one_claim_apart_from_the_data_of_a_pod() -> None:
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in SERVER["volumeMounts"]}
    (claim,) = of_kind("PersistentVolumeClaim")

    assert Path(variables(SERVER)["GATEKEEPER_ERASURE_LEDGER"]).parent == mounts["erasures"]
    assert not mounts["erasures"].is_relative_to(mounts["data"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert {"name": "erasures", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in PODS[0]["volumes"]


def test_the_service_is_headless_and_has_the_pods_of_the_deployment() -> None:
    (service,) = of_kind("Service")
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]

    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= labels.items()
    assert not service["spec"]["selector"].items() <= JOB["spec"]["template"]["metadata"]["labels"].items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports(SERVER).keys()


def test_policies_let_clients_reach_only_ports_of_the_pod() -> None:
    (server,) = (policy for policy in of_kind("NetworkPolicy") if policy["metadata"]["name"] == "gatekeeper")
    reached = {port["port"] for rule in server["spec"]["ingress"] for port in rule["ports"]}

    assert reached == {"grpc", "operations"}
    assert all(rule["from"] for rule in server["spec"]["ingress"])


def test_everything_has_one_image() -> None:
    assert len({container["image"] for container in (SERVER, MIGRATION)}) == 1


def test_the_autoscaler_goes_by_cpu_and_the_overlay_by_calls() -> None:
    overlay = built(KUBERNETES / "overlays" / "rpc-rate")
    (by_cpu,), (by_calls,) = of_kind("HorizontalPodAutoscaler"), of_kind("HorizontalPodAutoscaler", overlay)

    assert [metric["resource"]["name"] for metric in by_cpu["spec"]["metrics"]] == ["cpu"]
    assert SERVER["resources"]["requests"]["cpu"]
    assert [metric["type"] for metric in by_calls["spec"]["metrics"]] == ["Pods"]
