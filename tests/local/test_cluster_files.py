"""`cluster.yaml` and the KubeRay manifest are what Ray, EC2 and KubeRay take, as far as that can be told without a cloud.

KubeRay's own schema is read from SPORTS_RAY_KUBERAY_CRD, the file ray.io_rayjobs.yaml of its Helm chart; without it that
test is skipped.
"""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from sports_ray.cli.job import check_store, parse
from sports_ray.config import TrainConfig
from sports_ray.recipe import build_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
RAY_JOB = ROOT / "docs" / "kuberay" / "rayjob.yaml"
RAY_ONLY = {"SubnetIds"}
"""Keys of node_config that Ray takes out before it asks EC2."""


@pytest.fixture
def aws() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


@pytest.fixture
def gcp(aws: dict[str, Any]) -> dict[str, Any]:
    """The file with the commented lines at its end in place of what they replace."""
    commented = TEXT.partition("# GCP: ")[2].splitlines()[3:]
    return aws | yaml.safe_load("\n".join(line.removeprefix("# ") for line in commented))


@pytest.fixture(scope="module")
def run_instances() -> Shape:
    return ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model("RunInstances").input_shape


def mistakes(config: dict[str, Any], shape: Shape) -> list[str]:
    """What EC2's request model says against the node types: unknown keys, wrong types, words that are not in an enumeration."""
    found = []
    for name, kind in config["available_node_types"].items():
        given = {key: value for key, value in kind["node_config"].items() if key not in RAY_ONLY}
        report = ParamValidator().validate({**given, "MinCount": 1, "MaxCount": 1}, shape)
        found += [f"{name}: {report.generate_report()}"] if report.has_errors() else []
        found += [f"{name}: {word}" for word in unknown_words(given, shape)]
    return found


def unknown_words(value: Any, shape: Shape) -> Iterator[str]:
    if shape.type_name == "structure" and isinstance(value, dict):
        for key in value.keys() & shape.members.keys():
            yield from unknown_words(value[key], shape.members[key])
    elif shape.type_name == "list" and isinstance(value, list):
        for one in value:
            yield from unknown_words(one, shape.member)
    elif getattr(shape, "enum", None) and value not in shape.enum and shape.name != "InstanceType":
        yield f"{value} is no {shape.name}"


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_cluster_file_is_valid_to_ray(cloud: str, request: pytest.FixtureRequest) -> None:
    config = prepare_config(request.getfixturevalue(cloud))
    validate_config(config)
    assert config["provider"]["type"] == cloud
    config["available_node_types"]["head"].pop("node_config")
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config)


def test_node_types_are_requests_that_ec2_knows(aws: dict[str, Any], run_instances: Shape) -> None:
    assert mistakes(aws, run_instances) == []


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("InstanceMarketOption",), {"MarketType": "spot"}, "InstanceMarketOption"),
        (("InstanceMarketOptions", "MarketTyp"), "spot", "MarketTyp"),
        (("InstanceMarketOptions", "MarketType"), "spott", "spott"),
        (("InstanceMarketOptions", "SpotOptions"), {"InstanceInterruptionBehaviour": "stop"}, "Behaviour"),
        (("MetadataOptions", "HttpTokens"), True, "HttpTokens"),
    ],
)
def test_misspelt_node_types_are_found(
    aws: dict[str, Any], run_instances: Shape, path: tuple[str, ...], value: Any, word: str
) -> None:
    place = aws["available_node_types"]["spot_small"]["node_config"]
    place = aws["available_node_types"]["spot_small"]["node_config"] = copy.deepcopy(place)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    validate_config(prepare_config(copy.deepcopy(aws)))  # Ray sees nothing of it
    found = mistakes(aws, run_instances)
    assert found and all(one.startswith("spot_small: ") for one in found) and word in " ".join(found)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_head_has_no_work_and_workers_start_at_none_on_spot_first(cloud: str, request: pytest.FixtureRequest) -> None:
    kinds = request.getfixturevalue(cloud)["available_node_types"]
    head = kinds.pop("head")
    assert head["resources"] == {"CPU": 0} and not is_spot(head)
    assert all(
        kind["min_workers"] == 0 < kind["max_workers"] and kind["resources"]["GPU"] == 1 for kind in kinds.values()
    )
    spot = [kind["priority"] for kind in kinds.values() if is_spot(kind)]
    on_demand = [kind["priority"] for kind in kinds.values() if not is_spot(kind)]
    assert spot and on_demand and min(spot) > max(on_demand)


def is_spot(kind: dict[str, Any]) -> bool:
    node = kind["node_config"]
    return node.get("InstanceMarketOptions", {}).get("MarketType") == "spot" or {
        "provisioningModel": "SPOT"
    } in node.get("scheduling", [])


def test_start_commands_keep_the_dashboard_in_ask_for_a_token_and_watch_each_node(aws: dict[str, Any]) -> None:
    head, workers = aws["head_start_ray_commands"], aws["worker_start_ray_commands"]
    assert "0.0.0.0" not in TEXT
    (start,) = [line for line in head if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start and "health_check_period_ms" in start
    assert all("RAY_AUTH_MODE=token" in line for line in (*head, *workers) if line != "ray stop")
    assert list(aws["file_mounts"].values()) == [".", "~/.ray/auth_token"]
    assert any("constraints.txt" in line for line in aws["setup_commands"])
    (watch,) = [line for line in workers if "spot-watch" in line]
    words = shlex.split(watch.partition("sports-ray ")[2].partition(" >>")[0])
    assert words == ["spot-watch", "--provider", "aws"]


def commands() -> dict[str, list[str]]:
    comment = " ".join(line.lstrip("# ").rstrip("\\").strip() for line in TEXT.splitlines() if line.startswith("#"))
    submit = comment.partition("sports-ray submit ")[2].partition(" ray down")[0]
    entry = yaml.safe_load(RAY_JOB.read_text())["spec"]["entrypoint"]
    return {"cluster.yaml": shlex.split(submit), "rayjob.yaml": shlex.split(entry)[1:]}


@pytest.mark.parametrize("words", commands().values(), ids=commands())
def test_commands_in_the_files_are_commands_with_settings_that_exist(words: list[str]) -> None:
    params = parse(words)
    check_store(words[0], params)
    config = build_config(None, {"cluster.workers": params["workers"]}, params["overrides"])
    assert isinstance(config, TrainConfig) and config.cluster.gpus == 8 and config.cluster.start_timeout == 1800


def test_kuberay_manifest_has_what_ray_starts_with() -> None:
    spec = yaml.safe_load(RAY_JOB.read_text())["spec"]
    cluster = spec["rayClusterSpec"]
    import ray

    assert cluster["rayVersion"] == ray.__version__ and cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    (variable,) = pod["containers"][0]["env"]
    assert int(variable["value"]) < pod["terminationGracePeriodSeconds"], (
        "Ray must have drained before the pod is killed"
    )


def strict(schema: Any) -> Any:
    """KubeRay's schema as JSON schema: keys that it does not know are mistakes, as in `kubectl --validate=strict`."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if key != "format"}
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
    if isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def test_kuberay_takes_the_manifest() -> None:
    path = os.environ.get("SPORTS_RAY_KUBERAY_CRD")
    if not path:
        pytest.skip("needs KubeRay's schema: set SPORTS_RAY_KUBERAY_CRD to its ray.io_rayjobs.yaml")
    crd = yaml.load(Path(path).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    manifest = yaml.safe_load(RAY_JOB.read_text())
    jsonschema.validate(manifest, schema)
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(manifest, schema)
