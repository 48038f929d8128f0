"""The limit of a wait, with the field that moves it: whoever reads that it was too short shall know what to change."""

# after a failure a server answers each connection with it for so long, for the others to ask what happened
REFUSAL_SECONDS = 5.0
MARGIN_SECONDS, MARGIN_SHARE = 3.0, 0.2  # the lesser is left of the time of grace, to end in
START, STEP = "spec.runPolicy.startTimeoutSeconds", "spec.gradients.timeoutSeconds"


class Limit(float):
    """Seconds that a process waits at most."""

    setting: str

    def __new__(cls, seconds: float, setting: str) -> "Limit":
        """So many seconds, as the field says."""
        limit = super().__new__(cls, seconds)
        limit.setting = setting
        return limit

    def plus(self, seconds: float) -> "Limit":
        """A longer one, which the same field moves."""
        return Limit(self + seconds, self.setting)


def to_end(grace: float) -> float:
    """How long a process that is killed `grace` seconds after SIGTERM may wait for a checkpoint before it ends."""
    return grace - min(MARGIN_SECONDS, MARGIN_SHARE * grace)


def words(seconds: float) -> str:
    """The limit as a message has it: 30 s (spec.gradients.timeoutSeconds); one that nothing moves as 30 s."""
    return f"{seconds:g} s" + (f" ({seconds.setting})" if isinstance(seconds, Limit) else "")
