"""Two backbones on real photographs, singly, with views and together: the scores are scikit-learn's on what was written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as metrics

from tests.real.test_photographs_train import CLASSES


def sports_ray(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "sports_ray", *words], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_members_views_and_ensemble_agree_with_scikit_learn(photographs: Path, tmp_path: Path) -> None:
    for model in ("test_resnet", "test_efficientnet"):
        fixed = ("--data", str(photographs), "--recipe", "quick", "--store", str(tmp_path), "--run", model)
        classes = ("--set", f"data.classes={CLASSES}", "--epochs", "6", "--workers", "0")
        sports_ray("train", *fixed, "--model", model, *classes)
    runs = ("--store", str(tmp_path), "--run", "test_resnet", "--run", "test_efficientnet")
    for tta in ("none", "hflip"):
        out = tmp_path / tta
        words = ("--data", str(photographs), "--split", "val", "--tta", tta, "--workers", "0", "--out", str(out))
        sports_ray("eval-ensemble", *runs, *words)
        scores = json.loads((out / "scores.json").read_text())
        table = pq.read_table(out / "predictions.parquet")
        labels, errors = table.column("label").to_numpy(), table.column("error").to_pylist()
        assert scores["data"]["images"] == len(labels) > 30 and not any(errors)
        names = [entry["name"] for entry in scores["candidates"]]
        assert names == table.column_names[4:] and len(names) == {"none": 3, "hflip": 5}[tta]
        for entry in scores["candidates"]:
            rows = np.array(table.column(entry["name"]).to_pylist(), dtype=np.float64)
            assert entry["acc1"] == pytest.approx(metrics.accuracy_score(labels, rows.argmax(1)), abs=1e-12)
            top5 = metrics.top_k_accuracy_score(labels, rows, k=5, labels=range(len(scores["classes"])))
            assert entry["acc5"] == pytest.approx(top5, abs=1e-12)
            loss = metrics.log_loss(labels, rows / rows.sum(1, keepdims=True), labels=range(len(scores["classes"])))
            assert entry["nll"] == pytest.approx(loss, rel=1e-5)
            predicted = rows.argmax(1)
            found = metrics.precision_recall_fscore_support(labels, predicted, zero_division=0)
            np.testing.assert_allclose(entry["per_class"]["recall"], found[1], atol=1e-12)
        best = json.loads((tmp_path / "test_resnet" / "weights" / "best.json").read_text())["scores"]
        plain = scores["candidates"][0 if tta == "none" else 2]
        assert plain["acc1"] == pytest.approx(best["ema_val_acc1"], abs=2.5 / len(labels))
