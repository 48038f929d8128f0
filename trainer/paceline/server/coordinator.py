"""The coordinator of an all-reduce: a key-value store for torch.distributed's rendezvous, and the collector of reports.

It holds no parameters and needs no torch. torch's own TCPStore listens on every interface and asks nobody who they are;
this one is reached over the authenticated wire only.
"""

import logging
import time
from pathlib import Path
from typing import Any

from paceline import json_text, metrics
from paceline.http_pages import serve
from paceline.process_trace import ProcessTrace
from paceline.server.checkpoints.ring_checkpoints import RingCheckpoints
from paceline.server.membership.acceptor import Acceptor, Handler
from paceline.server.membership.key_value_store import Asker, KeyValueStore
from paceline.server.membership.membership import Membership, lost
from paceline.server.membership.places import Places
from paceline.server.membership.regrouping import Regrouping
from paceline.server.membership.reports import Reports
from paceline.server.membership.ring_diagnosis import RingDiagnosis
from paceline.server.observability.training_status import TrainingStatus
from paceline.server.told_to_end import ToldToEnd
from paceline_core import limits, metric_series
from paceline_core.errors import NotFinite, PacelineError, PeerLost, WeightsDiffer
from paceline_core.launch import Launch

TICK_SECONDS = 0.1
log = logging.getLogger("paceline")


class Coordinator:
    """The process beside the workers of an all-reduce."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.metrics = metrics.of_server(launch.training, 0, metric_series.level(launch.spec))
        self.trace = ProcessTrace(launch.name, time.monotonic())
        self.patience = launch.start_limit
        self.membership = Membership(launch.world_size, self.patience, launch.replaced)
        self.training_status = TrainingStatus(launch, self.metrics)
        self.diagnosis = RingDiagnosis(launch, self.membership)
        patience = max(self.patience, launch.step_limit)
        self.store = KeyValueStore(self.membership, patience, lambda *_: None, self.training_status.gathered)
        self.regrouping = Regrouping(self.membership, self.patience)
        self.places = Places() if launch.replaced else None
        self.store.offer({"broken": self._broken})
        if self.places is not None:
            self.store.offer({"takes_place": self.regrouping.takes_place, "regroup": self.regrouping.regroup})
        self.checkpoints = RingCheckpoints(launch, self.membership, self.store, self.training_status.checkpoints)
        self.told_to_end = ToldToEnd(launch.end_limit, self.checkpoints.may_end)
        reports = Reports(
            self.membership, self.training_status, lambda *_: None, self.membership.fail, self.checkpoints,
            self.places, lambda: self.regrouping.updates,
        )  # fmt: skip
        handlers: dict[str, Handler] = {
            "report": reports.serve,
            "store": self.store.serve,
            "inquiry": self.diagnosis.serve,
        }
        self.acceptor = Acceptor(launch, handlers, self.metrics, self.membership.is_newest)

    def run(self) -> None:
        """Serve until every worker has left. Raises what made the training fail."""
        web = serve(
            self.launch.metrics, self.metrics, {"/status": self.training_status.to_json, "/trace": self.trace.to_json}
        )
        self.acceptor.open()
        try:
            while True:
                time.sleep(TICK_SECONDS)
                self.checkpoints.look()
                finished = self.membership.finished() and self.checkpoints.idle()
                if self.membership.failure:  # perhaps by what the last to leave told before
                    raise self.membership.failure
                if finished or self.told_to_end.ends_now():
                    break
                self._look_for_lost_workers()
                self.metrics.set(metrics.CONNECTED, self.membership.connected_workers())
        except (PeerLost, WeightsDiffer, NotFinite, OSError) as error:
            self.membership.fail(error)
            waiting = self.store.gathering.waiting
            self.acceptor.refuse(
                error if isinstance(error, PacelineError) else PeerLost(f"the coordinator failed: {error}")
            )
            limit = time.monotonic() + limits.REFUSAL_SECONDS
            while waiting and not self.told_to_end and time.monotonic() < limit:
                time.sleep(TICK_SECONDS)
            raise
        finally:
            self.training_status.end()
            if self.launch.output:
                status = json_text.dumps(self.training_status.to_json(), indent=1)
                Path(self.launch.output, "status.json").write_text(status)
            self.checkpoints.close()
            self.acceptor.close()
            self.training_status.close()
            self.trace.write(self.launch.output)
            web.shutdown()
            web.server_close()

    def _look_for_lost_workers(self) -> None:
        for worker in self.membership.overdue():
            if self.places is None or not self.training_status.replaceable(worker):
                raise PeerLost(self.diagnosis.verdict) if self.diagnosis.verdict else lost(worker)
            self.training_status.state(worker, "lost")
            log.warning("%s; the others wait for another in its place", lost(worker))
        for worker in self.membership.not_replaced() if self.places is not None else ():
            raise lost(worker)

    def _broken(self, asker: Asker, ask: dict[str, Any]) -> None:
        self.diagnosis.broken(asker.worker, int(ask["step"]), bool(ask["too_late"]))
