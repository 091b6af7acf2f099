"""Finds out how a Ray cluster wants to be joined: where nobody answers, or it asks for a token, Ray itself tries for minutes
and then ends the process."""

from __future__ import annotations

import os
import socket
import time

from sports_ray.errors import ConfigError

ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer: a head that starts beside this process opens its port within a few seconds."""


def reach(address: str) -> None:
    """Sees to it that the cluster at `address` (host:port) lets this process in; ConfigError where it cannot be.

    Ray takes the token of ~/.ray only for a cluster that it has started or found by itself; here a cluster that asks for
    one gets it too, unless RAY_AUTH_MODE says otherwise. Addresses of another form are left to Ray.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    _wait_for_port(host.strip("[]"), int(port), address)
    if _lets_in(address):
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    there = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    if there and not os.environ.get("RAY_AUTH_MODE"):
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # it was read when Ray was imported
        if _lets_in(address):
            return
    raise token_error(address, another=there and os.environ.get("RAY_AUTH_MODE") == "token")


def token_error(address: str, another: bool) -> ConfigError:
    """The cluster at `address` refuses this process; `another`: it has a token, but not the cluster's."""
    return ConfigError(
        f"the cluster at {address} asks for a token",
        got="another one" if another else "none",
        want="that of the cluster (`ray get-auth-token` on its head)",
        cure="export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=..., or put it into ~/.ray/auth_token",
    )


def _wait_for_port(host: str, port: int, address: str) -> None:
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > end or isinstance(error, socket.gaierror):
                raise ConfigError(
                    f"no Ray cluster answers at {address}",
                    got=str(error),
                    want="the address and port of a head, which `ray start --head` has printed",
                    cure="correct RAY_ADDRESS or cluster.address; without them training starts a cluster of its own",
                ) from error
        time.sleep(0.2)


def _lets_in(address: str) -> bool:
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        return False
    return True
