"""How checks are run and told: all of them, and every failure at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from labelwise.errors import ConfigError, did_you_mean


def run_checks(checks: Mapping[str, Callable[[], None]], only: Sequence[str] | None, subject: str) -> None:
    """Run some checks by name, or all; an AssertionError names every one that failed, and what it found."""
    for name in only or ():
        if name not in checks:
            raise ConfigError(
                f"unknown check '{name}'{did_you_mean(name, checks)}", expected=", ".join(checks)
            )
    failed: list[str] = []
    first: Exception | None = None
    for name in checks if only is None else only:
        try:
            checks[name]()
        except Exception as error:  # noqa: BLE001 - a method fails in any way, and the next check still tells more
            first = first or error
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            failed.append(f"{name}: {what}")
    if failed:
        raise AssertionError(
            f"{subject} breaks {len(failed)} of {len(checks)} checks\n" + "\n".join(failed)
        ) from first


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with this message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def by_name(*checks: Callable[..., None]) -> dict[str, Callable[..., None]]:
    """Checks by the names of their functions."""
    return {check.__name__: check for check in checks}
