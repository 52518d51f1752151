"""The settings of an engine: defaults, then a TOML file, then the environment, then flags.

Every field is a key of the file, the variable `MOORING_<FIELD>` and a flag of `mooring up`.
Whatever is wrong is reported with the key and where it came from.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from .models.base import Model

DEFAULT_STATE_DIR = Path("/var/lib/mooring")
DEFAULT_RUN_DIR = Path("/run/mooring")
DEFAULT_FILE = Path("/etc/mooring/mooring.toml")
"""Read when it exists and neither `file` nor MOORING_CONFIG names another."""

DEFAULT_POOLS = "10.192.0.0/12:20,10.176.0.0/12:20"

_NODE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ConfigError(ValueError):
    """A setting that cannot be used; the message names its key."""


class Settings(Model):
    """What one engine is started with. Paths are absolute; the value never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path = DEFAULT_STATE_DIR
    run_dir: Path = DEFAULT_RUN_DIR
    host: list[str] = []
    """Where the API listens: unix://PATH, tcp://ADDRESS:PORT; default: docker.sock in run_dir."""
    node_id: str = ""
    nats_url: str = ""
    """Comma-separated URLs of a NATS cluster; empty: the embedded server of `run_dir`/nats.json."""
    nats_credentials: Path | None = None
    """JSON with user and password; None: `state_dir`/secrets/nats.json."""
    cgroup_parent: str = ""
    shims_cgroup: str = ""
    """What shims are born in; empty: where the worker is."""
    container_units: str = ""
    """The slice of systemd in which each long-lived container has a unit; empty: there are none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    log_max_size: int = Field(default=64 << 20, ge=4096)
    """Bytes of one segment of a container's log."""
    log_max_files: int = Field(default=16, ge=1)
    warm_shims: int = Field(default=4, ge=0, le=256)
    bridge_subnet: str = ""
    address_pools: str = DEFAULT_POOLS
    """Where subnets of new networks are taken from: BASE/PREFIX:SIZE, IPv4 or IPv6, by commas."""
    timings: bool = False
    faults: bool = False
    image_max_layer_size: int = Field(default=64 << 30, ge=1 << 20)
    """Bytes of the files of one layer; a layer that holds more is refused (a bomb)."""
    image_max_layer_files: int = Field(default=4_000_000, ge=1)
    max_json_body: int = Field(default=4 << 20, ge=1024)
    """Bytes."""
    copy_stall_timeout: float = Field(default=60.0, gt=0)
    """Seconds without a byte after which a copy into a stopped container, which keeps it from
    starting, is given up."""
    build_max_context: int = Field(default=64 << 30, ge=1 << 20)
    """Bytes of the files that a client may send to be built with."""
    events_max_age: int = Field(default=7 * 86400, ge=1)
    """Seconds."""
    events_max_bytes: int = Field(default=256 << 20, ge=1 << 20)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    tcp_insecure: bool = False
    """Serve TCP without client certificates: whoever reaches the port is root here."""
    request_timeout: float = Field(default=30.0, gt=0)
    """Seconds."""
    registry_mirrors: list[str] = []
    """URLs that are asked before Docker Hub."""
    insecure_registries: list[str] = []
    """`host`, `host:port` or CIDR of registries without TLS, or with a certificate of nobody's."""
    registry_certs_dir: Path = Path("/etc/docker/certs.d")
    """Docker's layout: <host:port>/*.crt are CAs, *.cert and *.key the client's certificate."""
    max_concurrent_downloads: int = Field(default=3, ge=1, le=64)
    max_concurrent_uploads: int = Field(default=5, ge=1, le=64)
    max_download_attempts: int = Field(default=5, ge=1, le=100)
    registry_retry_delay: float = Field(default=5.0, ge=0, le=60)
    """Seconds before the first further attempt; each one after it waits so much longer."""
    registry_stall_timeout: float = Field(default=60.0, gt=0)
    """Seconds without a byte after which a registry's answer is given up."""

    @model_validator(mode="before")
    @classmethod
    def _default_host(cls, values: dict[str, object]) -> dict[str, object]:
        if values.get("host"):
            return values
        run_dir = values.get("run_dir", DEFAULT_RUN_DIR)
        return {**values, "host": [f"unix://{run_dir}/docker.sock"]}

    @field_validator("state_dir", "run_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError("must be an absolute path")
        return Path(os.path.normpath(value))

    @field_validator("host")
    @classmethod
    def _listenable(cls, value: list[str]) -> list[str]:
        for address in value:
            parse_host(address)
        return value

    @field_validator("registry_mirrors")
    @classmethod
    def _mirrors(cls, value: list[str]) -> list[str]:
        for url in value:
            if not re.fullmatch(r"https?://[^/?#@]+/?", url):
                raise ValueError(f"{url!r} is no http(s)://HOST[:PORT]")
        return [url.rstrip("/") for url in value]

    @field_validator("insecure_registries")
    @classmethod
    def _insecure(cls, value: list[str]) -> list[str]:
        for entry in value:
            if "://" in entry or ("/" in entry and not _is_network(entry)):
                raise ValueError(f"{entry!r} is neither a host[:port] nor a CIDR")
        return value

    @field_validator("node_id")
    @classmethod
    def _token(cls, value: str) -> str:
        if value and not _NODE_ID.fullmatch(value):
            raise ValueError("must be 1 to 64 letters, digits, '-' or '_'")
        return value

    @field_validator("bridge_subnet")
    @classmethod
    def _network(cls, value: str) -> str:
        if value:
            ipaddress.ip_network(value)
        return value

    @field_validator("address_pools")
    @classmethod
    def _pools(cls, value: str) -> str:
        for part in filter(None, value.split(",")):
            base, _, size = part.strip().rpartition(":")
            network = ipaddress.ip_network(base)
            if not network.prefixlen <= int(size) <= network.max_prefixlen - 2:
                raise ValueError(f"{part}: the size must be a longer prefix than the base's")
        return value

    @field_validator("nats_credentials", "tls_cert", "tls_key", "tls_ca", mode="before")
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def instance(self) -> str:
        """What everything of this engine in the kernel is named by."""
        if self.state_dir == DEFAULT_STATE_DIR:
            return "mooring"
        return "mooring-" + hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:8]

    @property
    def bridge(self) -> str:
        """The link of the default network; interface names have at most 15 characters."""
        suffix = self.instance.removeprefix("mooring").removeprefix("-")
        return f"mr-{suffix}" if suffix else "mooring0"

    @property
    def cgroup_root(self) -> str:
        """The cgroup below which this engine's containers live."""
        return self.cgroup_parent or f"/{self.instance}"

    @property
    def credentials_file(self) -> Path:
        """The user and password of the bus."""
        return self.nats_credentials or self.state_dir / "secrets" / "nats.json"

    def environment(self) -> dict[str, str]:
        """These settings as MOORING_* variables, all of them: no file can change any of them."""
        values = self.model_dump(mode="json")
        return {f"MOORING_{name.upper()}": _as_text(value) for name, value in values.items()}


