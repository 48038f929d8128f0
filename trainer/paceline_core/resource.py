"""How the parts of the resource are modelled: frozen, camelCase outside, and closed or open to further fields."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

LONGEST_SECONDS = 10 * 365 * 24 * 3600  # ten years: operating systems cannot wait for much longer
GREATEST_COUNT = 2**31 - 1  # what Kubernetes takes for a whole number


class Strict(BaseModel):
    """Frozen, camelCase outside, and closed: an unknown field is an error, and so is a number that is not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )


class Open(BaseModel):
    """Part of a pod template: the fields that Paceline reads are typed, the others pass through to Kubernetes."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)
