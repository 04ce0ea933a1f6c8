"""How fast running averages forget: as a part of the training, or a fixed share at every step."""

from __future__ import annotations

from dataclasses import dataclass

from labelwise.errors import ConfigError
from labelwise.types import Progress

LARGEST_START = 0.05  # of a running average at the end of the training


@dataclass(frozen=True)
class Decay:
    """What part of a running average stays when it moves.

    A published decay belongs to the published number of steps: 0.999 forgets its start in 3000 steps and keeps
    two thirds of it in 400. The half-life as a part of the training does the same at every length.

    Example
        >>> round(Decay(half_life=0.0115).keep(Progress(3000, 6000)), 3)   # published: 0.99 in 6000 steps
        0.99
        >>> round(Decay(half_life=0.0115).keep(Progress(300, 600)), 3)
        0.904
    """

    half_life: float  # part of the training in which half of the average becomes new
    fixed: float | None = None  # what stays at every move instead, as published
    warm_up: bool = False  # an even mean of all steps at first: nothing is left of the start
    moves: int = 1  # in each step

    def keep(self, progress: Progress) -> float:
        """The part that stays at a move of this step, in [0, 1]."""
        keep = self._constant(progress.total)
        return min(1 - 1 / (progress.step + 1), keep) if self.warm_up else keep

    def start_left(self, steps: int) -> float:
        """The part of the start that is left in the average after so many steps."""
        return 0.0 if self.warm_up and steps else self._constant(steps) ** (self.moves * steps)

    def require_forgets(self, name: str, steps: int) -> None:
        """Refuse an average that would still be made of what it started with.

        Errors
            ConfigError     more than `LARGEST_START` of the start is left at the end
        """
        left = self.start_left(steps)
        if left > LARGEST_START:
            longest = LARGEST_START ** (1 / (self.moves * steps))
            raise ConfigError(
                f"with '{name}' the running average would not be of what was trained",
                found=f"{name} = {self._constant(steps):.6g} leaves {left:.0%} of its start after {steps} steps",
                expected=f"at most {LARGEST_START:.0%}",
                do=f"leave it out, so that it follows the length of the training; set it to at most {longest:.4f}; "
                "or train longer",
            )

    def _constant(self, steps: int) -> float:
        if self.fixed is not None:
            return self.fixed
        return 0.5 ** (1 / (self.half_life * steps * self.moves)) if self.half_life * steps else 0.0
