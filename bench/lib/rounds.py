"""The rounds: every case restored onto the same device, the order reversed every other round."""
import os
import subprocess
import threading
import time

import cluster as cluster_module
import measure
import tm


class FirstQuery(threading.Thread):
    """Asks the server, from the moment it takes connections, until it is out of recovery; then the
    first query. The same for both tools, and outside of what is counted."""

    def __init__(self, server, meter):
        super().__init__(daemon=True)
        self.server, self.meter = server, meter
        self.answer = self.figures = None
        self.stopping = threading.Event()

    def run(self):
        path = os.path.join(self.server.socket, f".s.PGSQL.{self.server.port}")
        while not self.stopping.wait(0.004):
            if os.path.exists(path) and self.try_once():
                return

    def try_once(self):
        psql = subprocess.Popen(
            [os.path.join(tm.PG_BIN, "psql"), "-XAtq", "-h", self.server.socket, "-p",
             str(self.server.port), "-U", self.server.superuser, "-d", "postgres"], text=True,
            bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

        def ask(sql):
            psql.stdin.write(sql + ";\n")
            return psql.stdout.readline().strip()
        try:
            while (word := ask("select pg_is_in_recovery()")) == "t":
                if self.stopping.wait(0.004):
                    return True
            if word != "f":
                return False  # "the database system is starting up"
            self.answer = ask(cluster_module.FIRST_QUERY)
            self.figures = self.meter.read()
            return True
        except OSError:
            return False
        finally:
            psql.kill()
            psql.communicate()


class Case:
    """One restore of one tool: point is what its restore() understands, truth the sums there."""

    def __init__(self, story, tool, point, truth, variant=""):
        self.story, self.tool, self.point, self.truth = story, tool, point, truth
        self.variant = variant

    @property
    def name(self):
        return self.tool.name + (f", {self.variant}" if self.variant else "")


class Rounds:
    """group: cgroup of what is measured; device: the target, size bytes of which are used."""

    def __init__(self, box, cluster, store, group, device, warm_bytes):
        self.box, self.cluster, self.store, self.group = box, cluster, store, group
        self.device, self.size, self.warm_bytes = device, cluster.volume_size, warm_bytes
        box.before_clean.append(self.end_server)

    def end_server(self):
        if self.cluster.server.running():
            self.cluster.server.stop("immediate", check=False)

    def clear_target(self):
        self.end_server()
        if tm.mounts_below(self.cluster.mount):
            self.box.umount(self.cluster.mount)

    def prepare(self, case):
        self.clear_target()
        measure.fill(self.device, self.size)
        case.tool.prepare_target(self.device, self.size)
        self.store.make_cold()
        measure.cold_and_warm(self.box.path, self.warm_bytes)

    def restore(self, case):
        """Figures of one restore."""
        self.prepare(case)
        meter = measure.Meter(self.group, self.device, self.store.device, self.store.servers)
        query = FirstQuery(self.cluster.server, meter)
        query.start()
        started, steps, figures = time.monotonic(), {}, {}
        for event in case.tool.restore(self.group, self.device, case.point):
            if event:
                steps[event[0]] = round(event[1] - started, 3)
            if event and event[0] == "copied":
                figures["copy"] = meter.read()
                figures["copy"]["target_written"] -= case.tool.released(case.point)
        figures["command_s"] = round(time.monotonic() - started, 3)
        query.join(900)
        query.stopping.set()
        if not query.figures:
            raise RuntimeError(f"{case.name}: no first query; the server's log ends\n"
                               + tm.tail(self.cluster.server.log))
        figures["first_query"], figures["steps"] = query.figures, steps
        figures["right"] = self.check(case, query.answer)
        return figures

    def check(self, case, answer):
        """Is it the data of the restore point, all of it and nothing else?"""
        sums = self.cluster.server.psql(cluster_module.SUMS)
        if sums != case.truth or answer != "|".join(case.truth.split("|")[3:5]):
            raise RuntimeError(f"{case.name} restored other data than was backed up:\n"
                               f"first query {answer}\ngot  {sums}\nwant {case.truth}")
        return True

    def references(self, written, read):
        """What the devices do by themselves with the bytes of a restore."""
        self.clear_target()
        measure.fill(self.device, self.size)
        measure.cold_and_warm(self.box.path, 0)
        write_s = measure.fio(self.device, "write", written)
        read_s, bytes_read = self.store.reference_read(read)
        return {"bytes_written": written, "bytes_read": bytes_read, "write_s": write_s,
                "read_s": read_s, "read_by": self.store.reference}

    def run(self, cases, count, say):
        """{(story, name): [figures of each round]}, [references of each round]."""
        results, references = {}, []
        for number in range(count):
            for case in cases if number % 2 == 0 else cases[::-1]:
                figures = self.restore(case)
                results.setdefault((case.story, case.name), []).append(figures)
                say(f"round {number + 1}, {case.story}, {case.name}: copy "
                    f"{figures['copy']['s']:.2f} s, first query {figures['first_query']['s']:.2f}"
                    f" s, {figures['copy']['cpu_s']:.2f} and"
                    f" {figures['first_query']['cpu_s']:.2f} CPU-s")
            most = [max(x[-1]["copy"][key] for x in results.values()) >> 20 << 20
                    for key in ("target_written", "repository_read")]
            references.append(self.references(*most))
        self.clear_target()
        return results, references
