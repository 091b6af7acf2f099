"""What the server of forked children imports: the engine, and what it would import itself at the first step and at the end.

A child then starts in milliseconds; and the collector, which the engine sends through all that is there, finds it frozen.
"""

from __future__ import annotations

import gc

import matplotlib.backends.backend_agg  # noqa: F401  (by the page's plots)
import pandas  # noqa: F401  (by pyarrow, for the manifest)
import pytest  # noqa: F401  (by the file of the test that a child comes from)
import tensorboardX  # noqa: F401
import torch._dynamo  # noqa: F401  (by torch's optimisers)

import sports_ray.orchestrate.local  # noqa: F401

gc.collect()
gc.freeze()
