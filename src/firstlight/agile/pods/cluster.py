"""The agent's exchange with the API server, and the node's routes to other nodes' pods.

One thread, since the client blocks. Routes carry their own protocol number, so that those to nodes
that have left can be found. Without the API server, pods and routes stay as they are.
"""

import datetime
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec

from firstlight.agile.apiserver import Object, Refused, Server
from firstlight.agile.config import Config
from firstlight.agile.function import Counts
from firstlight.agile.pods.wire import Request
from firstlight.errors import Failed, longer
from firstlight.files import write_whole

ROUTE_PROTOCOL = 118
"""In /etc/iproute2/rt_protos it is nobody's."""
CONDITION = "FirstlightPodNetworks"
RANGES = "ranges"
"""The file beside the leases with the ranges of the Node."""
_NODES = "/api/v1/nodes"
_RANGE_SECONDS, _RETRY_SECONDS = longer(120.0), 1.0
_ROUTES_SECONDS = 15.0
_EVENT_SECONDS = 60.0
_log = logging.getLogger(__name__)

Routes = dict[str, str]
"""Gateways by destination."""
Trouble = tuple[str, str] | None
"""Why new pods would have no network, as reason and message of the node's condition."""


class Cluster:
    """The API server that ``pods.kubeconfig`` names. ``name`` is the node's."""

    def __init__(self, kubeconfig: str) -> None:
        self._server = Server(kubeconfig)
        self.name = os.environ.get("NODE_NAME") or socket.gethostname().lower()
        self._event_times: dict[str, float] = {}
        self._ranges: list[str] = []  # that were taken from the Node
        self._said: list[str] = []  # warnings of the last look, so that each is said once

    def complete(self, config: Config) -> Config:
        """The configuration; ranges that it lacks are taken from the Node. Raises Failed.

        While the API server is away, they are those that the node's last agent took.
        """
        if config.pods.range:
            return config
        file = config.directory / RANGES
        until = time.monotonic() + _RANGE_SECONDS
        while True:
            try:
                ranges = _ranges(self._server.ask("GET", f"{_NODES}/{self.name}"))
                why = f"the node {self.name} has no podCIDR"
            except Exception as error:
                why = f"cannot read the node {self.name}: {error}"
                ranges = [] if isinstance(error, Refused) else _remembered(file)
                if ranges:
                    _log.warning("%s; its ranges were %s", why, ", ".join(ranges))
            four = next((cidr for cidr in ranges if ":" not in cidr), "")
            if four:
                six = next((cidr for cidr in ranges if ":" in cidr), "")
                lacking = {"range": four, "range6": config.pods.range6 or six}
                fields = msgspec.to_builtins(config.pods) | lacking
                try:
                    pods = msgspec.convert(fields, type(config.pods))
                except msgspec.ValidationError as error:
                    what = f"the ranges of the node {self.name} do not fit: {error}"
                    raise Failed(what, "change the configuration or the ranges") from error
                self._ranges = ranges
                _remember(file, ranges)
                return msgspec.structs.replace(config, pods=pods)
            if time.monotonic() > until:
                raise Failed(why, "let the controller manager allocate-node-cidrs, "
                             "or configure pods.range")  # fmt: skip
            time.sleep(_RETRY_SECONDS)

    def start(
        self,
        counts: Callable[[], Counts],
        trouble: Callable[[], Trouble],
        show_to: Callable[[Iterable[str]], None],
    ) -> None:
        """Keep routes and the node's condition, in a thread, until the process ends.

        ``show_to`` gets the other nodes' ranges, whose pods see this node's under their own
        addresses.
        """
        arguments = (counts, trouble, show_to)
        threading.Thread(target=self._work, args=arguments, daemon=True).start()

    def _work(
        self,
        counts: Callable[[], Counts],
        trouble: Callable[[], Trouble],
        show_to: Callable[[Iterable[str]], None],
    ) -> None:
        routes: Routes | None = None
        looked = 0.0
        why = ""
        for nodes in self._server.follow(_NODES):
            try:
                if time.monotonic() - looked > _ROUTES_SECONDS:
                    # the kernel removes those of a link that goes down
                    routes, looked = None, time.monotonic()
                routes = self._follow(nodes, routes, show_to)
                if node := nodes.get(self.name):
                    nodes[self.name] = self._tell(node, counts(), trouble())
                why = ""
            except Exception as failure:  # the API server is unreachable
                if str(failure) != why:
                    _log.warning("cannot follow the cluster's nodes: %s", failure)
                why = str(failure)

    def _follow(
        self,
        nodes: dict[str, Object],
        before: Routes | None,
        show_to: Callable[[Iterable[str]], None],
    ) -> Routes:
        """Set the routes to these nodes' pods, where they differ from those set before."""
        routes = wanted_routes(nodes.values(), self.name)
        if routes != before:
            show_to(routes)
            refused = set_routes(routes)
            for each in refused:
                if each not in self._said:
                    _log.warning("%s", each)
            self._said = refused
        return routes

    def _tell(self, node: Object, counts: Counts, trouble: Trouble) -> Object:
        """Set the Node's condition where it differs; returns the Node with it.

        The Node is compared, and not what was sent before: one that is made anew has no condition.
        """
        ranges = _ranges(node)
        if self._ranges and ranges and ranges != self._ranges:
            status, reason = "False", "RangeChanged"
            message = (f"the node's range is {', '.join(ranges)} now, but its pods have addresses "
                       f"of {', '.join(self._ranges)}, to which other nodes have no route: "
                       "drain the node, then restart its agent")  # fmt: skip
        elif trouble:
            status, (reason, message) = "False", trouble
        else:
            status, reason = "True", "Ready"
            message = f"{counts.ready} of {counts.high} networks are prepared"
        shown = [(each["status"], each.get("reason"))
                 for each in (node.get("status") or {}).get("conditions") or ()
                 if each["type"] == CONDITION]  # fmt: skip
        if shown == [(status, reason)]:
            return node
        if status == "False":
            _log.warning("pods' networks: %s", message)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        condition = {
            "type": CONDITION, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }  # fmt: skip
        body = {"status": {"conditions": [condition]}}
        return self._server.ask("PATCH", f"{_NODES}/{self.name}/status", body)

    def refused(self, request: Request, why: str) -> None:
        """Post an event on a pod, at most one a minute, without waiting for it."""
        now = time.monotonic()
        if (
            "/" not in request.pod
            or now - self._event_times.get(request.pod, -_EVENT_SECONDS) < _EVENT_SECONDS
        ):
            return
        self._event_times = {
            pod: at for pod, at in self._event_times.items() if now - at < _EVENT_SECONDS
        }
        self._event_times[request.pod] = now
        threading.Thread(target=self._post, args=(request, why), daemon=True).start()

    def _post(self, request: Request, why: str) -> None:
        namespace, _, name = request.pod.partition("/")
        now = datetime.datetime.now(datetime.UTC).isoformat()
        event = {
            "metadata": {"generateName": f"{name}.", "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace,
                               "name": name, "uid": request.uid},
            "reason": "NoNetwork", "message": why, "type": "Warning", "count": 1,
            "source": {"component": "firstlight-agent", "host": self.name},
            "firstTimestamp": now, "lastTimestamp": now,
        }  # fmt: skip
        with suppress(Exception):  # the plugin's error reports it too
            self._server.ask("POST", f"/api/v1/namespaces/{namespace}/events", event)


