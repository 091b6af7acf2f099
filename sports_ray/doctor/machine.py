"""This machine: versions against what the package supports, cores, memory, limits and GPUs."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from sports_ray.doctor.check import Check, Severity

PACKAGE = "sports-ray"
RAY_RAISES_TO = 65_536
"""Ray raises its own soft limit of open files so far, where the hard limit allows it."""
OPEN_FILES = 8192
"""What Ray recommends; below half of it, it warns at each start."""
LEAST_FILES = 1024
SHARED_MEMORY = 256 * 2**20
"""Twice the object store that a training starts; where there is less, Ray puts it on a disk."""
LEAST_MEMORY = 2 * 2**30
TIMEOUT = 30.0

_Environment = partial(Check, "environment")


def check_machine() -> Iterator[Check]:
    """All checks of this module."""
    yield from check_versions()
    yield check_cores()
    yield check_memory()
    yield check_shared_memory()
    yield check_open_files()
    yield from check_gpus()


def check_versions() -> Iterator[Check]:
    """Python and each package that sports-ray needs, against its supported ranges; and those packages among each other."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        wanted_python = metadata(PACKAGE)["Requires-Python"] or ""
        needed = [Requirement(text) for text in requires(PACKAGE) or []]
    except PackageNotFoundError:
        cure = "pip install -c constraints.txt -e ."
        yield _Environment("versions", f"{PACKAGE} is not installed", "look", "an installed package", cure)
        return
    needed = [one for one in needed if not (one.marker and "extra" in str(one.marker))]
    names = {one.name.lower() for one in needed}
    found = [f"python {platform.python_version()}"]
    sound = True
    if platform.python_version() not in SpecifierSet(wanted_python):
        yield _Environment("python", platform.python_version(), "bad", wanted_python, "another Python")
        sound = False
    for asking in (PACKAGE, *sorted(names)):
        with suppress(PackageNotFoundError):
            for one in map(Requirement, requires(asking) or []):
                if one.name.lower() not in names or (one.marker and not one.marker.evaluate({"extra": ""})):
                    continue
                fault = _fault(one)
                sound &= not fault
                if fault:
                    what = one.name if asking == PACKAGE else f"{one.name} for {asking}"
                    cure = f"pip install -c constraints.txt '{one.name}{one.specifier}'"
                    yield _Environment(what, fault, "bad", str(one.specifier) or "installed", cure)
                elif asking == PACKAGE:
                    found.append(f"{one.name} {version(one.name)}")
    if sound:
        yield _Environment("versions", ", ".join(found) + ": all in the supported ranges")


def _fault(requirement: object) -> str:
    """The version that is installed, where it is not the wanted one; "" where it is."""
    from packaging.requirements import Requirement

    assert isinstance(requirement, Requirement)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return "not installed"
    return "" if requirement.specifier.contains(found, prereleases=True) else found


def check_cores() -> Check:
    """Cores that this process may use, against those that threads are started for (os.cpu_count)."""
    count = os.cpu_count() or 1
    usable = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(count)
    usable = min(usable, _cgroup_cores() or usable)
    if usable > 0.75 * count:
        return _Environment("cores", f"{count}, all for this process")
    whole = max(1, int(usable))
    cure = f"--set cluster.threads={whole} --set data.loader_processes={max(0, whole - 1)}"
    return _Environment("cores", f"{usable:g} of {count} may be used", "look", "threads for as many as there are", cure)


