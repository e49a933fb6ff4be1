"""Numbers as people read them: memory in GiB (2**30), files in GB (10**9), durations, rates."""

from __future__ import annotations

_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_DECIMAL = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def _scaled(size_bytes: float, scales: tuple[tuple[int, str], ...]) -> str:
    for scale, unit in scales:
        if size_bytes >= scale:
            return f"{size_bytes / scale:.{2 if size_bytes < 10 * scale else 1}f} {unit}"
    return f"{size_bytes:.0f} B"


def memory(size_bytes: float) -> str:
    """Memory: `memory(3 << 30) == "3.00 GiB"`."""
    return _scaled(size_bytes, _BINARY)


def file_size(size_bytes: float) -> str:
    """Disk and network: `file_size(9_053_114_816) == "9.05 GB"`."""
    return _scaled(size_bytes, _DECIMAL)


def duration(seconds: float) -> str:
    """`duration(0.42) == "0.4 s"`, `duration(75) == "1 min 15 s"`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
