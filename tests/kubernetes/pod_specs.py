"""Pods that ask for much: what each prints and how it ends is the same with every runtime.

A case is a script, what its container has beside it, and what its pod has.
"""

from typing import Any

from msgspec import Struct

CONFIG = {
    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
    "data": {"key": "value\n"},
}  # fmt: skip
_T = [{"name": "t", "mountPath": "/t"}]
_EMPTY: dict[str, Any] = {"volumes": [{"name": "t", "emptyDir": {}}]}
_PATIENT = {"periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": 60}  # on a loaded host


class Case(Struct, frozen=True):
    script: str
    container: dict[str, Any] = {}
    pod: dict[str, Any] = {}


CASES = {
    "volumes": Case(
        "ls -ln /data; cat /data/f /one /all/key; touch /no; id; grep Groups /proc/self/status",
        {"volumeMounts": [{"name": "t", "mountPath": "/data", "subPath": "sub"},
                          {"name": "s", "mountPath": "/one", "subPath": "key"},
                          {"name": "s", "mountPath": "/all", "readOnly": True,
                           "recursiveReadOnly": "Enabled"}],
         "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 1234}},
        {"initContainers": [{"name": "before", "volumeMounts": _T, "script":
                             "mkdir /t/sub; echo file > /t/sub/f; touch -t 202001010000 /t/sub/f"}],
         "securityContext": {"fsGroup": 777, "supplementalGroups": [88, 99]},
         "volumes": [{"name": "t", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                     {"name": "s", "configMap": {"name": "settings"}}]},
    ),
    "sysctls": Case(
        "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_local_port_range",
        pod={"securityContext": {"sysctls": [
            {"name": "kernel.shm_rmid_forced", "value": "1"},
            {"name": "net.ipv4.ip_local_port_range", "value": "1024 65000"},
        ]}},
    ),
    "shared-pids": Case(
        "until kill -9 $(pidof top) 2>/dev/null; do sleep 0.1; done; echo killed",
        pod={"shareProcessNamespace": True,
             "containers": [{"name": "other", "script": "exec top -b -d 100 > /dev/null"}]},
    ),
    "filter": Case(
        "grep Seccomp: /proc/self/status; mkdir /x",
        {"securityContext": {"seccompProfile": {"type": "Localhost",
                                                "localhostProfile": "no-mkdir.json"}}},
    ),
    "unconfined": Case(
        "grep -E '^(Cap|Seccomp)' /proc/self/status; mount -t tmpfs none /t && ls /dev/mem",
        {"securityContext": {"privileged": True}, "volumeMounts": _T}, _EMPTY,
    ),
    "capabilities": Case(
        "grep Cap /proc/self/status; hostname other",
        {"securityContext": {"capabilities": {"add": ["NET_ADMIN", "SYS_TIME"],
                                              "drop": ["CHOWN"]}}},
    ),
    "hook": Case(
        "until [ -e /t/hook ]; do sleep 0.1; done; cat /t/hook; exit 6",
        {"volumeMounts": _T,
         "lifecycle": {"postStart": {"exec": {"command": ["/bin/touch", "/t/hook"]}}}}, _EMPTY,
    ),
    "message": Case("echo because > /dev/termination-log; exit 4"),
    "message-of-log": Case(
        "echo last words; exit 5", {"terminationMessagePolicy": "FallbackToLogsOnError"}
    ),
    "again": Case(
        "[ -e /t/x ] && exec echo again; touch /t/x; exit 1",
        {"volumeMounts": _T}, _EMPTY | {"restartPolicy": "OnFailure"},
    ),
    "not-alive": Case(
        "sleep 600", {"livenessProbe": {"exec": {"command": ["/bin/cat", "/nothing"]},
                                        "periodSeconds": 1, "failureThreshold": 1}},
    ),
    "probed": Case(
        "touch /t/up; until [ -e /t/seen ]; do sleep 0.1; done",
        {"volumeMounts": _T,
         "startupProbe": {"exec": {"command": ["/bin/cat", "/t/up"]}} | _PATIENT,
         "readinessProbe": {"exec": {"command": ["/bin/touch", "/t/seen"]}, "periodSeconds": 1}},
        _EMPTY,
    ),
    "names": Case(
        "cat /etc/resolv.conf /info/labels; tail -1 /etc/hosts; cat /etc/hostname; echo $CPU; pwd",
        {"env": [{"name": "CPU", "valueFrom": {
            "resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}],
         "resources": {"limits": {"cpu": "250m", "memory": "32Mi"}, "requests": {"cpu": "10m"}},
         "volumeMounts": [{"name": "info", "mountPath": "/info"}], "workingDir": "/work/deep"},
        {"hostname": "host", "subdomain": "sub", "dnsPolicy": "None",
         "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["alias"]}],
         "dnsConfig": {"nameservers": ["192.0.2.2"], "searches": ["a.test"],
                       "options": [{"name": "ndots", "value": "2"}]},
         "volumes": [{"name": "info", "downwardAPI": {"items": [
             {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]},
    ),
    "sidecar": Case(
        "cat /t/side", {"volumeMounts": _T},
        _EMPTY | {"initContainers": [{
            "name": "side", "restartPolicy": "Always", "volumeMounts": _T,
            "script": "echo first > /t/side; exec sleep 600",
            "startupProbe": {"exec": {"command": ["/bin/cat", "/t/side"]}} | _PATIENT,
        }]},
    ),
}  # fmt: skip
