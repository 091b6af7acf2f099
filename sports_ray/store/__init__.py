"""Where runs live: verified commits, one writer, nothing half-written ever trusted.

storage <- {local, arrow}             files: local through `os`, object stores through pyarrow
codec                                 bytes: canonical JSON, sealed records, safetensors
lease <- fence <- commit <- attempt   one driver; numbered attempts; checkpoints; the right to go on
weights <- run_dir                    published weights; the layout of a run
writer                                commits in the background

No pickle anywhere: opening somebody's run executes nothing. Importing this package imports neither torch nor pyarrow.
"""

from __future__ import annotations

from sports_ray.store.attempt import Attempt, begin_attempt
from sports_ray.store.commit import (
    Commit,
    CommitId,
    CommitInfo,
    list_commits,
    newest,
    read_commit,
    write_commit,
)
from sports_ray.store.fence import Fence, check, read_fences
from sports_ray.store.lease import Lease, Owner, holder
from sports_ray.store.run_dir import MANIFEST, RunDir, checked_run_name, list_runs, retained
from sports_ray.store.storage import Entry, Storage, open_storage
from sports_ray.store.writer import AsyncWriter

__all__ = [
    "MANIFEST",
    "AsyncWriter",
    "Attempt",
    "Commit",
    "CommitId",
    "CommitInfo",
    "Entry",
    "Fence",
    "Lease",
    "Owner",
    "RunDir",
    "Storage",
    "begin_attempt",
    "check",
    "checked_run_name",
    "holder",
    "list_commits",
    "list_runs",
    "newest",
    "open_storage",
    "read_commit",
    "read_fences",
    "retained",
    "write_commit",
]