def _cgroup_cores() -> float | None:
    """What a container allows; None where nothing is limited."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(quota) / float(period)
    return None


def check_memory() -> Check:
    """Memory that processes can still have."""
    rows = {}
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            rows[name] = 1024 * int(value.split()[0])
    if "MemAvailable" not in rows:
        return _Environment("memory", "not known on this system")
    free = rows["MemAvailable"]
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    text = f"{free / 2**30:.1f} of {rows['MemTotal'] / 2**30:.1f} GiB are free"
    if free >= LEAST_MEMORY:
        return _Environment("memory", text)
    cure = "end other programs; a smaller --set loop.micro_batch or data.image_size needs less"
    return _Environment("memory", text, "look", f"{LEAST_MEMORY / 2**30:.0f} GiB", cure)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Room for Ray's object store; containers make it small."""
    what = f"shared memory ({folder})"
    if not folder.is_dir():
        return _Environment(what, "none on this system: Ray keeps objects in files")
    state = os.statvfs(folder)
    free = state.f_frsize * state.f_bavail
    writable = os.access(folder, os.W_OK)
    text = f"{free / 2**20:,.0f} MiB free" + ("" if writable else ", but it may not be written")
    if writable and free >= SHARED_MEMORY:
        return _Environment(what, text)
    cure = "docker run --shm-size=2g; in Kubernetes an emptyDir with medium: Memory; Ray is slow without it"
    return _Environment(what, text, "look", f"{SHARED_MEMORY / 2**20:.0f} MiB", cure)


def check_open_files() -> Check:
    """Files and sockets that a process of Ray may have open at once, after Ray has raised its limit as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    most = max(soft, min(hard, RAY_RAISES_TO))
    if most >= OPEN_FILES:
        return _Environment("open files", f"limit {most:,}")
    severity: Severity = "bad" if most < LEAST_FILES else "look"
    cure = f"ulimit -n {OPEN_FILES}; in a container --ulimit nofile=65536:65536"
    return _Environment("open files", f"limit {most:,}", severity, f"{OPEN_FILES:,}", cure)


def check_gpus() -> Iterator[Check]:
    """What the driver shows and what torch can use, proven by a product of matrices on each GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        cure = "pip install -c constraints.txt -e ."
        yield _Environment("torch", f"cannot be imported: {error}", "bad", "a torch that starts", cure)
        return
    shown = _driver_shows()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda.is_available():
        driver = f", driver {shown[0][1]}" if shown else ""
        for index in range(torch.cuda.device_count()):
            yield _gpu(index, driver)
    elif not shown:
        yield _Environment("gpu", "none: training runs on the CPU")
    elif hidden is not None and hidden.strip() in ("", "-1"):
        yield _Environment("gpu", f"{len(shown)}, hidden by CUDA_VISIBLE_DEVICES={hidden!r}: training runs on the CPU")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        got = f"the driver ({shown[0][1]}) shows {len(shown)} ({shown[0][0]}), torch {torch.__version__}, {built}, none"
        cure = "install the torch build for a CUDA version that the driver supports (pytorch.org/get-started), or a newer driver"
        yield _Environment("gpu", got, "bad", "a torch that can use it", cure)


def _gpu(index: int, driver: str) -> Check:
    import torch

    what = f"gpu {index}"
    facts = torch.cuda.get_device_properties(index)
    try:
        draw = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
        there = (draw.to(f"cuda:{index}") @ draw.to(f"cuda:{index}")).cpu()
        wrong = not torch.allclose(there, draw @ draw, rtol=1e-2, atol=0.5)
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        cure = "a torch build for this GPU; if it is for it, see dmesg for faults of the driver"
        return _Environment(what, f"{facts.name}{driver}: {reason}", "bad", "a GPU that computes", cure)
    if wrong:
        return _Environment(what, f"{facts.name}{driver}: wrong products", "bad", "those of the CPU", "another GPU")
    text = f"{facts.name}{driver}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, computes rightly"
    if free < 0.75 * total:
        return _Environment(what, text, "look", "a GPU of its own", "end what else runs there: see `nvidia-smi`")
    return _Environment(what, text)


def _driver_shows() -> list[tuple[str, str]]:
    """(name, driver's version) of each GPU by nvidia-smi; empty where there is none."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.rpartition(",") for line in done.stdout.splitlines() if "," in line)
    return [(name.strip(), driver.strip()) for name, _, driver in rows]
