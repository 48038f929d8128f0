"""A lane: one connection to one shard, with a thread that sends buckets, commits, and receives fresh parameters."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from paceline.memory import memory
from paceline.signature import Signature
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline.wire.retries import persist
from paceline.worker.brake import Brake
from paceline.worker.targets import Targets
from paceline_core.buckets import Bucket, Shard
from paceline_core.errors import PacelineError, PeerLost, ProtocolError
from paceline_core.launch import Launch, Slowed

RECONNECT_SECONDS = 10.0
MARGIN_SECONDS = 15.0  # the server's limit passes first, because its error names who was waited for


@dataclass
class Answer:
    """What came back on a lane, and when (time.perf_counter)."""

    accepted: bool
    version: int
    delay: int
    reason: str
    statics: list[bytearray]
    sent: float  # everything had left this machine
    begun: float  # the answer's header was here
    done: float = 0.0  # the last byte was here


@dataclass
class Commit:
    """Ends a push (or a join): what to send after the buckets, and where the answer goes."""

    header: Header
    payload: dict[str, Any]
    statics: list[tuple[int, memoryview]] = field(default_factory=list)  # number, bytes
    expects: list[int] = field(default_factory=list)  # sizes of the STATICS in the answer
    answer: Answer | None = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


Job = tuple[Header, list[memoryview]] | Commit | None


class Lane:
    """Connection `number` to `shard`. `initial` gives a bucket of the first parameters, for worker 0."""

    def __init__(
        self,
        launch: Launch,
        signature: Signature,
        shard: Shard,
        number: int,
        targets: Targets,
        retried: Callable[[], None],
        brake: Brake,
    ) -> None:
        self.launch, self.shard, self.number = launch, shard, number
        self.buckets = range(number, len(shard.buckets), launch.spec.gradients.connections)
        self.carries_statics = shard.ordinal == 0 and number == 0
        self._signature, self._targets, self._retried, self._brake = signature, targets, retried, brake
        self._training = bytes.fromhex(launch.training_id)
        self._peer = f"ps-{shard.ordinal}"
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._pushed: dict[int, tuple[Header, list[memoryview]]] = {}  # of the current push, to send again
        self._channel: Channel | None = None
        self._initialised = True
        self.bytes_sent = self.bytes_received = 0
        largest = max((shard.buckets[i].nbytes for i in self.buckets), default=0)
        self._staging = torch.empty(largest, dtype=torch.uint8)
        self._thread = threading.Thread(target=self._run, name=f"lane-{shard.ordinal}-{number}", daemon=True)
        self._thread.start()

    def push(self, header: Header, pieces: list[memoryview]) -> None:
        """Queue one bucket of gradients."""
        self._jobs.put((header, pieces))

    def commit(self, commit: Commit) -> None:
        """Queue the end of a push; its `done` is set when the answer is there, or an error."""
        self._jobs.put(commit)

    def close(self) -> None:
        """End the connection and the thread."""
        self._jobs.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, Commit):
                try:
                    job.answer = persist(partial(self._exchange, job), self._retried)
                except Exception as error:  # it is raised again in the training's own thread
                    job.error = error
                self._pushed.clear()
                job.done.set()
            else:
                self._send_early(*job)
        if self._channel:
            self._channel.close()

    def _send_early(self, header: Header, pieces: list[memoryview]) -> None:
        self._pushed[header.bucket] = (header, pieces)
        if self._channel is None:
            return
        try:
            self._channel.send(header, pieces)
        except PeerLost:
            self._drop()  # the commit connects again and repeats the whole push

    def _exchange(self, commit: Commit) -> Answer:
        try:
            if self._channel is None:
                self._channel = self._connect(commit)
                self._repeat()
            return self._ask(self._channel, commit)
        except PacelineError:
            self._drop()
            raise

    def _connect(self, commit: Commit) -> Channel:
        joining = commit.header.kind is Kind.JOIN
        policy, gradients = self.launch.spec.run_policy, self.launch.spec.gradients
        limit = policy.start_timeout_seconds if joining else gradients.timeout_seconds
        address = self.launch.servers[self.shard.ordinal]
        patience = policy.start_timeout_seconds if joining else RECONNECT_SECONDS
        channel = endpoint.connect(
            address, self._training, self._peer, self.launch.tls, patience, limit + MARGIN_SECONDS
        )
        hello = replace(commit.header, kind=Kind.HELLO)
        asked = {"role": "worker", "channel": "lane", "lane": self.number, "signature": self._signature.to_json()}
        self._initialised = bool(channel.introduce(hello, asked).get("initialised"))
        return channel

    def _repeat(self) -> None:
        assert self._channel is not None, "connected just now"
        for header, pieces in self._pushed.values():
            self._channel.send(header, pieces)

    def _ask(self, channel: Channel, commit: Commit) -> Answer:
        joining = commit.header.kind is Kind.JOIN
        if joining and self.launch.ordinal == 0 and not self._initialised:
            for index in self.buckets:
                pieces = self._targets.pieces(self.shard.buckets[index])
                channel.send(replace(commit.header, kind=Kind.INITIAL, bucket=index), pieces)
        for number, data in commit.statics if not (joining and self._initialised) else ():
            channel.send(replace(commit.header, kind=Kind.STATICS, bucket=number), (data,))
        channel.send_json(commit.header, commit.payload)
        channel.drain()
        sent = time.perf_counter()
        header = channel.expect(Kind.APPLIED, Kind.REJECTED)
        begun = time.perf_counter()
        value = channel.json(header)
        answer = Answer(
            header.kind is Kind.APPLIED, header.version, int(value.get("delay", 0)), str(value.get("reason", "")),
            [self._static(channel, size) for size in commit.expects], sent, begun,
        )  # fmt: skip
        for index in self.buckets:
            self._receive(channel, self.shard.buckets[index])
        answer.done = time.perf_counter()
        self.bytes_sent, self.bytes_received = channel.sent, channel.received
        self._slow_down(channel)
        return answer

    def _slow_down(self, channel: Channel) -> None:
        """Make the next push take as much longer as was asked for."""
        seconds = self._brake.seconds()
        if self._brake.part is Slowed.SEND and seconds > 0:
            channel.pace(sum(self.shard.buckets[i].nbytes for i in self.buckets) / seconds)

    def _static(self, channel: Channel, size: int) -> bytearray:
        data = bytearray(size)
        channel.into(channel.expect(Kind.STATICS), memoryview(data))
        return data

    def _receive(self, channel: Channel, bucket: Bucket) -> None:
        header = channel.expect(Kind.PARAMETERS)
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


def answers(commits: Sequence[Commit]) -> list[Answer]:
    """Wait for the answers of one push. Raises the first error, the one that names a culprit first."""
    for commit in commits:
        commit.done.wait()
    errors = [c.error for c in commits if c.error is not None]
    if errors:
        told = [e for e in errors if isinstance(e, PacelineError) and e.from_peer]
        raise (told or errors)[0]
    return [c.answer for c in commits if c.answer is not None]
