"""Every error that sports-ray raises on purpose, as one tree.

SportsRayError
├── UserError            exit 2: only the user can mend it
│   ├── ConfigError      a setting, flag or recipe
│   ├── DataError        the photographs, lists or splits
│   ├── WeightsError     a weights file or the model name
│   └── RunError         the state of a run (busy, changed, damaged)
├── TrainingError        exit 3: failed after what could be retried was retried
│   ├── NonFiniteError   loss or gradient not finite too often in a row; a retry cannot mend it
│   └── StorageError     the store could not be written or read
├── ExportError          exit 3: a model could not be converted, or the file does not compute what the model does
├── FencedError          exit 3: another writer has taken the run over
└── Paused               exit 75: stopped on request, everything is committed

Each says what, got, wanted, cure. All arguments reach `Exception.__init__`, so that an error survives pickling between
processes.
"""

from __future__ import annotations


class SportsRayError(Exception):
    """Base: `what` went wrong, what was `got`, what was `want`ed and the `cure`; empty parts are left out of the text."""

    exit_code = 3
    retryable = False

    def __init__(self, what: str, got: object = "", want: str = "", cure: str = "") -> None:
        super().__init__(what, got, want, cure)
        self.what, self.got, self.want, self.cure = what, got, want, cure

    def __str__(self) -> str:
        parts = [self.what]
        if str(self.got):
            parts.append(f"got {self.got}")
        if self.want:
            parts.append(f"wanted {self.want}")
        if self.cure:
            parts.append(f"cure: {self.cure}")
        return "; ".join(parts)


class UserError(SportsRayError):
    exit_code = 2


class ConfigError(UserError):
    pass


class DataError(UserError):
    pass


class WeightsError(UserError):
    pass


class RunError(UserError):
    pass


class TrainingError(SportsRayError):
    exit_code = 3


class ProcessDied(TrainingError):
    """A process of a run's own was killed, as by the kernel when memory runs out."""

    retryable = True


class NonFiniteError(TrainingError):
    pass


class StorageError(TrainingError):
    retryable = True


class ExportError(SportsRayError):
    exit_code = 3


class FencedError(SportsRayError):
    exit_code = 3


class Paused(SportsRayError):
    exit_code = 75
