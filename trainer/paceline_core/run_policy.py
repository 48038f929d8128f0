"""The life of a training: when it ends, when it has failed, and what is removed afterwards."""

from enum import StrEnum

from pydantic import Field

from paceline_core.resource import GREATEST_COUNT, LONGEST_SECONDS, Strict


class CleanPodPolicy(StrEnum):
    """Which pods are removed when a training has finished."""

    NONE = "None"
    RUNNING = "Running"
    ALL = "All"


class RunPolicy(Strict):
    """The life of a training."""

    suspend: bool = Field(default=False, description="Do not run yet. Default: false.")
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=LONGEST_SECONDS,
        description="Seconds after which a finished training is deleted. Default: never.",
    )
    active_deadline_seconds: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_SECONDS,
        description="Longest that the training may run, in seconds. Default: no limit.",
    )
    backoff_limit: int = Field(
        default=3, ge=0, le=GREATEST_COUNT, description="Restarts before the training has failed. Default: 3."
    )
    clean_pod_policy: CleanPodPolicy = Field(
        default=CleanPodPolicy.RUNNING, description="Pods removed when the training has finished. Default: Running."
    )
    managed_by: str = Field(
        default="paceline.dev/operator",
        description="Who runs this training; Paceline's operator leaves alone one with another name here. "
        "Default: paceline.dev/operator.",
    )
    start_timeout_seconds: float = Field(
        default=600,
        gt=0,
        le=LONGEST_SECONDS,
        description="Longest wait for all processes to have joined, in seconds. Default: 600.",
    )
