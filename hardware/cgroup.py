"""What a container or a service leaves of the machine: memory limit and processor quota, cgroup versions 1 and 2.

A process is bound by its own group and by every group above it, so each question walks from the group up to the mount.
Inside a container the path in /proc/self/cgroup may be the host's and not exist here; the mount itself is then the
container's group, and the walk ends there anyway.
"""

from __future__ import annotations

from collections.abc import Iterator

from hardware import parse
from hardware.source import Source

_MOUNT = "sys/fs/cgroup"
_MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def _upwards(mount: str, path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # a group outside this namespace
        parts = []
    for depth in range(len(parts), -1, -1):
        yield "/".join([mount, *parts[:depth]])


def _folders(source: Source, controller: str) -> Iterator[str]:
    paths = parse.cgroup_paths(source.read("proc/self/cgroup"))
    if controller in paths:
        yield from _upwards(f"{_MOUNT}/{controller}", paths[controller])
    yield from _upwards(_MOUNT, paths.get("", ""))


def memory(source: Source) -> tuple[int | None, int | None]:
    """The tightest limit and what is left below it, in bytes; None where there is none."""
    limits: list[int] = []
    left: list[int] = []
    for folder in _folders(source, "memory"):
        for limit_file, usage_file in _MEMORY_FILES:
            limit_bytes = parse.cgroup_bytes(source.read(f"{folder}/{limit_file}"))
            if limit_bytes is None:
                continue
            limits.append(limit_bytes)
            used_bytes = parse.cgroup_bytes(source.read(f"{folder}/{usage_file}")) or 0
            reclaimable_bytes = parse.cgroup_reclaimable_bytes(source.read(f"{folder}/memory.stat"))
            left.append(max(0, limit_bytes - max(0, used_bytes - reclaimable_bytes)))
    return min(limits, default=None), min(left, default=None)


def cores(source: Source) -> float | None:
    """The tightest processor quota, in cores."""
    quotas: list[float] = []
    for folder in _folders(source, "cpu"):
        version_1 = source.read(f"{folder}/cpu.cfs_quota_us") + source.read(f"{folder}/cpu.cfs_period_us")
        found = (parse.cgroup_cores(source.read(f"{folder}/cpu.max")), parse.cgroup_cores(version_1))
        quotas += [quota for quota in found if quota]
    return min(quotas, default=None)
