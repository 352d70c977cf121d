"""A cluster, and a primary that Sentinel watches: real processes of one binary."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from servers import Store, free_port, gone

WAIT = 60


def until(happened, pause=0.05):
    deadline = time.monotonic() + WAIT
    while True:
        try:
            if happened():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)


class Cluster:
    """Three primaries, and a replica of the first. `url` names all of them."""

    def __init__(self, executable):
        self.stores = [
            Store(
                executable,
                cluster_enabled="yes",
                cluster_port=free_port(),
                cluster_node_timeout=1500,
                cluster_require_full_coverage="no",
                cluster_replica_validity_factor=0,
                repl_diskless_sync_delay=0,
                appendfsync="everysec",
            )
            for _ in range(4)
        ]

    def start(self):
        for store in self.stores:
            store.start()
        clients = [store.client() for store in self.stores]
        for client, first, last in zip(clients, (0, 5461, 10923), (5460, 10922, 16383), strict=False):
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        until(lambda: self._met(clients), pause=0.5)
        until(lambda: clients[3].execute_command("CLUSTER REPLICATE", self.id_of(0)))
        until(lambda: all(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for client in clients))
        until(lambda: clients[0].info("replication")["connected_slaves"] == 1)
        for client in clients:
            client.close()
        return self

    def _met(self, clients):
        """Let the nodes meet, again where a handshake took too long: no node tries it twice by itself."""
        if all(client.execute_command("CLUSTER INFO")["cluster_known_nodes"] == "4" for client in clients):
            return True
        for store in self.stores[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", store.port, store.settings["cluster-port"])
        return False

    def id_of(self, number):
        with self.stores[number].client() as client:
            return client.execute_command("CLUSTER MYID").decode()

    def holder(self, slot):
        """The number of the primary that holds a slot, as the others see it."""
        for number, store in enumerate(self.stores):
            if store.process.poll() is None:
                with store.client() as client:
                    for first, last, primary, *_ in client.execute_command("CLUSTER SLOTS"):
                        if first <= slot <= last:
                            return next(n for n, s in enumerate(self.stores) if s.port == primary[1])
        raise AssertionError(number)

    @property
    def url(self):
        return "redis+cluster://" + ",".join(f"127.0.0.1:{store.port}" for store in self.stores)

    def stop(self):
        for store in self.stores:
            store.stop()


class Watched:
    """A primary, a replica and one Sentinel. `url` names the Sentinel and the service."""

    def __init__(self, executable):
        self.executable = executable
        self.primary = Store(executable, appendfsync="everysec", repl_diskless_sync_delay=0)
        self.replica = Store(executable, appendfsync="everysec", repl_diskless_sync_delay=0)
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="adamd-test-sentinel-"))
        self.process = None

    def start(self):
        self.primary.start()
        self.replica.start()
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", self.primary.port)
            until(lambda: client.info("replication")["master_link_status"] == "up")
        (self.directory / "sentinel.conf").write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
            f"sentinel monitor steps 127.0.0.1 {self.primary.port} 1\n"
            "sentinel down-after-milliseconds steps 500\nsentinel failover-timeout steps 2000\n"
        )
        command = [self.executable, str(self.directory / "sentinel.conf"), "--sentinel"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with self.asked() as client:
            until(lambda: client.sentinel_master("steps")["num-slaves"] == 1)
        return self

    def asked(self):
        return redis.Redis(port=self.port, protocol=2, socket_timeout=10)

    @property
    def primary_port(self):
        """Where Sentinel says that the primary is."""
        with self.asked() as client:
            return client.sentinel_get_master_addr_by_name("steps")[1]

    @property
    def url(self):
        return f"redis+sentinel://127.0.0.1:{self.port}/steps"

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            gone(self.process, 30)
        self.primary.stop()
        self.replica.stop()
        shutil.rmtree(self.directory)
