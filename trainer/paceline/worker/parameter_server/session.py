"""A worker's session with the parameter servers: an exchange for each of its optimizers, and one report for all."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from paceline import optimizers
from paceline.worker.model_description import describe, refuse_modules, trained_parameters
from paceline.worker.observability.measuring import Measuring
from paceline.worker.observability.phase_hooks import Observer
from paceline.worker.observability.reporter import Reporter
from paceline.worker.observability.step_metrics import LastStep, StepMetrics
from paceline.worker.observability.step_record import StepRecords
from paceline.worker.own_state import OwnState
from paceline.worker.parameter_server.exchange import Exchange, ModelAndOptimizer
from paceline.worker.parameter_server.optimizer_patch import distribute_optimizer
from paceline_core.errors import UsageError
from paceline_core.launch import Launch
from paceline_core.modes import WITHOUT_SERVERS

log = logging.getLogger("paceline")


class Session:
    """One worker's part of a training with parameter servers; `number` counts the steps of all its optimizers."""

    def __init__(self, launch: Launch, measuring: Measuring, own_state: OwnState | None = None) -> None:
        self.launch, self.measuring, self.own_state = launch, measuring, own_state
        self._numbers: list[int] = []  # steps that each optimizer had made in the run that this one goes on from
        self._takes_place = False  # of another process, for which the others wait
        self.number = 0
        self.last: LastStep | None = None
        self.exchanges: list[Exchange] = []
        self._reporter: Reporter | None = None
        self._observer: Observer | None = None

    def add(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, total_steps: int | None = None) -> None:
        """Join with a model and its optimizer. Raises UsageError, ModelMismatch, PeerLost."""
        self._refuse_twice(model, optimizer)
        optimizers.check(optimizer, self.launch.spec.server.optimizers)
        refuse_modules(model, self.launch.world_size)
        models = list(dict.fromkeys([*(e.pair.model for e in self.exchanges), model]))
        again = any(e.pair.model is model for e in self.exchanges)
        signature = describe(model, optimizer, models.index(model), again)
        observer = self._observe(model, optimizer, again)
        pair = ModelAndOptimizer(len(self.exchanges), model, optimizer, signature)
        trained = {parameter for other in self.exchanges for parameter in other.parameters}
        exchange = Exchange(self.launch, pair, self.measuring, observer, trained)
        if self._reporter is None:
            self._reporter = self._begin(exchange, observer, total_steps)
            self._numbers = self._go_on()
        for other in self.exchanges:
            other.untrained.leave_out(set(exchange.parameters))
        self.exchanges.append(exchange)
        self._goes_on(exchange)
        if self.own_state is not None:
            self.own_state.settle()
        distribute_optimizer(optimizer, MeasuredExchange(self, exchange, observer))
        self.measuring.clock.end_step()

    @property
    def reporter(self) -> Reporter:
        """Tells shard 0 of the steps."""
        assert self._reporter is not None, "made with the first exchange"
        return self._reporter

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients: nothing is sent before the step."""
        for exchange in self.exchanges:
            exchange.gradients.paused = True
        try:
            yield
        finally:
            for exchange in self.exchanges:
                exchange.gradients.paused = False

    def tell_rest(self) -> None:
        """The script has failed: tell what is known of its last steps."""
        self.reporter.tell_rest()

    def leave(self) -> None:
        """Tell that this worker is done."""
        if self.own_state is not None and self.launch.spec.checkpoint is not None:
            self.own_state.leave()
        for exchange in self.exchanges:
            exchange.leave()
        self.reporter.leave()

    def _go_on(self) -> list[int]:
        """Begin with what this worker put into the checkpoint that the training goes on from, if there is one."""
        if self.own_state is None:
            return []
        asks = self.launch.resume is not None or self.launch.incarnation > 0
        held, self._takes_place = self.reporter.fetch_state() if asks else (b"", False)
        if self.launch.replaced and self.launch.spec.knobs.replaced_where_it_was:
            self.own_state.keep(self.reporter.keep_place, self.launch.world_size)
        self.own_state.when_restored(self._take_anew)
        numbers = self.own_state.begin(self.exchanges, self.reporter.send_state, held)
        self.number = sum(numbers)
        if self.number:
            self.reporter.went_on(self.number)
        return numbers

    def _goes_on(self, exchange: Exchange) -> None:
        number = sum(self._numbers[exchange.pair.number : exchange.pair.number + 1])
        exchange.number = number
        if self._takes_place:
            exchange.takes_place(number)
            self.reporter.repeats = self.reporter.repeats or exchange.repeats > 0
            log.warning(
                "worker-%d goes on where it was lost: after step %d, with %d to repeat",
                self.launch.ordinal, number, exchange.repeats,
            )  # fmt: skip

    def _take_anew(self) -> None:
        """The script is where it was. What it loaded on its way there is not for all, once a step was made."""
        for exchange in self.exchanges if self._takes_place else ():
            if exchange.number:
                exchange.take_anew()

    def _observe(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, again: bool) -> Observer:
        clock, injected_delay = self.measuring.clock, self.measuring.injected_delay
        if self._observer is None:
            self._observer = Observer(model, trained_parameters(optimizer), clock, injected_delay)
        elif not again:
            self._observer.watch(model)
        return self._observer

    def _begin(self, exchange: Exchange, observer: Observer, total_steps: int | None) -> Reporter:
        launch, measuring, first = self.launch, self.measuring, exchange.parameters[0]
        measuring.describe(first.device, "paceline", launch.node)
        nbytes = sum(p.numel() * p.element_size() for p in exchange.parameters)
        step_metrics = StepMetrics(measuring.metrics, observer.device, nbytes)
        return Reporter(launch, exchange.pair.signature, total_steps, step_metrics, measuring.clocks_compared)

    def _refuse_twice(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        mine = set(trained_parameters(optimizer))
        for exchange in self.exchanges:
            if exchange.pair.optimizer is optimizer:
                raise UsageError("paceline.distribute() was called before with this optimizer: once is enough")
            for parameter in exchange.parameters:
                if parameter in mine:
                    raise UsageError(
                        f"{names.get(parameter, 'a parameter')} is trained by two optimizers: on a parameter server it "
                        f"has one; give it to one of them, or use topology {WITHOUT_SERVERS}"
                    )


class MeasuredExchange:
    """The exchange behind the methods of one distributed optimizer, with each of its steps measured."""

    def __init__(self, session: Session, exchange: Exchange, observer: Observer) -> None:
        self._session, self._exchange, self._observer = session, exchange, observer
        self._steps = StepRecords(session.measuring, session.reporter, observer)

    def step(self) -> None:
        """Push this step's gradients, and return when the model holds the parameters for the next forward pass."""
        if self._exchange.repeats:
            self._repeat()
            return
        session, ready = self._session, self._observer.last_ready or time.perf_counter()
        session.reporter.repeats = False
        if session.own_state is not None:
            session.own_state.step_begins(self._exchange.pair.number)
        self._observer.backward_ended()
        session.measuring.clock.enter("encode")
        self._steps.sample_norm(self._exchange.parameters)
        session.last = self._exchange.step()
        session.number += 1
        if session.own_state is not None:
            asked, last = self._exchange.save_asked, self._exchange.save_last
            session.own_state.step_ended(self._exchange.pair.number, asked, last)
        self._steps.finish(session.number, session.last, time.perf_counter() - ready, self._traffic())

    def _repeat(self) -> None:
        """A step that was made, and told, before."""
        session, number = self._session, self._exchange.pair.number
        if session.own_state is not None:
            session.own_state.step_begins(number)
        session.last = self._exchange.step()
        session.number += 1
        if session.own_state is not None:
            session.own_state.step_ended(number, 0)
        session.measuring.clock.end_step()
        self._observer.device.end_step()
        self._observer.step_ended()

    def fetch_optimizer_state(self) -> dict[torch.Tensor, dict[str, Any]] | None:
        """The servers' state of each parameter; None while the optimizer itself holds one that was loaded."""
        return self._exchange.fetch_optimizer_state()

    def _traffic(self) -> tuple[int, int]:
        of_each = [exchange.traffic for exchange in self._session.exchanges]
        return sum(sent for sent, _ in of_each), sum(received for _, received in of_each)
