"""The files for scale: they parse, and what they name is there: options, routes, ports, patience."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from names import undefined
from serving import Running, serving

from broadsheet.cli.app import whole
from broadsheet.serve.app import create_app
from broadsheet.serve.guard import KeyRing, Limits
from broadsheet.serve.models.named import Models
from broadsheet.serve.processes.running import PATIENCE, check_address, names

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KEY, ADDRESS = "k" * 24, "10.1.2.3"
SERVER = "vllm"


def options(arguments: list[str]) -> dict[str, Any]:
    """What `broadsheet serve …` reads in these arguments; they are refused as on the command line."""
    first, *rest = arguments
    assert first == "serve"
    command = typer.main.get_command(whole()).commands[first]  # type: ignore[attr-defined]
    read: dict[str, Any] = command.make_context(first, [each.replace("$(POD_IP)", ADDRESS) for each in rest]).params
    return read


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """What each pod is made of."""
    deployment, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    return deployment["spec"]["template"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["spec"]["containers"]
    return only


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "vllm.yaml").read_text("utf-8"))["services"]


@pytest.fixture(scope="module")
def running(
    container: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any
) -> Iterator[Running]:
    """The server as a pod's options have it, over a tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    read = options(container["args"])
    limits = Limits(hosts=names(read["host"], read["name"]), open_health=read["open_health"])
    with serving(create_app(Models(models=[str(folder)]), KeyRing([f"{KEY} read"]), limits)) as made:
        yield made


def test_probes_and_scrapes_are_answered_in_a_pod(pod, container, running):
    port = container["ports"][0]["containerPort"]
    kinds = {"startupProbe": "/health/live", "livenessProbe": "/health/live", "readinessProbe": "/health/ready"}
    for kind, path in kinds.items():
        asked = container[kind]["httpGet"]
        assert asked["path"] == path
        assert asked["port"] == container["ports"][0]["name"]
        assert running.ask(path, host=f"{ADDRESS}:{port}")[0] == 200, (
            "a probe has no key, and calls a pod by its address"
        )
    notes = pod["metadata"]["annotations"]
    scraped = {"host": f"{ADDRESS}:{notes['prometheus.io/port']}"}
    assert running.ask(notes["prometheus.io/path"], **scraped)[0] == 401
    assert running.ask(notes["prometheus.io/path"], **scraped, authorization=f"Bearer {KEY}")[0] == 200
    assert running.ask("/v1/models", host="broadsheet:8000", authorization=f"Bearer {KEY}")[0] == 200
    assert running.ask("/v1/models", host="elsewhere", authorization=f"Bearer {KEY}")[0] == 421


def test_a_pod_listens_where_the_service_sends_and_ends_after_its_answers(pod, container):
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    read, [sends] = options(container["args"]), service["spec"]["ports"]
    [port] = container["ports"]
    assert (
        read["port"]
        == port["containerPort"]
        == sends["port"]
        == int(pod["metadata"]["annotations"]["prometheus.io/port"])
    )
    assert sends["targetPort"] == port["name"]
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["metadata"]["name"] in read["name"]
    paused = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > 2 * PATIENCE + paused
    check_address(read["host"], KeyRing([KEY]))


def test_a_pod_has_its_keys_from_a_secret_and_no_root_and_a_cache(pod, container):
    given = {each["name"]: each for each in container["env"]}
    assert given["BROADSHEET_SERVE_KEYS"]["valueFrom"].keys() == {"secretKeyRef"}
    assert given["POD_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    [mounted] = container["volumeMounts"]
    assert [each["name"] for each in pod["spec"]["volumes"]] == [mounted["name"]]
    for name in ("BROADSHEET_HOME", "HF_HOME"):
        assert given[name]["value"].startswith(mounted["mountPath"] + "/")
    assert f"USER {pod['spec']['securityContext']['runAsUser']}" in (DEPLOY / "Dockerfile").read_text("utf-8")


def test_broadsheet_asks_vllm_where_it_listens_and_for_its_model(compose):
    ours, theirs = compose["broadsheet"], compose[SERVER]
    asked = dict(zip(theirs["command"][::2], theirs["command"][1::2], strict=True))
    read = options(ours["command"])
    assert ours["environment"]["OPENAI_BASE_URL"] == f"http://{SERVER}:{asked['--port']}/v1"
    assert list(read["model"]) == [f"endpoint:{asked['--model']}"]
    assert ours["ports"] == [f"127.0.0.1:8000:{read['port']}"]
    assert ours["depends_on"][SERVER] == {"condition": "service_healthy"}
    assert f":{asked['--port']}/health" in theirs["healthcheck"]["test"][-1]
    assert int(ours["stop_grace_period"].removesuffix("s")) > 2 * PATIENCE
    assert (DEPLOY / ours["build"]["context"] / ours["build"]["dockerfile"]).is_file()


def test_the_server_behind_vllms_compose_file_is_found_ready(compose, running):
    [url] = re.findall(r"urlopen\('([^']+)'\)", compose["broadsheet"]["healthcheck"]["test"][-1])
    read = options(compose["broadsheet"]["command"])
    assert read["open_health"]
    host, path = re.fullmatch(r"http://([^/]+)(/.*)", url).groups()
    assert host == f"127.0.0.1:{read['port']}"
    assert running.ask(path, host=host)[0] == 200


def test_the_image_holds_what_the_package_is_built_from():
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    built = (ROOT / "pyproject.toml").read_text("utf-8")
    assert {"pyproject.toml", "README.md", "LICENSE", "src", "evidence"} == set(copied)
    assert 'readme = "README.md"' in built
    assert 'evidence = "broadsheet/evidence"' in built


class Ray:
    """Stands for `ray.serve`, and keeps what it is given; its calls take what Ray's documentation lists."""

    def __init__(self) -> None:
        self.build: Any = None
        self.options: dict[str, Any] = {}

    def ingress(self, app: Any) -> Any:
        self.build = app
        return lambda: SimpleNamespace()

    def deployment(
        self,
        *,
        name: str,
        num_replicas: int,
        max_ongoing_requests: int,
        graceful_shutdown_timeout_s: float,
        ray_actor_options: dict[str, Any],
    ) -> Any:
        self.options = {"num_replicas": num_replicas, "graceful_shutdown_timeout_s": graceful_shutdown_timeout_s}
        return lambda kind: SimpleNamespace(bind=lambda: kind)


def test_ray_is_given_what_makes_the_app_where_it_runs(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray()
    module = ModuleType("ray")
    module.serve = ray  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", module)
    path = DEPLOY / "ray_serve.py"
    assert not undefined(path.read_text("utf-8"))
    spec = importlib.util.spec_from_file_location("ray_serve", path)
    assert spec
    assert spec.loader
    deployed: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(deployed)
    assert ray.options["graceful_shutdown_timeout_s"] > 2 * PATIENCE
    monkeypatch.setattr(
        deployed, "Models", lambda models: Models([str(tiny_folder)] if models == ["default"] else models)
    )
    monkeypatch.setenv("BROADSHEET_SERVE_KEYS", KEY)
    with serving(ray.build()) as made:
        assert made.ask("/v1/models", host="any.example")[0] == 401
        status, listed = made.ask("/v1/models", host="any.example", authorization=f"Bearer {KEY}")
    assert (status, [each["id"] for each in listed["data"]]) == (200, [tiny_folder.name])
    monkeypatch.delenv("BROADSHEET_SERVE_KEYS")
    with pytest.raises(ValueError, match="without keys"):
        ray.build()
