"""How the nodes of a run find each other: each one calls the first, which tells all how many processes each has.

One line of JSON each way, over a plain socket: no proxy is asked, and no node needs a name for itself. The connections
stay: a node that ends well says so, and one that is lost is noticed at once, which NCCL does after half an hour.
"""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from common.errors import UserError

_SAY_EVERY = 30  # seconds
_GIVE_UP = 15 * 60  # seconds, as Paddle's own store
_LONGEST_LINE = 100_000  # bytes
_GOODBYE = b"."


@dataclass
class Layout:
    """Which node this is, the processes of each node, and where Paddle's store will listen (on the first node)."""

    node: int
    processes: list[int]
    address: str
    port: int
    others: list[socket.socket] = field(default_factory=list)  # to the launchers of other nodes

    def say_goodbye(self) -> None:
        """This node's part is done: the others need not mind that it ends."""
        for other in self.others:
            with contextlib.suppress(OSError):
                other.sendall(_GOODBYE)

    def has_lost_a_node(self) -> bool:
        """Whether a node has ended without a goodbye. At once."""
        for other in select.select(self.others, [], [], 0)[0]:
            try:
                said = other.recv(1)
            except OSError:
                said = b""
            if said != _GOODBYE:
                return True
            self.others.remove(other)
        return False

    @staticmethod
    def of_one_node(processes: int) -> "Layout":
        return Layout(0, [processes], "127.0.0.1", _free_port())


def number_from(variable: str, default: int, at_least: int) -> int:
    """A whole number from the environment."""
    text = os.environ.get(variable, "") or str(default)
    if not text.isdecimal() or int(text) < at_least:
        raise UserError(f"{variable}={text}: must be a whole number from {at_least} on")
    return int(text)


def place_of_node(nodes: int) -> tuple[int, int, str, int]:
    """From NODE_RANK and MASTER: (this node, number of nodes, address of the first node, port there)."""
    node = number_from("NODE_RANK", 0, at_least=0)
    if "NODE_RANK" not in os.environ or node >= nodes:
        raise UserError(f"NNODES={nodes}: say which node this is, NODE_RANK=0 to {nodes - 1}")
    master = os.environ.get("MASTER", "")
    host, _, port = master.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"MASTER={master}: say where the first node listens, MASTER=address:port, port 1 to 65535")
    try:
        address = socket.gethostbyname(host)
    except (OSError, UnicodeError) as error:
        raise UserError(f"MASTER={master}: {host} is not known here ({error})") from None
    if node > 0 and address.startswith("127.") and host != address:
        text = f"MASTER={master}: {host} is {address} on node {node}, which is that node itself"
        raise UserError(f"{text}; give the first node's address in the network")
    return node, nodes, address, int(port)


def meet(node: int, nodes: int, address: str, port: int, local: int) -> Layout:
    """Return when all `nodes` have come to the first one at address:port; UserError when one does not come.

    `local`: the number of processes of this node.
    """
    print(f"launch:     node {node} of {nodes}, waiting for the others at {address}:{port}", flush=True)
    if node == 0:
        return _receive(nodes, address, port, local)
    return _call(node, nodes, address, port, local)


def _receive(nodes: int, address: str, port: int, local: int) -> Layout:
    """The first node's part."""
    connections, processes = {}, {0: local}

    def missing() -> str:
        return "node " + ", ".join(str(node) for node in range(nodes) if node not in processes)

    try:
        server = socket.create_server(("", port))
    except OSError as error:
        reason = error.strerror
        raise UserError(f"MASTER={address}:{port}: cannot listen there ({reason}); choose a free port") from None
    with server:
        server.settimeout(1)
        for _ in _patiently(missing):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # not a node, or one that gave up
                connection = _watch(server.accept()[0])
                said = _read(connection)
                node, of = int(said["node"]), int(said["nodes"])
                if of != nodes or not 0 < node < nodes:
                    print(f"launch:     not of this run: NNODES={of}, NODE_RANK={node}", flush=True)
                    _send(connection, {"refused": f"the first node waits for 1 to {nodes - 1} of NNODES={nodes}"})
                    continue
                processes[node] = int(said["processes"])
                connections[node] = connection  # in the place of an earlier one, if it was started again
            if len(processes) == nodes:
                break
    layout = Layout(0, [processes[node] for node in range(nodes)], address, _free_port(), list(connections.values()))
    for connection in layout.others:
        with contextlib.suppress(OSError):  # it went away, as has_lost_a_node will find
            _send(connection, {"processes": layout.processes, "port": layout.port})
    return layout


def _call(node: int, nodes: int, address: str, port: int, local: int) -> Layout:
    """The part of the other nodes: call until the first one is there, then wait for what it says."""
    first = None
    for _ in _patiently(lambda: f"the other nodes at {address}:{port}"):
        try:
            if first is None:
                first = _watch(socket.create_connection((address, port), timeout=2))
                _send(first, {"node": node, "nodes": nodes, "processes": local})
            answer = _read(first)
            break
        except TimeoutError:
            continue
        except (OSError, ValueError):  # the first one is not there yet, or was started again
            first = None
            time.sleep(1)
    if "refused" in answer:
        raise UserError(f"NNODES={nodes}, NODE_RANK={node}: {answer['refused']}; start every node with the same NNODES")
    return Layout(node, answer["processes"], address, answer["port"], [first])


def _watch(connection: socket.socket) -> socket.socket:
    """Have the kernel ask every 30 seconds whether the other side is there; so no firewall finds it idle either."""
    connection.settimeout(2)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 30), (socket.TCP_KEEPCNT, 4)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def _patiently(whom: Callable[[], str]) -> Iterator[None]:
    """Yield until the caller has what it waits for: says so every 30 seconds, gives up after 15 minutes."""
    began = said = time.monotonic()
    while time.monotonic() - began < _GIVE_UP:
        yield
        if time.monotonic() - said >= _SAY_EVERY:
            said = time.monotonic()
            print(f"launch:     {said - began:.0f} s, still waiting for {whom()}", flush=True)
    text = f"{whom()} did not come within {_GIVE_UP / 60:.0f} minutes; start the same command on every node"
    raise UserError(f"{text}, and see that MASTER's port can be reached from all of them")


def _send(connection: socket.socket, message: dict) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket) -> dict:
    """One line; ValueError when it is too long, not JSON, or cut off."""
    line = b""
    while not line.endswith(b"\n"):
        more = connection.recv(4096)
        if not more or len(line) > _LONGEST_LINE:
            raise ValueError("not a line")
        line += more
    return json.loads(line)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]