_LISTS = frozenset(
    name for name, field in Settings.model_fields.items() if field.annotation == list[str]
)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def parse_host(address: str) -> tuple[str, str, int]:
    """`unix://PATH` as ("unix", path, 0), `tcp://HOST:PORT` as ("tcp", host, port); ValueError."""
    scheme, separator, rest = address.partition("://")
    if separator and scheme == "unix" and rest.startswith("/"):
        return "unix", rest, 0
    if separator and scheme == "tcp":
        name, _, port = rest.rpartition(":")
        if name and port.isdecimal() and 0 < int(port) < 65536:
            return "tcp", name.strip("[]"), int(port)
    raise ValueError(f"{address!r} is neither unix:///PATH nor tcp://ADDRESS:PORT")


def load(
    overrides: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """The settings from file, environment and overrides (None: not given); ConfigError."""
    environ = os.environ if environ is None else environ
    merged: dict[str, object] = {}
    origin: dict[str, str] = {}
    for source, values in (
        _read_file(file, environ),
        _read_environment(environ),
        ("", {k: v for k, v in (overrides or {}).items() if v is not None}),
    ):
        for key, value in values.items():
            if key not in Settings.model_fields:
                raise ConfigError(f"{key}: unknown setting{source}")
            merged[key] = value
            origin[key] = source
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        key = str(first["loc"][0])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"{key}: {message}{origin.get(key, '')}") from exc
    if not settings.node_id:
        settings = settings.model_copy(update={"node_id": _node_id(settings.state_dir)})
    return settings


def _read_file(file: Path | None, environ: Mapping[str, str]) -> tuple[str, dict[str, object]]:
    named = file or (Path(environ["MOORING_CONFIG"]) if environ.get("MOORING_CONFIG") else None)
    path = named or DEFAULT_FILE
    try:
        return f" ({path})", tomllib.loads(path.read_text())
    except FileNotFoundError:
        if named is None:
            return "", {}
        raise ConfigError(f"config: no such file: {path}") from None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"config: cannot read {path}: {exc}") from exc


def _read_environment(environ: Mapping[str, str]) -> tuple[str, dict[str, object]]:
    values: dict[str, object] = {}
    for name in Settings.model_fields:
        text = environ.get(f"MOORING_{name.upper()}")
        if text is not None:
            is_list = name in _LISTS
            values[name] = [part for part in text.split(",") if part] if is_list else text
    return " (environment)", values


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _node_id(state_dir: Path) -> str:
    """This host's id: read, or made once; two processes that make it agree."""
    path = state_dir / "node-id"
    try:
        state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        if not path.exists():
            mine = path.with_name(f".node-id.{os.getpid()}")
            mine.write_text(secrets.token_hex(8) + "\n")
            try:
                os.link(mine, path)
            except FileExistsError:
                pass
            finally:
                mine.unlink()
        text = path.read_text().strip()
    except OSError as exc:
        raise ConfigError(f"state_dir: cannot use {state_dir}: {exc.strerror}") from exc
    if not _NODE_ID.fullmatch(text):
        raise ConfigError(f"node_id: {path} does not hold a node id")
    return text
