"""What a test run makes on this machine, and how it goes away again.

A sandbox is a directory /var/tmp/tidemark-<name>-XXXXXXXX (or under $TMPDIR when every user can
pass through it). Everything a test makes lies below it or is backed by a file below it, so
cleaning needs little memory of its own: the mounts, loop devices and processes that belong to a
sandbox are found from the directory's name, in /proc and /sys; only devices that may not show it
are written down there. That holds for a run that was
killed as well as for one that ends normally; `reap_stale()` does it for the sandboxes whose owner
(pid and start time in the file .owner) is gone.

Processes are ended by pid, never by name.
"""
import atexit
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

FITHAW = 0xC0045878
PREFIX = "tidemark-"
OWNER = ".owner"
LATE = ".late"  # pids of FUSE servers: they have to outlive the mounts above them
ZRAM = ".zram"  # devices that have no file below the sandbox to be found by
LOOPS = ".loops"  # a loop device on a FUSE file whose server is dead names its file no more
ZRAM_CONTROL = "/sys/class/zram-control"


def poll(check, timeout_s=30, what="condition", every_s=0.05):
    """Calls check() until it returns something true; that is returned. TimeoutError otherwise."""
    end = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(every_s)


def process_start(pid):
    """Start time in clock ticks since boot: with the pid it names a process for good."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def process_gone(pid):
    """True when the process does not run any more; a zombie counts as gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def boot_id():
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def kill_pid(pid, sig=signal.SIGKILL, wait_s=10):
    """Sends sig and waits until the process is gone (wait_s = 0: does not wait)."""
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        return True
    try:
        return bool(wait_s == 0 or poll(lambda: process_gone(pid), wait_s, f"end of {pid}"))
    except TimeoutError:
        return False


def _below(path, root):
    return path == root or path.startswith(root + "/")


