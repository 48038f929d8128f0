"""One connection to one shard, with a thread that sends buckets, commits, and receives fresh parameters."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from paceline import optimizer_state, untrained_codec
from paceline.model_signature import Signature
from paceline.tensor_bytes import memory
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline.wire.retries import persist
from paceline.worker.observability.injected_delay import InjectedDelay
from paceline.worker.own_process import OwnProcess
from paceline.worker.parameter_server.parameter_targets import Targets
from paceline_core.buckets import Bucket, ShardPlan
from paceline_core.errors import PacelineError, PeerLost, ProtocolError
from paceline_core.launch import Launch, Slowed

RECONNECT_SECONDS = 10.0
BLAME_SECONDS = 1.0  # after a connection's failure, for another to be told whose fault it is
MARGIN_SECONDS = 15.0  # the server's limit passes first, because its error names who was waited for


@dataclass
class PushAnswer:
    """What came back on a connection, and when (time.perf_counter)."""

    accepted: bool
    version: int
    delay: int
    reason: str
    untrained: dict[int, bytes] | None  # frozen parameters and buffers that changed, where they are carried
    sent: float  # everything had left this machine
    begun: float  # the answer's header was here
    done: float = 0.0  # the last byte was here
    lowest: int = 0  # of the workers that take part
    ignored: bool = False  # what this worker's script changed was not carried out
    state: bytes = b""  # of the optimizer
    save: int = 0  # the checkpoint for which this worker is to send its state
    last: bool = False  # and after which it is to make no further step


@dataclass
class Commit:
    """Ends a push (or a join): what to send after the buckets, and where the answer goes."""

    header: Header
    payload: dict[str, Any]
    untrained: dict[int, memoryview] = field(default_factory=dict)
    state: bytes = b""  # of the optimizer, if the script has loaded one
    answer: "Future[PushAnswer]" = field(default_factory=Future)


Job = tuple[Header, list[memoryview]] | Commit | None


class ShardConnection:
    """Connection `number` to `shard`: it carries the buckets whose index fits the number."""

    def __init__(
        self,
        launch: Launch,
        pair: int,
        signature: Signature,
        shard: ShardPlan,
        number: int,
        targets: Targets,
        retried: Callable[[], None],
        injected_delay: InjectedDelay,
    ) -> None:
        self.launch, self.shard, self.number = launch, shard, number
        self.buckets = range(number, len(shard.buckets), launch.spec.gradients.connections)
        self.carries_untrained = shard.ordinal == 0 and number == 0
        self.carries_state = number == 0
        self._pair, self._signature, self._targets, self._retried, self._injected_delay = (
            pair,
            signature,
            targets,
            retried,
            injected_delay,
        )
        self._training = bytes.fromhex(launch.training_id)
        self._peer, self._own = f"ps-{shard.ordinal}", OwnProcess()
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        # of the current push, to send again
        self._pushed: dict[tuple[FrameKind, int], tuple[Header, list[memoryview]]] = {}
        self._channel: Channel | None = None
        self._initialised = True
        self.bytes_sent = self.bytes_received = 0
        largest = max((shard.buckets[i].nbytes for i in self.buckets), default=0)
        self._staging = torch.empty(largest, dtype=torch.uint8, device="cpu")
        self._thread = threading.Thread(target=self._run, name=f"shard-{shard.ordinal}-{number}", daemon=True)
        self._thread.start()

    def push(self, header: Header, pieces: list[memoryview]) -> None:
        """Queue one bucket of gradients, or of parameters that the script has changed."""
        self._own.demand("backward() of the model that is trained")
        self._jobs.put((header, pieces))

    def commit(self, commit: Commit) -> None:
        """Queue the end of a push; its `done` is set when the answer is there, or an error."""
        self._own.demand("step() of the optimizer")
        self._jobs.put(commit)

    def close(self) -> None:
        """End the connection and the thread."""
        self._jobs.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        problem: Exception | None = None
        while (job := self._jobs.get()) is not None:
            if isinstance(job, Commit):
                self._finish(job, problem)
                problem = None
            else:
                try:
                    self._send_early(*job)
                except Exception as error:  # whoever waits for the commit is told
                    problem = problem or error
        if self._channel:
            self._channel.close()

    def _finish(self, commit: Commit, problem: Exception | None) -> None:
        try:
            if problem is not None:
                raise problem
            answer = persist(partial(self._exchange, commit), self._retried)
        except Exception as error:
            self._pushed.clear()
            commit.answer.set_exception(error)  # it is raised again in the training's own thread
        else:
            self._pushed.clear()
            commit.answer.set_result(answer)

    def _send_early(self, header: Header, pieces: list[memoryview]) -> None:
        self._pushed[header.kind, header.bucket] = (header, pieces)
        if self._channel is None:
            return
        try:
            self._channel.send(header, pieces)
        except PeerLost:
            self._drop()  # the commit connects again and repeats the whole push

    def _exchange(self, commit: Commit) -> PushAnswer:
        try:
            if self._channel is None:
                self._channel = self._connect(commit)
                self._repeat()
            return self._ask(self._channel, commit)
        except PacelineError:
            self._drop()
            raise

    def _connect(self, commit: Commit) -> Channel:
        joining = commit.header.kind is FrameKind.JOIN
        limit = self.launch.start_limit if joining else self.launch.step_limit
        address = self.launch.servers[self.shard.ordinal]
        patience = limit if joining else RECONNECT_SECONDS
        channel = endpoint.connect(
            address, self._training, self._peer, self.launch.tls, patience, limit.plus(MARGIN_SECONDS)
        )
        hello = replace(commit.header, kind=FrameKind.HELLO)
        asked = {"role": "worker", "channel": "lane", "lane": self.number, "pair": self._pair}
        ready = channel.introduce(hello, asked | {"signature": self._signature.to_json()})
        self._initialised = bool(ready.get("initialised"))
        return channel

    def _repeat(self) -> None:
        assert self._channel is not None, "connected just now"
        for header, pieces in self._pushed.values():
            self._channel.send(header, pieces)

    def _ask(self, channel: Channel, commit: Commit) -> PushAnswer:
        joining = commit.header.kind is FrameKind.JOIN
        if joining and self.launch.ordinal == 0 and not self._initialised:
            for index in self.buckets:
                pieces = self._targets.pieces(self.shard.buckets[index])
                channel.send(replace(commit.header, kind=FrameKind.INITIAL, bucket=index), pieces)
        if commit.untrained and not (joining and self._initialised):
            channel.send(replace(commit.header, kind=FrameKind.STATICS), untrained_codec.encode(commit.untrained))
        if commit.state:
            channel.send(replace(commit.header, kind=FrameKind.STATE), (memoryview(commit.state),))
        channel.send_json(commit.header, commit.payload)
        channel.drain()
        sent = time.perf_counter()
        if commit.header.kind is FrameKind.ASK_STATE or commit.payload.get("final"):
            return self._short_answer(channel, commit, sent)
        header = channel.expect(FrameKind.APPLIED, FrameKind.REJECTED)
        begun = time.perf_counter()
        value = channel.json(header)
        answer = PushAnswer(
            header.kind is FrameKind.APPLIED, header.version, int(value.get("delay", 0)), str(value.get("reason", "")),
            self._untrained(channel) if self.carries_untrained else None, sent, begun,
            lowest=int(value.get("lowest", 0)), ignored=bool(value.get("ignored")), save=int(value.get("save", 0)),
            last=bool(value.get("last")),
        )  # fmt: skip
        for index in self.buckets:
            self._receive(channel, self.shard.buckets[index])
        answer.done = time.perf_counter()
        self.bytes_sent, self.bytes_received = channel.sent, channel.received
        self._slow_down(channel)
        return answer

    def _slow_down(self, channel: Channel) -> None:
        """Make the next push take as much longer as was asked for."""
        seconds = self._injected_delay.seconds()
        if self._injected_delay.part is Slowed.SEND and seconds > 0:
            channel.pace(sum(self.shard.buckets[i].nbytes for i in self.buckets) / seconds)

    def _short_answer(self, channel: Channel, commit: Commit, sent: float) -> PushAnswer:
        """The answer to what changes no version: a question for the optimizer's state, or the last changes."""
        if commit.header.kind is FrameKind.ASK_STATE:
            state = bytes(self._payload(channel, FrameKind.STATE, optimizer_state.limit(self.shard.buckets)))
        else:
            channel.control(FrameKind.READY)
            state = b""
        return PushAnswer(True, commit.header.version, 0, "", None, sent, time.perf_counter(), state=state)

    def _untrained(self, channel: Channel) -> dict[int, bytes]:
        infos = self._signature.untrained
        return untrained_codec.decode(self._payload(channel, FrameKind.STATICS, untrained_codec.limit(infos)), infos)

    def _payload(self, channel: Channel, kind: FrameKind, most: int) -> bytearray:
        header = channel.expect(kind)
        if header.nbytes > most:
            raise ProtocolError("too_large", f"{kind.name} of {header.nbytes} bytes, at most {most} expected")
        data = bytearray(header.nbytes)
        channel.into(header, memoryview(data))
        return data

    def _receive(self, channel: Channel, bucket: Bucket) -> None:
        header = channel.expect(FrameKind.PARAMETERS)
        if header.bucket != bucket.index:
            raise ProtocolError("bad_bucket", f"{self._peer} sent bucket {header.bucket} instead of {bucket.index}")
        direct = self._targets.direct(bucket)
        if direct is not None:
            channel.into(header, direct)
            return
        staging = self._staging[: bucket.nbytes]
        channel.into(header, memory(staging))
        self._targets.store(bucket, staging)

    def _drop(self) -> None:
        if self._channel:
            self._channel.close()
        self._channel = None


def answers(commits: Sequence[Commit]) -> list[PushAnswer]:
    """Wait for the answers of one push. Raises the first error as soon as there is one.

    The other connections then wait for what the failed one should have brought. One of them may be told in the same
    moment who is to blame; that error comes first.
    """
    asked = [commit.answer for commit in commits]
    if len(asked) == 1:
        return [asked[0].result()]
    done, waiting = wait(asked, return_when=FIRST_EXCEPTION)
    if any(each.exception() for each in done):
        done |= wait(waiting, BLAME_SECONDS, FIRST_EXCEPTION).done
    errors = [error for each in asked if each in done and (error := each.exception()) is not None]
    if errors:
        told = [e for e in errors if isinstance(e, PacelineError) and e.from_peer]
        raise (told or errors)[0]
    return [each.result() for each in asked]
