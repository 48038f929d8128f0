"""The wire's roles in one table: which connections there are, who may open each, and what the opener may send on it.

Everything else ends that connection, and nothing more. Each frame must be of the worker (or server) that said HELLO.
"""

from dataclasses import dataclass

import paceline_credentials
from paceline.wire.frames import FrameKind
from paceline_core.errors import ProtocolError
from paceline_core.launch import Role

WORKER, SERVER = "worker", "server"
REPLICAS = {WORKER: Role.WORKER, SERVER: Role.SERVER}  # whose ordinals and certificates they have
MOST_PAIRS = 64  # of models and optimizers in one script


@dataclass(frozen=True)
class ConnectionKind:
    """One kind of connection, named by the `channel` of its HELLO."""

    name: str
    role: str  # of the process that opens it
    frames: frozenset[FrameKind]  # that it may send after HELLO
    most: int  # at the same time, of one opener (of lanes: for each of gradients.connections), broken ones included


CONNECTIONS = {
    kind.name: kind
    for kind in (
        ConnectionKind(
            "lane",
            WORKER,
            frozenset(
                {
                    FrameKind.PUSH,
                    FrameKind.INITIAL,
                    FrameKind.STATICS,
                    FrameKind.STATE,
                    FrameKind.JOIN,
                    FrameKind.COMMIT,
                    FrameKind.ASK_STATE,
                }
            ),
            most=2 * MOST_PAIRS,
        ),
        ConnectionKind(
            "report",
            WORKER,
            frozenset({FrameKind.REPORT, FrameKind.CLOCK, FrameKind.LEAVE, FrameKind.SNAPSHOT, FrameKind.KEPT}),
            most=16,
        ),
        ConnectionKind("store", WORKER, frozenset({FrameKind.STORE}), most=32),
        ConnectionKind("inquiry", WORKER, frozenset({FrameKind.WAITING}), most=16),
        ConnectionKind("orders", SERVER, frozenset(), most=16),  # the follower hears
        ConnectionKind(
            "arrivals",
            SERVER,
            frozenset(
                {FrameKind.ARRIVED, FrameKind.NORM, FrameKind.SAVED, FrameKind.ENDING, FrameKind.ERROR, FrameKind.END}
            ),
            most=16,
        ),
    )
}


def opened(
    asked: object, said: object, certificate: frozenset[str] | None, peers: dict[str, range], ordinal: int
) -> ConnectionKind:
    """The kind of connection that a HELLO asks for. Raises ProtocolError for one that its sender may not open.

    `said` is the role that the HELLO names, `certificate` the processes that its certificate does (None without TLS),
    and `peers` the ordinals of each role that may connect here.
    """
    kind = CONNECTIONS.get(asked) if isinstance(asked, str) else None
    if kind is None:
        raise ProtocolError("bad_channel", "HELLO for a channel that is not served here")
    if said != kind.role:
        raise ProtocolError("bad_channel", f"HELLO of a {str(said)[:20]} for a channel that is for a {kind.role}")
    if ordinal not in peers[kind.role]:
        raise ProtocolError(f"bad_{kind.role}", f"there is no {kind.role} {ordinal} that could connect here")
    if certificate is not None and not paceline_credentials.names(certificate, REPLICAS[kind.role], ordinal):
        raise ProtocolError("no_credential", f"a certificate of {sorted(certificate)} used as {kind.role} {ordinal}")
    return kind