def mounts_below(root, pid="self"):
    """Mount points under root, deepest (= last mounted) first."""
    found = []
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = line.split()[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
            if _below(point, root):
                found.append(point)
    return found[::-1]


_deaf = set()  # loop devices whose backing file does not answer: on a FUSE of somebody who died


def loop_given_name(device, timeout_s=3):
    """The backing file as losetup was asked for it, its first 63 bytes (loop(4),
    LOOP_GET_STATUS64): the kernel's own path is cut short when the file lies on a filesystem that
    is mounted in another namespace. "" when that file system does not answer."""
    loop_get_status64, name_at, name_size = 0x4C05, 56, 64
    answer = []

    def ask():
        try:
            with open(device, "rb", buffering=0) as file:
                info = fcntl.ioctl(file, loop_get_status64, bytes(232))
            answer.append(os.fsdecode(info[name_at:name_at + name_size].split(b"\0")[0]))
        except OSError:
            answer.append("")
    if device not in _deaf:
        asker = threading.Thread(target=ask, daemon=True)
        asker.start()
        asker.join(timeout_s)
        if not answer:
            _deaf.add(device)
    return answer[0] if answer else ""


def disk_sequence(device):
    """Tells it from a later one with the same number."""
    try:
        with open(f"/sys/block/{os.path.basename(device)}/diskseq", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _kept(root, name):
    """Devices that are written down in the sandbox and still there."""
    try:
        with open(os.path.join(root, name), encoding="ascii") as file:
            return [device for device, sequence in (line.split() for line in file)
                    if disk_sequence(device) == sequence]
    except (OSError, ValueError):
        return []


def _zrams(root):
    return _kept(root, ZRAM)


def loops_below(root):
    """Loop devices whose backing file is, or was, under root."""
    found = [device for device in _kept(root, LOOPS)
             if os.path.exists(f"/sys/block/{os.path.basename(device)}/loop")]
    for name in os.listdir("/sys/block"):
        if not name.startswith("loop"):
            continue
        try:
            with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8") as file:
                backing = file.read().rstrip("\n")
            if _below(backing.removesuffix(" (deleted)"), root) or \
                    _below(loop_given_name("/dev/" + name), root):
                found.append("/dev/" + name)
        except OSError:
            continue
    return sorted(set(found))


def _ancestors():
    pids, pid = set(), os.getpid()
    while pid > 0:
        pids.add(pid)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            break
    return pids


def processes_below(root):
    """Processes that belong to the sandbox: its path is in their command line, or they are
    PostgreSQL or Tidemark processes whose working directory lies in it."""
    found, mine = [], _ancestors()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in mine or process_gone(int(name)):
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                args = file.read().split(b"\0")
            cwd = os.readlink(f"/proc/{name}/cwd")
            exe = os.path.basename(os.readlink(f"/proc/{name}/exe"))
        except OSError:
            continue
        named = any(os.fsencode(root) + b"/" in arg for arg in args)
        inside = _below(cwd, root) and exe.startswith(("postgres", "tidemark", "pg"))
        if named or inside:
            found.append(int(name))
    return found


def thaw(point):
    """Thaws a frozen filesystem; one that is not frozen does not mind."""
    try:
        fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, FITHAW, 0)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _elsewhere(root):
    """(pid, mount points of the sandbox) for every other mount namespace that has some: the
    sandbox's own, or copies that keep its devices busy."""
    seen, found = {os.stat("/proc/self/ns/mnt").st_ino}, []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.stat(f"/proc/{name}/ns/mnt").st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            points = mounts_below(root, name)
        except OSError:
            continue
        if points:
            found.append((name, points))
    return found


def _thaw_all(root):
    for point in mounts_below(root):
        thaw(point)
    for pid, points in _elsewhere(root):
        for point in points:
            thaw(f"/proc/{pid}/root{point}")


def _unmount_elsewhere(root):
    for pid, points in _elsewhere(root):
        for point in points:
            _quiet("nsenter", f"--mount=/proc/{pid}/ns/mnt", "umount", "-l", point)


def _quiet(*args):
    return subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode == 0


def _late_pids(root):
    try:
        with open(os.path.join(root, LATE), encoding="ascii") as file:
            return {int(pid) for pid, start in (line.split() for line in file)
                    if process_start(int(pid)) == int(start)}
    except (OSError, ValueError):
        return set()


def _remove_zram(device):
    try:
        with open(ZRAM_CONTROL + "/hot_remove", "w", encoding="ascii") as file:
            file.write(device.removeprefix("/dev/zram"))
        return True
    except OSError:  # in use
        return False


def clean(root, log=lambda text: None):
    """Ends what belongs to the sandbox and removes it. Returns a list of what is left (empty =
    clean)."""
    late = _late_pids(root)
    for attempt in range(60):
        _thaw_all(root)
        pids = [pid for pid in processes_below(root) if pid not in late]
        for pid in pids:
            # First the polite signal: PostgreSQL then removes its shared memory.
            kill_pid(pid, signal.SIGQUIT if attempt == 0 else signal.SIGKILL, 0)
        for pid in pids:
            kill_pid(pid, 0, 2)
        busy = [point for point in mounts_below(root) if not _quiet("umount", point)]
        for loop in loops_below(root):
            _quiet("losetup", "-d", loop)
        for device in _zrams(root):
            _remove_zram(device)
        alive = [pid for pid in processes_below(root) if pid not in late]  # also born meanwhile
        if not alive and not busy and not mounts_below(root) and not loops_below(root) \
                and not _zrams(root):
            break
        if attempt == 20:
            _unmount_elsewhere(root)
        if attempt > 40:
            for point in mounts_below(root):
                log(f"lazy unmount of {point}")
                _quiet("umount", "-l", point)
        time.sleep(0.05)
    for pid in late:
        kill_pid(pid)
    left = mounts_below(root) + loops_below(root) + _zrams(root)
    left += [str(pid) for pid in processes_below(root)]
    if not left:
        shutil.rmtree(root, ignore_errors=True)
        if os.path.exists(root):
            left.append(root)
    return left


def become_root(*args):
    """Runs this program again under sudo, with args added, when we are not root and sudo asks for
    no password. Returns (False) when that cannot be."""
    if os.geteuid() == 0:
        return True
    if not shutil.which("sudo") or not _quiet("sudo", "-n", "true"):
        return False
    keep = [f"{key}={value}" for key, value in os.environ.items()
            if key.startswith("TIDEMARK_") or key in ("TESTS", "CI", "FUZZ_SECONDS")]
    sys.stdout.flush()
    os.execvp("sudo", ["sudo", "-n", "env", "PYTHONDONTWRITEBYTECODE=1", *keep, sys.executable,
                       *sys.argv, *args])


def base_directory():
    """$TMPDIR when other users can pass through it, /var/tmp otherwise."""
    base = os.path.realpath(os.environ.get("TMPDIR") or "/var/tmp")
    part = base
    while True:
        try:
            if not os.stat(part).st_mode & stat.S_IXOTH:
                return "/var/tmp"
        except OSError:
            return "/var/tmp"
        if part == "/":
            return base
        part = os.path.dirname(part)


def _owner_alive(root):
    try:
        with open(os.path.join(root, OWNER), encoding="ascii") as file:
            pid, start, boot = file.read().split()
        return boot == boot_id() and process_start(int(pid)) == int(start)
    except (OSError, ValueError):
        # Between mkdtemp and the owner file: give a new directory a minute.
        try:
            return time.time() - os.stat(root).st_mtime < 60
        except OSError:
            return True


def sandboxes():
    base = base_directory()
    found = []
    for directory in {base, "/var/tmp"}:
        for name in os.listdir(directory):
            root = os.path.join(directory, name)
            if name.startswith(PREFIX) and os.path.isdir(root) and not os.path.islink(root):
                # A directory of another program may have this prefix: the owner file tells.
                if os.path.exists(os.path.join(root, OWNER)):
                    found.append(root)
    return sorted(found)


def reap_stale(log=lambda text: None):
    """Cleans the sandboxes of runs that were killed. Returns what could not be removed."""
    left = []
    for root in sandboxes():
        if not _owner_alive(root):
            log(f"removing the leftovers of a killed run: {root}")
            left += clean(root, log)
    return left


class Sandbox:
    """One for a test program. `with Sandbox("name") as box:` or just `box = Sandbox("name")`:
    it is cleaned at exit, on exceptions, SIGINT, SIGTERM and SIGHUP. TIDEMARK_KEEP=1 keeps it."""

    def __init__(self, name="test"):
        self.path = tempfile.mkdtemp(prefix=f"{PREFIX}{name}-", dir=base_directory())
        os.chmod(self.path, 0o755)
        with open(self.join(OWNER), "w", encoding="ascii") as file:
            file.write(f"{os.getpid()} {process_start(os.getpid())} {boot_id()}\n")
        self.pid = os.getpid()
        self.cleaned = False
        self.before_clean = []  # callables, last in first out; exceptions are reported
        atexit.register(self.close)
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, _on_signal)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def join(self, *parts):
        return os.path.join(self.path, *parts)

    def mkdir(self, name, mode=0o755, user=None):
        path = self.join(name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
        if user:
            shutil.chown(path, user, user)
        return path

    def write(self, name, text, mode=0o644):
        path = self.join(name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def keep_until_unmounted(self, pid):
        """pid serves a FUSE mount in the sandbox: it is ended after the mounts, not before."""
        with open(self.join(LATE), "a", encoding="ascii") as file:
            file.write(f"{pid} {process_start(pid)}\n")

    def image(self, name, size, fallocate=False):
        """A file of size bytes, sparse unless fallocate."""
        path = self.join(name)
        with open(path, "wb") as file:
            if fallocate:
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        return path

    def loop(self, file, *options):
        """Attaches a loop device with direct I/O; returns /dev/loopN."""
        device = output("losetup", "-f", "--show", "--direct-io=on", *options, file).strip()
        self._keep(LOOPS, device)
        return device

    def unloop(self, device):
        """Also of a zram device."""
        if device in _zrams(self.path):
            poll(lambda: _remove_zram(device), 15, f"end of {device}")
        else:
            output("losetup", "-d", device)

    def keep_zram(self, device):
        """It is removed with the sandbox."""
        self._keep(ZRAM, device)

    def _keep(self, name, device):
        with open(self.join(name), "a", encoding="ascii") as file:
            file.write(f"{device} {disk_sequence(device)}\n")

    def mkfs(self, device, fs="ext4", *options):
        if fs == "ext4":
            output("mkfs.ext4", "-q", "-F", *options, device)
        else:
            output("mkfs.xfs", "-q", "-f", *options, device)

    def mount(self, device, point, *options):
        path = self.mkdir(point) if not os.path.isabs(point) else point
        os.makedirs(path, exist_ok=True)
        output("mount", *options, device, path)
        return path

    def umount(self, point, timeout_s=15):
        poll(lambda: _quiet("umount", point), timeout_s, f"umount {point}")

    def volume(self, name, size, fs="ext4", backing=None, mkfs=(), mount=()):
        """A loop device over <backing or sandbox>/<name>.img, made with mkfs and mounted on
        <sandbox>/<name>, owned by postgres. Returns a Volume."""
        image = os.path.join(backing or self.path, name + ".img")
        with open(image, "wb") as file:
            file.truncate(size)
        volume = Volume(name, image, self.loop(image), fs, None)
        self.mkfs(volume.device, fs, *mkfs)
        volume.mount = self.mount(volume.device, name, *mount)
        if os.geteuid() == 0:
            shutil.chown(volume.mount, "postgres", "postgres")
        return volume

    def close(self):
        if self.cleaned or os.getpid() != self.pid:
            return
        self.cleaned = True
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, signal.SIG_IGN)
        for step in reversed(self.before_clean):
            try:
                step()
            except Exception as error:  # pylint: disable=broad-except
                print(f"# while cleaning: {error}", file=sys.stderr)
        if os.environ.get("TIDEMARK_KEEP"):
            os.unlink(self.join(OWNER))
            print(f"# kept: {self.path}", file=sys.stderr)
            return
        for item in clean(self.path, lambda text: print("# " + text, file=sys.stderr)):
            print(f"# could not remove {item}", file=sys.stderr)


class Volume:
    """A loop device with a filesystem; mount is None while it is not mounted."""

    def __init__(self, name, image, device, fs, mount):
        self.name, self.image, self.device, self.fs, self.mount = name, image, device, fs, mount


def _on_signal(number, _frame):
    sys.exit(128 + number)  # runs the atexit handlers, which clean


def output(*args, **options):
    """Runs a command that has to succeed; returns its stdout."""
    done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(args)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout
