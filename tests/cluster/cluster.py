"""A SLURM cluster of two nodes on one machine, from Debian's packages slurm-wlm and munge: a login node, n1 and n2.

Each is a process namespace with a host name of its own, under one that holds them all together with its own /etc/slurm and
/run/munge. So a node is switched off by killing its first process, nothing outlives the cluster, and nothing that the
machine has installed or configured is touched. Needs root, and a container may forbid it: see `missing`.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from processes import below

from sqlib.workflow.forkserver import die_with_parent

TOOLS = ("slurmctld", "slurmd", "munged", "squeue", "unshare", "nsenter")
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=study
SlurmctldHost=login(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
# How long a job that lost its node waits before it starts again, too; 120 s if nothing is said.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=3
MinJobAge=86400
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
GresTypes=gpu
NodeName=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=8000 Gres=gpu:1
NodeName=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=8000 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    if os.geteuid() != 0:
        return "a SLURM cluster is started by root only"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if absent := [tool for tool in TOOLS if not shutil.which(tool, path=path)]:
        return f"not installed: {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "hostname", "n1"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces may be made here: {tried.stderr.strip()}" if tried.returncode else ""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, so that two clusters can be there at once."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Cluster:
    """A running cluster; `with Cluster(folder) as cluster:`. folder: its configuration, state and logs, not yet there."""

    def __init__(self, folder: Path, cpus: int = 1):
        self.folder, self.cpus = folder, cpus
        self.parts: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Cluster":
        for name in ("etc", "state", *(f"spool_{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        configuration = CONFIGURATION.format(folder=self.folder, cpus=self.cpus, ports=free_ports(1 + len(NODES)))
        (self.folder / "etc/slurm.conf").write_text(configuration)
        (self.folder / "etc/gres.conf").write_text("NodeName=n1,n2 Name=gpu File=/dev/null\n")  # nothing ever opens it
        (self.folder / "hosts").write_text("127.0.0.1 localhost login n1 n2\n")
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        mounts = (
            f"hostname login && mkdir -p /etc/slurm /run/munge && mount --bind '{self.folder}/etc' /etc/slurm && "
            f"mount --bind '{self.folder}/hosts' /etc/hosts && mount -t tmpfs -o mode=755 tmpfs /run/munge && "
            f"munged --key-file='{self.folder}/munge.key' --seed-file='{self.folder}/munge.seed' "
            f"--log-file='{self.folder}/munged.log' && echo ready && exec slurmctld -D"
        )
        try:
            self._start(
                "login", ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"], mounts
            )
            self._wait_for("ready", lambda: (self.folder / "login.log").read_text())
            for node in NODES:
                self.switch_on(node)
            self._wait_for("n1 idle n2 idle", lambda: self.run("sinfo", "--noheader", "--Node", "--format=%N %T"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for pid in below(self.parts["login"].pid)[:1]:  # the first process of the namespace: without it all others end
            os.kill(pid, signal.SIGKILL)
        for part in self.parts.values():
            part.wait()

    def _start(self, name: str, before: list[str], script: str) -> None:
        environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        log = open(self.folder / f"{name}.log", "ab")  # noqa: SIM115
        self.parts[name] = subprocess.Popen(
            [*before, "sh", "-c", script], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )  # fmt: skip
        log.close()

    def inside(self) -> list[str]:
        """What to put before a command that is to run on the login node."""
        return ["nsenter", "--target", str(below(self.parts["login"].pid)[0]), "--mount", "--pid", "--uts"]

    def switch_on(self, node: str) -> None:
        own = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        self._start(node, [*self.inside(), *own], f"hostname {node} && exec slurmd -D -N {node}")

    def switch_off(self, node: str) -> int:
        """Pull the plug: the node's daemon and all that runs under it is gone. Returns how many processes that were."""
        part = self.parts.pop(node)
        _, first, *others = below(part.pid)
        os.kill(first, signal.SIGKILL)
        part.wait()
        return 1 + len(others)

    def commands(self, node: str) -> list[str]:
        """The command lines of all that runs on a node."""
        found = []
        for pid in below(self.parts[node].pid):
            try:
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def run(self, *command: str, **more) -> str:
        """What a command says on the login node."""
        done = subprocess.run([*self.inside(), *command], capture_output=True, text=True, timeout=60, **more)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Every job there has been: id, state, node, comment, ..."""
        lines = self.run("squeue", "--all", "--states=all", "--noheader", "--format=%i|%T|%N|%j|%k|%r").splitlines()
        return [dict(zip(("id", "state", "node", "name", "comment", "reason"), line.split("|"))) for line in lines]

    def job(self, number: str) -> dict[str, str]:
        return next(job for job in self.jobs() if job["id"] == number)

    def _wait_for(self, words: str, said) -> None:
        for _ in range(120):
            try:
                if " ".join((last := said()).split()).startswith(words):
                    return
            except RuntimeError as error:
                last = str(error)
            time.sleep(0.25)
            if (code := self.parts["login"].poll()) is not None:
                last = f"it ended with {code}"
                break
        logs = {path.name: path.read_text()[-1500:] for path in self.folder.glob("*.log")}
        raise RuntimeError(f"the cluster did not come up: {last}; {logs}")
