"""Ray Train as its documentation shows it, with its own checkpoints: what `bench recovery` compares with.

Run as `python -m sports_ray.orchestrate.plain '{"photographs": …}'`; it trains until it is killed. Each step's time goes to a
file, a JSON object a line."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def train_func(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import timm
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, RandAugment, RandomResizedCrop, ToTensor

    transform = Compose([RandomResizedCrop(config["size"]), RandAugment(2, 7), ToTensor()])
    dataset = ImageFolder(config["photographs"], transform)
    loader = ray.train.torch.prepare_data_loader(
        DataLoader(dataset, config["batch"], shuffle=True, num_workers=1, drop_last=True)
    )
    model = ray.train.torch.prepare_model(timm.create_model(config["model"], num_classes=len(dataset.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    while True:
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            with open(config["told"], "a", encoding="utf-8") as told:
                told.write(json.dumps({"event": "step", "step": step, "at": time.time(), "pid": os.getpid()}) + "\n")
            if step % config["every"] == 0:
                with tempfile.TemporaryDirectory() as folder:
                    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    torch.save(parts, Path(folder) / "state.pt")
                    ray.train.report({"loss": loss.item()}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def main(config: dict[str, Any]) -> None:
    import ray
    from ray.train.torch import TorchTrainer

    from sports_ray.orchestrate.cluster import OBJECT_STORE_BYTES

    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address)
    else:
        # As many CPUs, the same object store and no dashboard: the clusters shall not differ.
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    failures = ray.train.FailureConfig(max_failures=1000)
    keep = ray.train.CheckpointConfig(num_to_keep=3)
    TorchTrainer(
        train_func,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": config["cpus"]}),
        run_config=ray.train.RunConfig(
            name="plain", storage_path=config["store"], failure_config=failures, checkpoint_config=keep
        ),
    ).fit()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
