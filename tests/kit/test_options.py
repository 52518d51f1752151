"""Options of a container, accepted or refused in Docker's words before a host is asked."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.kit.errors import EngineError, InvalidParameter, NotSupported
from mooring.kit.models.container import ContainerConfig, HostConfig, LogConfig
from mooring.kit.models.network import EndpointSettings
from mooring.kit.options import check, extra_host, log_limits, security_option, size

MB = 1 << 20


def refused(
    config: dict[str, Any], host: dict[str, Any], cpus: int = 0, **networking: Any
) -> EngineError:
    with pytest.raises(EngineError) as caught:
        check(
            ContainerConfig.model_validate(config),
            HostConfig.model_validate(host),
            cpus=cpus,
            networking={k: EndpointSettings.model_validate(v) for k, v in networking.items()},
        )
    return caught.value


def accepted(config: dict[str, Any], host: dict[str, Any], cpus: int = 0) -> list[str]:
    return check(ContainerConfig.model_validate(config), HostConfig.model_validate(host), cpus=cpus)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"Memory": -1}, "invalid Memory"),
        ({"Memory": MB}, "Minimum memory limit allowed is 6MB"),
        ({"MemorySwap": 10 * MB}, "You should always set the Memory limit"),
        ({"Memory": 10 * MB, "MemorySwap": 8 * MB}, "memoryswap limit should be larger"),
        ({"MemorySwappiness": 101}, "valid memory swappiness range is 0-100"),
        ({"Memory": 10 * MB, "MemoryReservation": 20 * MB}, "less than memory reservation"),
        ({"MemoryReservation": MB}, "Minimum memory reservation allowed is 6MB"),
        ({"ShmSize": -1}, "SHM size can not be less than 0"),
        ({"NanoCpus": 5}, "Range of CPUs is from 0.01"),
        ({"NanoCpus": -1}, "Range of CPUs is from 0.01"),
        ({"NanoCpus": 10**9, "CpuQuota": 5000}, "Nano CPUs and CPU Quota cannot both be set"),
        ({"NanoCpus": 10**9, "CpuPeriod": 5000}, "Nano CPUs and CPU Period cannot both be set"),
        ({"CpuPeriod": 10}, "CPU cfs period can not be less than 1ms"),
        ({"CpuQuota": 10}, "CPU cfs quota can not be less than 1ms"),
        ({"CpuShares": -1}, "invalid CpuShares"),
        ({"CpusetCpus": "0-"}, "Invalid value 0- for cpuset cpus"),
        ({"CpusetMems": "x"}, "Invalid value x for cpuset mems"),
        ({"PidsLimit": -2}, "invalid PidsLimit"),
        ({"OomScoreAdj": 1001}, "range for oom score adj is [-1000, 1000]"),
        ({"Ulimits": [{"Name": "nofoo", "Soft": 1, "Hard": 1}]}, "invalid ulimit type: nofoo"),
        ({"Ulimits": [{"Name": "nofile", "Soft": 2, "Hard": 1}]}, "less than or equal to hard"),
        ({"BlkioWeight": 5}, "Range of blkio weight is from 10 to 1000"),
        ({"Devices": [{"PathOnHost": "null"}]}, "bad device path: 'null'"),
        (
            {"Devices": [{"PathOnHost": "/dev/null", "CgroupPermissions": "rx"}]},
            'invalid device mode: "rx"',
        ),
        ({"DeviceCgroupRules": ["c 1:3"]}, "invalid device cgroup rule format"),
        ({"CapAdd": ["NONSENSE"]}, 'invalid CapAdd: unknown capability: "CAP_NONSENSE"'),
        ({"SecurityOpt": ["nonsense"]}, 'invalid --security-opt 1: "nonsense"'),
        ({"SecurityOpt": ["no=sense"]}, 'invalid --security-opt 2: "no=sense"'),
        ({"Runtime": "kata"}, "unknown or invalid runtime name: kata"),
        ({"PidMode": "mine"}, "invalid PID mode: mine"),
        ({"IpcMode": "container:"}, "invalid IPC mode: container:"),
        ({"UTSMode": "private"}, "invalid UTS mode: private"),
        ({"CgroupnsMode": "x"}, "invalid cgroup namespace mode: x"),
        ({"UsernsMode": "remap"}, "invalid user namespace mode: remap"),
        ({"RestartPolicy": {"Name": "sometimes"}}, "unknown policy 'sometimes'"),
        ({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 2}}, "only be used with"),
        ({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -2}}, "cannot be negative"),
        ({"AutoRemove": True, "RestartPolicy": {"Name": "always"}}, "can't create 'AutoRemove'"),
        ({"Sysctls": {"kernel.panic": "1"}}, '"kernel.panic" is not in a separate kernel'),
        ({"Sysctls": {"net/../kernel/x": "1"}}, "invalid sysctl: 'net/../kernel/x'"),
        ({"Sysctls": {"net.a": "1"}, "NetworkMode": "host"}, "not allowed in host network"),
        ({"Sysctls": {"kernel.sem": "1"}, "IpcMode": "host"}, "not allowed in the hosts ipc"),
        ({"Dns": ["example.com"]}, "bad DNS address: example.com"),
        ({"ExtraHosts": ["name"]}, 'bad format for add-host: "name"'),
        ({"ExtraHosts": ["name:x"]}, 'invalid IP address in add-host: "x"'),
        ({"LogConfig": {"Type": "paper"}}, "no log driver named 'paper' is registered"),
        ({"NetworkMode": "container:"}, "invalid container format container:<name|id>"),
        (
            {"NetworkMode": "container:x", "Dns": ["1.1.1.1"]},
            "conflicting options: dns and the network mode",
        ),
        (
            {"NetworkMode": "container:x", "ExtraHosts": ["a:1.1.1.1"]},
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
    ],
)
def test_a_host_option_that_can_never_work_is_an_invalid_parameter(
    host: dict[str, Any], words: str
) -> None:
    error = refused({}, host)
    assert words in error.message
    assert type(error) is InvalidParameter


@pytest.mark.parametrize(
    ("config", "host", "words"),
    [
        ({"WorkingDir": "tmp"}, {}, "the working directory 'tmp' is invalid"),
        ({"Env": ["=x"]}, {}, "invalid environment variable: =x"),
        ({"Env": ["A=\0"]}, {}, "NUL"),
        ({"Cmd": ["\0"]}, {}, "NUL"),
        ({"Hostname": "two words"}, {}, "invalid Hostname"),
        ({"Hostname": "web"}, {"UTSMode": "host"}, "hostname and the UTS mode"),
        ({"Hostname": "web"}, {"NetworkMode": "container:x"}, "hostname and the network mode"),
        ({"StopTimeout": -2}, {}, "invalid StopTimeout"),
        ({"StopSignal": "SIGNOPE"}, {}, "Invalid signal: SIGNOPE"),
        ({"Healthcheck": {"Interval": 5}}, {}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"Healthcheck": {"Retries": -5}}, {}, "Retries in Healthcheck cannot be negative"),
    ],
)
def test_a_config_that_can_never_work(
    config: dict[str, Any], host: dict[str, Any], words: str
) -> None:
    error = refused(config, host)
    assert words in error.message
    assert type(error) is InvalidParameter


@pytest.mark.parametrize(
    ("host", "option"),
    [
        ({"DeviceRequests": [{"Count": -1}]}, "DeviceRequests"),
        ({"StorageOpt": {"size": "1G"}}, "StorageOpt"),
        ({"CpuRealtimeRuntime": 5}, "CpuRealtimeRuntime"),
        ({"SecurityOpt": ["apparmor=mine"]}, "apparmor=mine"),
        ({"LogConfig": {"Config": {"labels": "x"}}}, "labels"),
        ({"LogConfig": {"Config": {"mode": "non-blocking"}}}, "mode=non-blocking"),
    ],
)
def test_an_option_that_is_not_there_yet_is_refused_by_name(
    host: dict[str, Any], option: str
) -> None:
    error = refused({}, host)
    assert option in error.message
    assert type(error) is NotSupported


@pytest.mark.parametrize(
    "host",
    [
        {},
        {"Runtime": "runc", "UsernsMode": "host", "CgroupnsMode": "private"},
        {"Memory": 6 * MB, "MemorySwap": -1, "MemorySwappiness": -1, "PidsLimit": -1},
        {"NanoCpus": 2 * 10**9, "CpusetCpus": "0,1", "CpuShares": 2},
        {"SecurityOpt": ["no-new-privileges", "seccomp={}", "label=disable", "label:disable"]},
        {"SecurityOpt": ["apparmor=unconfined", "seccomp:unconfined"]},
        {"Sysctls": {"net.core.somaxconn": "5", "net/ipv4/conf/eth0.5/x": "1", "kernel.sem": "1"}},
        {"ExtraHosts": ["a:1.2.3.4", "b:host-gateway", "c:[::1]"], "Dns": ["::1"]},
        {"PidMode": "container:x", "IpcMode": "container:y", "NetworkMode": "container:z"},
        {"Ulimits": [{"Name": "core", "Soft": -1, "Hard": -1}]},
        {"DeviceCgroupRules": ["c 1:* rwm", "a *:* m"]},
        {"LogConfig": {"Type": "json-file", "Config": {"max-size": "10k", "max-file": "3"}}},
    ],
)
def test_what_is_fine_is_accepted_without_a_word(host: dict[str, Any]) -> None:
    assert accepted({}, host, cpus=2) == []


def test_the_number_of_cpus_is_checked_where_it_is_known() -> None:
    assert accepted({}, {"NanoCpus": 5 * 10**9}) == []
    error = refused({}, {"NanoCpus": 5 * 10**9}, cpus=4)
    assert "from 0.01 to 4.00, as there are only 4 CPUs available" in error.message
    error = refused({}, {"CpusetCpus": "2-4"}, cpus=4)
    assert "requested 2-4, available: 0-3" in error.message


def test_published_ports_mean_nothing_in_the_hosts_network_and_that_is_said() -> None:
    host = {"NetworkMode": "host", "PortBindings": {"80/tcp": [{"HostPort": "80"}]}}
    [warning] = accepted({}, host)
    assert "Published ports are discarded" in warning


def test_an_address_of_ones_own_needs_a_network_of_ones_own() -> None:
    endpoint = {"IPAMConfig": {"IPv4Address": "10.0.0.9"}}
    error = refused({}, {}, bridge=endpoint)
    assert "user specified IP address is supported on user defined networks only" in error.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("512", 512), ("10k", 10240), ("1.5MiB", 1572864), ("2G", 2 << 30), ("1 kb", 1024)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "1q", "1kk", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        size(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"max-size": "10k"}, (10240, 1)),
        ({"max-size": "1m", "max-file": "3"}, (1048576, 3)),
    ],
)
def test_log_limits(options: dict[str, str], expected: tuple[int, int] | None) -> None:
    assert log_limits(LogConfig(type="json-file", config=options)) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max-size": "x"}, "invalid size"),
        ({"max-size": "0"}, "max-size must be a positive number"),
        ({"max-size": "1m", "max-file": "0"}, "max-file cannot be less than 1"),
        ({"max-file": "2"}, "max-file cannot be set when max-size is not set"),
        ({"colour": "red"}, "unknown log opt 'colour' for json-file log driver"),
    ],
)
def test_log_options_that_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        log_limits(LogConfig(config=options))
    assert words in caught.value.message


def test_a_security_option_is_written_with_either_separator() -> None:
    assert security_option("seccomp:unconfined") == ("seccomp", "unconfined")
    assert security_option('seccomp={"a":1}') == ("seccomp", '{"a":1}')
    assert security_option("no-new-privileges:false") == ("no-new-privileges", "false")
    assert security_option("no-new-privileges") == ("no-new-privileges", "true")


def test_an_extra_host_may_have_an_ipv6_address() -> None:
    assert extra_host("a:::1") == ("a", "::1")
    assert extra_host("a:[fe80::1]") == ("a", "fe80::1")
