"""Random number generators with states that are the same on all workers, while data is drawn."""

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from paceline.worker.data.sampling import mix

NESTED = 8  # samplers within samplers


@dataclass(frozen=True)
class RandomGenerator:
    """How the state of one generator is read and set, and the state that a seed gives."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seeded: Callable[[int], Any]


class CommonRandom:
    """Within `drawing()`, torch's, Python's and numpy's global generators and those in attributes of `owners`
    continue from states that follow from `seed` alone; outside they are the script's own, as if nothing was drawn.
    """

    def __init__(self, seed: int, owners: Iterable[object]) -> None:
        self._generators = [*_global_generators(), *_generators_in(owners)]
        self._states = [g.seeded(mix(seed, number)) for number, g in enumerate(self._generators)]

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Put the common states in place."""
        own = [g.get() for g in self._generators]
        self._put(self._states)
        try:
            yield
        finally:
            self._states = [g.get() for g in self._generators]
            self._put(own)

    def _put(self, states: list[Any]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set(state)


def kept() -> Callable[[], None]:
    """Gives what sets the global generators to the states that they have now."""
    held = [(generator, generator.get()) for generator in _global_generators()]

    def put_back() -> None:
        for generator, state in held:
            generator.set(state)

    return put_back


def owners_of(sampler: Any, depth: int = NESTED) -> list[object]:
    """A sampler and the samplers in its attributes: each may have a generator."""
    inner = [v for v in _attributes(sampler) if isinstance(v, Sampler)] if depth else []
    return [sampler, *(owner for each in inner for owner in owners_of(each, depth - 1))]


def _global_generators() -> list[RandomGenerator]:
    found = [
        RandomGenerator(
            torch.get_rng_state, torch.set_rng_state, lambda seed: torch.Generator().manual_seed(seed).get_state()
        ),
        RandomGenerator(random.getstate, random.setstate, lambda seed: random.Random(seed).getstate()),
    ]
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        made = numpy.random
        found.append(
            RandomGenerator(made.get_state, made.set_state, lambda seed: made.RandomState(seed % (1 << 32)).get_state())
        )
    return found


def _generators_in(owners: Iterable[object]) -> list[RandomGenerator]:
    generators = {id(v): v for owner in owners for v in _attributes(owner)}
    return [g for g in map(_generator, generators.values()) if g is not None]


def _attributes(owner: object) -> list[Any]:
    held = list(getattr(owner, "__dict__", {}).values())
    return held + [each for v in held if isinstance(v, list | tuple) and len(v) <= NESTED for each in v]


def _generator(it: Any) -> RandomGenerator | None:
    if isinstance(it, torch.Generator):
        return RandomGenerator(
            it.get_state, it.set_state, lambda seed: torch.Generator(it.device).manual_seed(seed).get_state()
        )
    if type(it) is random.Random:
        return RandomGenerator(it.getstate, it.setstate, lambda seed: random.Random(seed).getstate())
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(it, numpy.random.RandomState):
        return RandomGenerator(
            it.get_state, it.set_state, lambda seed: numpy.random.RandomState(seed % (1 << 32)).get_state()
        )
    if numpy is not None and isinstance(it, numpy.random.Generator):
        bits = it.bit_generator
        return RandomGenerator(
            lambda: bits.state, lambda state: setattr(bits, "state", state), lambda seed: type(bits)(seed).state
        )
    return None
