"""Files of ``docker/``: well-formed, hardened and consistent with the code; checked without a container engine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serving.http.metrics import Metrics
from serving.settings import Settings
from tests import compose

DOCKER = compose.DOCKER
ROOT = DOCKER.parent
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
OURS = ("train", "serve", "tracking")
DASHBOARD = DOCKER / "grafana/dashboards/service.json"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return compose.load(compose.example_environment())


def exported() -> set[str]:
    """Return the names of all series that the service exports."""
    families = Metrics().registry.collect()
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + suffix for family in families for suffix in suffixes[family.type]}


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def run(*command: str) -> str:
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def test_compose_file_follows_its_schema() -> None:
    run(str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(compose.FILE))


def test_dockerfiles_pass_hadolint() -> None:
    run(str(BIN / "hadolint"), *map(str, DOCKERFILES))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")
def test_prometheus_config_is_valid_and_alert_tests_pass() -> None:
    run("promtool", "check", "config", str(DOCKER / "prometheus/prometheus.yml"))
    run("promtool", "test", "rules", str(DOCKER / "prometheus/alerts_test.yml"))


def test_dashboard_and_alerts_use_exported_metrics() -> None:
    alerts = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text(encoding="utf-8"))
    queries = [*dashboard_queries(), *(rule["expr"] for group in alerts["groups"] for rule in group["rules"])]
    assert len(queries) > 20
    read = {name for query in queries for name in re.findall(r"\bmme_\w+", query)}
    assert read - exported() == set()
    # Every metric has a panel.
    families = {family.name for family in Metrics().registry.collect()}
    assert {name for name in families if not any(name in query for query in dashboard_queries())} == set()


def test_every_alert_is_tested_and_documented() -> None:
    alerts = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text(encoding="utf-8"))
    names = {rule["alert"] for group in alerts["groups"] for rule in group["rules"]}
    tests = yaml.safe_load((DOCKER / "prometheus/alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == names
    operations = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert {name for name in names if f"`{name}`" not in operations} == set()


def test_missing_passwords_are_refused() -> None:
    environment = compose.example_environment()
    for name in ("POSTGRES_PASSWORD", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"):
        with pytest.raises(ValueError, match=name):
            compose.load({**environment, name: ""})


def test_every_variable_is_in_the_example_env_file() -> None:
    used = {found["name"] for found in compose.VARIABLE.finditer(compose.FILE.read_text(encoding="utf-8"))}
    secrets = compose.load(compose.example_environment())["secrets"].values()
    used |= {secret["environment"] for secret in secrets if "environment" in secret}
    assert used == set(compose.example_environment())


def test_mounted_files_and_volumes_exist(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = (DOCKER / source).exists() if source.startswith(".") else source in stack["volumes"]
            assert there, f"{name}: {volume}"
        assert set(service.get("secrets", [])) <= set(stack["secrets"])
        assert set(service.get("depends_on", [])) <= set(stack["services"])


def test_ports_are_bound_to_loopback(stack: dict[str, Any]) -> None:
    ports = [port for service in stack["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports), ports


def test_images_are_pinned_and_containers_hardened(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        assert "no-new-privileges:true" in service["security_opt"], name
        if "build" not in service:
            assert re.search(r":[\w.-]*\d", service["image"]), f"{name}: {service['image']}"
            continue
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["image"] == f"mme-{service['build'].get('target', 'serve')}"


@pytest.mark.parametrize("target", OURS)
def test_images_run_as_an_unprivileged_user(target: str) -> None:
    file = DOCKER / ("serve.Dockerfile" if target == "serve" else "train.Dockerfile")
    assert compose.read_image(file, target).user == "10001:10001"


def test_service_container_uses_known_settings(stack: dict[str, Any]) -> None:
    image = compose.read_image(DOCKER / "serve.Dockerfile", "serve")
    environment = {**image.environment, **stack["services"]["api"]["environment"]}
    ours = {name.removeprefix("MME_").lower() for name in environment if name.startswith("MME_")}
    assert ours <= set(Settings.model_fields)
    assert image.entrypoint == ["python", "-m", "serving"]
    text = (DOCKER / "serve.Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^HEALTHCHECK .*\\\n.*/ready", text, re.MULTILINE)
    longest = Settings.model_fields["upload_timeout_s"].default + Settings.model_fields["deadline_s"].default
    grace = stack["services"]["api"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > longest + float(environment["MME_DRAIN_S"])


def test_copied_files_are_not_ignored_by_docker() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for file in DOCKERFILES:
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(encoding="utf-8"), re.MULTILINE):
            assert set(line.split()) <= allowed, f"{file.name}: {line}"


def closure(*names: str) -> set[str]:
    """Return all packages that requirements need, by the metadata of this environment."""
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        for extra in ["", *sorted(requirement.extras)]:
            key = (canonicalize_name(requirement.name), extra)
            if key in seen:
                continue
            seen.add(key)
            for text in metadata.requires(key[0]) or []:
                wanted = Requirement(text)
                if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                    todo.append(wanted)
    return {name for name, _ in seen}


def project_requirements(*extras: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = [text for extra in extras for text in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *(text for text in own if not text.startswith("mme["))]


def pins() -> set[str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")}


def test_serving_image_has_only_pinned_packages_and_none_of_training() -> None:
    text = (DOCKER / "serve.Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"pip install '\.\[([a-z,]+)\]'", text)
    wanted = closure(*project_requirements(*extras.split(",")))
    assert not wanted & {"dvc", "optuna", "pytorch-lightning", "lightning", "torchmetrics", "pytest"}
    accelerators = {name for name in wanted if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert wanted - accelerators - pins() == set()


def test_tracking_image_installs_packages_of_the_extras() -> None:
    text = (DOCKER / "train.Dockerfile").read_text(encoding="utf-8")
    (line,) = re.findall(r"pip install -c requirements.lock (mlflow .*) &&", text)
    wanted = [Requirement(word) for word in shlex.split(line)]
    named = [Requirement(text) for text in project_requirements("registry", "train", "remote", "dashboard")]
    assert {(one.name, *one.extras) for one in wanted} <= {(one.name, *one.extras) for one in named}
    everything = closure(*map(str, wanted))
    assert everything - pins() == set()
    assert "torch" not in everything
