"""What one client may cost the others."""

from __future__ import annotations

from dataclasses import dataclass

from labelwise.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits of a server; what goes beyond them is refused, and the refusal names the limit."""

    upload_bytes: int = 2 * 2**30  # of one request
    unpacked_bytes: int = 8 * 2**30  # of what an archive holds, and of the voxels of a scan as float32
    waiting: int = 16  # scans that are being sent or wait for the device
    seconds: float = 1800.0  # for sending a scan, and for segmenting it
    keep_seconds: float = 3600.0  # for which results are kept

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"the limit {name} must be above 0", found=value)
