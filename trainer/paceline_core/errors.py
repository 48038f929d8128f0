"""Every error that Paceline raises on purpose.

PacelineError
├── SpecError            the manifest is wrong (exit code 2)
├── LaunchError          the process's environment is not one that Paceline made
├── UsageError           the script uses the API in a way that cannot work
│   ├── ModelMismatch    this worker's model or optimizer is not the one the others train
│   └── StoreRefused     an object store refuses: no such bucket, no right, no credentials
├── WeightsDiffer        workers of a ring hold different weights after the same step
├── NotFinite            a gradient, a loss or weights are not finite, and the training fails because of it
├── ProtocolError        a peer sent something that is not a valid frame; its connection ends
├── PeerLost             a peer went away or did not answer in time: this process is a victim
│   ├── Unreachable      nobody of this training answers at its address
│   └── StoreUnreachable an object store does not answer: what is in it is not known
├── ReplayError          a recorded run does not fit this one
└── CheckpointDamaged    a checkpoint is not as it was written
"""


class PacelineError(Exception):
    """The root of them all; `from_peer` marks one that another process reported."""

    from_peer = False


class SpecError(PacelineError):
    """The manifest is wrong; `problems` says where and how to mend it."""

    def __init__(self, problems: "list[str]") -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class LaunchError(PacelineError):
    """The environment names a training but is incomplete or contradicts itself."""


class UsageError(PacelineError):
    """The training script asks for something that cannot work."""


class ModelMismatch(UsageError):
    """The model or optimizer differs from the one that the other workers train."""


class StoreRefused(UsageError):
    """An object store refuses what is asked, and would again."""


class WeightsDiffer(PacelineError):
    """The workers do not hold the same weights any more: what is trained is not one model."""


class NotFinite(PacelineError):
    """A gradient, a loss or weights are not finite, and by `gradients.onNonFinite` the training fails then."""


class ProtocolError(PacelineError):
    """A peer sent bytes that are not a frame of this training; `reason` is a stable label for metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PeerLost(PacelineError):
    """Another process went away or did not answer within its limit."""


class Unreachable(PeerLost):
    """Nobody of this training answers at an address, however often it was tried."""


class StoreUnreachable(PeerLost):
    """An object store does not answer, however often it was tried: what is in it is not known."""


class ReplayError(PacelineError):
    """The recorded run and this one do not fit together."""


class CheckpointDamaged(PacelineError):
    """A checkpoint, or a file of one, is not as it was written."""
