"""A real object store for tests: OpenStack Swift with its S3 front, in a scratch directory, on free ports."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAM_FOLDERS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/bin", "/usr/sbin"])
PROGRAMS = ("swift-proxy-server", "swift-account-server", "swift-container-server", "swift-object-server", "memcached")
DEBIAN_PACKAGES = "swift-proxy swift-account swift-container swift-object memcached"
KEY_ID, SECRET = "test:tester", "testing"
START_SECONDS = 60.0
LISTING_PAGE = 50
"""Objects in one page of a listing, so that few make several pages."""


def need_swift() -> None:
    """Skip where Swift is not installed; fail there under CI, where a skip would go unseen."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=PROGRAM_FOLDERS) is None]
    if not missing:
        return
    sentence = f"{', '.join(missing)} not installed, so no test runs on Swift; run `apt-get install {DEBIAN_PACKAGES}`."
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


@contextlib.contextmanager
def running_swift() -> Iterator[SwiftStore]:
    """A healthy store with one empty bucket, `bucket`; stopped and wiped at the end in any case."""
    with tempfile.TemporaryDirectory(prefix="swift-", dir="/tmp") as folder:
        store = SwiftStore(Path(folder))
        try:
            store.start()
            yield store
        finally:
            store.stop()


@dataclass
class SwiftStore:
    """The servers of one store. Buckets are path-style: `ENDPOINT/BUCKET/NAME`."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment, to reach this store and no other."""
        return environment(self.endpoint)

    def start(self) -> None:
        """Start every server, wait until the store answers, and make the bucket."""
        self.ports = {name: free_port() for name in ("account", "container", "object", "proxy", "memcached")}
        for place in ("etc", "node/sdb1", "log"):
            (self.folder / place).mkdir(parents=True)
        self._write_configuration()
        memcached = ["memcached", "-l", "127.0.0.1", "-p", str(self.ports["memcached"]), "-u", getpass.getuser()]
        self._spawn("memcached", memcached)
        for server in ("account", "container", "object", "proxy"):
            self.start_server(server)
        wait_until(lambda: answers(f"{self.endpoint}/healthcheck"), "Swift's proxy", self._logs)
        wait_until(self.make_bucket, "a bucket on Swift", self._logs)

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill_server(name)

    def start_server(self, server: str) -> None:
        """Start the `account`, `container`, `object` or `proxy` server and wait until it takes connections."""
        self._spawn(server, [f"swift-{server}-server", str(self.folder / "etc" / f"{server}-server.conf")])
        wait_until(lambda: connects(self.ports[server]), f"swift-{server}-server", self._logs)

    def kill_server(self, server: str) -> None:
        """Kill a server with its workers; connections break off as they do when a machine dies."""
        process = self.processes.pop(server)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

    def make_bucket(self, name: str = "bucket") -> bool:
        """Make a bucket through Swift's own interface; whether that worked."""
        login = urllib.request.Request(
            f"{self.endpoint}/auth/v1.0", headers={"X-Auth-User": KEY_ID, "X-Auth-Key": SECRET}
        )
        try:
            with urllib.request.urlopen(login, timeout=10) as answer:
                account, token = answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"]
            make = urllib.request.Request(f"{account}/{name}", headers={"X-Auth-Token": token}, method="PUT")
            with urllib.request.urlopen(make, timeout=10) as answer:
                return bool(answer.status in (201, 202))
        except OSError:
            return False

    def _spawn(self, name: str, command: list[str]) -> None:
        program = shutil.which(command[0], path=PROGRAM_FOLDERS)
        assert program is not None, f"{command[0]} is not installed"
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [program, *command[1:]],
                env=debian_python() | {"SWIFT_DIR": str(self.folder / "etc")},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _write_configuration(self) -> None:
        etc = self.folder / "etc"
        (etc / "swift.conf").write_text(SWIFT_CONF)
        for server in ("account", "container", "object"):
            values: dict[str, Any] = {"server": server, "port": self.ports[server], **self._places()}
            (etc / f"{server}-server.conf").write_text(STORAGE_CONF.format(**values))
            builder = str(etc / f"{server}.builder")
            for arguments in (
                ["create", "4", "1", "1"],
                ["add", f"r1z1-127.0.0.1:{self.ports[server]}/sdb1", "1"],
                ["rebalance"],
            ):
                ring = shutil.which("swift-ring-builder", path=PROGRAM_FOLDERS) or "swift-ring-builder"
                command = [ring, builder, *arguments]
                subprocess.run(command, env=debian_python(), check=True, capture_output=True, timeout=60)
        ports = {"port": self.ports["proxy"], "memcached": self.ports["memcached"]}
        (etc / "proxy-server.conf").write_text(PROXY_CONF.format(**ports, page=LISTING_PAGE, **self._places()))

    def _places(self) -> dict[str, str]:
        return {"folder": str(self.folder), "user": pwd.getpwuid(os.getuid()).pw_name}

    def _logs(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted((self.folder / "log").iterdir()))


def environment(endpoint: str) -> dict[str, str]:
    """The environment of a client of a store with this address, such as a proxy in front of Swift."""
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
    }


def debian_python() -> dict[str, str]:
    """The environment without what it says to our own Python: Swift runs in Debian's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def free_port() -> int:
    """Below those that the kernel hands out: a server that was killed must find its own free when it comes back."""
    while True:
        port = random.randint(10_000, 19_999)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def wait_until(condition: Callable[[], bool], what: str, logs: Callable[[], str]) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} did not come up in {START_SECONDS:.0f} s:\n{logs()}"
        time.sleep(0.1)


SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = policy-0
default = yes
"""

STORAGE_CONF = """\
[DEFAULT]
devices = {folder}/node
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = {user}
swift_dir = {folder}/etc
fallocate_reserve = 0
[pipeline:main]
pipeline = {server}-server
[app:{server}-server]
use = egg:swift#{server}
"""

PROXY_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 2
user = {user}
swift_dir = {folder}/etc
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk tempurl s3api tempauth slo \
dlo versioned_writes proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
error_suppression_limit = 1000000
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
max_bucket_listing = {page}
location = us-east-1
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:tempurl]
use = egg:swift#tempurl
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
"""
