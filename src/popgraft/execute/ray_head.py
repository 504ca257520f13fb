"""Whether the cluster is still there: its head, and the driver's own node.

Ray goes on for a minute without a head and then ends the driver's process, and it ends it at the next object that is
laid ready once the driver's node is gone: both without a word. So this looks first.
"""

import socket
import threading
import time
from typing import Any

import ray

from popgraft.errors import ShardLost

PAUSE = 1.0
"""Seconds between two looks, and seconds that an answer may take."""
FRESH = 0.1
"""Seconds for which the driver's node is believed to be there."""
WITHOUT_HEAD = 30.0
"""Seconds without a head: it may be started anew, and Ray itself waits for twice as long."""
WITHOUT_NODE = 3.0
"""Seconds without an answer of the driver's node: once gone, it does not come back."""

HEAD, NODE = "its head", "the node of this process"

Address = tuple[str, int]


class Head:
    """Looks after a cluster until it is closed.

    Attributes:
        gone: what is no longer there, in words; empty as long as all is well.
    """

    def __init__(self) -> None:
        self.gone = ""
        context = ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        places: dict[str, tuple[Address, float]] = {HEAD: ((host.strip("[]"), int(port)), WITHOUT_HEAD)}
        for node in ray.nodes():
            if node["NodeID"] == context.get_node_id():
                places[NODE] = (node["NodeManagerAddress"], node["NodeManagerPort"]), WITHOUT_NODE
        # What cannot be seen from here, as through a client's proxy, is not looked after.
        self._places = {name: place for name, place in places.items() if _answers(place[0])}
        self._seen = dict.fromkeys(self._places, time.monotonic())
        self._missed: dict[str, float] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="popgraft head", daemon=True).start()

    def check(self) -> None:
        """Raises `ShardLost` where the cluster is gone; to be asked before Ray is."""
        if NODE in self._places and time.monotonic() - self._seen[NODE] > FRESH:
            while not self.gone and not self._sees(NODE):
                time.sleep(FRESH)
        if self.gone:
            raise ShardLost(f"the Ray cluster is gone: {self.gone}; see that it runs, and then: popgraft resume RUN")

    def put(self, value: Any) -> Any:
        """Lays something ready for the cluster."""
        self.check()
        return ray.put(value)

    def close(self) -> None:
        """Looks no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(PAUSE):
            for name in self._places:
                self._sees(name)

    def _sees(self, name: str) -> bool:
        """Whether something is there at this moment; what is not for too long is gone."""
        address, limit = self._places[name]
        there, now = _answers(address), time.monotonic()
        if there:
            self._seen[name] = now
            self._missed.pop(name, None)
        elif now - self._missed.setdefault(name, now) > limit:  # not since it was seen: nobody may have looked
            host, port = address
            self.gone = f"{name} ({host}:{port}) has not answered for {limit:g} seconds"
        return there


def _answers(address: Address) -> bool:
    try:
        socket.create_connection(address, PAUSE).close()
    except OSError:
        return False
    return True
