"""`spot-watch`: turns a cloud's notice that this machine goes away into a drain of its node."""

from __future__ import annotations

import signal
import threading

import click

from sports_ray.cli.show import choose_show
from sports_ray.errors import ConfigError

EXAMPLES = """
\b
Examples:
  sports-ray spot-watch --provider aws          one on each node, after `ray start`; it ends with SIGTERM or Ctrl-C
  sports-ray spot-watch --provider gcp --once   look once, and say what there is

A node that drains gets no more work; a training on it commits, leaves it and goes on elsewhere. The deadline told to Ray is
ten seconds earlier than the cloud's. With a token: RAY_AUTH_MODE=token, as for every process of the cluster.
"""


@click.command("spot-watch", epilog=EXAMPLES)
@click.option(
    "--provider",
    type=click.Choice(["auto", "aws", "gcp", "azure"]),
    default="auto",
    show_default=True,
    help="Whose metadata address to ask.",
)
@click.option(
    "--metadata",
    default="",
    envvar="SPORTS_RAY_METADATA_URL",
    metavar="URL",
    help="Another address than the cloud's own.",
)
@click.option("--node-id", default="", metavar="ID", help="Which node, where several run on this machine.")
@click.option("--every", type=float, default=2.0, show_default=True, metavar="S", help="Seconds between two looks.")
@click.option(
    "--rebalance/--no-rebalance",
    default=True,
    show_default=True,
    help="Drain at AWS's recommendation too, which may come long before the notice, or at the same time.",
)
@click.option("--once", is_flag=True, help="Look once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def spot_watch(
    provider: str, metadata: str, node_id: str, every: float, rebalance: bool, once: bool, as_json: bool
) -> int:
    """Watch for the cloud's notice that this node goes away, and drain it in Ray before that."""
    if not 0 < every <= 60:
        raise ConfigError("--every", got=every, want="more than 0 and at most 60 seconds", cure="for example --every 2")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    from sports_ray.orchestrate.spot import Watcher, choose_node, find_cloud, nodes_here

    show = choose_show(as_json)
    name, cloud = find_cloud(provider, metadata, rebalance)
    node = choose_node(nodes_here(), node_id)
    where = f"node {node.id[:8]}" if node else "no node of Ray yet"
    show.fact("watching", f"{name} · {where}", provider=name, node=node.id if node else None)
    watcher = Watcher(cloud, node_id, show.fact)
    while True:
        notice = watcher.step()
        if once:
            text = notice.reason if notice else "no notice"
            show.fact("looked", text, notice=notice.reason if notice else None)
            return 0
        if ended.wait(every):
            return 0
