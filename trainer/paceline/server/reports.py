"""What workers tell about their steps, and how they say goodbye."""

import time
from collections.abc import Callable
from typing import Any

from paceline.server.aggregator import Aggregator
from paceline.server.roll import Roll
from paceline.signature import Signature
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline_core.errors import ProtocolError


class Reports:
    """Serves the report connection of every worker, on shard 0 or the coordinator."""

    def __init__(
        self,
        roll: Roll,
        aggregator: Aggregator,
        left: Callable[[int, int], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._fail = fail
        self._roll, self._aggregator, self._left = roll, aggregator, left

    def serve(self, channel: Channel, hello: Header, asked: dict[str, Any]) -> None:
        """Serve one worker until it leaves."""
        try:
            signature = Signature.from_json(asked["signature"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("bad_payload", f"a HELLO without a signature: {error}") from error
        worker = hello.worker
        self._roll.connected(worker, hello.incarnation)
        try:
            self._roll.agree(worker, signature)
            self._aggregator.state(worker, "training", asked.get("total_steps"))
            channel.send_json(Header(Kind.READY, channel.training), {})
            self._listen(channel, worker)
        finally:
            self._roll.disconnected(worker)

    def _listen(self, channel: Channel, worker: int) -> None:
        while True:
            header = channel.header(idle=True)
            value = channel.json(header)
            if header.kind is Kind.REPORT:
                self._count(worker, value)
            elif header.kind is Kind.CLOCK:
                channel.send_json(Header(Kind.VALUE, channel.training), {"time": time.time()})
            elif header.kind is Kind.LEAVE:
                self._take_leave(channel, worker, header.incarnation)
            else:
                raise ProtocolError("unexpected", f"{header.kind.name} on a report connection")

    def _take_leave(self, channel: Channel, worker: int, incarnation: int) -> None:
        newest = self._roll.is_newest(worker, incarnation)
        if newest:
            self._aggregator.state(worker, "finished")
        channel.send_json(Header(Kind.READY, channel.training), {})
        if newest:
            self._left(worker, incarnation)
            self._roll.leave(worker, incarnation)

    def _count(self, worker: int, value: dict[str, Any]) -> None:
        try:
            self._aggregator.report(worker, list(value["rows"]), dict(value["reported"]))
        except OSError as error:  # the log of steps cannot be written
            self._fail(error)
            return
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("bad_payload", f"a REPORT that cannot be read: {error}") from error
