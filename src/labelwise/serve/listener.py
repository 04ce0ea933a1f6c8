"""Where a server takes series by DICOM, and who gets their labels: plain values, for which no library is needed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from labelwise.errors import ConfigError

_PEER = re.compile(r"([!-?A-~][ -?A-~]{0,15})@([^\s@:]+):(\d{1,5})")
_HIGHEST_PORT = 65535


@dataclass(frozen=True)
class DicomListener:
    """A DICOM node of a server, and the node that gets its labels."""

    port: int  # 0 for any free port
    to: str  # TITLE@HOST:PORT
    quiet_seconds: float = 5.0  # after the last image, when its senders have left: the series is complete
    title: str = "LABELWISE"

    def __post_init__(self) -> None:
        found = _PEER.fullmatch(self.to)
        if found is None or int(found[3]) > _HIGHEST_PORT:
            raise ConfigError(
                "this is no DICOM node",
                found=self.to,
                expected="TITLE@HOST:PORT, as in ORTHANC@127.0.0.1:4242",
            )
        if self.quiet_seconds <= 0:
            raise ConfigError("the time without an image must be above 0", found=self.quiet_seconds)

    @property
    def peer(self) -> tuple[str, str, int]:
        """Title, host and port of the node that gets the labels."""
        title, _, address = self.to.partition("@")
        host, _, port = address.rpartition(":")
        return title, host, int(port)
