"""Everything that is written before the daemons start: Slurm's configuration files and the devices of the GPUs."""

import contextlib
import dataclasses
import getpass
import json
import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path

from devcluster_parts.shape import DevclusterError, Shape, conf_file, say


def configure(directory: Path, shape: Shape) -> None:
    """Write everything, in the shape asked for."""
    (directory / "shape.json").write_text(json.dumps(dataclasses.asdict(shape)))
    for name in ("state", "spool"):
        (directory / name).mkdir()
    # Not used, but slurmd insists on a plugin; v1 is the one that asks for no mount and no systemd.
    (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    port, accounting_port, *node_ports = _free_ports(2 + shape.nodes)
    address = _own_loopback_address()
    lines = _make_gpus(directory, shape) if shape.gpus else []
    if shape.accounting:
        lines += _configure_accounting(directory, address=address, port=accounting_port)
    settings, nodes = _settings(directory, address=address, port=port), _nodes(shape, address=address, ports=node_ports)
    text = _with_lines_replaced(f"{settings}{nodes}\n{_partitions(shape)}", lines)
    conf_file(directory).write_text(_with_lines_replaced(text, shape.settings))


def _with_lines_replaced(text: str, lines: Iterable[str]) -> str:
    """The configuration with ``lines`` in place of all that set one of their keys, in capitals or not."""
    replaced = {line.split("=")[0].lower() for line in lines}
    kept = [line for line in text.splitlines() if line.split("=")[0].lower() not in replaced]
    return "\n".join([*kept, *lines]) + "\n"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody holds, below those that the kernel deals out to outgoing connections."""
    free: list[int] = []
    for port in random.sample(range(20000, 32000), 4000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            free.append(port)
        if len(free) == count:
            return free
    raise DevclusterError(f"no {count} free ports between 20000 and 32000; stop the programs that hold them.")


def _own_loopback_address() -> str | None:
    """What this machine's name resolves to, if that is loopback: no other single address binds Slurm."""
    with contextlib.suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        if address.startswith("127."):
            return address
    say("warning: this machine's name is no loopback address, so the daemons obey its network as well.")
    return None


def _settings(directory: Path, *, address: str | None, port: int) -> str:
    user = getpass.getuser()
    return f"""ClusterName=devcluster
SlurmctldHost={_hostname()}({address or "127.0.0.1"})
SlurmctldPort={port}
{"CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" if address else ""}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# A requeued job waits this many seconds before it may start again; Slurm's default is 120.
AuthInfo=cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/%n.log
# Not pgid: torchrun's workers leave the process group, but not the process tree.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
# Nodes have the CPUs written here, whatever the machine has.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
"""


def _make_gpus(directory: Path, shape: Shape) -> list[str]:
    """Devices that nobody opens, the same for all nodes, and the settings that go with them."""
    (directory / "gpus").mkdir()
    for number in range(shape.gpus):  # Slurm takes only devices, and numbers them by the ends of their names
        (directory / "gpus" / f"gpu{number}").symlink_to("/dev/null")
    files = f"{directory}/gpus/gpu" + (f"[0-{shape.gpus - 1}]" if shape.gpus > 1 else "0")
    (directory / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={files}\n")
    return ["GresTypes=gpu"]


def _configure_accounting(directory: Path, *, address: str | None, port: int) -> list[str]:
    """Write slurmdbd.conf; return the settings with which slurmctld and the nodes report to it."""
    file = directory / "slurmdbd.conf"
    file.touch(mode=0o600)  # else slurmdbd refuses it
    file.write_text(f"""AuthType=auth/none
DbdHost={_hostname()}
DbdAddr={address or "127.0.0.1"}
DbdPort={port}
SlurmUser={getpass.getuser()}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={getpass.getuser()}
PidFile={directory}/slurmdbd.pid
LogFile={directory}/slurmdbd.log
""")
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={address or '127.0.0.1'}",
        f"AccountingStoragePort={port}",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
    ]


def _nodes(shape: Shape, *, address: str | None, ports: list[int]) -> str:
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return "\n".join(
        f"NodeName={name} NodeHostname={_hostname()} NodeAddr={address or '127.0.0.1'} Port={port} "
        f"CPUs={shape.cpus} RealMemory={megabytes}" + f" Gres=gpu:{shape.gpus}" * bool(shape.gpus)
        for name, port in zip(shape.node_names(), ports, strict=True)
    )


def _partitions(shape: Shape) -> str:
    if not shape.preempt:
        return "PartitionName=dev Nodes=ALL Default=YES MaxTime=INFINITE\n"
    return """PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""


def _hostname() -> str:
    return socket.gethostname().split(".")[0]
