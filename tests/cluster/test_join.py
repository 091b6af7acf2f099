"""A cluster that is joined by its address: with the token that it asks for, or with one clear error at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from sports_ray.errors import ConfigError
from sports_ray.orchestrate import join
from tests.support.head import free_ports

SCRIPT = """
import sys
from sports_ray.errors import ConfigError
from sports_ray.orchestrate.cluster import ray_cluster
try:
    with ray_cluster(sys.argv[1]):
        import ray
        nodes = len(ray.nodes())
    print("joined", nodes)
except ConfigError as error:
    print(error)
"""


def joined(mode: str | None, home: Path) -> str:
    """What a process of its own says that joins the cluster of this one; `home` is where it looks for a token."""
    drop = ("RAY_AUTH_MODE", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in drop} | {"HOME": str(home)}
    if mode is not None:
        environment["RAY_AUTH_MODE"] = mode
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", SCRIPT, address]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and not shown.stderr, shown.stderr
    return shown.stdout


def test_cluster_that_asks_for_a_token_gets_the_one_in_the_home_folder(ray_session: None) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token", "Ray's own default for a cluster that it starts"
    for mode in (None, "", "token"):
        assert joined(mode, Path.home()) == "joined 1\n", mode


def test_cluster_that_asks_for_a_token_which_is_missing_or_forbidden_is_one_error(
    ray_session: None, tmp_path: Path
) -> None:
    other = tmp_path / "other" / ".ray" / "auth_token"
    other.parent.mkdir(parents=True)
    other.write_text("0" * 64)
    cases = ((None, tmp_path, "none"), ("disabled", Path.home(), "none"), (None, tmp_path / "other", "another one"))
    for mode, home, got in cases:
        shown = joined(mode, home)
        assert f"asks for a token; got {got}; wanted" in shown and "RAY_AUTH_MODE=token" in shown, (mode, shown)


def test_address_where_nobody_answers_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "ANSWER_SECONDS", 0.3)
    (port,) = free_ports(1)
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at 127.0.0.1:{port}; got .*refused.*RAY_ADDRESS"):
        join.reach(f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="no Ray cluster answers at nowhere.invalid:1"):
        join.reach("nowhere.invalid:1")


@pytest.mark.long
@pytest.mark.parametrize("command", ["train", "tune"])
def test_driver_of_known_models_goes_without_torch(
    ray_session: None, photos: Path, tmp_path: Path, command: str
) -> None:
    """It waits for others, for hours: without torch it begins seconds earlier, and leaves its memory to them."""
    words = [
        sys.executable,
        "-m",
        "sports_ray",
        command,
        "--data",
        str(photos),
        "--weights",
        "none",
        "--precision",
        "fp32",
    ]
    words += ["--set", "data.image_size=32", "--set", "loop.global_batch=12", "--epochs", "3"]
    train, tune = (
        ["--model", "test_resnet"],
        ["--models", "test_resnet", "--samples", "2", "--space", "optim.lr=1e-3,2e-3"],
    )
    words += train if command == "train" else tune
    place = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    subprocess.run([*words, "--dry-run"], cwd=tmp_path, env=place, check=True, capture_output=True)
    with subprocess.Popen([*words, "--json"], cwd=tmp_path, env=place, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert any('"event": "evaluated"' in line for line in driver.stdout)
        assert "libtorch" not in Path(f"/proc/{driver.pid}/maps").read_text()
        rest = driver.stdout.read()
    assert driver.returncode == 0 and '"event": "next"' in rest