def _ranges(node: Object) -> list[str]:
    spec = node.get("spec") or {}
    return list(spec.get("podCIDRs") or filter(None, [spec.get("podCIDR")]))


def _remembered(file: Path) -> list[str]:
    try:
        return [str(ip_network(each)) for each in file.read_text().split()]
    except (OSError, ValueError):
        return []


def _remember(file: Path, ranges: list[str]) -> None:
    """Like leases, until the next boot. Without the file, the next agent waits."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(file, "\n".join(ranges).encode())
    except OSError as error:
        _log.warning("cannot write %s: %s", file, error.strerror)


def wanted_routes(nodes: Iterable[Object], own: str) -> Routes:
    """The routes to the pods of all other nodes, by their internal addresses."""
    routes = {}
    for node in nodes:
        if node["metadata"]["name"] == own:
            continue
        addresses = [ip_address(each["address"])
                     for each in (node.get("status") or {}).get("addresses") or ()
                     if each["type"] == "InternalIP"]  # fmt: skip
        for cidr in _ranges(node):
            version = ip_network(cidr).version
            gateway = next((each for each in addresses if each.version == version), None)
            if gateway:
                routes[cidr] = str(gateway)
    return routes


def set_routes(wanted: Routes) -> list[str]:
    """Make these routes, and remove all others that an agent made; returns why some are refused."""
    from pyroute2 import IPRoute, NetlinkError

    refused = []
    with IPRoute() as netlink:
        present = {
            f"{route.get_attr('RTA_DST')}/{route['dst_len']}": str(route.get_attr("RTA_GATEWAY"))
            for family in (socket.AF_INET, socket.AF_INET6)
            for route in netlink.get_routes(family=family, proto=ROUTE_PROTOCOL)
            if route["proto"] == ROUTE_PROTOCOL
        }
        for destination in present.keys() - wanted.keys():
            netlink.route("del", dst=destination, proto=ROUTE_PROTOCOL)
        for destination, gateway in wanted.items() - present.items():
            try:
                netlink.route("replace", dst=destination, gateway=gateway, proto=ROUTE_PROTOCOL)
            except NetlinkError as error:
                refused.append(f"cannot route {destination} by {gateway}: {error}")
    return refused
