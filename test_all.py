"""test_all - what beostat promises, as tests

    python3 -m pytest test_all.py
    LONG=1 python3 -m pytest -rP test_all.py -k fault      all of each fault

Real files, sockets and processes: every test has a port of its own and a
table in a temporary folder, and ends what it started.
"""

import ast
import base64
import collections
import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import html.parser
import itertools
import json
import multiprocessing
import operator
import os
import pty
import pwd
import random
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import threading
import time
import types
import zlib

import pytest

import beostat
import libbeostat
import recvstats
import sendstats

HERE = os.path.dirname(os.path.abspath(__file__))
TOOLS = "sendstats.py", "recvstats.py", "libbeostat.py", "beostat.py"
LIMIT_S = 20.0                          # for anything to happen
LONG = bool(os.environ.get("LONG"))     # faults at their full length
# A shell's background job ignores it, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Nothing of the caller's node, terminal and time zone may show.
for name in "NODE BEOSTAT_TABLE NOTIFY_SOCKET NO_COLOR COLUMNS LINES".split():
    os.environ.pop(name, None)
os.environ.update(TZ="UTC", PYTHONIOENCODING="utf-8")
time.tzset()

# ---- fixtures: /proc of several machines -------------------------------
# Each in the format of the kernel that its comment names: the lines that are
# parsed, and odd ones.

NET_HEADINGS = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
"""

# 2.4.20, one CPU: four columns of ticks, meminfo with its old table on
# top, no MemAvailable; eth0 touches its count.
I686 = {
    "cpuinfo": """\
processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 8
model name\t: Pentium III (Coppermine)
cpu MHz\t\t: 863.872
cache size\t: 256 KB
bogomips\t: 1723.59
""",
    "meminfo": """\
        total:    used:    free:  shared: buffers:  cached:
Mem:  262381568 254210048  8171520        0 21102592 150683648
Swap: 536829952  4096000 532733952
MemTotal:       256232 kB
MemFree:          7980 kB
MemShared:           0 kB
Buffers:         20608 kB
Cached:         146152 kB
SwapTotal:      524248 kB
SwapFree:       520248 kB
""",
    "loadavg": "0.20 0.18 0.12 1/80 11206\n",
    "net/dev": NET_HEADINGS + """\
    lo:  104503    1301    0    0    0     0          0         0   104503    1301    0    0    0     0       0          0
  eth0:1235461773 3510213   17    2    1     3          0        11 4013244571 4120551    5    0    0    91       7          0
""",
    "stat": """\
cpu  1132430 3104 220311 51234907
cpu0 1132430 3104 220311 51234907
disk_io: (2,0):(31,31,5764,0,0) (3,0):(9,9,72,0,0)
intr 1462898 1462898 0 0 0 0 3 0 0 1 0 0 0 0 0 0 0
ctxt 115315
btime 1062191376
processes 86031
""",
}

# 2.6.18, two CPUs in two sockets, one core each: eight columns of ticks.
XEON = {
    "cpuinfo": "".join("""\
processor\t: %d
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(TM) CPU 3.00GHz
cpu MHz\t\t: 2992.703
cache size\t: 2048 KB
physical id\t: %d
core id\t\t: 0
bogomips\t: 5989.%02d

""" % (cpu, 3 * cpu, 50 + cpu) for cpu in range(2)),
    "meminfo": """\
MemTotal:      4043516 kB
MemFree:        211344 kB
Buffers:        316292 kB
Cached:        2884532 kB
SwapTotal:     2031608 kB
SwapFree:      2031504 kB
""",
    "loadavg": "2.06 2.01 1.73 4/131 20712\n",
    "net/dev": NET_HEADINGS + """\
    lo:94105221  331211    0    0    0     0          0         0 94105221  331211    0    0    0     0       0          0
  eth0:3121110921 22301117    0    0    0     0          0         0 2001222333 21010101    0    0    0     0       0          0
  eth1:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  sit0:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
""",
    "stat": """\
cpu  17005 41 6102 1400211 2103 51 330 7
cpu0 8601 20 3001 700101 1203 50 230 3
cpu1 8404 21 3101 700110 900 1 100 4
intr 7523133 7120101 8 0 0 4 0 3 0 1 0 0 0 109 0 31313 0
ctxt 9312345
btime 1184240113
processes 20712
procs_running 3
procs_blocked 1
""",
}

# 6.18, two CPUs in one socket, no swap; ten columns of ticks.
EPYC_CPU = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC
cpu MHz\t\t: 2596.118
cache size\t: 1024 KB
physical id\t: %d
core id\t\t: %d
bogomips\t: 5192.23
power management:

"""
EPYC = {
    "cpuinfo": EPYC_CPU % (0, 0) + EPYC_CPU % (0, 1),
    "meminfo": """\
MemTotal:       24684092 kB
MemFree:        24598216 kB
MemAvailable:   24489196 kB
Buffers:             432 kB
Cached:            13512 kB
SwapTotal:             0 kB
SwapFree:              0 kB
Shmem:              8856 kB
KReclaimable:      12044 kB
SReclaimable:      12044 kB
""",
    "loadavg": "0.00 0.01 0.05 1/77 2051\n",
    "net/dev": NET_HEADINGS + """\
    lo:    3245      30    0    0    0     0          0         0     3245      30    0    0    0     0       0          0
  eth0: 151721133   104512    0    0    0     0          0         0  3214512   41021    0    0    0     0       0          0
""",
    "stat": """\
cpu  608 0 928 127363 38 0 9 6 0 0
cpu0 238 0 450 63747 2 0 4 2 0 0
cpu1 369 0 478 63615 36 0 4 4 0 0
intr 70713 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 14 0 0 129 11 0 23
ctxt 172333
btime 1795226462
processes 2055
procs_running 2
procs_blocked 0
""",
}

# 5.10 on Arm: no MHz, no model name, no cache, no sockets.
ARM64 = {
    "cpuinfo": """\
processor\t: 0
BogoMIPS\t: 50.00
CPU implementer\t: 0x41
CPU architecture: 8

""" * 4,
    "meminfo": EPYC["meminfo"].replace("24684092", "32768000"),
    "loadavg": "3.99 4.01 4.05 5/312 99121\n",
    "net/dev": EPYC["net/dev"].replace("  eth0:", "enP2p1s0:"),
    "stat": "cpu  400 0 400 4000 40 4 4 0 0 0\n" + "".join(
        "cpu%d 100 0 100 1000 10 1 1 0 0 0\n" % cpu for cpu in range(4)) + """\
intr 5012
ctxt 71717
btime 1700000000
processes 3131
procs_running 5
procs_blocked 0
""",
}

# 4.18, 256 CPUs of which 128 to 191 are off line: ids with a hole, and
# files of many pages.
WIDE_IDS = [*range(128), *range(192, 256)]
WIDE = {
    "cpuinfo": "".join(EPYC_CPU % (cpu % 128 // 64, cpu % 64)
                       for cpu in WIDE_IDS),
    "meminfo": EPYC["meminfo"].replace("24684092", "2113929216"),
    "loadavg": "191.50 180.25 128.00 193/4013 4194303\n",
    "net/dev": EPYC["net/dev"],
    "stat": "cpu  %d 0 0 %d 0 0 0 0 0 0\n" % (
        5000000000 * len(WIDE_IDS), 7000000 * len(WIDE_IDS)) + "".join(
            "cpu%d 5000000000 0 0 7000000 0 0 0 0 0 0\n" % cpu
            for cpu in WIDE_IDS)
    + "intr 99" + " 0" * 8000 + "\nctxt 5\nbtime 1600000000\n"
    "processes 77\nprocs_running 192\nprocs_blocked 2\n",
}

# A sandbox that shows no network, no load and no per-CPU lines.
CONTAINER = {
    "cpuinfo": EPYC["cpuinfo"],
    "meminfo": "MemTotal:        2097152 kB\nMemFree:         1048576 kB\n",
    "stat": "cpu  10 0 20 300 0 0 0 0 0 0\nintr 1\nctxt 0\nbtime 0\n"
    "processes 0\nprocs_running 1\nprocs_blocked 0\n",
}


def write_proc(folder, files):
    """Make a /proc of these texts; return its path."""
    for name, text in files.items():
        path = os.path.join(str(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    return str(folder)


# ---- fixtures: processes and messages ----------------------------------

# Below those that the kernel gives to who names none: nobody gets one by
# chance before its test binds it.  The next one of each is a group's, too.
PORTS = random.sample(range(10000, 32000, 2), 2000)


def free_port():
    """Return a port of UDP and TCP that nobody uses, another each time."""
    while True:
        port = PORTS.pop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, \
                socket.socket() as tcp, contextlib.suppress(OSError):
            udp.bind(("", port))
            tcp.bind(("", port))
            return port


def wait_for(what, limit_s=LIMIT_S):
    """Return the first true value of what(); fail after the limit."""
    end = time.monotonic() + limit_s
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, "waited %g s" % limit_s
        time.sleep(0.02)


def tool(name, *args, **more):
    """Run a tool to its end; return it, with text output."""
    return run(sys.executable, "-S", os.path.join(HERE, name), *args, **more)


class Running:
    """Processes of a test, its port and its table."""

    def __init__(self, folder):
        self.folder, self.port = str(folder), free_port()
        self.table = os.path.join(self.folder, "table")
        self.processes, self.masters, self.pids = [], [], []

    def start(self, name, *args, python=(sys.executable, "-S"), **more):
        """Start a tool in the foreground; return the process."""
        return spawn(self, *python, os.path.join(HERE, name), *args, **more)

    def recvstats(self, *args, **more):
        """Start recvstats on the port and the table; return it."""
        process = self.start("recvstats.py", "-f", "-p", self.port,
                             "--table", self.table, *args, **more)
        self.masters.append(process)
        first = process.stderr.readline()
        assert "taken over" in first, first + process.stderr.read()
        return process

    def sendstats(self, *args, **more):
        """Start an agent of this port; return it."""
        return self.start("sendstats.py", "-f", "-p", self.port, *args, **more)

    def beostat(self, *args, **more):
        """Run beostat on the table to its end."""
        return tool("beostat.py", "--table", self.table, *args, **more)

    def daemon(self, name, *args, **more):
        """Start a daemon on the port and the table; return its parent, which
        has ended."""
        path = os.path.join(self.folder, "pid")
        words = (["--table", self.table] if name == "recvstats.py" else
                 [0, "127.0.0.1"])
        parent = tool(name, "-p", self.port, "--pid-file", path, *args,
                      *words, **more)
        if parent.returncode == 0:
            self.pids.append(read_pid(path))
        return parent

    def send(self, *messages):
        """Send datagrams to recvstats."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for message in messages:
                sock.sendto(message, ("127.0.0.1", self.port))

    def open(self):
        """Return the table's Cluster."""
        return libbeostat.open(self.table)

    def wait_up(self, number):
        """Return the node once it is up."""
        def look():
            with contextlib.suppress(libbeostat.BeostatError), \
                    self.open() as cluster:
                node = cluster.node(number)
                return node.state == "up" and node
        return wait_for(look)

    def wait_count(self, counter, count=1):
        """Wait until a counter of recvstats has reached a count.

        SIGHUP makes it tell its counters at once.
        """
        def look():
            for process in self.masters:
                process.send_signal(signal.SIGHUP)
            return getattr(cluster.status, counter) >= count
        with self.open() as cluster:
            wait_for(look)

    def end(self):
        """End all that was started."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            with process:               # waits, and closes its streams
                process.kill()
        self.processes, self.masters, self.pids = [], [], []


@pytest.fixture
def running(tmp_path):
    """Processes, ended when the test is."""
    running = Running(tmp_path)
    yield running
    running.end()


def read_pid(path):
    """Return the number in a pid file."""
    return int(read_text(path))


class Clock:
    """A time for the thread of a test alone: it stands still, and goes on
    when it is told to.  The master has just booted."""

    def __init__(self):
        self.now, self.offset_s = 1.5, 1e9

    def __enter__(self):
        self.real = monotonic, clock = time.monotonic, time.time
        mine, ident = threading.get_ident(), threading.get_ident
        time.monotonic = lambda: self.now if ident() == mine else monotonic()
        time.time = lambda: (self.now + self.offset_s if ident() == mine
                             else clock())
        return self

    def __exit__(self, *_):
        time.monotonic, time.time = self.real


class Lines(list):
    """A log that keeps its lines."""

    drops, __call__ = 0, list.append

    def once(self, text):
        if text not in self:
            self.append(text)

    def has_room(self):
        return True


def new_receiver(folder, *options):
    """Return a Receiver whose log is the list receiver.lines."""
    args = recvstats.parse_args(["--table", "%s/t" % folder, *options])
    lines = Lines()
    keys = recvstats.Keys(args.key_file) if args.key_file else None
    table, _ = recvstats.open_table(args, lines)
    receiver = recvstats.Receiver(table, args, lines, keys)
    receiver.wake(time.monotonic())
    receiver.lines = lines
    return receiver


def killed(receiver):
    """Let go of a receiver's table, as the end by a kill would."""
    receiver.table.unmap()
    os.close(receiver.table.fd)


def close(receiver):
    """Stop a receiver, and let go of its table."""
    receiver.table.status["stopped"] = 1
    receiver.table.write_header()
    killed(receiver)


@pytest.fixture
def receiver(tmp_path):
    """A Receiver on a table of its own, without a socket."""
    receiver = new_receiver(tmp_path)
    yield receiver
    close(receiver)


def feed(receiver, message, address="10.0.0.1", now=None, port=4000):
    """Give a receiver a datagram; return the counter's name."""
    receiver.message[:len(message)] = message
    counter = receiver.accept(len(message), (address, port),
                              time.monotonic() if now is None else now)
    receiver.table.counts[counter] += 1
    receiver.examples[counter] = address, port
    return counter


def with_fields(rows, data, **fields):
    """Return bytes with some fields of the record that they begin with
    set."""
    struct_, offsets = libbeostat.layout(rows)
    values = dict(zip(offsets, struct_.unpack_from(data)), **fields)
    assert len(values) == len(offsets)
    return struct_.pack(*values.values()) + data[struct_.size:]


def decode(data, number=0):
    """Return the Node of a message, of which it was just heard."""
    slot = bytes(libbeostat.SLOT_STRUCT.size) + data
    return libbeostat.Node(number, libbeostat.renew(slot), 0.0, 0.0)


def sample_of(folder, files, later=()):
    """Return the Node that an agent makes of a /proc.

    later  {name: text} of what changes in a second, before it is read again
    """
    with Clock() as clock:
        sampler = sendstats.Sampler(write_proc(folder, files), 0, 1.0)
        if later:
            sampler.begin()
            write_proc(folder, later)
            clock.now += 1
        data = sampler.make_message(sendstats.SAMPLE)
        sampler.close()
        return decode(data)


def body_of(folder, texts, **fields):
    """Return the message body of a machine, with some fields of NODE set."""
    return with_fields(libbeostat.NODE, sample_of(folder, texts).slot[
        libbeostat.RECORDS_AT:-libbeostat.CRC_BYTES], **fields)


BODY = body_of("/proc", {})


def message(node=0, sequence=1, start=1000, kind=sendstats.SAMPLE,
            period_s=1.0, body=BODY, time_s=1e9):
    """Return a message of this machine's values, or of another body."""
    header = node, kind, start, sequence, period_s, time_s
    return sendstats.pack_message(header, body)


def broken(data, **changes):
    """Return a message with header fields changed, and its CRC right."""
    data = with_fields(libbeostat.HEADER, data, **changes)[:-4]
    return data + struct.pack("<I", zlib.crc32(data))


def body_with(**fields):
    """Return this machine's message body with some fields of NODE set."""
    return with_fields(libbeostat.NODE, BODY, **fields)


def body_of_counts(cpus, interfaces, busy=0):
    """Return the body of a message of that many CPUs and interfaces."""
    node = body_with(cpus=cpus, interfaces=interfaces)
    return node[:libbeostat.NODE_STRUCT.size] + b"".join([
        *[libbeostat.CPU_STRUCT.pack(cpu, busy, 7, 7, 7, 7)
          for cpu in range(cpus)],
        *[libbeostat.INTERFACE_STRUCT.pack(b"eth%d" % number, *[0] * 18)
          for number in range(interfaces)]])


EVIL = '\x1b[31m"<&>\\\n\u202e\x9b'
SEVEN = (
    # number, files, fields of NODE that differ
    (0, EPYC, dict(hostname=b"n0", one=0.25, active=1, cost_us=331)),
    (1, XEON, dict(hostname=b"n1", busy_fraction=.9, user_fraction=.8,
                   system_fraction=.1, rx_bytes_per_s=123456789,
                   tx_bytes_per_s=999, cost_us=412)),
    (2, I686, dict(hostname=b"n2")),
    (3, ARM64, dict(hostname=b"n3", busy_fraction=.5)),
    (4, WIDE, dict(hostname=b"n4", busy_fraction=1.0, cost_us=2120)),
    (5, CONTAINER, dict(hostname=b"n5")),
    (6, EPYC, dict(hostname=EVIL.encode(), one=2.75, active=3,
                   user_fraction=.09, nice_fraction=.01)),
)
FIXED = dict(release=b"6.1.0", machine=b"x86_64", cost_us=350, send_errors=0,
             block_bytes=4096, blocks=1000000, free_blocks=400000,
             available_blocks=350000, files=65536, free_files=60000,
             name_max=255, busy_fraction=.125, user_fraction=.1,
             nice_fraction=0., system_fraction=.025, iowait_fraction=.05)


@pytest.fixture
def seven(tmp_path):
    """A running recvstats, as far as a reader can tell, of seven nodes.

    Node 3 has left, node 5 is down, 7 and 8 were never heard; node 1 lost
    2 of 10 messages.
    """
    receiver, now = new_receiver(tmp_path, "-N", "9"), time.monotonic()
    for number, files, fields in SEVEN:
        body = body_of(tmp_path / str(number), files, **dict(FIXED, **fields))
        kind = sendstats.FAREWELL if number == 3 else sendstats.SAMPLE
        for sequence in [7] + [8, *range(11, 18)] * (number == 1):
            feed(receiver, message(number, sequence, body=body, kind=kind),
                 "10.0.0.%d" % number, now - 600 * (number == 5))
    receiver.tick(now)
    yield receiver
    close(receiver)


# ---- layouts pinned ----------------------------------------------------


@pytest.mark.parametrize("name", [*TOOLS, "test_all.py"])
def test_no_name_stands_for_two(name):
    """A second test of a name would hide the first."""
    names = re.findall(r"^(?:def|class) (\w+)|^([A-Z_]+) = ",
                       read_text(os.path.join(HERE, name)), re.M)
    assert sorted(names) == sorted({*names})


@pytest.mark.parametrize("other, names", [
    ("libbeostat.py", "layout"),
    ("recvstats.py", "layout attempt explain network is_in interface "
     "find_interface Keys wait_for open_signals read_signals close_inherited "
     "is_ready release_standard daemonize tell_ready is_in_place "
     "lock_pid_file hold_pid_file write_line number_in")])
def test_what_stands_twice_is_one_text(other, names):
    for name in names.split():
        first, second = [re.findall(
            r"^(?:def|class) %s\W.*?(?=^\S|\Z)" % name,
            read_text(os.path.join(HERE, file)), re.M | re.S)
            for file in ("sendstats.py", other)]
        assert len(first) == 1 and first == second, name


def test_layouts_and_their_constants_agree():
    layouts = "HEADER ASK NODE ONE_CPU INTERFACE TABLE_HEADER SLOT".split()
    for name in layouts + (
            "MAGIC SAMPLE FAREWELL REQUEST MASTER UNNUMBERED GROUP GROUP_PORT "
            "RECORDS_VERSION ABSENT TABLE_MAGIC TABLE_VERSION TABLE_BYTES "
            "SILENT_PERIODS SILENT_S SIGNED VERIFIED CRC_RESIDUE "
            "CRC_BYTES").split():
        values = [getattr(tool, name) for tool in (
            sendstats, recvstats, libbeostat) if hasattr(tool, name)]
        if name in layouts:             # less units and meanings
            layout = [libbeostat.layout(rows) for rows in values]
            values = [(made.format, offsets) for made, offsets in layout]
        assert len(values) > 1 and values == values[:1] * len(values), name


RECORDED = (
    # A message of each version of the records, and all that is known by it.
    (zlib.decompress(base64.b85decode(
        b"c-nJv^=HgtW?*1vU|?Vb!UaF4cmkOWoD5)K4<b^}-gV3~XP^j}=^5%7P@uoU!Ytm*1i"
        b"^PKEy+mDE6GfD^mPIAeO(k>10tQtHUF`rk}CrX1H*O4MXrntObjUualaX|K{C1vnZPP"
        b"6MHs;}I|oDuBUEPs6RJrIm?3oYM~DhFG@GCy%fN=)F?MIqoUsKlfV9ooGd^H8*L7t$+"
        b"ZTwLLGJi4;}I)JKq2}rnBK7Y8kjx+HC^E{)RA2f+F%cM8wDVggA+fPZjgfLHwb5CK=y"
        b"6ID+upD$e(Qxv0A7KZy*=sbx?4el>^a`fO!X%KLM0y{RuIt5E^*Tfb`-Y3=BE>sLol-"
        b"1EJ*z#2T^c&_QZR21;UFE5Z$q7Ka&(c=c`IF$B}L3rMrC-s#^}01DMbbN")), [
        9, .5, 1234.5, 2e9, "n7", "6.1.0", "x86_64", "AuthenticAMD",
        "AMD EPYC", 2596.118, 1024, 5192.23, 1, 2, 100, 1795226462, 172333,
        70713, 2055, 1, 0, 608, 0, 928, 127363, 38, 0, 9, 6, 0, 0, 0.125, 0.1,
        0.0, 0.025, 0.05, 0.0, 0.01, 0.05, 0, 77, 2051, 25276510208,
        25188573184, 25076936704, 442368, 13836288, 9068544, 12333056, 0, 0,
        4096, 1000000, 400000, 350000, 65536, 60000, 255, 100000, 125, 331, 3,
        2, 7885, 0, 2, 2,
        (0, 0.0, 238, 0, 456, 63749), (1, 0.0, 369, 0, 486, 63651),
        ("lo", 3245, 30, 0, 0, 0, 0, 0, 0, 3245, 30, 0, 0, 0, 0, 0, 0, 0, 0),
        ("eth0", 151721133, 104512, 0, 0, 0, 0, 0, 0, 3214512, 41021, 0, 0, 0,
         0, 0, 0, 0, 0)]),
)


@pytest.mark.parametrize("version", range(1, len(RECORDED) + 1))
def test_recorded_message_decodes_for_ever(version):
    data, want = RECORDED[version - 1]
    node = decode(data, 7)
    values = [node.sequence, node.period_s, node.start_time_s, node.time_s]
    for name in [*libbeostat.PARTS, "cpus", "interfaces"]:
        values += getattr(node, name)
    assert [value for value in values if value not in (None, "")] == want


def test_values_of_a_later_version_are_absent(monkeypatch):
    """As if today's samples did not have them: texts, in any order."""
    absent = dict(machine=b"", block_bytes=2**64 - 1, cost_us=2**32 - 1,
                  mhz=-1.0, hostname=b"")
    body = BODY
    for field in sorted(absent, key=libbeostat.NODE_AT.get, reverse=True):
        at = libbeostat.NODE_AT[field]
        body = body[:at] + body[at + struct.calcsize(
            "<" + libbeostat.NODE_CODES[field]):]
    monkeypatch.setattr(libbeostat, "EARLIER", (
        (libbeostat.RECORDS_VERSION, " ".join(absent)),))
    node, want = decode(message(body=body)), decode(
        message(body=body_with(**absent)))
    for name in [*libbeostat.PARTS, "cpus", "interfaces"]:
        assert getattr(node, name) == getattr(want, name)


def test_an_agent_makes_the_recorded_message(tmp_path):
    body = body_of(tmp_path, EPYC, **dict(
        FIXED, hostname=b"n7", cost_us=331, send_errors=3, skipped=2,
        procstatd_port=7885, rx_bytes_per_s=100000, tx_bytes_per_s=125))
    made = sendstats.pack_message(
        (7, sendstats.SAMPLE, 1234500000, 9, .5, 2e9), body)
    assert len(RECORDED) == sendstats.RECORDS_VERSION and (
        made == RECORDED[-1][0]), base64.b85encode(
            zlib.compress(made)).decode()


def test_table_is_read_by_the_offsets_of_the_readme(seven):
    """By them alone: the header, and the name and the load of node 2."""
    with open(seven.table.path, "rb") as file:
        data = file.read()
    assert struct.unpack_from("<8s8x4I", data) == (
        b"BEOTABLE", 2, 65537, os.getpid(), recvstats.PORT)
    heartbeat_s, received = struct.unpack_from("<d24xQ", data, 80)
    assert received == 15
    assert struct.unpack_from("<I", data, 464) == (zlib.crc32(data[16:464]),)
    place, = struct.unpack_from("<I", data, 4096 + 4 * (1 + 2))
    slot = data[64 * place:]
    assert struct.unpack_from("<8xd8xd24x4siI8xH", slot) == (
        heartbeat_s, heartbeat_s, bytes([10, 0, 0, 2]), 2,
        len(message(body=body_of_counts(1, 2))), 4000)
    assert slot[128 + 40:].startswith(b"n2\0")
    assert slot[128 + 40 + 382:].startswith(struct.pack("<f", .2))


def test_message_of_eight_cpus_and_three_interfaces_fits_one_frame():
    data = message(body=body_of_counts(8, 3))
    assert len(sign(data, b"key")) <= 1472


# ---- parse -------------------------------------------------------------


def changed(files, name, *pairs):
    """Return {name: text} of a file with pairs of texts replaced."""
    text = files[name]
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return {name: text}


MACHINES = (
    # why, files, {record.field: want}
    ("2.4.20, one CPU", I686, {
        "processor.vendor": "GenuineIntel", "processor.mhz": 863.872,
        "processor.cache_kb": 256, "processor.bogomips": 1723.59,
        "processor.sockets": None, "processor.cores": None,
        "kernel": (1062191376, 115315, 1462898, 86031, None, None),
        "cpu.user_ticks": 1132430, "cpu.idle_ticks": 51234907,
        "cpu.iowait_ticks": None, "cpu.steal_ticks": None,
        "load.one": 0.2, "load.total": 80, "load.last_pid": 11206,
        "memory.total_bytes": 256232 * 1024, "memory.available_bytes": None,
        "memory.swap_free_bytes": 520248 * 1024, "agent.flags": 0,
        "interfaces.0.name": "lo", "interfaces.0.rx_packets": 1301,
        "interfaces.1": ("eth0", 1235461773, 3510213, 17, 2, 1, 3, 0, 11,
                         4013244571, 4120551, 5, 0, 0, 91, 7, 0, 0, 0)}),
    ("2.6.18, two sockets", XEON, {
        "processor.model": "Intel(R) Xeon(TM) CPU 3.00GHz",
        "processor.sockets": 2, "processor.cores": 2,
        "kernel.running": 2, "kernel.blocked": 1, "cpu.steal_ticks": 7,
        "cpu.guest_ticks": None, "load.active": 3,
        "memory.cached_bytes": 2884532 * 1024, "memory.shared_bytes": None,
        "agent.cpus": 2, "agent.interfaces": 4,
        # All time: irq, softirq and steal are system's, iowait is idle.
        "cpus.0": (0, 0, 8601, 20, 3001 + 50 + 230 + 3, 700101 + 1203)}),
    ("5.10, Arm", ARM64, {
        "processor": ("0x41", "", None, None, 50.0, None, None,
                      os.sysconf("SC_CLK_TCK")), "agent.cpus": 4}),
    ("4.18, 192 of 256 CPUs", WIDE, {
        "processor.sockets": 2, "processor.cores": 128,
        "kernel.context_switches": 5, "kernel.blocked": 2,
        "cpu.user_ticks": 960000000000, "load.one": 191.5,
        "load.last_pid": 4194303, "agent.cpus": 192,
        "cpus.127.id": 127, "cpus.128.id": 192, "cpus.191.id": 255,
        "cpus.150.user_ticks": 5000000000 % 2**32}),
    ("a container", CONTAINER, {
        "load": (None,) * 6, "memory.total_bytes": 2147483648,
        "memory.buffers_bytes": None, "network": (None, None),
        "cpus": [], "interfaces": []}),
    ("nothing at all", {"empty": ""}, {
        "processor.model": "", "processor.mhz": None, "cpu": (None,) * 15,
        "kernel": (None,) * 6, "memory": (None,) * 9}),
    ("one decimal is tenths", dict(EPYC, loadavg="0.5 12.25 3 1/77 2051\n"),
     {"load": (0.5, 12.25, 3.0, 0, 77, 2051)}),
    ("a number too large wraps, and leaves the others", dict(
        EPYC, loadavg="0.00 0.00 0.00 1/77 2051\n",
        **changed(EPYC, "stat", ("172333", "%d" % (2**65 + 7)))),
     {"load.one": 0.0, "kernel.context_switches": 7}),
    ("a name may hold what the headings do", dict(EPYC, **{
        "net/dev": "a\nb\n  a|b:1: %s\n" % " ".join(map(str, range(1, 17)))}),
     {"interfaces.0.name": "a|b:1", "interfaces.0.rx_bytes": 1}),
    ("interfaces that do not fit", dict(EPYC, **{
        "net/dev": "a\nb\n" + "".join(" veth%d:%s\n" % (number, 16 * " 1")
                                      for number in range(701))}), {
        "agent.flags": sendstats.CLIPPED, "agent.interfaces": 574,
        "interfaces.573.name": "veth573"}),
    ("CPUs that do not fit", dict(EPYC, stat="cpu  1 2 3 4\n" + "".join(
        "cpu%d 1 2 3 4\n" % cpu for cpu in range(3001))), {
            "agent.flags": sendstats.CPUS_CLIPPED, "agent.cpus": 3000,
            "cpus.2999.id": 2999}),
    *[("what is not as proc(5) has it is absent, and never fatal",
       dict(EPYC, **{name: text}), {path: want, "disk.name_max": 255})
      for name, text, path, want in (
          ("stat", "cpu  1 2 3 4 5\ncpu0 1 2 3\n", "cpus", []),
          ("stat", "cpu  1 2 3 x 5\n", "cpu.user_ticks", None),
          ("stat", "cpu  1 2 3 4\ncpu99999 1 2 3 4\n", "cpus", []),
          ("stat", "\0\xff", "cpus", []),
          ("stat", "cpu  1 2 3 4 5\nctxt 1e99\n", "cpu.user_ticks", None),
          ("meminfo", "MemTotal: lots kB\n", "memory.total_bytes", None),
          ("meminfo", "MemFree: -5 kB\n", "memory.free_bytes", None),
          ("meminfo", "MemFree: %s kB\n" % (9 * "9999"), "load.total", 77),
          ("loadavg", "nan inf -1 1/2 3\n", "load.one", None),
          ("loadavg", "0.1 0.2\n", "load.one", None),
          ("net/dev", "a\nb\neth0: 1 2 3\n", "interfaces", []),
          ("net/dev", "a\nb\n\x1b\xff:%s\n" % (" " + "9" * 30) * 16,
           "interfaces", []),
          ("cpuinfo", "cpu MHz : fast\n", "processor.mhz", None),
          ("cpuinfo", "cache size : huge\n", "processor.cache_kb", None))],
)
SECONDS = (
    # why, files, what changes in a second, {record.field: want}
    ("a quarter of one CPU", EPYC, changed(
        EPYC, "stat", ("cpu  608 0 928 127363", "cpu  633 0 928 127538"),
        ("cpu0 238 0 450 63747", "cpu0 263 0 450 63822"),
        ("cpu1 369 0 478 63615", "cpu1 369 0 478 63715")),
     {"cpu.busy_fraction": .125, "cpus.0.busy_fraction": .25,
      "cpus.1.busy_fraction": 0}),
    ("steal and irq are busy", EPYC, changed(
        EPYC, "stat", ("cpu1 369 0 478 63615 36 0 4 4",
                       "cpu1 369 0 478 63665 36 20 4 34")),
     {"cpus.0.busy_fraction": 0, "cpus.1.busy_fraction": .5}),
    ("iowait is idle and may go backwards", EPYC, changed(
        EPYC, "stat", ("cpu0 238 0 450 63747 2", "cpu0 248 0 450 63727 0")),
     {"cpus.0.busy_fraction": .1, "cpus.1.busy_fraction": 0}),
    ("a counter of ticks was reset", EPYC, changed(
        EPYC, "stat", ("cpu0 238 0 450 63747", "cpu0 0 0 1 0")),
     {"cpus.0.busy_fraction": 0}),
    ("busy time is split", EPYC, changed(
        EPYC, "stat", ("cpu  608 0 928 127363 38 0 9 6",
                       "cpu  628 10 938 127403 48 5 14 6")),
     {"cpu.busy_fraction": .5, "cpu.user_fraction": .2,
      "cpu.nice_fraction": .1, "cpu.system_fraction": .2,
      "cpu.iowait_fraction": .1}),
    ("the idle time of all may go backwards", EPYC, changed(
        EPYC, "stat", ("cpu  608 0 928 127363", "cpu  708 0 928 127000")),
     {"cpu.busy_fraction": 50 / os.sysconf("SC_CLK_TCK")}),
    ("a CPU that goes off line shifts nothing", ARM64, changed(
        ARM64, "stat", ("cpu1 100 0 100 1000 10 1 1 0 0 0\n", ""),
        ("cpu3 100 0 100 1000", "cpu3 150 0 100 1050")),
     {"cpus": [(0, 0, 100, 0, 102, 1010), (2, 0, 100, 0, 102, 1010),
               (3, .5, 150, 0, 102, 1060)]}),
    ("rates, of all but lo", EPYC, changed(
        EPYC, "net/dev", ("151721133", "151821133"), ("3214512", "3224512"),
        ("3245      30", "9245      30")),
     {"network": (100000, 10000), "interfaces.0.rx_bytes_per_s": 6000,
      "interfaces.1.tx_bytes_per_s": 10000}),
    ("a counter of bytes was reset", EPYC, changed(
        EPYC, "net/dev", ("151721133", "12"), ("3214512", "3214513000")),
     {"network": (0, 3214513000 - 3214512)}),
)


def value_of(node, path):
    """Return a field of a node by its path: load.one, cpus.0.id."""
    for name in path.split("."):
        node = node[int(name)] if name.isdigit() else getattr(node, name)
    return node


@pytest.mark.parametrize("why, files, later, want", [
    *((why, files, (), want) for why, files, want in MACHINES), *SECONDS])
def test_sample_of_a_machine(tmp_path, why, files, later, want):
    node = sample_of(tmp_path, files, later)
    assert {path: value_of(node, path) for path in want} == want
    assert len(node.slot) <= libbeostat.MESSAGE_AT + 65000
    assert (len(node.cpus), len(node.interfaces)) == (
        node.agent.cpus, node.agent.interfaces)


@pytest.mark.parametrize("period_s", [0.01, 0.05, 1.0])
def test_rates_go_back_one_period(tmp_path, period_s):
    """Also where it is shorter than 0.18 s."""
    with Clock() as clock:
        sampler = sendstats.Sampler(write_proc(tmp_path, EPYC), 0, period_s)
        sampler.begin()
        for user in 633, 633, 658:
            write_proc(tmp_path, changed(EPYC, "stat", (
                "608 0 928 127363", "%d 0 928 %d" % (user, 127388 + user))))
            clock.now += period_s
            data = sampler.make_message(sendstats.SAMPLE)
    sampler.close()
    assert decode(data).cpu.busy_fraction == .5


@pytest.mark.parametrize("step_s, start, sequence", [
    (0.9, 1000, 3), (-0.9, 1000, 3), (1.5, 1001.5, 1), (-30, 970, 1)])
def test_clock_that_is_set_starts_the_sequence_anew(step_s, start, sequence):
    with Clock() as clock:
        clock.offset_s = 1000.0 - clock.now
        sampler = sendstats.Sampler("/proc", 0, 1.0)
        for _ in range(2):
            sampler.make_message(sendstats.SAMPLE)
        clock.offset_s += step_s
        header = header_of(sampler.make_message(sendstats.SAMPLE))
    sampler.close()
    assert (header["start_us"], header["sequence"]) == (start * 1e6, sequence)


def test_numbers_of_this_machine_are_true():
    node, disk = sample_of("/proc", {}), os.statvfs("/")
    assert node.host.hostname == os.uname().nodename
    assert node.agent.cpus == os.sysconf("SC_NPROCESSORS_ONLN")
    assert node.memory.total_bytes == 1024 * int(
        read_text("/proc/meminfo").split()[1])
    assert abs(time.time() - float(read_text("/proc/uptime").split()[0])
               - node.kernel.boot_time_s) < 2
    assert node.disk.blocks * node.disk.block_bytes == (
        disk.f_blocks * disk.f_frsize)
    assert [one.name for one in node.interfaces] == re.findall(
        r"^ *(.+):", read_text("/proc/net/dev"), re.M)


@pytest.mark.parametrize("text, numbers", [
    ("0-3,8,n[10-12],.4,master", [0, 1, 2, 3, 8, 10, 11, 12, 4, -1]),
    ("n[007-010]", [7, 8, 9, 10]), ("-1", [-1]), ("node5, n6 ,7", [5, 6, 7]),
    ("3,3,2-4", [3, 2, 4]), ("n[1-2,5]", [1, 2, 5]),
    (".-1,0,.[2-3]", [-1, 0, 2, 3]),
    *[(wrong, libbeostat.BadNodeList) for wrong in (
        "n[\u00b2]", "", ",", "5-3", "0-99999999999", "n[1-2", "n1-2]", "n[]",
        "n[a]", "x", "n[1]x", "1-2-3", "host7", "-2", "--1", "n[[1]]",
        "3..4", "n[1-]", "9" * 19)]])
def test_node_list(text, numbers):
    try:
        assert libbeostat.parse_nodes(text) == numbers
    except libbeostat.BadNodeList as error:
        assert type(error) == numbers


@pytest.mark.parametrize("nodes, text", [
    ([0, 1, 2, 3, 8], "n[0-3,8]"),
    ([8, 8, -1], "master,n8"),
    (range(1001), "n[0-1000]"),
    (["n007", "n008", "n009", "n010"], "n[007-010]"),
    (["n1", "n01", "n001", "n2"], "n[001,01,1-2]"),
    (["a1", "b2", "b3", "login"], "a1,b[2-3],login"),
    (["n%d-ib" % number for number in (1, 2, 3, 7)], "n[1-3,7]-ib"),
    (["n1-ib0", "n2-ib0", "n1-ib1"], "n1-ib[0-1],n2-ib0"),
    (["n1-ib0", "n2-ib0"], "n[1-2]-ib0"),
    (["r%dc%02d" % (rack, chassis) for rack in (1, 2)
      for chassis in (8, 9, 10)], "r1c[08-10],r2c[08-10]"),
    (["node1-3", "n1-3"], "node1-[3],n1-[3]"),
    (["a.example", "b.example"], "a.example,b.example"),
    ([], "")])
def test_fold(nodes, text):
    assert libbeostat.fold_nodes(nodes) == text


# ---- table -------------------------------------------------------------


@pytest.mark.parametrize("holds, most_bytes", [
    # [(nodes, CPUs, interfaces)]; so many bytes
    ([(range(1000), 8, 3)], 2e6), ([([40000], 8, 3)], 5e5),
    ([(range(9998), 8, 3), ([9998], 8, 400), ([9999], 512, 3)], 20e6)])
def test_table_costs_what_it_holds(receiver, holds, most_bytes):
    for numbers, cpus, interfaces in holds:
        body = body_of_counts(cpus, interfaces)
        for number in numbers:
            assert feed(receiver, message(number, body=body)) == "stored"
    found = os.stat(receiver.table.path)
    assert found.st_size <= min(most_bytes, found.st_blocks * 512)
    with libbeostat.open(receiver.table.path) as cluster:
        assert len(cluster[number].cpus) == cpus
        assert len(cluster) == sum(len(numbers) for numbers, *_ in holds)


def test_table_grows_in_place_while_a_reader_iterates(receiver):
    with libbeostat.open(receiver.table.path) as cluster:
        before = os.stat(receiver.table.path)
        for number in range(1001):
            assert feed(receiver, message(number)) == "stored"
            if number % 101 == 0:
                assert [node.number for node in cluster] == list(
                    range(number + 1))
        iteration = iter(cluster)
        seen = [next(iteration).number for _ in range(3)]
        for number in 1, 700:           # to a larger slot
            wide = message(number, 2, body=body_of_counts(400, 0))
            assert feed(receiver, wide) == "stored"
        assert feed(receiver, message(700, 3)) == "stored"      # and stays
        assert seen + [node.number for node in iteration] == list(range(1001))
        after = os.stat(receiver.table.path)
        assert os.path.samestat(after, before)
        assert after.st_size > before.st_size
        wait_for(lambda: len(cluster[1].cpus) == 400)
        assert cluster[700].sequence == 3
        assert len(cluster) == 1001 and not cluster.refused


def test_room_for_expected_nodes_is_set_aside(tmp_path):
    """A flood of other numbers, and of long messages, leaves it alone."""
    receiver = new_receiver(tmp_path, "-N", "50", "--max-bytes", "1M")
    long, counters = body_of_counts(100, 0), set()
    for number in range(100, 1100):
        counters |= {feed(receiver, message(number)),
                     feed(receiver, message(number, 2, body=long))}
    assert counters == {"stored", "no_space"}
    assert [line for line in receiver.lines if "grow" in line] == [
        "%s: cannot grow: --max-bytes 1048576 reached: raise it, or begin with "
        "--fresh: messages that fit are stored, others counted as no_space"
        % receiver.table.path]
    for number in range(50):            # first, of some, a short one
        if number % 2:
            assert feed(receiver, message(number, body=b"")) == "stored"
        assert feed(receiver, message(
            number, 2, body=body_of_counts(16, 3))) == "stored"
        assert feed(receiver, message(1100 + number)) == "no_space"
    assert os.stat(receiver.table.path).st_size <= 1 << 20


def test_signature_is_not_kept_where_all_can_read_it(tmp_path):
    receiver = new_receiver(tmp_path, "--key-file",
                            write_key(tmp_path, b"key"))
    data = message(3)
    signed = sign(data, b"key")
    assert feed(receiver, signed) == "stored"
    with open(receiver.table.path, "rb") as file:
        held = file.read()
    assert data in held and signed[len(data):] not in held


def stop_at(count):
    """End this process at a line of recvstats: the one of that number."""
    def tell(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.endswith("recvstats.py"):
            return None
        count -= event == "line"
        if not count:
            os._exit(9)
        return tell
    sys.settrace(tell)


STEPS = {                       # a message, how many nodes it adds
    "a new node": (message(7), 1),
    "a larger slot": (message(1, 9, body=body_of_counts(90, 0)), 0),
    "a growth": (message(7, body=body_of_counts(2900, 0)), 1),
    "a sample": (message(1, 9), 0),
}


@pytest.mark.parametrize("why", STEPS)
def test_killed_at_any_step_a_restart_adopts_all_nodes(tmp_path, why):
    """Each step in a process of its own, which ends there; readers see all
    nodes before the restart and after it."""
    (data, more), receiver = STEPS[why], new_receiver(tmp_path)
    path, seen, step, status = receiver.table.path, set(), 0, 9
    for number in range(7):
        feed(receiver, message(number))
    close(receiver)
    shutil.copy(path, path + ".good")
    while status == 9:
        step += 1 if LONG else 17
        shutil.copy(path + ".good", path)
        with libbeostat.open(path) as cluster:
            child = os.fork()
            if not child:
                try:
                    receiver = new_receiver(tmp_path)
                    stop_at(step)
                    feed(receiver, data)
                    os._exit(0)
                finally:
                    os._exit(70)
            status = os.waitpid(child, 0)[1] >> 8
            for sequence in 50, 51:
                seen.add(tuple(node.number for node in cluster))
                assert not cluster.refused
                receiver = new_receiver(tmp_path)
                assert feed(receiver, message(3, sequence)) == "stored"
                assert receiver.lines == []
                close(receiver)
    assert status == 0 and step > 20
    assert seen == {tuple(range(7)), tuple(range(7 + more))}


def test_slot_left_odd_by_a_killed_writer(tmp_path):
    """Node 0's is whole, node 1's is torn.  Neither is believed, or called
    damaged, before it is clear that the writer is not only off the CPU."""
    receiver = new_receiver(tmp_path)
    feed(receiver, message(0))
    feed(receiver, message(1))
    table = receiver.table
    for entry, place in table.places():
        table.words[place // recvstats.WORD_BYTES] |= 1
    table.view[place + 300:place + 304] = b"torn"
    with libbeostat.open(table.path) as cluster:
        before = time.monotonic()
        assert cluster[0].state == "up"
        assert time.monotonic() - before > libbeostat.PAUSE_S
        assert [node.number for node in cluster] == [0]
        assert type(cluster.refused[1]) == libbeostat.SampleChanging
    close(receiver)
    receiver = new_receiver(tmp_path)
    with libbeostat.open(receiver.table.path) as cluster:
        with pytest.raises(libbeostat.NeverHeard, match="not heard again"):
            cluster[1]
        assert feed(receiver, message(1)) == "stored"
        assert [node.number for node in cluster] == [0, 1]
        assert (cluster[1].received, cluster[1].lost) == (1, 0)
        receiver.table.view[place + 300:place + 304] = b"torn"
        with pytest.raises(libbeostat.BadSample, match="damaged"):
            cluster[1]


def test_places_that_cannot_be_are_dropped(tmp_path):
    receiver = new_receiver(tmp_path)
    for number in range(9):
        feed(receiver, message(number))
    index = receiver.table.index
    index[3] = index[4]                             # node 2: where 3 is
    index[5] += 1                                   # node 4: in a slot
    index[7] = 2**32 - 1                            # node 6: far away
    close(receiver)
    receiver = new_receiver(tmp_path, "--max-nodes", "9")
    assert feed(receiver, message(9)) == "number_wrong"
    assert receiver.lines == [
        "%s: 3 slots were damaged and are empty now: n[2,4,6]"
        % receiver.table.path]
    with libbeostat.open(receiver.table.path) as cluster:
        assert [node.number for node in cluster] == [0, 1, 3, 5, 7, 8]


def write_file(path, data):
    """Make a file that holds this; return its path."""
    with open(path, "wb") as file:
        file.write(data)
    return path


def old_table(path, size=None, options=(), **fields):
    """Make a table of which nobody is the writer now, some header fields
    set, or cut off after some bytes."""
    receiver = new_receiver(os.path.dirname(path), *options)
    feed(receiver, message(1))
    close(receiver)
    with open(receiver.table.path, "rb") as file:
        data = with_fields(libbeostat.TABLE_HEADER, file.read(), **fields)
    os.unlink(receiver.table.path)
    write_file(path, data[:size])


NO_TABLE = "%s: not a table of recvstats"
OTHER_TABLE = "%%s: table of version %d, this libbeostat knows 2: update %s"
FOUND = (
    # what is at the path, how to make it; what the table was that recvstats
    # makes anew, None when it leaves it alone; what a reader says
    ("noise", lambda path: write_file(path, os.urandom(7000)), None, NO_TABLE),
    ("a folder", lambda path: os.makedirs(path + "/full"), None, NO_TABLE),
    ("a fifo", os.mkfifo, None, NO_TABLE),
    ("a link", lambda path: os.symlink(
        write_file(path + ".precious", b"precious"), path), None, NO_TABLE),
    *[("a device", lambda path: os.mknod(path, 0o20666, os.makedev(1, 5)),
       None, NO_TABLE)] * (not os.geteuid()),
    ("a table of before", lambda path: old_table(path, version=1),
     "of version 1", OTHER_TABLE % (1, "recvstats")),
    ("a table to come", lambda path: old_table(path, version=3),
     "of version 3", OTHER_TABLE % (3, "libbeostat")),
    ("a table cut off", lambda path: old_table(path, 50000),
     "cut off", "node 1: cut off in the table"),
    ("a header cut off", lambda path: old_table(path, 10),
     "of version 0", NO_TABLE),
    ("a small index", lambda path: old_table(
        path, options=["--max-nodes", "99"]),
     "too small an index for --max-nodes", ""),
    ("an empty file", lambda path: write_file(path, b""), "", NO_TABLE),
    ("nothing", lambda path: None, "", "%s: No such file or directory"),
)


@pytest.mark.parametrize("what, make, was, reader_says", FOUND)
def test_what_is_at_the_path(tmp_path, what, make, was, reader_says):
    path, said = str(tmp_path / "t"), ""
    make(path)
    try:
        with libbeostat.open(path) as cluster:
            cluster[1]
    except libbeostat.BeostatError as error:
        said = str(error).replace(path, "%s")
    assert said == reader_says
    if was is None:
        before = os.lstat(path)
        with pytest.raises(recvstats.StartError) as error:
            new_receiver(tmp_path)
        assert str(error.value) == path + (
            ": is not a table: it is left alone: choose another with --table")
        assert os.path.samestat(os.lstat(path), before)
        if os.path.islink(path):
            assert read_text(path) == "precious"
        return
    receiver = new_receiver(tmp_path)
    assert receiver.lines == (
        ["%s: was %s: made anew" % (path, was)] if was else [])
    with libbeostat.open(path) as cluster:
        assert len(cluster) == 0
        assert feed(receiver, message(3)) == "stored"
        assert cluster[3].state == "up"
    close(receiver)


IN_USE = ("%s: in use by another recvstats (pid %d, user %s): end it, or "
          "choose another with --table")


def test_table_in_use(running):
    """A second recvstats is refused, also with --fresh, and one whose table
    another has taken ends; who starts it again is not."""
    first = running.recvstats()
    for options in [], ["--fresh"]:
        with pytest.raises(recvstats.InUse) as error:
            new_receiver(running.folder, "--table", running.table, *options)
        assert str(error.value) == IN_USE % (
            running.table, first.pid, pwd.getpwuid(os.geteuid()).pw_name)
    running.end()
    second = running.recvstats()
    with open(running.table, "r+b") as file:
        file.seek(libbeostat.TABLE_AT["pid"])
        file.write(struct.pack("<I", 4321))
    assert second.wait(LIMIT_S) == 1
    assert second.stderr.read().endswith(
        "recvstats: %s: taken by another recvstats (pid 4321)\n"
        % running.table)


ANYBODYS_PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin")


def start_as(running, user, name, *words, before=()):
    """Start a tool as another user, or skip the test."""
    if os.geteuid() or not (ANYBODYS_PYTHON and shutil.which("setpriv")):
        pytest.skip("not root, or no Python that other users may run")
    with open(os.path.join(HERE, name)) as program:
        return spawn(running, *before, shutil.which("setpriv"), "--reuid",
                     user, "--regid", user, "--clear-groups", ANYBODYS_PYTHON,
                     "-", "-f", *words, stdin=program)


def test_table_belongs_to_who_made_it(running):
    """Whoever is at work is left in peace; root may replace what another
    trusted user has left, and not an ordinary user's, which is named;
    nobody else may."""
    def start(user):
        """Return a user's recvstats, and the first line that it says."""
        process = start_as(running, user, "recvstats.py", "--table", table,
                           "-p", free_port())
        return process, process.stderr.readline()

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)        # all may write, as in /dev/shm
        table = folder + "/table"
        belongs = ("recvstats: %s: belongs to %%s: run recvstats as that "
                   "user, remove it, or choose another with --table\n" % table)
        theirs, line = start(7)
        assert "taken over" in line
        for user in 0, 8:
            assert start(user)[1] == "recvstats: %s\n" % (
                IN_USE % (table, theirs.pid, "lp"))
        running.end()
        assert start(8)[1] == belongs % "lp"
        assert start(0)[1] == (
            "recvstats: %s: was of user lp: made anew\n" % table)
        wait_for(lambda: os.stat(table).st_uid == 0)
        running.end()
        os.chown(table, 4321, 4321)
        before = os.stat(table)
        refused, line = start(0)
        assert line == belongs % "4321" and refused.wait(LIMIT_S) == 1
        assert os.path.samestat(os.stat(table), before)


DEFAULT_PATH = """
set -e; mount -t tmpfs -o mode=1777 none /dev/shm; cd /
cp %(table)s /dev/shm/table; chmod 644 /dev/shm/table
while read -r trap; do
    setpriv --reuid 1234 --regid 1234 --clear-groups sh -c "$trap"
    %(python)s %(here)s/beostat.py && exit 8
    %(python)s %(here)s/recvstats.py -p %(port)d --pid-file /dev/shm/pid
    test ! -e /dev/shm/racer || kill "$(cat /dev/shm/racer)"
    %(python)s %(here)s/beostat.py 3 2>&1 | grep 'node 3: not in the table'
    stat -c '%%u %%F' /dev/shm/beostat
    test "$(ls -d /dev/shm/beostat* | wc -l)" -ge 2     # nothing is deleted
    kill "$(cat /dev/shm/pid)"
    while test -e /dev/shm/pid; do sleep 0.02; done
    rm -rf /dev/shm/beostat* /dev/shm/racer
done
"""
TRAPS = """\
(while mkdir /dev/shm/beostat; :; do :; done) 2>&- & echo $! >/dev/shm/racer
mkdir -p /dev/shm/beostat/full
echo hello >/dev/shm/beostat
mkfifo /dev/shm/beostat
cp /dev/shm/table /dev/shm/beostat
ln -s /etc/passwd /dev/shm/beostat
mkdir /dev/shm/beostat /dev/shm/beostat.new
"""


def slow_nobody_blocks_the_default_path(running):
    """What an untrusted user puts there is renamed by root, not believed."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs a mount of its own, and another user")
    close(new_receiver(running.folder))
    shown = run("unshare", "-m", "sh", "-c", DEFAULT_PATH % dict(
        python=sys.executable, here=HERE, port=running.port,
        table=running.folder + "/t"), input=TRAPS)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == TRAPS.count("\n") * [
        "beostat: node 3: not in the table", "0 regular file"]
    assert "Traceback" not in shown.stderr


def slow_writer_in_another_namespace_is_seen_by_its_heartbeat(running):
    words = ["-f", "-p", running.port, "--table", running.table]
    process = running.start("recvstats.py", *words, python=(
        "unshare", "-p", "-f", sys.executable, "-S"))
    if "taken over" not in process.stderr.readline():
        pytest.skip("this machine allows no PID namespace")
    second = tool("recvstats.py", *words, "-p", free_port())
    assert second.returncode == 1 and "in use by another" in second.stderr
    child, = children_of(process.pid)
    os.kill(int(child), signal.SIGKILL)
    process.wait()
    running.port = free_port()
    running.recvstats()


# ---- loop --------------------------------------------------------------

GOOD = message(3, 2)
BAD = (
    # counter, datagram
    ("short", b""), ("short", b"BEO\x01"),
    ("short", GOOD[:43]), ("short", GOOD[:-1]),
    ("long", GOOD + b"\0"), ("long", broken(GOOD, length=len(GOOD) - 1)),
    ("magic_wrong", b"x" + GOOD[1:]),
    ("version_wrong", broken(GOOD, magic=b"BEO\x02")),
    ("crc_wrong", GOOD[:100] + b"\x7f" + GOOD[101:]),
    ("crc_wrong", GOOD[:-1] + bytes([GOOD[-1] ^ 1])),
    ("header_wrong", broken(GOOD, kind=0)),
    ("header_wrong", broken(GOOD, kind=4)),
    ("requests", broken(GOOD, kind=sendstats.REQUEST)),
    *[("header_wrong", broken(GOOD, period_s=period_s))
      for period_s in (float("nan"), float("inf"), -1.0, 0.0)],
    *[("number_wrong", broken(GOOD, node=node))
      for node in (65536, -3, 2**31 - 1)],
    ("unnumbered", broken(GOOD, node=-2)),
)


def test_bad_datagrams(running):
    """Each is counted by its cause, is told by -d, and changes nothing."""
    process = running.recvstats("-d")
    running.send(message(3), *[datagram for _, datagram in BAD])
    causes = ["stored"] + [counter for counter, _ in BAD]
    running.wait_count("received", len(causes))
    with running.open() as cluster:
        for cause in causes:
            assert getattr(cluster.status, cause) == causes.count(cause)
        assert (cluster[3].sequence, cluster[3].received) == (1, 1)
    process.terminate()
    assert re.findall(r" bytes: (\w+)", process.communicate()[1]) == causes


LEAVES = sendstats.FAREWELL
HISTORIES = (
    # why, options, steps: (at which second, what comes, what becomes of it)
    #   a message's fields, the end of the sender's address as `by`, its key:
    #       its counter
    #   "log": the lines since it was last looked at
    #   what a reader sees: "nodes": {number: state}, a number: {field:
    #       value} of the node, "status": of recvstats
    #   "gone" for 100 s, "back": how it ended
    ("a number belongs to its address until the node is down", "", (
        (0, dict(), "stored"),
        (2.9, dict(by=2, start=2000), "conflict"),
        (2.95, "log", ["up: n7", "node 7: 10.0.0.2 sends this number too; it "
                       "belongs to 10.0.0.1 until that is down: give one of "
                       "them another"]),
        (2.99, "log", []), (2.99, 7, dict(address="10.0.0.1")),
        (3.1, dict(by=2, start=3000), "stored"),
        (3.1, 7, dict(address="10.0.0.2")))),
    *[("what a farewell overtook brings nobody back", "", (
        (0, dict(), "stored"),
        (0, dict(sequence=3, kind=LEAVES), "stored"),
        (1, "log", ["left: n7", "up: n7"]),
        (99, dict(sequence=2, by=by), "late"),
        (99, dict(sequence=1, by=by), "repeated"),
        (99, dict(sequence=3, kind=LEAVES, by=by), "repeated"),
        (99, 7, dict(state="left", age_s=99, received=3, lost=0)),
        (99, dict(sequence=4, by=by), "stored"),
        (99, 7, dict(state="up")),
        (100, "log", ["up again: n7"]))) for by in (1, 2)],
    *[("down after three periods, at least 3 s", "", (
        (0, dict(node=2, period_s=period_s), "stored"),
        (0, dict(node=3, period_s=period_s), "stored"),
        (down_s - .1, "log", ["up: n[2-3]"]),
        (down_s - .1, 2, dict(state="up")),
        (down_s + .1, 2, dict(state="down")),
        (down_s + 1, "log", ["down: n[2-3]"]),
        (down_s + 2, dict(node=3, sequence=2), "stored"),
        (down_s + 3, "log", ["up again: n3"])))
      for period_s, down_s in ((.1, 3), (7, 21))],
    *[("numbers by address", options + " --max-nodes 32", (
        (0, dict(node=-2, by=100), "stored"),
        (0, dict(node=-2, by=131), "stored"),
        (0, dict(node=-2, by=99), "unnumbered"),
        (0, dict(node=-2, by=132), "unnumbered"),
        (0, "nodes", {0: "up", 31: "up"})))
      for options in ("--iprange 10.0.0.100",
                      "--iprange 10.0.0.100-10.0.0.131")],
    ("an address that makes a number is signed",
     "--key-file {} --iprange 10.0.0.0 --max-nodes 32", (
         (0, dict(node=-2, by=7, of=7, key=b"key"), "stored"),
         (0, dict(node=-2, by=8, of=7, key=b"key"), "signature_wrong"),
         (0, dict(node=-2, by=8, key=b"key"), "signature_wrong"),
         (0, "nodes", {7: "up"}))),
    *[("what is refused is logged once a minute", options, (
        *[(0, sent, counter)] * 3,
        (1, "log", ["%s: 3 datagrams dropped, the last one from "
                    "10.0.0.9:4000: %s" % (counter, advice)]),
        *[(30, sent, counter)] * 3, (31, "log", []),
        *[(59, sent, counter)] * 3, (60, "log", []),
        (61, "log", ["%s: 6 datagrams dropped, the last one from "
                     "10.0.0.9:4000: %s" % (counter, advice)])))
      for options, sent, counter, advice in (
          ("", dict(node=-2, by=9), "unnumbered",
           "give its node a number, or its address with --iprange"),
          ("--max-nodes 9", dict(node=9, by=9), "number_wrong",
           "give its node a lower number, or raise --max-nodes"),
          ("--allow 192.168.0.0/16", dict(by=9), "not_allowed",
           "name its network with --allow, or its interface with -i"),
          ("--key-file {}", dict(by=9), "unsigned",
           "start its agent with --key-file"),
          ("--key-file {}", dict(by=9, key=b"none"), "signature_wrong",
           "give its agent a key of --key-file"),
          *[("--key-file {}", dict(by=9, key=b"key", **ahead), "clock_wrong",
             "set its clock") for ahead in (dict(time_s=2e9),
                                            dict(start=2 * 10 ** 15))])],
    ("a second agent on a node", "", (
        (0, dict(start=2000), "stored"), (0, dict(), "stale"),
        (1, "log", ["up: n7", "stale: 1 datagrams dropped, the last one from "
                    "10.0.0.1:4000: two agents run there, end one; or its "
                    "clock went back"]))),
    *[("of 100 s in which recvstats was %s nothing counts: who was down stays "
       "down, who was up has what was left of his three periods" % end, "", (
           (0, dict(node=1), "stored"),
           (0, dict(node=3, kind=LEAVES), "stored"),
           (7.5, dict(node=2), "stored"),
           (9.5, "log", ["left: n3", "up: n1", "down: n1", "up: n2"]),
           (9.5, dict(node=2), "repeated"),
           (9.5, "gone", end),
           (9.5, "nodes", {1: "down", 2: "up", 3: "left"}),
           (9.5, "status", dict(
               running=False, uptime_s=9.5, stored=3, stopped=end == "stopped",
               received=3 + (end == "stopped"))),
           (9.5, 2, dict(age_s=102)),
           (9.5, "back", end),
           (9.5, dict(node=4), "stored"),
           (10.4, "log", ["up: n4"]),
           (10.4, "nodes", {1: "down", 2: "up", 3: "left", 4: "up"}),
           (10.4, "status", dict(running=True)),
           (11.4, "log", ["down: n2"])))
      for end in ("killed", "stopped", "starved")],
    ("a number that moves while its node is up", "--key-file {}", (
        (0, dict(key=b"key"), "stored"),
        (0, dict(sequence=2, key=b"key", by=2), "stored"),
        (1, "log", ["up: n7", "node 7: was up at 10.0.0.1 and is now at "
                    "10.0.0.2"]))),
)


def take_step(receiver, what, want):
    """Return what becomes of a step of HISTORIES, in the form of `want`."""
    if what == "log":
        lines, receiver.lines[:] = [*receiver.lines], []
        return lines
    if isinstance(what, dict):
        fields = dict(dict(node=7, by=1, key=None), **what)
        by, key = fields.pop("by"), fields.pop("key")
        of, data = fields.pop("of", None), message(**fields)
        mac = key and sign(data + (bytes([10, 0, 0, of]) if of else b""), key)
        return feed(receiver, data + mac[-16:] if key else data,
                    "10.0.0.%d" % by)
    with libbeostat.open(receiver.table.path) as cluster:
        if what == "nodes":
            return {node.number: node.state for node in cluster}
        looked = cluster.status if what == "status" else cluster[what]
        return {field: getattr(looked, field) for field in want}


@pytest.mark.parametrize("why, options, steps", HISTORIES)
def test_history(tmp_path, why, options, steps):
    options = options.format(write_key(tmp_path, b"new", b"key")).split()
    with Clock() as clock:
        receiver, gone_s = new_receiver(tmp_path, *options), clock.now
        for at_s, what, want in steps:
            while clock.now < gone_s + at_s:    # it is at work meanwhile
                clock.now = min(clock.now + 1, gone_s + at_s)
                receiver.tick(clock.now)
            if what == "gone":
                if want == "stopped":
                    receiver.stop(clock.now)
                clock.now, gone_s = clock.now + 100, gone_s + 100
            elif what == "back":
                if want != "starved":
                    killed(receiver)
                    receiver = new_receiver(tmp_path, *options)
                receiver.wake(clock.now)
            else:
                got = take_step(receiver, what, want)
                assert got == want, (at_s, what)
        close(receiver)


def test_list_of_the_log_is_bounded():
    text = recvstats.format_nodes(range(0, 2000, 2))
    assert len(text) < 450 and text.endswith("... (1000 nodes)]")


def test_messages_of_a_second_whenever_it_ticks(receiver):
    """A signal makes it tick early, a nap a little late."""
    now, sequence = receiver.table.counted_s, itertools.count(1)
    for passed_s, messages, shown in (1, 7, 7), (0.2, 3, 7), (1.8, 17, 10):
        for _ in range(messages):
            feed(receiver, message(3, next(sequence)))
        now += passed_s
        receiver.tick(now)
        with libbeostat.open(receiver.table.path) as cluster:
            assert cluster.status.messages_per_s == shown


def test_signal_that_came_while_a_call_failed_is_obeyed(receiver):
    """SIGHUP by the next tick, here with SIGTERM, which ends it."""
    errors, ticks = iter([OSError("no memory")]), []

    def receive(_):
        raise next(errors, BlockingIOError())
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, bytes([signal.SIGHUP]))
    receiver.tick = lambda _, told: ticks.append(told) or os.write(
        writer, bytes([signal.SIGTERM]))
    sock = types.SimpleNamespace(fileno=lambda: reader, recvfrom_into=receive)
    recvstats.run(receiver, sock, reader)
    assert signal.SIGHUP in ticks[0] and signal.SIGHUP not in ticks[1]
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("nap_s, count, want_s", (
    (0.0, 1, 0.005),                    # the first after a while
    (0.005, 3, 0.1),                    # few come: never longer than that
    (0.1, 1000, 0.01),                  # so that a hundred come
    (0.01, 4000, 0.005),                # many: never shorter
    (0.01, recvstats.BATCH, 0.0)))      # and there may be more
def test_datagrams_gather_until_they_are_enough(nap_s, count, want_s):
    assert recvstats.choose_nap(nap_s, count, 100) == pytest.approx(want_s)


def test_recvstats_is_nicer_than_its_caller_where_it_may(running):
    pid = running.recvstats().pid
    wanted = run(sys.executable, "-c", "import os, recvstats\n"
                 "recvstats.attempt(os.nice, -10)\nprint(os.nice(0))",
                 cwd=HERE)
    assert os.getpriority(os.PRIO_PROCESS, pid) == int(wanted.stdout)


def slow_recvstats_that_is_stopped_for_a_while(running):
    """SIGSTOP: the node is up when recvstats goes on, its samples having
    waited in the socket or not."""
    process = running.recvstats()
    running.send(message(3), message(4))
    running.wait_up(4)
    process.send_signal(signal.SIGSTOP)
    with running.open() as cluster:
        wait_for(lambda: not cluster.running)
        running.send(message(3, 2))
        assert [node.state for node in cluster] == ["up", "up"]
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: cluster.running and cluster[3].sequence == 2)
        assert [node.state for node in cluster] == ["up", "up"]


def slow_log_is_bounded_in_lines_and_what_waits_is_folded(running):
    """Farewells and samples in turn, for ever."""
    process = running.recvstats()
    for turn in range(60):
        running.send(*[message(node, turn + 1, kind=1 + turn % 2)
                       for node in (3, 4, 5)])
        process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    process.terminate()
    lines = process.communicate()[1].splitlines()
    assert len(lines) <= 25
    assert any("left: n[3-5]" in line for line in lines)


LIES = {                        # a datagram of node 1
    "counts beyond its length": message(1, body=body_with(
        cpus=9, interfaces=9)),
    "counts below its length": message(1, body=body_with(
        cpus=0, interfaces=0)),
    "NaN": message(1, body=body_with(one=float("nan"))),
    "endless": message(1, body=body_with(five=float("inf"))),
    "negative": message(1, body=body_with(busy_fraction=-0.5)),
    "a share over 1": message(1, body=body_with(busy_fraction=1.5)),
    "a CPU over 100 %": message(1, body=body_of_counts(1, 0, busy=10001)),
    "nonsense": message(1, body=b"nonsense"),
    "newer": broken(message(1), version=libbeostat.RECORDS_VERSION + 1),
}


@pytest.mark.parametrize("why", LIES)
def test_lie_is_that_nodes_error_and_the_others_are_shown(receiver, why):
    for data in message(0), LIES[why], message(2):
        assert feed(receiver, data) == "stored"
    with libbeostat.open(receiver.table.path) as cluster:
        with pytest.raises(libbeostat.OtherVersion if why == "newer"
                           else libbeostat.BadSample):
            cluster[1]
        assert [node.number for node in cluster] == [0, 2]
        assert list(cluster.refused) == [1]
        assert 1 in cluster and len(cluster) == 3


@pytest.mark.parametrize("words, field, value", [
    ("", "expected", 2**32 - 1), ("", "used_entries", 2**32 - 1),
    ("", "request_time_s", 1e300), ("--daemon", "uptime_s", float("inf")),
    ("", "heartbeat_s", float("nan")), ("--json", "away_s", -1.0)])
def test_header_that_cannot_be_is_damage(tmp_path, words, field, value):
    receiver = new_receiver(tmp_path)
    receiver.table.status[field] = value
    receiver.table.write_header()
    killed(receiver)
    path = receiver.table.path
    shown = tool("beostat.py", "--table", path, *words.split())
    assert (shown.returncode, shown.stdout, shown.stderr) == (
        3, "", "beostat: %s: damaged header\n" % path)


@pytest.mark.parametrize("name", ["down", "up", "all", "master", "-1", "5",
                                  "n[5-6]", "5-6"])
def test_no_host_name_takes_a_word_or_a_number(receiver, name):
    feed(receiver, message(5, body=body_with(hostname=b"five")))
    feed(receiver, message(96, body=body_with(hostname=name.encode())))
    with libbeostat.open(receiver.table.path) as cluster:
        chosen = libbeostat.parse_nodes("5,%s" % name, [*cluster])
        assert chosen[0] == 5 and (96 in chosen) == (name in ("up", "all"))


def test_errors_of_the_library(tmp_path):
    """Also: a reader keeps what it had when the new table is cut off."""
    receiver = new_receiver(tmp_path, "-N", "9")
    feed(receiver, message(3))
    receiver.stop(time.monotonic() - 10)
    path = receiver.table.path
    with libbeostat.open(path) as cluster:
        for number in 9999, -2:
            with pytest.raises(libbeostat.NoSuchNode):
                cluster[number]
        shutil.copy(path, path + ".new")
        os.truncate(path + ".new", libbeostat.TABLE_BYTES + 2)
        os.rename(path + ".new", path)
        assert [node.number for node in cluster] == [3]
        assert cluster[3].number == 3


# ---- model -------------------------------------------------------------
# Random histories, in a time of their own, go to a receiver and to a plain
# model, written from README and not from the code.  After each step a reader
# must see what the model holds.  A history that fails is printed with its
# seed, without the steps that do not matter; SEED=n makes others.

SEED = int(os.environ.get("SEED", 1))
PLAYS = 40000 if LONG else 80
OFTEN = {"receive": 80, "repeat": 30, "listen": 20, "sleep": 1, "stop": .5,
         "kill": .5, "change_key": .5, "set_clock": .5}
MOST_S = {"listen": (.5, .5, .5, .5, .5, 5, 100), "sleep": (50,),
          "stop": (2, 50), "kill": (2, 50), "change_key": (2,),
          "set_clock": (99, -99, 9999, -9999)}
Sent = collections.namedtuple(
    "Sent", "node start_us sequence kind period_s time_s address key")
SEEN = operator.attrgetter(
    "state", "received", "lost", "restarts", "address", "signature",
    "sequence", "start_time_s", "heard_time_s", "age_s")


class Model:
    """A receiver without bytes: each node is what it should be.

    nodes  {number: what is known of it}: the last message that was `sent`;
           the numbers of those that `came` since its agent's start, of all
           from `first` on; `least`: those before are not awaited; (received,
           lost) `before` that start
    """

    def __init__(self):
        self.nodes, self.written = {}, (0.0, 0.0)   # heartbeat_s, away_s

    def start(self, key, now):
        """Begin as a new process, which knows what the table says."""
        self.key, (self.heartbeat_s, self.away_s) = key, self.written
        self.wake(now, 0)

    def wake(self, now, most_s=2):
        """Let the clock for silence stand still while nobody listened."""
        if now - self.heartbeat_s > most_s:
            self.away_s += now - self.heartbeat_s
            self.heartbeat_s = now

    def tick(self, now):
        self.heartbeat_s, self.written = now, (now, self.away_s)
        self.wall_s = time.time() - now

    def silence_s(self, held, now):
        return now - self.away_s - held.silent_from_s

    def state(self, held, now):
        if held.sent.kind == sendstats.FAREWELL:
            return "left"
        is_down = self.silence_s(held, now) > max(3, 3 * held.sent.period_s)
        return "down" if is_down else "up"

    def receive(self, sent, now, wall_s):
        """Return the counter that a datagram adds to."""
        if self.key and sent.key != self.key:
            return "signature_wrong" if sent.key else "unsigned"
        if self.key and max(sent.start_us / 1e6, sent.time_s) > wall_s + 60:
            return "clock_wrong"
        held = self.nodes.get(sent.node)
        if not held:
            return self.store(sent, now, sent.sequence, -2**32)
        is_owned = (self.state(held, now) == "up"
                    and self.silence_s(held, now) <= 60)
        if is_owned and not self.key and sent.address != held.sent.address:
            return "conflict"
        last = max(held.came)
        number = last + (sent.sequence - last + 2**31) % 2**32 - 2**31
        is_same = sent.start_us == held.sent.start_us
        if is_same and number > last:
            return self.store(sent, now, held.first, held.least, held.before,
                              held.restarts, held.came | {number})
        if is_same and (self.key or is_owned or number > last - 64
                        and held.sent.kind == sendstats.FAREWELL):
            return self.late(held, number, last)
        first = sent.sequence
        if sent.start_us > held.sent.start_us:
            first = min(1, first)
        elif not is_same and (self.key or is_owned):
            return "stale"
        return self.store(sent, now, first, first, self.counts(held),
                          held.restarts + (not is_same))

    def late(self, held, number, last):
        """Count what newer messages overtook, as far as that can be told."""
        if number in held.came or number < max(held.least, last - 63):
            return "repeated"
        held.came.add(number)
        held.first = min(held.first, number)
        return "late"

    def store(self, sent, now, first, least, before=(0, 0), restarts=0,
              came=()):
        self.nodes[sent.node] = types.SimpleNamespace(
            sent=sent, first=first, least=least, before=before,
            restarts=restarts, came={*came} or {sent.sequence}, heard_s=now,
            heard_time_s=now + self.wall_s, silent_from_s=now - self.away_s,
            signature=("none" if not sent.key else
                       "verified" if self.key else "unverified"))
        return "stored"

    def counts(self, held):
        """Return (received, lost)."""
        received, lost = held.before
        return (received + len(held.came),
                lost + max(held.came) - held.first + 1 - len(held.came))

    def view(self, now):
        """Return what a reader should see."""
        return {number: (
            self.state(held, self.heartbeat_s), *self.counts(held),
            held.restarts, held.sent.address, held.signature,
            held.sent.sequence, held.sent.start_us / 1e6, held.heard_time_s,
            now - held.heard_s)
                for number, held in self.nodes.items()}


def next_of(sent, chance, wall_s):
    """Return the message that an agent sends after another."""
    step = chance.choice((1,) * 25 + (2, 31, 62, 63, 64, 65, 66, 501))
    at_s = wall_s + chance.uniform(-9, 9) + chance.choice(
        (0, 0, 0, 0, 62, 1e4, -1e4))
    changes, = chance.choices((
        {}, dict(kind=sendstats.FAREWELL),
        dict(sequence=1, start_us=int(at_s * 1e6), time_s=at_s),
        dict(address="10.0.0.%d" % chance.randrange(1, 7)),
        dict(key=chance.choice((None, b"one", b"one", b"one", b"two"))),
        dict(period_s=chance.choice((.5, 1.0, 2.0, 7.5, 3600.0)))),
        (60, 4, 3, 2, 2, 2))
    return sent._replace(**dict(dict(
        kind=sendstats.SAMPLE, sequence=(sent.sequence + step) % 2**32),
        **changes))


def draw_history(seed, length):
    """Return what agents and a bad network do: steps, each a method of Play
    and its argument."""
    chance, wall_s, steps = random.Random(seed), 1e9, []
    agents = [Sent(
        chance.randrange(-1, 6), int(chance.uniform(999.99e12, 1e15)),
        chance.choice((1, 1, 51, 2**32 - 6)), sendstats.SAMPLE, 1.0, 1e9,
        "10.0.0.%d" % number, b"one") for number in range(1, 6)]
    sent = [*agents]
    for what in chance.choices([*OFTEN], [*OFTEN.values()], k=length):
        if what == "receive":
            number = chance.randrange(5)
            agents[number] = next_of(agents[number], chance, wall_s)
            sent.append(agents[number])
            if chance.random() < .75:   # else it may come later
                steps.append((what, sent[-1]))
        elif what == "repeat":
            steps.append(("receive", chance.choice(
                sent[-chance.choice((3, 9, 50, 5000)):])))
        else:
            seconds = chance.uniform(0, chance.choice(MOST_S[what]))
            wall_s += seconds
            steps.append((what, seconds))
    return steps


class Play:
    """A receiver and a model that go through the same steps."""

    def __init__(self, folder, clock):
        self.folder, self.clock, self.model = folder, clock, Model()
        self.key = None
        self.begin()

    def begin(self):
        options = ["--key-file", write_key(self.folder, b"one")]
        self.receiver = new_receiver(self.folder, "--max-nodes", "9", *(
            options if self.key else ()))
        self.model.start(self.key, self.clock.now)
        self.both("wake", "tick")

    def both(self, *calls):
        for call in calls:
            getattr(self.receiver, call)(self.clock.now)
            getattr(self.model, call)(self.clock.now)

    def receive(self, sent):
        data = message(sent.node, sent.sequence, sent.start_us, sent.kind,
                       sent.period_s, time_s=sent.time_s)
        counter = feed(self.receiver, sign(data, sent.key) if sent.key
                       else data, sent.address, self.clock.now)
        want = self.model.receive(sent, self.clock.now, time.time())
        if counter != want:
            return "recvstats says %s, the model %s" % (counter, want)

    def listen(self, seconds):
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 1)
            self.both("wake", "tick")

    def sleep(self, seconds):
        self.clock.now += seconds
        self.both("wake")

    def stop(self, seconds):
        """What was not heard before the end is no silence either."""
        self.clock.now += seconds
        self.receiver.stop(self.clock.now)
        self.model.wake(self.clock.now)
        self.model.tick(self.clock.now)
        self.kill(seconds)

    def kill(self, seconds):
        killed(self.receiver)
        self.clock.now += seconds
        self.begin()

    def change_key(self, seconds):
        self.key = None if self.key else b"one"
        self.kill(seconds)

    def set_clock(self, seconds):
        self.clock.offset_s += seconds
        self.both("tick")


def play(folder, steps):
    """Return in what a reader and the model differ first, or None."""
    with Clock() as clock:
        clock.now, clock.offset_s = 1e4, 1e9 - 1e4
        played = Play(folder, clock)
        path = played.receiver.table.path
        try:
            with libbeostat.open(path) as cluster:
                for what, argument in steps:
                    trouble = getattr(played, what)(argument)
                    seen = {node.number: SEEN(node) for node in cluster}
                    want = played.model.view(clock.now)
                    if trouble or seen != want:
                        return trouble or "a reader sees %s,\nthe model %s" % (
                            seen, want)
        finally:
            killed(played.receiver)
            os.unlink(path)


def test_model(tmp_path):
    for seed in range(SEED, SEED + PLAYS):
        steps = draw_history(seed, 100)
        trouble = play(tmp_path, steps)
        if trouble:
            for at in reversed(range(len(steps))):
                without = steps[:at] + steps[at + 1:]
                if play(tmp_path, without):
                    steps = without
            raise AssertionError("SEED=%d fails:\n%s\n%s" % (
                seed, "\n".join(map(str, steps)), play(tmp_path, steps)))


# ---- command line ------------------------------------------------------


PROGRAMS = "sendstats", "recvstats", "beostat"


def options_of(name):
    """Return the options of a tool's parser."""
    return [option for action in globals()[name].make_parser()._actions
            for option in action.option_strings]


@pytest.mark.parametrize("command, says", [
    ("sendstats 7 m1 --rat 3 --nonsense", "--nonsense"),
    ("sendstats -r 0 7", "0 is not between 0.01 and 3600.0"),
    ("sendstats -p 70000", "70000 is not between 1 and 65535"),
    *[("sendstats 7 " + word, word + " is not ADDRESS[:PORT]")
      for word in ("master:0", "a:b", "m1:99999", "m1:http")],
    *[("sendstats " + word, "node number %s is out of range" % word)
      for word in ("-3", "2147483648")],
    ("sendstats -a master", "'master'"), ("sendstats --allow x", "'x'"),
    ("NODE=seven sendstats m1", "$NODE is not a node number: 'seven'"),
    *[("sendstats " + words, "; a node number is digits alone, and comes "
       "first") for words in ("10.77.0.1 4", "n3", "n3 master", "4.0", "+4",
                              "7 master 8")],
    ("sendstats --procstatd 7885 --once", "--once: name a node or a master"),
    *[(name + " -i " + "i" * 16, "interface value: '%s'" % ("i" * 16))
      for name in PROGRAMS[:2]],
    ("recvstats -p 0", "0 is not between 1 and 65535"),
    ("recvstats -N -1", "-1 is not between 0 and 16777216"),
    ("recvstats -N 9 --max-nodes 8", "-N 9 is more than --max-nodes 8"),
    ("recvstats --iprange 10.0.0.9-10.0.0.1",
     "10.0.0.9-10.0.0.1: ends before it begins"),
    ("recvstats --iprange here", "here is not FIRST[-LAST], two IPv4 "
     "addresses"), ("recvstats operand", "operand"),
    ("recvstats --allow 10.0.0.0/33", "network value: '10.0.0.0/33'"),
    ("beostat --sort zip", "--sort zip: choose from node state age cpus cpu "
     "load running tasks mem swap disk in out name"),
    ("beostat --sort", "--sort: expected one argument"),
    ("beostat --top 0", "--top 0: at least 1"),
    *[("beostat -w " + word, "--watch: 0.1 to 1e+06 seconds")
      for word in ("0.01", "1e7")],
    ("beostat --daemon 0", "--daemon is about recvstats: no NODES"),
    *[("beostat " + words, "one view at a time") for words in (
        "--json -c", "--json --dots", "--html --json", "--names --dots",
        "--json --events --dots", "-l --events", "--dots --events")],
    *[("beostat --events " + words, "--events: no --sort, --reverse, --top "
       "or --brief") for words in ("--sort cpu", "--reverse", "-b",
                                   "--top 3")],
    *[("beostat %s--cluster blue" % words, "--cluster goes with --ganglia, "
       "--html, or --serve") for words in ("", "--json ")],
    *[("beostat --serve 9545 " + words, "--serve goes with --per-cpu, "
       "--cluster and --table alone") for words in ("--json", "7", "-w")],
    *[("beostat --serve " + word, word + " is not [ADDRESS:]PORT")
      for word in ("99999", "master:9545")],
    *[("beostat " + words, "--http goes before one document")
      for words in ("--http", "--html --http -w")],
    ("beostat --json --per-cpu", "--per-cpu goes with --prometheus, or "
     "--serve")])
def test_usage_error(capfd, command, says):
    node, name, words = re.match(r"(?:NODE=(\w+) )?(\w+) (.*)",
                                 command).groups("")
    with pytest.raises(SystemExit) as ended:
        globals()[name].parse_args(
            words.split(), *[{"NODE": node}] * (name == "sendstats"))
    output, error = capfd.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert error.startswith("usage: %s.py" % name)
    assert error.endswith(says + "\n")


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_fits_a_screen_and_ends_with_examples(name):
    """Tried as a process, with a usage error and the version."""
    shown, refused, *versions = [tool(name + ".py", word) for word in (
        "--help", "--nonsense", "-v", "--version")]
    lines = shown.stdout.splitlines()
    assert (shown.returncode, shown.stderr) == (0, "")
    assert len(lines) <= 25 and max(map(len, lines)) <= 79
    assert "examples:" in lines and lines[-1].startswith("  ")
    for option in options_of(name):
        assert re.search(r"(?<![\w-])%s(?![\w-])" % option, shown.stdout)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"(?s)usage: .*--nonsense\n", refused.stderr)
    for shown in versions:
        assert (shown.returncode, shown.stdout, shown.stderr) == (
            0, "%s %s\n" % (name, sendstats.VERSION), "")


RECVSTATS = "recvstats.py -p {port} --table {folder}/t"
SENDSTATS = "sendstats.py -p {port} --pid-file {folder}/%s 7 127.0.0.1"
USED = ("UDP port {used}: Address already in use by pid {pid}: end it, or "
        "choose another with -p")


@pytest.mark.parametrize("command, says", [
    ("sendstats.py --proc /none 0 m", "--proc /none: no such folder"),
    ("sendstats.py --pid-file /none/pid 0 m", "/none/pid: No such file or "
     "directory"),
    *[(command + " --key-file /none/key", "/none/key: No such file or "
       "directory") for command in ("sendstats.py 0 m", "sendstats.py -f 0 m",
                                    RECVSTATS, RECVSTATS + " -f")],
    *[("sendstats.py 0 m --key-file {folder}/" + name, "{folder}/" + says)
      for name, says in (
          ("text", "text: others may read it: chmod o= {folder}/text"),
          *[(name, name + ": must hold keys of 1 to 64 bytes, one a line")
            for name in ("nothing", "long")])],
    (RECVSTATS + " --table /none/table", "/none/table: cannot be made: No "
     "such file or directory: choose another with --table"),
    (RECVSTATS + " -p {used}", USED), (RECVSTATS + " -p {used} -f", USED),
    *[(command % name, "{folder}/%s: is not a pid file: name another" % name)
      for command, name in (
          (RECVSTATS + " --pid-file {folder}/%s", "text"), (SENDSTATS, "fifo"),
          (SENDSTATS, "device"), (SENDSTATS, "second"), (SENDSTATS, "text"))],
    (SENDSTATS % "link", "{folder}/link: Too many levels of symbolic links"),
    (SENDSTATS % "theirs", "{folder}/theirs: belongs to another user: remove "
     "it, or name another"),
    ("beostat.py --table {folder}/none", "{folder}/none: No such file or "
     "directory: recvstats is not running: start it with recvstats.py, or "
     "name its table with --table"),
    *[("beostat.py --table {folder}/t%s > /dev/full" % view,
       "cannot write: No space left on device") for view in ("", " --json")]])
def test_answer(receiver, tmp_path, command, says):
    """No file is touched: a device would be removed, and closed to all
    others before."""
    def found():
        return {path: path.lstat()[:7] for path in tmp_path.iterdir()}
    (tmp_path / "text").write_text("root:x:0:0\n")
    for name, text in ("first", ""), ("theirs", ""), ("nothing", "\n"), (
            "long", "x" * 65):
        write_file(str(tmp_path / name), text.encode())
        (tmp_path / name).chmod(0o600)
    os.link(str(tmp_path / "first"), str(tmp_path / "second"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(str(tmp_path / "fifo"))
    if not os.geteuid():
        os.mknod(str(tmp_path / "device"), 0o20666, os.makedev(1, 3))
        os.chown(str(tmp_path / "theirs"), 1234, 1234)
    elif "device" in command or "theirs" in command:
        pytest.skip("needs files of others")
    before, name = found(), command.partition(".")[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        names = dict(folder=tmp_path, port=free_port(), pid=os.getpid(),
                     used=sock.getsockname()[1])
        ended = run("sh", "-c", "exec %s -S %s/%s" % (
            sys.executable, HERE, command.format(**names)))
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        3 if name == "beostat" else 1, "",
        "%s: %s\n" % (name, says.format(**names)))
    assert found() == before


@pytest.mark.parametrize("name, umask", [("recvstats.py", 0o777),
                                         ("sendstats.py", 0)])
def test_pid_file(running, name, umask):
    """Whatever the umask nobody else can lock it, which would stop the next
    start, and all can read a table; it is there when the parent is back, and
    gone after the end, for which nobody has to wait."""
    path = os.path.join(running.folder, "pid")

    def start():
        return running.daemon(name, *["-r", 3600] * (name == "sendstats.py"),
                              preexec_fn=lambda: os.umask(umask))
    assert start().returncode == 0
    assert os.stat(path).st_mode & 0o777 == 0o600
    if name == "recvstats.py":
        assert os.stat(running.table).st_mode & 0o777 == 0o644
    again = start()
    assert (again.returncode, again.stderr) == (
        1, "%s: %s: is of another that runs (pid %d): end it, or choose "
        "another with --pid-file\n" % (name[:-3], path, running.pids[0]))
    os.kill(running.pids[0], signal.SIGKILL)
    wait_for(lambda: start().returncode == 0)           # it is stale now
    assert running.pids[-1] != running.pids[0]
    os.kill(running.pids[-1], signal.SIGTERM)
    wait_for(lambda: not os.path.exists(path))


def test_pid_file_removed_while_we_wait_for_it(tmp_path, monkeypatch):
    """A daemon that ends removes its file: the lock is then on no file."""
    path, lock = str(tmp_path / "pid"), fcntl.flock

    def late(fd, how):
        monkeypatch.undo()
        os.unlink(path)
        lock(fd, how)
    monkeypatch.setattr(fcntl, "flock", late)
    remove = sendstats.hold_pid_file(path)
    with pytest.raises(sendstats.StartError, match="is of another"):
        sendstats.hold_pid_file(path)
    assert read_pid(path) == os.getpid()
    remove()
    assert not os.path.exists(path)


def test_user_of_a_port_opens_and_closes_files_meanwhile():
    def churn():
        while sock.fileno() >= 0:
            for fd in [os.dup(0) for _ in range(50)]:
                os.close(fd)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
        first.bind(("", 0))
        port = first.getsockname()[1]   # of a number behind those that go
        sock = socket.socket(fileno=fcntl.fcntl(
            first, fcntl.F_DUPFD_CLOEXEC, 500))
    with concurrent.futures.ThreadPoolExecutor(1) as pool, sock:
        pool.submit(churn)
        for _ in range(9):
            assert " by pid %d: " % os.getpid() in recvstats.find_user(port)


def test_daemons_keep_no_file_of_their_caller(running):
    """A lock of its would be held for ever; select knows none over 1,023.
    A socket with the number of a standard file would be lost."""
    def clutter():
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for _ in range(min(1100, most - 99)):
            os.set_inheritable(os.open(running.folder, os.O_RDONLY), True)
        os.closerange(0, 3)
    for name, *words in (("recvstats.py", "--table", running.table),
                         ("sendstats.py", "-r", "0.1", 0, "127.0.0.1")):
        path = os.path.join(running.folder, name)
        assert tool(name, "-p", running.port, "--pid-file", path, *words,
                    close_fds=False, preexec_fn=clutter).returncode == 0
        running.pids.append(read_pid(path))
    assert running.wait_up(0).kernel.forks
    for pid in running.pids:
        folder = "/proc/%d/fd/" % pid
        files = {fd: os.readlink(folder + fd) for fd in os.listdir(folder)}
        assert [files[fd] for fd in "012"] == 3 * ["/dev/null"]
        assert running.folder not in files.values()


def slow_agent_that_can_send_nothing_stays(running):
    """Its parent does not wait until it is ready.  Nor does recvstats'."""
    assert running.daemon("recvstats.py", "-i", "nope\udcff").stderr == (
        "recvstats: interface nope\\udcff is not there: waiting for it\n")
    path = os.path.join(running.folder, "agent")
    started = tool("sendstats.py", "--pid-file", path, 7, "no-such.invalid")
    running.pids.append(read_pid(path))
    assert started.returncode == 0
    assert re.fullmatch(r"sendstats: no-such.invalid:5545: .*: trying again\n",
                        started.stderr)
    time.sleep(0.3)
    os.kill(running.pids[-1], signal.SIGTERM)
    wait_for(lambda: not os.path.exists(path))


def slow_parent_that_is_killed_changes_nothing(running):
    running.recvstats()
    path = os.path.join(running.folder, "pid")
    parent = running.start("sendstats.py", "-r", "0.1", "-p", running.port,
                           "--pid-file", path, 7, "127.0.0.1", "no.such.name")
    wait_for(lambda: os.path.exists(path) and os.path.getsize(path))
    parent.kill()
    running.pids.append(read_pid(path))
    with running.open() as cluster:
        wait_for(lambda: 7 in cluster and cluster[7].sequence > 5)


@pytest.mark.parametrize("name, words, library, says", [
    ("sendstats.py", "--help", "", ""), ("recvstats.py", "--help", "", ""),
    ("libbeostat.py", "", "", ""),
    ("beostat.py", "", "", "beostat: libbeostat.py is not beside {}/beostat.py"
     ": copy it there\n"),
    ("beostat.py", "", "VERSION = '1.0'", "beostat: {}/libbeostat.py is of "
     "version 1.0, beostat of %s: copy both from one release\n"
     % beostat.VERSION)])
def test_file_alone_in_a_folder(tmp_path, name, words, library, says):
    """Or beside a library of another release."""
    shutil.copy(os.path.join(HERE, name), str(tmp_path))
    if library:
        (tmp_path / "libbeostat.py").write_text(library)
    ended = run(sys.executable, "-I", "-S", name, *words.split(),
                cwd=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (
        int(bool(says)), says.format(os.path.realpath(str(tmp_path))))
    assert library or os.listdir(str(tmp_path)) == [name]


# ---- end to end on loopback --------------------------------------------


def test_daemons_one_after_the_other(running, tmp_path, monkeypatch):
    """By links, as in /usr/bin, to files elsewhere, and with the table's path
    in the environment.  A daemon's command returns when it is at work."""
    for name in PROGRAMS:
        (tmp_path / name).symlink_to(os.path.join(HERE, name + ".py"))
    monkeypatch.setenv("BEOSTAT_TABLE", running.table)
    files = [str(tmp_path / name) for name in ("r", "s")]
    shown = run("sh", "-c", (
        "{0} recvstats -p {1} --table {2} --pid-file {3} && "
        "{0} sendstats -p {1} --pid-file {4} 0 127.0.0.1 && {0} beostat")
        .format(sys.executable + " -I", running.port, running.table, *files),
        cwd=str(tmp_path))
    running.pids += map(read_pid, files)
    assert (shown.returncode, shown.stderr) == (0, "")
    _, node, total = map(str.split, shown.stdout.splitlines())
    assert node[:2] + node[3:4] + node[-1:] + total[:3] == [
        "0", "up", "%d" % os.sysconf("SC_NPROCESSORS_ONLN"),
        os.uname().nodename, "total", "1", "up"]
    document = json.loads(running.beostat("--json", "0").stdout)
    node, = document["nodes"]
    assert (document["path"], document["recvstats"]["running"],
            len(node["cpus"]), node["processor"]["ticks_per_s"]) == (
        running.table, True, node["agent"]["cpus"], os.sysconf("SC_CLK_TCK"))
    for pid, path in zip(reversed(running.pids), reversed(files)):
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not os.path.exists(path))
    after = running.beostat()
    assert after.returncode == 3 and "    0 left " in after.stdout
    assert "is gone: start it again" in after.stderr


@pytest.mark.parametrize("path", ["{}/n@tify", "@{}"])
def test_systemd_is_told_when_a_daemon_is_ready(running, path):
    """As sd_notify(3) says; @ stands for an address without a file."""
    path = path.format(running.folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(re.sub("^@", "\0", path))
        told.settimeout(LIMIT_S)
        environment = dict(os.environ, NOTIFY_SOCKET=path)
        running.recvstats(env=environment)
        assert told.recv(99) == b"READY=1"
        with running.open() as cluster:
            assert cluster.running and not len(cluster)
            running.sendstats(3, "127.0.0.1", "-r", "60", env=environment)
            assert told.recv(99) == b"READY=1"
            assert cluster[3].state == "up"


def slow_several_masters_and_one_that_refuses_until_it_is_there(running):
    """The reader of the agent's lines goes meanwhile; and it is killed."""
    port, table = free_port(), running.table + "2"
    running.recvstats()
    agent = running.sendstats("-d", "-r", "0.1", 3, "no.such.name",
                              "127.0.0.1", "127.0.0.1:%d" % port)
    agent.stdout.close()
    agent.stderr.close()
    first = running.wait_up(3).sequence
    with running.open() as cluster:
        wait_for(lambda: cluster[3].sequence > first + 5)
        running.recvstats("-p", port, "--table", table)
        with libbeostat.open(table) as other:
            node = wait_for(lambda: 3 in other and other[3])
        assert node.state == "up" and node.sequence > first + 5
        assert node.agent.send_errors > 0       # the name
        assert cluster[3].lost == 0
        agent.kill()
        wait_for(lambda: cluster[3].state == "down")
    shown = running.beostat()
    assert shown.returncode == 1 and "down: n3\n" in shown.stdout


def test_number_of_the_environment_or_by_address(running, answer):
    """Signed; and what -d says is received."""
    key = "--key-file", write_key(running.folder, b"key")
    receiver = running.recvstats("-d", "--iprange", "127.0.0.1-127.0.0.9",
                                 *key)
    for number, words, env in ((6, (), {"NODE": "6"}), (-1, ("--", -1), {}),
                               (4, ("-a", "127.0.0.5"), {})):
        assert tool("sendstats.py", "--once", "-r", 60, "-p", running.port,
                    *key, *words, "127.0.0.1",
                    env={**os.environ, **env}).returncode == 0
        node = running.wait_up(number)
    assert node.address == "127.0.0.5"
    assert re.findall(r"(?m)^ *(\S+) up", answer(
        running.table, "-b", "master", "-1")[1]) == ["-1"]
    receiver.terminate()
    assert re.findall(r"127.0.0.\d:\d+: node (\S+), \d+ bytes: stored",
                      receiver.communicate()[1]) == ["6", "-1", "-2"]


def slow_once_tells_what_became_of_its_message(running):
    """Which is good for three of its periods, and no farewell follows."""
    refusing, taking = ["127.0.0.1:%d" % port
                        for port in (free_port(), running.port)]
    refused = refusing + ": refused: nobody listens there"
    told = r"sequence 1, \d+ bytes to %s\n" % refused
    wrong = "sendstats: %s: start recvstats, or name its port with -p\n"
    running.recvstats()
    for words, *want in (
            (["no.such.name"], 1, "", r"sendstats: no.such.name:5545: .+: "
             r"name it in /etc/hosts\n"),
            (["-d", refusing], 1, told, wrong % refused),
            (["-d", refusing, taking], 0, told + r"sequence 1, \d+ bytes to "
             + taking + r": sent\n", wrong % refused)):
        shown = tool("sendstats.py", "--once", "-r", 60, 7, *words)
        assert shown.returncode == want[0]
        for pattern, text in zip(want[1:], (shown.stdout, shown.stderr)):
            assert re.fullmatch(pattern, text), text
    running.send(message(9))
    running.wait_up(9)
    node = running.wait_up(7)
    assert (node.period_s, node.received) == (60, 1)


def test_samples_that_were_skipped_are_counted(running, master):
    def skipped():
        return decode(master.recv(65536), 7).agent.skipped
    agent = running.sendstats("-r", "0.1", 7, address_of(master))
    wait_for(lambda: skipped() == skipped())    # none, but on a busy machine
    before = skipped()
    agent.send_signal(signal.SIGSTOP)
    master.settimeout(0.6)
    with pytest.raises(socket.timeout):
        while True:
            before = skipped()
    agent.send_signal(signal.SIGCONT)
    assert [skipped() for _ in range(2)][-1] > before + 2


@pytest.mark.parametrize("now, period_s, phase_s, due", [
    (1000.0, 60.0, 54.0, 1014.0), (1000.0, 1.0, 0.5, 1000.5),
    (1000.29, 1.0, 0.5, 1000.5), (1000.31, 1.0, 0.5, 1001.5),   # too near
    (1000.02, 0.1, 0.06, 1000.16), (1000.0, 0.1, 0.06, 1000.06),
    (1000.5001, 1.0, 0.5, 1001.5), (1002.6, 1.0, 0.5, 1003.5)])
def test_next_due(now, period_s, phase_s, due):
    agent = types.SimpleNamespace(
        phase=phase_s / period_s, sampler=types.SimpleNamespace(),
        requests=types.SimpleNamespace(period_s=period_s))
    sendstats.Agent.plan(agent, now)
    assert agent.due == pytest.approx(due, abs=1e-6)


def test_agent_needs_only_modules_of_a_minimal_python():
    """Those that Debian's python3-minimal has not may not be loaded."""
    shown = run(sys.executable, "-S", "-c", "import sys, sendstats\n"
                "sendstats.main(['--once', '0', '127.0.0.1:9'])\n"
                "print(*sys.modules)", cwd=HERE)
    assert not {"mmap", "json", "shutil", "hmac", "encodings.idna"} & set(
        shown.stdout.split()) and " sendstats " in shown.stdout


# ---- views -------------------------------------------------------------


def shown(receiver, *words):
    """Return what a view prints of a table, its ages and clock fixed."""
    args = beostat.parse_args(list(words))
    with libbeostat.open(receiver.table.path) as cluster:
        picture = beostat.read_picture(cluster, args)
    for node in picture.nodes:
        node.age_s = 600.0 if node.state == "down" else 0.5
        node.unpack_heads()
        node.heard_time_s, node.start_time_s = 1e9 + 1, 1e9 - 60
    status = picture.status._replace(pid=812, uptime_s=3600.0,
                                     start_time_s=1e9 - 3600)
    picture = picture._replace(path="/dev/shm/beostat", time_s=1e9 + 2,
                               status=status)
    return beostat.format_lines(args.view.format(picture, args), args).decode()


@pytest.fixture
def answer(capfd):
    """The function that gives (exit status, standard output, standard error)
    of a beostat that is a fork of this process: a fifth of a start's cost."""
    def answer(table, *words):
        pid = os.fork()
        if not pid:
            try:
                os._exit(beostat.main(["--table", table, *words]))
            except SystemExit as end:
                os._exit(end.code)
            finally:
                os._exit(70)
        return (os.waitpid(pid, 0)[1] >> 8, *capfd.readouterr())
    return answer


NAME_6 = r'\x1b[31m"<&>\\n\u202e\x9b'           # EVIL, made harmless
ROW_6 = ("    6 up     0.5    2 12.5   2.75    3    77  0.8     -  63.2     0"
         "     0 " + NAME_6)
NOT_UP = ["down: n5", "left: n3", "never heard: n[7-8]"]


@pytest.mark.parametrize("words, rows, totals, last", [
    ("", range(7), "5 up        199 97.7 196.76  199  4378 96.4   0.2  63.2"
     "  123M   999", NOT_UP),
    ("-b", range(7), "", []), ("--down", (3, 5), "0 up", NOT_UP),
    ("--up --sort load --top 3", (4, 6, 1), "3 up        196 99.0 196.31  198"
     "  4221 97.6   0.0  63.2  123M   999", []),
    ("--sort -name --top 2", (4, 2), "2 up        193 99.5 191.70  192  4093"
     " 98.8   0.8  63.2     0     0", NOT_UP),
    ("--top 1 -b", (0,), "", []),
    ("--reverse 0-2", (2, 1, 0), "3 up          5 43.5   2.51    4   288  3.1"
     "   0.2  63.2  123M   999", []),
    ("6", (6,), "1 up          2 12.5   2.75    3    77  0.8        63.2"
     "     0     0", [])])
def test_default_view(seven, words, rows, totals, last):
    """Its rows are those of README."""
    heading, *lines = README_VIEWS["0-5"].splitlines()[:7] + [ROW_6]
    want = [lines[row] for row in rows]
    if totals:
        want = [heading] + want + ["total " + totals] + last
    assert shown(seven, *words.split()).splitlines() == want


GOLDEN = {
    # what README does not show
    '-cmnC 2': """\
=============== Node: n2 (index 2) ===============

 *** /proc/cpuinfo *** Sun Sep 09 01:46:40 2001
processors\t: 1
vendor_id\t: GenuineIntel
model name\t: Pentium III (Coppermine)
cpu MHz\t\t: 863.872
cache size\t: 256 KB
bogomips\t: 1723.59

 *** /proc/meminfo *** Sun Sep 09 01:46:40 2001
MemTotal:         256232 kB
MemFree:            7980 kB
Buffers:           20608 kB
Cached:           146152 kB
SwapTotal:        524248 kB
SwapFree:         520248 kB

 *** /proc/net/dev *** Sun Sep 09 01:46:40 2001
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  104503    1301    0    0    0     0          0         0   104503    1301    0    0    0     0       0          0
  eth0: 1235461773 3510213   17    2    1     3          0        11 4013244571 4120551    5    0    0    91       7          0

 *** CPU use, 0 to 1 *** Sun Sep 09 01:46:40 2001
cpu0 0.0000

""",
    '-csfRb 1': (
        "1 processors : 2 vendor_id : GenuineIntel model name : Intel(R) "
        "Xeon(TM) CPU 3.00GHz cpu MHz : 2992.703 cache size : 2048 KB "
        "sockets : 2 cpu cores : 2 bogomips : 5989.50 "
        "cpu 17005 41 6102 1400211 2103 51 330 7 cpu0 8601 20 3284 701304 "
        "cpu1 8404 21 3206 701010 intr 7523133 ctxt 9312345 btime 1184240113 "
        "processes 20712 procs_running 2 procs_blocked 1 f_bsize: 4096 "
        "f_blocks: 1000000 f_bfree: 400000 f_bavail: 350000 f_files: 65536 "
        "f_ffree: 60000 f_namelen: 255 Network rate 123457788 bytes/second"
        "\n"),
    '-l 5': """\
=============== Node: n5 (index 5) ===============
*** down, last heard 600.0 s ago ***

 *** /proc/loadavg *** Sun Sep 09 01:46:40 2001

""",
    '-Cb 1-3': "0.0000 0.0000 1\n0.0000 2\n0.0000 0.0000 0.0000 0.0000 3\n",
    '--dots --up': "0 :%: @ :NN\n.:-=+*#%@ idle to busy, D down, L left, N "
                   "never heard, ! refused\n"}


@pytest.mark.parametrize("words", sorted(GOLDEN))
def test_view(seven, words):
    assert shown(seven, *words.split()) == GOLDEN[words]


def test_all_texts_are_each_text(seven):
    texts = [shown(seven, "-" + letter, "1").split("\n\n", 1)
             for letter in "cmlnsfCR"]
    for words, count in ("-a", 6), ("-aCR", 8):
        assert shown(seven, words, "1") == "%s\n\n%s" % (
            texts[0][0], "".join([text for _, text in texts[:count]]))


METRICS = """\
beostat_node_up 1               beostat_node_state{state="up"} 1
beostat_node_age_seconds 0.5    beostat_node_received_messages_total 1
beostat_node_lost_messages_total 0      beostat_node_agent_restarts_total 0
beostat_node_info{vendor="GenuineIntel",model="Pentium III (Coppermine)",\
address="10.0.0.2"} 1
node_cpu_seconds_total{cpu="mean",mode="user"} 11324.3
node_cpu_seconds_total{cpu="mean",mode="nice"} 31.04
node_cpu_seconds_total{cpu="mean",mode="system"} 2203.11
node_cpu_seconds_total{cpu="mean",mode="idle"} 512349.07
node_boot_time_seconds 1062191376       node_context_switches_total 115315
node_intr_total 1462898                 node_forks_total 86031
beostat_node_cpu_busy_ratio 0.125       node_load1 0.2
node_load5 0.18     node_load15 0.12    node_processes_threads 80
node_memory_MemTotal_bytes 262381568    node_memory_MemFree_bytes 8171520
node_memory_Buffers_bytes 21102592      node_memory_Cached_bytes 149659648
node_memory_SwapTotal_bytes 536829952   node_memory_SwapFree_bytes 532733952
node_filesystem_files{ROOT} 65536       node_filesystem_files_free{ROOT} 60000
node_filesystem_size_bytes{ROOT} 4096000000
node_filesystem_free_bytes{ROOT} 1638400000
node_filesystem_avail_bytes{ROOT} 1433600000
beostat_node_agent_cost_seconds 0.00035     beostat_node_cpus 1
node_time_seconds 1000000000.0
node_uname_info{release="6.1.0",machine="x86_64",nodename="n2",\
sysname="Linux"} 1""".replace(
    "ROOT", 'device="root",fstype="unknown",mountpoint="/"')
DEVICE_COUNTS = """receive_bytes receive_packets receive_errs receive_drop
    receive_fifo receive_frame receive_compressed receive_multicast
    transmit_bytes transmit_packets transmit_errs transmit_drop transmit_fifo
    transmit_colls transmit_carrier transmit_compressed""".split()
FAMILY = r"# HELP (\w+) .+\.\n# TYPE \1 (counter|gauge)\n((?:\1[{ ].*\n)+)"


def test_metrics_of_a_node(seven):
    """README shows its interfaces' columns."""
    want = re.split(" {2,}|\n", METRICS)
    _, devices, *columns = zip(*[
        line.split() for line in README_VIEWS["-nb 2"].splitlines()])
    for name, counts in zip(DEVICE_COUNTS, columns):
        want += ['node_network_%s_total{device="%s"} %s' % (name, *each)
                 for each in zip(devices, counts)]
    want += ["beostat_recvstats_up 1"] + [
        'beostat_recvstats_datagrams_total{result="%s"} %d' % (
            name, 15 if name == "stored" else 0)
        for name in recvstats.COUNTER_NAMES[1:]]
    text = shown(seven, "--prometheus", "2")
    families = re.findall(FAMILY, text)
    found = "".join(samples for *_, samples in families)
    assert re.sub('instance="n2",node="2",?', "", found).replace(
        "{}", "").splitlines() == want
    assert re.sub(FAMILY, "", text) == ""
    for name, kind, _ in families:
        assert (kind == "counter") == name.endswith("_total")


DOCUMENT = """\
<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<GANGLIA_XML VERSION="3.7.2" SOURCE="gmond">
<CLUSTER NAME="&lt;&quot;&amp;" LOCALTIME="1000000002" OWNER="unspecified" \
LATLONG="unspecified" URL="unspecified">
<HOST NAME="%s" IP="10.0.0.6" TAGS="" REPORTED="1000000001" TN="0" TMAX="20" \
DMAX="0" LOCATION="unspecified" GMOND_STARTED="999999940">
%s</HOST>
</CLUSTER>
</GANGLIA_XML>
"""
METRIC = ('<METRIC NAME="%s" VAL="%s" TYPE="%s" UNITS="%s" TN="0" TMAX="20" '
          'DMAX="0" SLOPE="%s" SOURCE="gmond"/>\n')
GANGLIA = (
    # type, units, slope, names and values of node 6
    ("float", " ", "both", "load_one 2.750 load_five 0.010 load_fifteen "
     "0.050"),
    ("uint32", " ", "both", "proc_run 3 proc_total 77"),
    ("uint16", "CPUs", "zero", "cpu_num 2"),
    ("uint32", "MHz", "zero", "cpu_speed 2596"),
    ("float", "%", "both", "cpu_user 9.000 cpu_nice 1.000 cpu_system 2.500 "
     "cpu_wio 5.000 cpu_idle 82.500"),
    ("float", "KB", "zero", "mem_total 24684092.000"),
    ("float", "KB", "both", "mem_free 24598216.000 mem_shared 8856.000 "
     "mem_buffers 432.000 mem_cached 13512.000"),
    ("float", "KB", "zero", "swap_total 0.000"),
    ("float", "KB", "both", "swap_free 0.000"),
    ("float", "bytes/sec", "both", "bytes_in 0 bytes_out 0"),
    ("double", "GB", "zero", "disk_total 4.096"),
    ("double", "GB", "both", "disk_free 1.638"),
    ("float", "%", "both", "part_max_used 63.158"),
    ("uint32", "s", "zero", "boottime 1795226462 sys_clock 1000000000"),
    ("string", "", "zero", "machine_type x86_64 os_name Linux os_release "
     "6.1.0"))
def test_ganglia(seven):
    metrics = "".join([
        METRIC % (name, value, kind, units, slope)
        for kind, units, slope, known in GANGLIA
        for name, value in re.findall(r"(\S+) (\S+)", known)])
    assert shown(seven, "--ganglia", "6", "--cluster", '<"&') == (
        DOCUMENT % (html.escape(NAME_6), metrics))
    down = shown(seven, "--ganglia", "5")
    assert '<CLUSTER NAME="beostat" ' in down and "load_one" not in down
    assert {*re.findall('TN="(.*?)"', down)} == {"600"}


def test_json_is_stable(seven):
    document = json.loads(shown(seven, "--json"))
    node = document["nodes"][6]
    assert [*document, *node] == (
        "path time_s recvstats nodes never refused "
        "number state age_s heard_time_s time_s start_time_s period_s "
        "sequence address port received lost restarts signature".split()
        + [*libbeostat.PARTS, "cpus", "interfaces"])
    assert (document["never"], document["refused"]) == ([7, 8], {})
    assert node["host"]["hostname"] == EVIL
    unknown = document["nodes"][5]
    assert unknown["load"]["one"] is unknown["agent"]["cpus"] is None


def test_dots_fill_the_screens_width(receiver, monkeypatch):
    """By tens: 190 of 200 columns; 4,000 nodes are on one screen."""
    for number in range(400):
        feed(receiver, message(number), now=time.monotonic() - 9
             * (number == 234))
    monkeypatch.setenv("COLUMNS", "200")
    lines = shown(receiver, "--dots").splitlines()[:-1]
    assert [(line[:4], len(line)) for line in lines] == [
        ("  0 ", 194), ("190 ", 194), ("380 ", 24)]
    assert re.findall("D", "".join(lines)) == ["D"] == [lines[1][4 + 44]]
    monkeypatch.setenv("COLUMNS", "20")
    assert max(map(len, shown(receiver, "--dots").splitlines()[:-1])) <= 20


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_encoding_of_a_terminal(receiver, answer, monkeypatch, encoding):
    """Documents are UTF-8 in all of them."""
    name = "k\xf6ln"
    feed(receiver, message(0, body=body_with(hostname=name.encode())))
    monkeypatch.setattr(sys, "stdout", open(1, "w", encoding=encoding,
                                            closefd=False))
    for words, want in (
            ("-b", name.encode(encoding, "backslashreplace").decode(
                errors="replace")), ("--json", r"k\u00f6ln"),
            ("--prometheus", name), ("--ganglia", name), ("--html", name)):
        status, output, error = answer(receiver.table.path, words)
        assert (status, error, want in output) == (0, "", True), words


@pytest.mark.parametrize("words, status, output, error", [
    (">&-", 3, "", "beostat: cannot write: standard output is closed\n"),
    ("-b --up 2>&-", 0, "n[0-2,4,6]\n", ""),
    ("-b --up 2>&- <&-", 0, "n[0-2,4,6]\n", ""),
    ("--watch 0.1 --json 0 <&- | head -c 9", 0, '{"path": ', ""),
    ("99 2>&- | tail -n +2", 0, "total 0 up\n", ""),
    ("--nonsense 2>&-", 2, "", ""), (">&- 2>&-", 3, "", "")])
def test_closed_descriptors(seven, words, status, output, error):
    ended = run("sh", "-c", "%s -S %s/beostat.py --table %s %s" % (
        sys.executable, HERE, seven.table.path, words))
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        status, output, error)


@pytest.mark.parametrize("hosts, names, instances", [
    # host names of nodes 0, 1 ..., Ganglia's names, Prometheus' instances
    (["a", "b.example"], ["a", "b.example"], ["a", "b.example"]),
    (["a", "a", ""], ["n0", "n1", "n2"], ["n0", "n1", "n2"]),
    (["a", "a", "b"], ["n0", "n1", "b"], ["n0", "n1", "b"]),
    (["..", "/etc", "a/../../b"], ["n0", "n1", "n2"],
     ["..", "/etc", "a/../../b"]),
    ([".", "__SummaryInfo__"], ["n0", "n1"], [".", "__SummaryInfo__"]),
    (["n1", "b"], ["n1", "b"], ["n1", "b"]),
    (["n1", "", "n1_"], ["n1", "n1__", "n1_"], ["n1", "n1__", "n1_"]),
    (["n07", "n1"], ["n07", "n1"], ["n07", "n1"]),
    (["a\x01", "a\\x01"], ["n0", "n1"], ["n0", "n1"]),     # as shown
    (["n0", 'q"\\%s\n'], ["n0", r'q"\%s\n'], ["n0", r'q\"\\%s\\n'])])
def test_name_is_one_nodes(receiver, hosts, names, instances):
    """For Ganglia it is a folder's as well."""
    for number, host in enumerate(hosts):
        feed(receiver, message(number, body=body_with(hostname=host.encode())))
    assert ganglia_names(shown(receiver, "--ganglia")) == names
    assert re.findall(r'node_load1{instance="(.*)",node="\d"} ',
                      shown(receiver, "--prometheus")) == instances


def ganglia_names(text):
    """Return the names of the hosts in a document for Ganglia."""
    import xml.etree.ElementTree
    return [host.get("NAME") for host in
            xml.etree.ElementTree.fromstring(text).iter("HOST")]


def test_message_too_small_for_all_is_said(receiver):
    for number in range(5):
        feed(receiver, message(number, body=body_with(flags=number)))
    assert shown(receiver).splitlines()[-2:] == [
        "interfaces did not all fit: n[1,3]", "CPUs did not all fit: n[2-3]"]
    assert re.findall(r"\*\*\* (.*) did not all fit in the message \*\*\*\n",
                      shown(receiver, "-l", "0,3-4")) == ["interfaces", "CPUs"]
    assert re.findall(r'node_clipped{.*"(.)",list="(.*)"} 1', shown(
        receiver, "--prometheus")) == [("1", "interfaces"), ("2", "CPUs"),
                                       ("3", "interfaces"), ("3", "CPUs")]


@pytest.mark.parametrize("field, column", [
    ("cpus", "cpus"), ("busy_fraction", "cpu%"), ("one", "load"),
    ("active", "run"), ("total", "tasks"), ("total_bytes", "mem%"),
    ("swap_free_bytes", "swap%"), ("blocks", "disk%"),
    ("block_bytes", "disk%"), ("rx_bytes_per_s", "in/s")])
def test_unknown_is_not_0_and_in_no_total(receiver, field, column):
    """Node 1, which knows it, makes the total alone."""
    known, no_cpus = [
        body_of(receiver.table.path + "-proc", {**XEON, "stat": stat}, **FIXED)
        for stat in (XEON["stat"], re.sub(r"cpu\d.*\n", "", XEON["stat"]))]
    code = libbeostat.NODE_CODES[field]
    feed(receiver, message(0, body=no_cpus if field == "cpus" else with_fields(
        libbeostat.NODE, known, **{field: libbeostat.ABSENT[code]})))
    feed(receiver, message(1, body=known), "10.0.0.2")
    head, first, second, totals = map(str.split, shown(
        receiver, "--sort", "node").splitlines())
    assert "-" not in second and len(totals) == len(head) - 1
    place = head.index(column)
    assert first[place] == "-" and totals[place] == second[place]
    for view in "--prometheus", "--ganglia", "-a":
        assert "None" not in shown(receiver, view)


EDGES = {"Q": (0, 2**64 - 2, 2**64 - 1), "I": (0, 2**32 - 2, 2**32 - 1),
         "H": (0, 2**16 - 2, 2**16 - 1),
         "f": (0.0, -1.0, -2.0, 1.5, 3e38, float("nan"), float("inf"))}
EDGES["d"] = EDGES["f"] + (1e300,)
TEXTS = (b"", b"\xff" * 64, "\xf6".encode()[:1], b"a\0b", b"..", b"a/b", b"\n",
         EVIL.encode(), b"</HOST>]]>&amp;{}%s%d", b"\x1b]0;x\x07", b"NaN")
EVERY_VIEW = (
    "", "-b", "-b --up", "-b --down", "--sort name", "--sort mem --reverse",
    "-aCR", "-aCRb", "--dots", "--daemon", "--json", "--ganglia", "--html",
    "--prometheus", "--prometheus --per-cpu", "--html --dots", "--html 0")


def edge_bodies():
    """Yield a message body for each edge of each field."""
    body, at = body_of_counts(1, 2), 0
    for rows in libbeostat.NODE, libbeostat.ONE_CPU, libbeostat.INTERFACE:
        for fields, code, *_ in rows:
            for field in fields.split():
                for value in EDGES.get(code, TEXTS):
                    yield body[:at] + with_fields(rows, body[at:],
                                                  **{field: value})
        at += libbeostat.layout(rows)[0].size
    yield body.replace(b"eth1", b"eth0")
    size, body = libbeostat.CPU_STRUCT.size, body_of_counts(2, 0)
    yield body[:-size] + body[-2 * size:-size]


def check_views(receiver):
    """See that every view shows what can be shown, and is well-formed."""
    with libbeostat.open(receiver.table.path) as cluster:
        numbers, refused = {node.number for node in cluster}, cluster.refused
    texts = {words: shown(receiver, *words.split()) for words in EVERY_VIEW}
    for words, text in texts.items():
        assert re.sub("[\n\t]", "", text).isprintable(), words
        assert "None" not in text and "nan" not in text.split(), words
        if "--html" in words:
            assert Page(text).tags <= PAGE_TAGS
        if "--prometheus" in words:
            series = re.findall(r"^([^#].*) \S+$", text, re.M)
            assert len(series) == len(set(series))
            for each in series:
                assert re.fullmatch(
                    r'[A-Za-z_0-9]+(\{([a-z]+="([^"\\]|\\["\\])*",?)+\})?',
                    each), each
    document = json.loads(texts["--json"], parse_constant=int)
    assert {node["number"] for node in document["nodes"]} == numbers
    assert {*map(int, document["refused"])} == {*refused}
    names = ganglia_names(texts["--ganglia"])
    assert len(names) == len(set(names)) == len(numbers)
    assert not {"", ".", ".."} & set(names)


def test_every_value_of_every_field_through_every_view(tmp_path):
    """A node for each, all in one table; under LONG=1 each alone as well."""
    messages = [message(body=body) for body in edge_bodies()]
    for fields, code, *_ in libbeostat.HEADER:
        if fields in ("start_us", "sequence", "period_s", "time_s"):
            messages += [broken(message(), **{fields: value})
                         for value in EDGES[code]]
    for group in [messages] + LONG * [[data] for data in messages]:
        receiver = new_receiver(tmp_path, "--fresh")
        for number, data in enumerate(group):
            feed(receiver, broken(data, node=number))
        check_views(receiver)
        close(receiver)


@pytest.fixture
def named(tmp_path):
    """Nodes from -1 on whose host names say something else than their
    numbers; 5 and 6 have left."""
    receiver = new_receiver(tmp_path, "-N", "11")
    for number, host in enumerate(
            "head login node002 node001 n0 compute-007 compute-008 gpu1-ib "
            "$(reboot) down".split(), -1):
        kind = sendstats.FAREWELL if number in (5, 6) else sendstats.SAMPLE
        feed(receiver, message(number, kind=kind, period_s=60.0,
                               body=body_with(hostname=host.encode())))
    receiver.tick(time.monotonic())
    yield receiver
    close(receiver)


@pytest.mark.parametrize("words, status, rows, says", [
    ("node002", 0, [1], ""), ("n0", 0, [3], ""), ("n1", 0, [1], ""),
    ("0", 0, [0], ""), ("n0-1", 0, [3, 1], ""),
    ("login n0 3 login", 0, [0, 3], ""),
    ("compute-[007-008]", 1, [4, 5], ""), ("gpu[1-1]-ib", 1, [6], ""),
    ("all", 1, [*range(-1, 9)], ""), ("down", 1, [5, 6], ""),
    ("up", 0, [-1, 0, 1, 2, 3, 4, 7, 8], ""),
    (".-1", 0, [-1], ""), ("-1,0", 0, [-1, 0], ""), ("-1", 0, [-1], ""),
    ("head,up,1", 0, [-1, 0, 1, 2, 3, 4, 7, 8], ""),
    *[("%d-%d" % (first, last), 1, [*range(first, 9)],
       "beostat: nodes n[9-10]: never heard\n"
       "beostat: nodes n[11-%d]: not in the table\n" % last)
      for first, last in ((0, 7000), (8, 12))],
    ("0,77 9 n2", 1, [0, 2], "beostat: node 77: not in the table\n"
     "beostat: node 9: never heard\n"),
    ("compute-009", 1, [], "beostat: compute-009: no node's name\n"),
    ("login,compute-[007-011],2,master,down", 1, [0, 4, 5, 2, -1, 6],
     "beostat: compute-[009-011]: no node's name\n"),
    *[(words, 2, [], "beostat: %s ends before it begins, or is too long\n"
       % words) for words in ("5-3", "0-99999999999")],
    *[(words, 2, [], "beostat: %r is no node and no list of nodes\n" % words)
      for words in ("n[1", "[x")]])
def test_words_for_nodes(named, answer, words, status, rows, says):
    """A host name is itself before it is a number."""
    found, output, error = answer(named.table.path, "-b", *words.split())
    assert (found, error) == (status, says)
    assert [int(line.split()[0]) for line in output.splitlines()] == rows


@pytest.mark.parametrize("words, text", [
    ("-b --up", "master,.[0-4,7-8]"), ("-b --down", ".[5-6,9-10]"),
    ("--names --up", "head,login,node[001-002],n0,compute-007,.7,down"),
    ("--names --down", "compute-008,gpu1-ib,.[9-10]"),
    ("--names", "head,login,node[001-002],n0,compute-[007-008],gpu1-ib,.7,"
     "down"), ("-b --up 5", "")])
def test_folded_lists_for_pdsh(named, words, text):
    """Host n0 is node 3: no number is written so."""
    assert shown(named, *words.split()) == (text and text + "\n")
    assert shown(named).endswith("left: .[5-6]\nnever heard: .[9-10]\n")


def test_master_is_in_loads_only_when_named(named):
    loads = [line.split()[-1] for line in shown(named, "-Cb").splitlines()]
    assert loads == ["0", "1", "2", "3", "4", "5", "6", "7", "8"]
    assert shown(named, "-Cb", "master").split()[-1] == "-1"


def test_dropped_datagrams_are_said(receiver):
    feed(receiver, message(0))
    for data in message(-2), message(-2), message(-2), b"x" * 99:
        feed(receiver, data)
    receiver.tick(time.monotonic())
    assert shown(receiver).endswith(
        "\n4 datagrams dropped in the last minute: magic_wrong 1, unnumbered "
        "3 (see README, and journalctl -t recvstats)\n")
    assert "dropped" not in shown(receiver, "-b")


def test_documents_of_each_state(running, answer):
    """Only what is up is measured, and nothing while recvstats is gone: a
    document is complete then as well."""
    master = running.recvstats("-N", "3")
    running.send(message(0), message(1, kind=sendstats.FAREWELL), message(
        4, body=body_with(one=float("nan"))))
    running.wait_count("stored", 3)
    text = answer(running.table, "--prometheus")[1]
    assert re.findall(r'node_state{.*node="(\d)",state="(.*)"} 1', text) == [
        ("0", "up"), ("1", "left"), ("2", "never"), ("4", "refused")]
    assert re.findall(r'node_up{.*node="(\d)"} (\d)', text) == [
        ("0", "1"), ("1", "0"), ("2", "0"), ("4", "0")]
    assert re.findall(r'node_load1{.*node="(\d)"', text) == ["0"]
    for words, place in (["4"], 2), ([], 1):
        told = answer(running.table, *words)
        assert told[0] == 1 and "node 4: sample " in told[place]
    master.terminate()
    master.wait()
    for view, says in (
            ("--json", '"running": false'), ("--ganglia", "TMAX="),
            ("--html", "is gone: start it again with recvstats.py"),
            ("--prometheus", 'state="up"} 1'),
            ("--prometheus", "\nbeostat_recvstats_up 0\n")):
        status, output, error = answer(running.table, view)
        assert (status, error, says in output) == (0, "", True), view
        assert "node_load1" not in output
        assert answer(running.table, view, "99")[0] == 1
    assert answer(running.table, "--dots")[0] == 3
    watcher = running.start("beostat.py", "--table", running.table, "-w")
    assert "recvstats is gone\n" in itertools.islice(
        iter(watcher.stdout.readline, ""), 9)


def slow_events(running):
    """A line for each kind of change, folded, as it comes."""
    watchers, sent, master = [], [], running.recvstats()

    def event(process):
        """Return what a watcher tells next: (when, a blank, what)."""
        assert select.select([process.stdout], [], [], LIMIT_S)[0]
        return process.stdout.readline().partition(" ")

    def start(*words):
        """Start a watcher that sleeps after its first look."""
        process = running.start("beostat.py", "--table", running.table,
                                "--events", "-w", "0.1", *words, bufsize=0)
        fds = "/proc/%d/fd/" % process.pid
        wait_for(lambda: running.table in [
            os.path.realpath(fds + fd) for fd in os.listdir(fds)])
        wait_for(lambda: " S " in read_text("/proc/%d/stat" % process.pid))
        watchers.append(process)
        return process

    def send(numbers, kind, sequence):
        """Have the watchers see all of it at once."""
        for process in watchers:
            process.send_signal(signal.SIGSTOP)
        running.send(*[message(number, sequence, kind=kind, period_s=60.0,
                               body=body_with(hostname=b"c%03d" % number))
                       for number in numbers])
        sent.extend(numbers)
        running.wait_count("stored", len(sent))
        for process in watchers:
            process.send_signal(signal.SIGCONT)

    send(range(9), sendstats.SAMPLE, 1)
    plain, down, document = start(), start("--names", "--down"), start(
        "--json", "--names", "1,8")
    send((1, 2, 3, 8), sendstats.FAREWELL, 2)
    when, _, what = event(plain)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", when)
    assert what == "left n[1-3,8]\n"
    assert event(down)[2] == "left c[001-003,008]\n"
    what = json.loads("".join(event(document)))
    assert (what["event"], what["nodes"]) == ("left", ["c001", "c008"])
    send((2, 9), sendstats.SAMPLE, 3)
    assert event(plain)[2] == "up n[2,9]\n"
    master.terminate()
    master.wait()
    assert event(plain)[2] == event(down)[2] == "recvstats gone\n"
    running.recvstats()
    assert event(plain)[2] == "recvstats back\n"


class Terminal:
    """A program in a pseudo-terminal, ended when nobody needs it."""

    def __init__(self, lines, columns, command, **environment):
        self.text = ""
        self.pid, self.fd = pty.fork()
        self.resize(lines, columns)     # before the program can look
        if not self.pid:
            os.execvpe(command[0], command, {
                **os.environ, "TERM": "xterm", **environment})

    def resize(self, lines, columns):
        """Give the window another size."""
        fcntl.ioctl(self.fd if self.pid else 0, termios.TIOCSWINSZ,
                    struct.pack("HHHH", lines, columns, 0, 0))

    def wait_text(self, text):
        """Return all that was drawn since the last call, up to text."""
        end = time.monotonic() + LIMIT_S
        while text not in self.text:
            assert time.monotonic() < end, "no %r in %r" % (text, self.text)
            if select.select([self.fd], [], [], LIMIT_S)[0]:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
        seen, self.text = self.text, ""
        return seen

    def frame(self):
        """Return the lines of the next whole frame, without colours."""
        frames, self.text = [], ""
        while not frames:
            frames = re.findall(r"\033\[H(.*?)\033\[J",
                                self.wait_text("\033[J"), re.S)
        return re.sub(r"\033\[[0-9;]*[A-Za-z]", "", frames[-1]).split("\r\n")

    def status(self):
        """Return the exit status of the program, once it has ended."""
        with contextlib.suppress(OSError):      # it has closed its end
            while select.select([self.fd], [], [], LIMIT_S)[0]:
                os.read(self.fd, 65536)
        status, self.pid = os.waitpid(self.pid, 0)[1] >> 8, 0
        return status

    def __del__(self):
        os.close(self.fd)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def terminal(receiver, words, lines=20, columns=120, program="beostat.py",
             **environment):
    """Return a Terminal in which beostat shows a table."""
    return Terminal(lines, columns, [
        sys.executable, os.path.join(HERE, program), "--table",
        receiver.table.path, *words.split()], **environment)


def test_watch_draws_resizes_and_gives_the_terminal_back(receiver):
    """One of no size has 80 columns and 24 lines."""
    for number in range(53):
        feed(receiver, message(number))
    screen = terminal(receiver, "-w 0.1", 0, 0)
    drawn = screen.wait_text("q quits")
    assert "\033[?1049h" in drawn and re.search(r"\033\[[0-9;]+m", drawn)
    frame = screen.frame()
    assert len(frame) == 24 and max(map(len, frame)) <= 80
    assert "53 nodes" in frame[0] and frame[1].startswith("cpu ")
    assert [frame[place].split()[0] for place in (2, 3, -2)] == [
        "node", "0", "19"]
    for columns, bars in (105, False), (106, True):     # as README has it
        screen.resize(20, columns)
        wait_for(lambda: bool(re.search("cpus {9}", screen.frame()[2]))
                 == bars)
    screen.resize(9, 20)
    wait_for(lambda: len(screen.frame()) == 9)
    assert max(map(len, screen.frame())) <= 20


def test_watch_shows_load_by_colour_and_use_by_bars(receiver):
    """Each CPU's share of the load counts; a node that does not tell its
    CPUs has one."""
    rows = ((2, 1.4, "32"), (2, 1.5, "33"), (2, 2.6, "33"), (2, 2.7, "31"),
            (0, 1.0, "33"))
    for number, (cpus, load, _) in enumerate(rows):
        feed(receiver, message(number, body=with_fields(
            libbeostat.NODE, body_of_counts(cpus, 0), one=load,
            busy_fraction=cpus / 4)))
    drawn = terminal(receiver, "-w 0.1", LC_ALL="C.UTF-8").wait_text("q quits")
    assert re.findall(r"\033\[(\d+)m +\d up", drawn) == [
        colour for _, _, colour in rows]
    assert "load 9.2\033" in drawn and "cpu 44.4% \u2584\033" in drawn


KEYS = (
    # what is typed, lines of a frame that follows: 3 is the first row
    (b"", {0: "10 nodes: 8 up, 2 left, 2 never heard", 3: "   -1 up",
           -1: ": 9 lines not shown"}),
    (b"j", {3: "    0 up"}), (b"\033[B\033[B", {3: "    2 up"}),
    (b"k", {3: "    1 up"}), (b"\033[6~", {3: "    5 left"}),
    (b"G", {2: " node state", 3: "    8 up"}), (b"g", {3: "   -1 up"}),
    (b"?", {2: "q               quit"}), (b"?", {3: "   -1 up"}),
    (b"s" * len(beostat.COLUMNS), {3: "    7 up", -1: "sorted by name"}),
    (b"/compux\x7f", {-1: "/compu_"}),
    (b"\r", {3: "    4 up", 4: "    5 left", -1: "only compu"}),
    (b"/n[0-1]\r", {3: "    3 up", 4: "    1 up", -1: "only n[0-1]"}),
    # q is a letter there, Esc leaves it
    (b"/q\t\xc3", {-1: "/q_"}), (b"\033", {-1: "only n[0-1]"}),
    (b"/\r", {3: "    7 up", 4: "    4 up"}),
)


def test_keys_of_watch(named):
    screen = terminal(named, "-w 0.1", lines=8)
    for keys, want in KEYS:
        os.write(screen.fd, keys)

        def is_shown():
            frame = screen.frame()
            return all(text in frame[line] for line, text in want.items())
        wait_for(is_shown)


def test_watch_gives_the_terminal_back_while_it_is_stopped(receiver):
    feed(receiver, message(0))
    shell = Terminal(20, 100, ["bash", "--norc", "-i"], PS1="ready$ ")
    shell.wait_text("ready$ ")
    for keys, text, then in (
            ("%s %s/beostat.py --table %s -w 0.1\r" % (
                sys.executable, HERE, receiver.table.path),
             "\033[?1049h", "? helps"),
            ("\x1a", "\033[?1049l", "ready$ "),
            ("stty -a\r", "isig icanon", "ready$ "),
            ("fg\r", "\033[?1049h", "? helps"),
            ("q", "\033[?1049l", "ready$ ")):
        os.write(shell.fd, keys.encode())
        assert text in shell.wait_text(then), keys


@pytest.mark.parametrize("columns, length, environment", [
    (80, 80, dict(NO_COLOR="")), (40, 138, dict(NO_COLOR="")),
    (0, 80, dict(NO_COLOR="")), (80, 138, dict(TERM="dumb"))])
def test_long_name_on_a_terminal(receiver, columns, length, environment):
    """It is cut there; a dumb one is as a pipe.  NO_COLOR is obeyed."""
    feed(receiver, message(0, body=body_with(hostname=b"h" * 64)))
    drawn = terminal(receiver, "", 24, columns, **environment).wait_text(
        "total")
    row = drawn.split("\r\n")[1]
    assert "\033" not in drawn and len(row) == length
    assert row.endswith("h\u2026" if length == 80 else "hh")
    assert "h" * 64 in shown(receiver)


@pytest.mark.parametrize("program, words, end, statuses", [
    ("beostat.py", "-w n5", b"q", (0, 3)),      # which is no number
    ("beostat.py", "-w 0.1 --dots", b"\x03", (1,)),
    ("beostat.py", "-w 0.1 --dots", signal.SIGTERM, (1,)),
    ("{}/beostatus", "", b"q", (0, 3)),
    ("{}/beostatus", "-c 5", b"q", (0, 3))])
def test_watch_gives_the_terminal_back_however_it_ends(
        receiver, tmp_path, program, words, end, statuses):
    """beostatus is the live view."""
    feed(receiver, message(5))
    (tmp_path / "beostatus").symlink_to(os.path.join(HERE, "beostat.py"))
    screen = terminal(receiver, words, program=program.format(tmp_path))
    assert "1 node: 1 up" in screen.wait_text("? helps")
    if end == signal.SIGTERM:
        os.kill(screen.pid, end)
    else:
        os.write(screen.fd, end)
    assert screen.wait_text("\033[?1049l").endswith("\033[?1049l")
    assert screen.status() in statuses


@pytest.mark.parametrize("words, lines", [
    ("-b -w 0.1 0,99", [" +0 up .*", "node 99: not in the table", ""]),
    ("--json 0,1 --watch 0.1", ['{.*"number": 0.*"number": 1.*}'])])
def test_watch_in_a_pipe(seven, running, words, lines):
    watcher = running.start("beostat.py", "--table", seven.table.path,
                            *words.split())
    for line in lines * 3:
        assert re.fullmatch(line + "\n", watcher.stdout.readline())


# ---- a page, and Prometheus --------------------------------------------


def test_seconds_of_the_cpus(seven):
    """The mean is all CPUs' time by their number; each CPU's has its id."""
    for words, every, want in (
            ("1", 1, ["mean user 85.025", "mean nice 0.205",
                      "mean system 30.51", "mean idle 7001.055",
                      "mean iowait 10.515", "mean irq 0.255",
                      "mean softirq 1.65", "mean steal 0.035"]),
            ("--per-cpu 1", 3, ["0 user 86.01", "1 nice 0.21",
                                "0 idle 7013.04"])):
        assert [*map(" ".join, re.findall(
            r'cpu="(\w+)",mode="(\w+)"} (.*)', shown(
                seven, "--prometheus", *words.split())))][::every] == want


class Page(html.parser.HTMLParser):
    """What a page has: its tags, links, classes of rows, and texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.rows, self.cells = set(), [], [], []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "a" and "title" in attrs:
            self.cells.append((attrs["class"], attrs["title"]))
        if tag == "tr":
            self.rows.append([attrs.get("class", "")])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.rows and len(self.rows[-1]) > 1:
            self.rows[-1][-1] += data.strip()


PAGE_TAGS = {"html", "meta", "title", "style", "h1", "p", "nav", "a", "table",
             "thead", "tbody", "tr", "th", "td", "meter", "wbr", "h2", "pre"}


def test_page_has_the_rows_of_the_default_view(seven):
    text = shown(seven, "--html", "--sort", "-load", "--cluster", "<b>")
    assert set(re.findall(r'class="(\w+)">[^<]*<meter[^>]* high="(\d+)"',
                          text)) == {("cpu", "100"), ("mem", "90"),
                                     ("swap", "50"), ("disk", "90")}
    page = Page(text)
    assert "<b>" in page.text
    assert [row[:5] for row in page.rows] == [
        ["", "node", "name", "state", "cpu%"],
        ["total", "", "total", "5 up", "97.7"],
        ["up", "2", "n2", "up", "12.5"], ["up", "0", "n0", "up", "12.5"],
        ["up", "1", "n1", "up", "90.0"], ["up", "6", NAME_6, "up", "12.5"],
        ["up", "4", "n4", "up", "100"],
        ["left off", "3", "n3", "left 0.5", "50.0"],
        ["down off", "5", "n5", "down 10m", "12.5"]]
    for line in "7 nodes: 5 up, 1 down, 1 left, 2 never heard, 01:46:42", *(
            NOT_UP):
        assert line in page.text
    assert page.links.count("?sort=load") == 1      # that turns it round
    assert {"?sort=node", "?node=6", "?sort=-load&state=up",
            "?view=dots&sort=-load"} <= set(page.links)


def test_pages_of_dots_and_of_one_node(seven):
    page = Page(shown(seven, "--html", "--dots"))
    assert [kind for kind, _ in page.cells] == [
        "s1", "s8", "s1", "off", "s9", "down", "s1", "never", "never"]
    assert page.cells[1][1].startswith("n1 n1, up, cpu% 90.0, load 2.06, ")
    assert page.cells[6][1].startswith("n6 " + NAME_6 + ", up, ")
    assert len(page.rows) == 2          # heading and totals
    page = Page(shown(seven, "--html", "1"))            # all there is
    for _, _, title, _, _ in beostat.TEXTS:
        assert title in page.text
    assert "MemTotal:        4043516 kB" in page.text
    assert "/proc/stat" not in Page(shown(seven, "--html", "1,2")).text


def test_page_of_many_nodes_shows_the_first_thousand(receiver):
    for number in range(1013):
        feed(receiver, message(number))
    text = shown(receiver, "--html")
    assert "The first 1000 of 1013" in text
    assert len(Page(text).rows) == 1002
    assert 'http-equiv="refresh" content="2"' in text


def read_to_end(sock):
    """Return all bytes that a connection gives."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


class Served:
    """A process of beostat.py --serve, and what it answers."""

    def __init__(self, running, *words, **constants):
        self.running, self.process = running, start_changed(
            running, "beostat", constants, "--serve", "0", "--table",
            running.table, *words, bufsize=0)
        self.port = int(re.fullmatch(
            r"beostat: serving http://127.0.0.1:(\d+)/\n",
            self.process.stderr.readline()).group(1))

    def connect(self):
        """Return a new connection."""
        return socket.create_connection(("127.0.0.1", self.port), LIMIT_S)

    def answer(self, data):
        """Return the bytes that a request gets."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_to_end(sock)

    def get(self, target, host="127.0.0.1", method="GET"):
        """Return (status, {header: value}, text) of a reply."""
        head, _, body = self.answer(
            ("%s %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (method, target, host))
            .encode("latin-1")).decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        return int(first.split()[1]), dict(
            line.split(": ", 1) for line in lines), body


def children_of(pid):
    """Return the process ids of a process's children."""
    return read_text("/proc/%d/task/%d/children" % (pid, pid)).split()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of three nodes, of which 2 has left."""
    running = Running(tmp_path_factory.mktemp("served"))
    running.recvstats("-N", "5")
    running.send(*[message(number, period_s=60.0, kind=kind, body=body_with(
        hostname=name, one=float(number))) for number, kind, name in (
            (0, sendstats.SAMPLE, b"login"), (2, sendstats.FAREWELL, b"c2"),
            (1, sendstats.SAMPLE, b"<script>alert(1)</script>"))])
    running.wait_count("stored", 3)
    yield Served(running, "--cluster", "blue")
    running.end()


REQUESTS = (
    # target, status, a part of the body; Host and method where they matter
    ("/", 200, "<h1>blue</h1>"),
    ("/?sort=load", 200, 'aria-sort="descending"', "localhost:8080"),
    ("/?sort=-load&state=up", 200, 'sort="ascending"', "[::1]:80"),
    ("/?view=dots", 200, 'class="dots"', "10.0.0.1"),
    ("/?node=login", 200, "<h2>/proc/stat</h2>", socket.gethostname()),
    ("/?node=0-1,c2&state=down", 200, "left: n2"),
    ("/metrics", 200, 'node_load1{instance="login",'),
    ("/metrics?node=0", 200, "beostat_recvstats_up 1\n"),
    ("/json", 200, '"number": 2, "state": "left"'),
    ("/none", 404, "no such page: / /metrics /json"),
    ("/../etc/passwd", 404, "no such page"),
    ("/?node=4", 404, "node 4: never heard"),
    ("/?node=--jobs", 404, "--jobs: no node's name"),
    ("/?node=n[0-9,20-99999],5", 404, "in the table"),
    ("/?node=5-3", 400, "ends before it begins"),
    *[("/?node=" + nodes, 400, "too many nodes") for nodes in (
        "n[0-999][0-999]", "[9-1][0-99999],9-1,0-1", "[1,2]" * 17,
        "0-60000&node=0-60000", "x" * 9000 + "[1-9999]",
        "0" * 9000 + "[1-9999]")],
    ("/?node=" + "1" * 20000, 400, "no list of nodes"),
    ("/?sort=zip", 400, "--sort zip: choose from node"),
    ("/?sort=cpu%0a%1b[31m", 400, r"cpu\n\x1b[31m"),
    ("/?view=jobs", 400, "view=jobs: not a word"),
    ("/?<b>=1", 400, "not a word of this page"),
    *[("/metrics", 400, "Host is not this machine", host) for host in (
        "evil.example", "127.0.0.1.evil.example",
        "127.0.0.1\r\nHost: localhost", "")],
    ("/metrics", 200, "", "127.0.0.1", "HEAD"),
    ("/none", 404, "", "127.0.0.1", "HEAD"),
    ("/", 405, "GET or HEAD", "127.0.0.1", "POST"),
    ("/json", 405, "GET or HEAD", "127.0.0.1", "OPTIONS"),
    ("/", 501, "BREW", "127.0.0.1", "BREW"),
)


def test_requests(served):
    sheet, = re.findall("<style>(.*)</style>", served.get("/")[2], re.S)
    policy = "default-src 'none'; style-src 'sha256-%s'" % base64.b64encode(
        hashlib.sha256(sheet.encode()).digest()).decode()
    for target, status, part, *more in REQUESTS:
        found, headers, body = served.get(target, *more)
        assert (found, part in body) == (status, True), (target, more, body)
        assert "\x1b" not in body and (
            "<script" not in body or target in ("/metrics", "/json"))
        if "HEAD" in more:
            assert not body and int(headers["Content-Length"]) > 0
        if status != 501:
            assert headers["Cache-Control"] == "no-store"
            assert headers["Content-Security-Policy"] == policy
    assert served.get("/", method="POST")[1]["Allow"] == "GET, HEAD"
    assert served.answer(b"\x16\x03\x01\x02\r\n\r\n").count(b"400") >= 1
    assert b" 414 " in served.answer(b"GET /?" + b"x" * 70000 + b"\r\n\r\n")
    for target, kind in (("/", "text/html"), (
            "/metrics", "text/plain; version=0.0.4")):
        _, headers, text = served.get(target)
        assert headers["Content-Type"] == kind + "; charset=utf-8"
    assert re.sub(" .*", "", text) == re.sub(
        " .*", "", served.running.beostat("--prometheus").stdout)


CHROMIUM = ("chromium --headless --no-sandbox --disable-gpu --disable-quic "
            "--no-first-run --disable-background-networking --disable-sync "
            "--disable-component-update --dump-dom").split()


def test_page_in_a_browser(served, tmp_path):
    """The name of node 1 stays text."""
    if not shutil.which("chromium"):
        pytest.skip("no chromium")
    page = Page(subprocess.check_output(
        [*CHROMIUM, "--user-data-dir=%s" % tmp_path,
         "http://127.0.0.1:%d/?sort=-load" % served.port], timeout=30,
        stderr=subprocess.DEVNULL, universal_newlines=True))
    assert page.tags <= PAGE_TAGS | {"head", "body"}
    assert [row[:3] for row in page.rows[2:]] == [
        ["up", "0", "login"], ["up", "1", "<script>alert(1)</script>"],
        ["left off", "2", "c2"]]


def test_links_of_the_page_lead_to_pages(served):
    """Whoever follows them comes to all there is, and nowhere else."""
    found, left = set(), {"?"}
    while left:
        link = left.pop()
        found.add(link)
        status, _, body = served.get("/" + link)
        links = set(Page(body).links)
        assert status == 200, link
        assert all(re.fullmatch(r"\?[\w=&%,-]*", each) for each in links)
        if link in ("?", "?view=dots", "?sort=mem", "?state=down", "?node=1"):
            left |= links - found
    assert {"?node=1", "?state=up", "?sort=name", "?view=dots&sort=mem"
            } <= found


def test_server_without_a_table(running, answer):
    served = Served(running)
    status, _, body = served.get("/metrics")
    assert status == 503 and "start it with recvstats.py" in body
    running.recvstats()
    assert served.get("/metrics")[0] == 200
    assert answer(running.table, "--serve", "%d" % served.port) == (
        3, "", "beostat: --serve 127.0.0.1:%d: Address already in use: choose "
        "another address or port\n" % served.port)
    before = set(children_of(served.process.pid))
    with served.connect():              # whose process lives on
        child, = wait_for(
            lambda: set(children_of(served.process.pid)) - before)
        wait_for(lambda: read_text("/proc/%s/oom_score_adj" % child)
                 == "1000\n")
        served.process.terminate()
        served.process.wait()
        assert running.start("beostat.py", "--serve", served.port).stderr \
            .readline().endswith(":%d/\n" % served.port)


def slow_clients_that_hold_the_server_up(running):
    """Endless, idle and many: each ends, and others are served."""
    running.recvstats()
    served = Served(running, CHILD_S=1)
    endless, *idle = [served.connect() for _ in range(45)]
    endless.sendall(b"GET / HTTP/1.1\r\n")
    status, _, _ = served.get("/json")
    assert select.select(idle, [], [], 0)[0]    # of the first 40 one has ended
    with pytest.raises(OSError):
        while True:
            endless.sendall(b"X: y\r\n")
            time.sleep(0.02)
    for sock in idle:
        assert status == 200 and sock.recv(99) == b""
    assert served.get("/")[0] == 200
    served.process.terminate()
    assert served.process.stderr.read() == ""
    for sock in idle + [endless]:
        sock.close()


@pytest.mark.parametrize("words, sends, status, begins, ends", [
    ("--ganglia 0,99", b"", 1, b"<?xml ", b"</GANGLIA_XML>\n"),
    ("--prometheus --http", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 0,
     b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; "
     b"charset=utf-8\r\nContent-Length: %d\r\n", b'{result="log_drops"} 0\n'),
    ("--html --http", b"", 0, b"HTTP/1.0 200 OK\r\n", b"</table>\n\n"),
    ("--ganglia", None, -signal.SIGALRM, b"", b"")])
def test_client_of_inetd(served, words, sends, status, begins, ends):
    """It is standard error, too, and nothing comes behind a document; an
    unread request would make the kernel drop the end of one.  The process of
    a client that takes nothing ends."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with ours, theirs:
        process = start_changed(
            served.running, "beostat", {"CHILD_S": 99 if ends else 1},
            "--table", served.running.table, *words.split(), stdin=theirs,
            stdout=theirs, stderr=theirs)
        theirs.close()
        ours.settimeout(LIMIT_S)
        if sends is not None:
            ours.sendall(sends)
            ours.shutdown(socket.SHUT_WR)
            data = read_to_end(ours)
            body = data.partition(b"\r\n\r\n")[2]
            assert data.startswith(begins.replace(b"%d", b"%d" % len(body)))
            assert data.endswith(ends)
        assert process.wait(LIMIT_S) == status


# ---- the original's functions ------------------------------------------


@pytest.fixture
def original(seven, monkeypatch):
    """libbeostat, whose functions read the table of seven nodes."""
    monkeypatch.setenv("BEOSTAT_TABLE", seven.table.path)
    libbeostat.cluster.cache_clear()
    yield libbeostat
    libbeostat.cluster.cache_clear()    # and so close it


CALLS = (
    # function, arguments, what it returns, of the seven nodes
    ("get_MHz", (2,), 863.872), ("get_MHz", (3,), None),
    ("get_cpu_percent", (0, 1), 0.0), ("get_time", (0,), (1000000000,)),
    ("get_stat_cpu", (1, 0), (8601, 3284, 20, 701304)),
    ("get_loadavg", (4,), ((191.5, 180.25, 128.0), 192, 4013, 4194303)),
    ("get_meminfo", (2,), ((254210048, 8171520), (4096000, 532733952), None,
                           21102592, 149659648)),
    ("get_net_rate", (1,), 123457788), ("get_net_rate", (5,), None),
    ("get_net_dev", (2,), [
        ("lo", (104503, 1301) + 4 * (0,), 0, 0, (104503, 1301) + 4 * (0,), 0,
         0), ("eth0", (1235461773, 3510213, 17, 2, 1, 0), 3, 11,
              (4013244571, 4120551, 5, 0, 0, 0), 91, 7)]),
    ("get_statfs_p", (0,), (4096, 1000000, 400000, 350000, 65536, 60000, 255)),
    ("get_disk_usage", (0,), (4096000000, 2457600000)),
    ("get_name", (1,), "n1"), ("get_cpu_count", (4,), 192),
    ("count_idle_cpus", (0.5,), 2 + 2 + 1 + 192 + 2),
    ("count_idle_cpus", (0.0,), 0), ("is_node_available", (99,), False),
    ("count_idle_cpus_on_node", (4, 9999.0), 192),
    ("is_node_available", (0,), True), ("is_node_available", (5,), False),
    ("is_node_available", (3, 0, (0,)), False),
    ("get_avail_nodes", (), [0, 1, 2, 4, 6]),
    ("get_avail_nodes_by_id", (1000, (100, 10)), [0, 1, 2, 4, 6]),
    ("get_cpuinfo_x86", (2,), ("GenuineIntel", "Pentium III (Coppermine)",
                               863.872, 256, 1723.59)),
    ("get_last_multicast", (), 0.0),
    # where the original returned -1
    *[(*call, libbeostat.BeostatError) for call in (
        ("get_cpu_percent", (0, 2)), ("get_name", (99,)), ("get_name", (7,)),
        ("set_last_multicast", (1,)))],
)


@pytest.mark.parametrize("name, arguments, want", CALLS)
def test_function_of_the_original(original, name, arguments, want):
    try:
        found = getattr(original, name)(*arguments)
    except original.BeostatError:
        found = original.BeostatError
    assert found == want


def test_original_names_fields_and_knows_no_usage_of_no_disk(seven, original):
    assert original.get_net_dev(2)[0]._fields == (
        "name", "recv", "frame", "multicast", "trans", "colls", "carrier")
    feed(seven, message(7, body=body_with(**dict.fromkeys(
        ("block_bytes", "blocks", "free_blocks"), 2**64 - 1))))
    assert original.get_disk_usage(7) == (None, None)


def test_structures_of_one_name_are_of_one_class(original):
    assert type(original.get_loadavg(4)) is type(original.get_loadavg(2))


# ---- requests and multicast --------------------------------------------


def played_master():
    """Return a socket that plays the master of an agent."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(LIMIT_S)
    return sock


@pytest.fixture
def master():
    with played_master() as sock:
        yield sock


def address_of(master):
    """Return ADDRESS:PORT of a played master."""
    return "%s:%d" % master.getsockname()


def request(node=-2, period_s=0.0, spread_s=0.0, sequence=1,
            agent_start_us=0):
    """Return a request."""
    return sendstats.pack_message(
        (node, sendstats.REQUEST, 1000, sequence, period_s, 0.0),
        sendstats.ASK_STRUCT.pack(spread_s, agent_start_us))


def write_key(folder, *keys):
    """Write a key file; return its path."""
    path = write_file(os.path.join(str(folder), "keys"),
                      b"\n".join(keys) + b"\n")
    os.chmod(path, 0o600)
    return path


def sign(data, key):
    """Return a message with its MAC."""
    return data + hashlib.blake2b(data, key=key, digest_size=16).digest()


def header_of(data):
    """Return {field: value} of a message's header."""
    return dict(zip(sendstats.layout(sendstats.HEADER)[1],
                    sendstats.HEADER_STRUCT.unpack_from(data)))


def reply_to(master, agent, *datagrams, wait_s=LIMIT_S):
    """Return the header of what an agent answers to datagrams, {} when it
    is silent."""
    for datagram in datagrams:
        master.sendto(datagram, agent)
    ready, _, _ = select.select([master], [], [], wait_s)
    return header_of(master.recv(65536)) if ready else {}


FORGED = (
    b"", b"x" * 48, bytes(48), request()[:-1], request() + b"x", message(7),
    request()[:-1] + bytes([request()[-1] ^ 1]), request(node=8),
    *[request(period_s=period_s) for period_s in (0.01, 1e6, float("nan"))],
    *[request(spread_s=spread_s) for spread_s in (-1.0, float("inf"))],
)


def slow_agent_obeys_its_master_and_nobody_else(running):
    with played_master() as master, played_master() as other:
        running.start("sendstats.py", "-f", "-r", 3600, 7, address_of(master))
        _, agent = master.recvfrom(65536)
        other.sendto(request(), agent)          # refused by the kernel
        assert not reply_to(master, agent, *FORGED, wait_s=0.3)
        for sequence, node in (2, 7), (3, -2):
            assert reply_to(master, agent, request(node)).items() >= dict(
                sequence=sequence, kind=sendstats.SAMPLE, period_s=3600
            ).items()
        master.sendto(request(period_s=0.1), agent)
        headers = [header_of(master.recv(65536)) for _ in range(3)]
        assert headers[2]["period_s"] == pytest.approx(0.1)     # unasked
        wait_for(lambda: reply_to(master, agent, request())[
            "period_s"] == 3600)
        running.start("sendstats.py", "-f", "-r", 3600, address_of(other))
        data, agent = other.recvfrom(65536)
        assert header_of(data)["node"] == -2    # has no number
        assert reply_to(other, agent, request(node=31))["sequence"] == 2


FIFTH, SIXTH = [request(sequence=sequence, agent_start_us=77)
                for sequence in (5, 6)]
ASKED = (
    # why, the key of an agent whose period is 10 s, whose phase is a half and
    # whose start was at 77; each request, when it comes, whether by the group,
    # when its answer is due, the period from then on
    ("its own period again after an hour", b"", (
        (request(period_s=2.0), 1000, False, 1000, 2.0),
        (b"", 4599, False, None, 2.0), (b"", 4601, False, None, 10.0))),
    ("at most five times a second", b"", (
        (request(), 1000, False, 1000, 10.0),
        (request(), 1000.1, False, 1000.2, 10.0))),
    ("spread by phase", b"", (
        (request(spread_s=4.0), 1000, False, 1002, 10.0),)),
    ("no faster by the group than its own period", b"", (
        (request(period_s=0.1), 1000, True, 1000, 10.0),
        (request(period_s=0.1), 1000.5, True, 1010, 10.0),
        (request(), 1010.5, True, 1020, 10.0),
        (request(), 1090, True, 1090, 10.0),
        (request(period_s=60.0), 1100, True, 1100, 60.0),
        (request(period_s=0.1), 1101, False, 1101, pytest.approx(0.1)))),
    ("for this start of the agent, or any", b"", (
        (request(agent_start_us=76), 1000, False, None, 10.0),
        (request(agent_start_us=77), 1001, False, 1001, 10.0),
        (request(agent_start_us=0), 1002, False, 1002, 10.0))),
    ("of an older recvstats, whose body ends behind spread_s", b"", (
        (sendstats.pack_message((7, sendstats.REQUEST, 1, 1, 0, 0),
                                struct.pack("<f", 4.0)),
         1000, False, 1002, 10.0),)),
    ("signed, for this very agent, newer than the last one", b"key", (
        *[(bad, 1000, False, None, 10.0) for bad in (
            SIXTH, sign(SIXTH, b"bad"), sign(FIFTH, b"key")[:-1],
            sign(FIFTH, b"key") + b"x", sign(request(sequence=7), b"key"),
            sign(request(sequence=7, agent_start_us=76), b"key"))],
        (sign(FIFTH, b"key"), 1001, False, 1001, 10.0),
        (sign(FIFTH, b"key"), 1002, False, None, 10.0),
        (sign(SIXTH, b"key"), 1003, False, 1003, 10.0))),
)


@pytest.mark.parametrize("why, key, steps", ASKED)
def test_request(tmp_path, why, key, steps):
    """By the clock of the function that obeys: nobody waits for an hour."""
    keys = sendstats.Keys(write_key(tmp_path, key)) if key else None
    sampler = sendstats.Sampler("/proc", 7, 10.0)
    sampler.start_us = 77
    requests = sendstats.Requests(sampler, 0.5, keys, None)
    for datagram, now, grouped, due_s, period_s in steps:
        requests.obey(datagram, "master", grouped, now)
        assert requests.due == (due_s or sendstats.NEVER)
        requests.answer(due_s or now)
        assert requests.period_s == period_s


def test_phases_are_spread():
    """Evenly by node number; of agents without one, by chance."""
    phases = sorted(map(sendstats.phase_of, range(100)))
    assert max(b - a for a, b in zip(phases, phases[1:])) < 0.05
    assert len({int(4 * sendstats.phase_of(-2)) for _ in range(50)}) == 4


def slow_refused_agent_says_so_and_keeps_its_port(running):
    """A daemon too, while its terminal is there; recvstats asks at its
    start and for a period, and so it is found."""
    daemon = running.daemon("sendstats.py")
    agent = running.sendstats("-r", "0.1", 7, "127.0.0.1")
    assert daemon.stderr == agent.stderr.readline() == (
        "sendstats: 127.0.0.1:%d: refused: nobody listens there: start "
        "recvstats, or name its port with -p: trying again\n" % running.port)
    first = running.recvstats()
    port = running.wait_up(7).port
    running.sendstats("-r", "60", 3, "127.0.0.1")
    running.wait_up(3)
    for words, periods in ((["--rate", "0.2"], (0.2, 0.2)), ([], (0.1, 60))):
        first.kill()
        first.wait()
        time.sleep(0.3)                 # some samples are refused
        first = running.recvstats(*words)
        with running.open() as cluster:
            wait_for(lambda: periods == pytest.approx((
                cluster[7].period_s, cluster[3].period_s)))
            assert cluster[7].port == port
            assert abs(cluster.status.request_time_s - time.time()) < LIMIT_S
            if words:                   # a new node is asked as well
                running.sendstats("-r", "60", 9, "127.0.0.1")
                wait_for(lambda: 9 in cluster and cluster[9].period_s == 0.2)
    assert "last request     none" not in running.beostat("--daemon").stdout


def slow_odd_files_of_proc_end_no_agent(running):
    """They stay open, until the set of CPUs changes."""
    root = write_proc(running.folder + "/proc", EPYC)
    running.recvstats()
    running.sendstats("-r", "0.05", "--proc", root, 7, "127.0.0.1")
    running.wait_up(7)
    os.unlink(root + "/loadavg")
    with running.open() as cluster:
        for text in EPYC["stat"].replace("608", "9" * 401, 1), "":
            write_proc(root, {"stat": text})
            time.sleep(0.2)
        write_proc(root, {"stat": EPYC["stat"]})
        before = cluster[7].sequence
        wait_for(lambda: cluster[7].sequence > before + 1)
        assert cluster[7].load.one is not None
        with open(root + "/stat", "r+") as file:        # at no time empty
            file.write(EPYC["stat"].replace(
                "intr", "cpu2 1 0 1 1 0 0 0 0 0 0\nintr", 1))
        wait_for(lambda: cluster[7].load.one is None)


def test_silent_nodes_are_asked_once_a_minute(tmp_path, master):
    """At most 100 a second; not those that left, or are heard."""
    receiver, asked = new_receiver(tmp_path), []
    receiver.requests.sock = receiver.sock = master
    master.setblocking(False)
    sender = dict(address="127.0.0.1", port=master.getsockname()[1])
    with Clock() as clock:
        receiver.tick(clock.now)
        for number in range(301):
            feed(receiver, message(number, 1, number + 1), **sender)
        feed(receiver, message(301, kind=sendstats.FAREWELL), **sender)
        for second in range(1, 190):
            clock.now += 1
            feed(receiver, message(300, 1 + second, 301), **sender)
            receiver.tick(clock.now)
            before = len(asked)
            with contextlib.suppress(BlockingIOError):
                while True:
                    asked.append(sendstats.parse_request(master.recv(999)))
            assert len(asked) - before <= 100
    assert sorted((node, start_us) for node, *_, start_us in asked) == sorted(
        3 * [(number, number + 1) for number in range(300)])
    close(receiver)


def run(*command, **more):
    """Run a command to its end; return it, with text output."""
    return subprocess.run(
        [*map(str, command)], timeout=30, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, **more)


def ip(*words):
    """Run ip(8); return whether it could."""
    return run("ip", *" ".join(words).split()).returncode == 0


def join(namespaces, name, subnet):
    """Make a veth pair, name0 and name1, between two namespaces."""
    assert ip("link add {0}0 netns {1} type veth peer {0}1 netns {2}".format(
        name, *namespaces))
    for end, namespace in enumerate(namespaces):
        device = "%s%d" % (name, end)
        assert ip("-n", namespace, "link set", device, "up")
        assert ip("-n", namespace, "addr add %s.%d/24 dev" % (
            subnet, end + 1), device)


@contextlib.contextmanager
def two_namespaces(running):
    """Two network namespaces joined by veth pairs v (10.9.0) and w (10.8.0),
    which end with the processes in them."""
    names = ["beo%d-%d%s" % (os.getpid(), running.port, end) for end in "ab"]
    if not shutil.which("ip") or not ip("netns add", names[0]):
        pytest.skip("this machine allows no network namespaces")
    try:
        ip("netns add", names[1])
        for name in names:
            ip("-n", name, "link set lo up")
        join(names, "v", "10.9.0")
        join(names, "w", "10.8.0")
        yield names
    finally:
        running.end()
        for name in names:
            ip("netns del", name)


def inside(running, namespace, *words):
    """Start a command, of a tool in the foreground, in a namespace."""
    name, *words = map(str, words)
    command = [name, *words] if "/" in name else [
        sys.executable, "-S", os.path.join(HERE, name), "-f", *words]
    return spawn(running, "ip", "netns", "exec", namespace, *command)


def master_inside(running, namespace, *words, table=""):
    """Start a recvstats in a namespace; return it once it listens."""
    master = inside(running, namespace, "recvstats.py", "--table",
                    running.table + table, *words)
    assert "taken over" in master.stderr.readline()
    return master


def slow_multicast_crosses_one_interface_and_no_other(running):
    """Several masters hear the group and ask it; they may connect to an
    agent's procstatd, others may not."""
    ask = ("import socket\nsock = socket.create_connection(('%s', 7885), 5)\n"
           "sock.sendall(b'quik\\n')\nprint(sock.recv(9999))\n")
    with two_namespaces(running) as (a, b):
        agent = inside(running, b, "sendstats.py", "-d", "-i", "v1", "-r",
                       60, "--procstatd", 7885, 5)
        assert "sequence 1" in agent.stdout.readline()  # finds nobody
        master_inside(running, a, "-i", "v0")
        node = running.wait_up(5)
        assert (node.sequence, node.address) == (2, "10.9.0.2")
        master_inside(running, b, "-i", "v1", table="2")
        master_inside(running, a, "-i", "w0", table="3")
        inside(running, a, "sendstats.py", "-i", "v0", "-r", "0.3", 6)
        assert running.wait_up(6).address == "10.9.0.1"
        with libbeostat.open(running.table + "2") as cluster:
            wait_for(lambda: 6 in cluster)
        with libbeostat.open(running.table + "3") as cluster:
            assert len(cluster) == cluster.status.received == 0
        for address, is_answered in ("10.9.0.2", True), ("10.8.0.2", False):
            said, _ = inside(running, a, sys.executable, "-c",
                             ask % address).communicate()
            assert ("load1" in said) is is_answered
        assert agent.poll() is None


TROUBLED = (
    # words of an agent before its network is there, its master, what it says
    ("-i v1 5", "239.255.11.224:3040", "interface v1 is not there"),
    ("-i v1 6", "10.9.0.1:3040", "Network is unreachable: no route leads "
     "there"),
    ("-a 10.9.0.5 7", "10.9.0.1:3040", "Cannot assign requested address: -a "
     "is no address of this machine"),
    ("8", "10.9.7.7:5545", "No route to host: a firewall or a route "
     "refuses"),
    ("9", "themaster:3040", ".*"),
)


def slow_network_that_comes_and_goes(running):
    """Its interface, an address, the link, the route, the name server's
    answer, the master's address: agents and master outlive it; -i does not
    matter to a master that is no group."""
    with two_namespaces(running) as (a, b), contextlib.ExitStack() as stack:
        etc = write_proc("/etc/netns/" + b, {       # its own files of /etc
            "hosts": "10.9.0.1 another\n",
            "resolv.conf": "nameserver 127.0.0.1\n"})
        stack.callback(shutil.rmtree, etc)
        assert ip("-n", a, "link del v0")
        master = master_inside(running, a, "-i", "v0")
        assert master.stderr.readline() == (
            "recvstats: interface v0 is not there: waiting for it\n")
        inside(running, a, "sendstats.py", "--once", 3, "127.0.0.1:3040")
        running.wait_count("not_allowed")
        assert master.stderr.readline().startswith(
            "recvstats: not_allowed: 1 datagrams dropped, the last one from ")
        assert ip("-n", b, "route add unreachable 10.9.7.7")
        agents = [inside(running, b, "sendstats.py", "-r", "0.2",
                         *words.split(), to) for words, to, _ in TROUBLED]
        for agent, (_, to, says) in zip(agents, TROUBLED):
            assert re.fullmatch("sendstats: %s: %s: trying again\n" % (
                to, says), agent.stderr.readline())
        write_proc(etc, {"hosts": "10.9.0.1 themaster\n"})
        join((a, b), "v", "10.9.0")
        assert ip("-n", b, "addr add 10.9.0.5/32 dev v1")
        for node, end in (5, 2), (6, 2), (7, 5), (9, 2):
            assert running.wait_up(node).address == "10.9.0.%d" % end
        with running.open() as cluster:
            for change in "del 10.9.0.1/24", "add 10.9.0.7/24":
                assert ip("-n", a, "addr", change, "dev v0")
            wait_for(lambda: cluster[9].age_s > 0.7)
            write_proc(etc, {"hosts": "10.9.0.7 themaster\n"})
            wait_for(lambda: cluster[9].age_s < 0.3)
            assert ip("-n", a, "addr add 10.9.0.1/24 dev v0")
            wait_for(lambda: cluster[6].age_s < 0.5)
            for name, change, gone, back in (
                    (b, "link set v1 %s", "down", "up"),
                    (b, "route %s 10.9.0.0/24 dev v1", "del", "add"),
                    (b, "addr %s 10.9.0.2/24 dev v1", "del", "add")):
                assert ip("-n", name, change % gone)
                wait_for(lambda: cluster[6].age_s > 0.7)
                assert ip("-n", name, change % back)
                for node in 5, 6, 7:
                    wait_for(lambda: cluster[node].age_s < 0.5)
            assert cluster[6].agent.send_errors > 0
        assert {each.poll() for each in running.processes[2:]} == {None}


def slow_interface_of_a_master_that_is_not_root(running):
    """It hears the group, and says what it takes to follow an interface that
    has become another."""
    with two_namespaces(running) as (a, b), \
            tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        running.table = folder + "/table"
        master = start_as(running, 8, "recvstats.py", "-i", "v0", "--table",
                          running.table, before=("ip", "netns", "exec", a))
        assert "taken over" in master.stderr.readline()
        inside(running, b, "sendstats.py", "-i", "v1", "-r", "0.2", 5)
        running.wait_up(5)
        assert ip("-n", a, "link del v0")
        join((a, b), "v", "10.9.0")
        assert any(line == "recvstats: interface v0: start recvstats again, "
                   "if need be as root or with CAP_NET_RAW: waiting for it\n"
                   for line in master.stderr)


def slow_thousand_nodes_are_back_after_a_restart(running):
    """recvstats asks for answers that fit a buffer of the default size."""
    with sendstats.join_group("239.255.11.224", running.port + 1,
                              sendstats.find_interface("lo")[0]) as group:
        group.settimeout(LIMIT_S)
        start_changed(running, "recvstats", dict(BUFFER_BYTES=212992 // 2),
                      "-f", "-i", "lo", "-p", running.port, "--table",
                      running.table)
        *_, spread_s, _ = sendstats.parse_request(group.recv(999))
    for node in range(1000):
        time.sleep(spread_s / 1000)
        running.send(message(node, period_s=60.0))
    with running.open() as cluster:
        wait_for(lambda: cluster.status.stored == len(cluster) == 1000)
        assert cluster.status.kernel_drops == 0


# ---- procstatd ---------------------------------------------------------


class Client:
    """A connection to a procstatd."""

    def __init__(self, port, address="127.0.0.1"):
        self.sock = socket.create_connection(("127.0.0.1", port), LIMIT_S,
                                             (address, 0))

    def ask(self, command):
        """Return the lines of a reply, up to its empty one."""
        self.sock.sendall(command)
        lines = []
        with self.sock.makefile(encoding="utf-8") as file:
            for line in file:
                if line == "\n":
                    return lines
                lines.append(line[:-1])
        raise ConnectionError("closed after %r" % lines)

    def values(self, command):
        """Return {name: text} of a reply."""
        return dict(line.split(" ", 1) for line in self.ask(command))

    def is_served(self):
        """Return whether a command is answered; else it was hung up."""
        with contextlib.suppress(ConnectionError):
            return self.ask(b"quik\n") != []
        return False


def listens(port):
    """Return whether somebody listens to a TCP port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def serves_nobody(running):
    """Return whether the procstatd has no client: two threads are its own."""
    return len(os.listdir("/proc/%d/task" % running.processes[-1].pid)) == 2


def start_procstatd(running, *options, **constants):
    """Start procstatd alone, with some constants others; return its port."""
    port = free_port()
    start_changed(running, "sendstats", constants, "-d", "--procstatd", port,
                  *options)
    wait_for(lambda: listens(port))
    wait_for(lambda: serves_nobody(running))
    return port


QUIK = "load1 (.+\n)+\n"
COMMANDS_OF_CLIENTS = (
    # what is sent, what is answered
    (b"init\n", "\n"), (b"quit\nquik\n", ""), (b"", ""), (b"quik", QUIK),
    (b"QUIK\r\n", QUIK), (b" Quik \nquit\n", QUIK),
    (b"init\nsend\n", "\n" + QUIK),
    (b"make coffee\n", "unknown command: make coffee; there are init send "
     "quik jobs quit\n\n"),
    (b"\x1b[2J", r"unknown command: \\x1b\[2J; there are .*\n\n"),
)


def test_replies_of_procstatd(running):
    """In any case, the last one also without a newline."""
    port, pid = start_procstatd(running), running.processes[-1].pid
    for sent, answered in COMMANDS_OF_CLIENTS:
        sock = Client(port).sock
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert re.fullmatch(answered, sock.makefile().read()), sent
    wait_for(lambda: serves_nobody(running))
    count, *lines = Client(port).ask(b"jobs\n")
    assert int(count) == len(lines) > 1
    line, = [line for line in lines if line.startswith("%d " % pid)]
    assert re.fullmatch(        # three threads: for all, for us, and the main
        r"%d %d %d [RS] 3 \d{4,5} \d{5,} \d+ .*--procstatd\W+%d.*"
        % (pid, os.getpid(), os.getuid(), port), line)


def test_quik_reads_but_two_files(running):
    """And opens none."""
    client = Client(start_procstatd(running))
    client.ask(b"quik\n")
    with Strace(running.processes[-1].pid, running.folder, "-e",
                "trace=open,openat,pread64") as strace:
        client.ask(b"quik\n")
    assert strace.calls() == ["pread64"] * 2


STAT_LINE = "%d (%s) S 1 1 1 0 -1 0 0 0 0 0 %d %d 0 0 20 0 3 0 9 8192000 250\n"
NAMES = (
    # name, command line, as it is shown
    ("plain", b"/bin/plain\0-x\0", "/bin/plain -x"),
    ("a) R (b", b"", "[a) R (b]"),
    ("evil", b"new\nline\x1b[2J\0\xff", r"new\nline\x1b[2J \xff"),
    ("line\nfeed", b"", r"[line\nfeed]"),
)


def write_processes(root, count, names):
    """Make the folders of processes in a /proc."""
    for pid in range(1, count + 1):
        name, command, _ = names[pid % len(names)]
        folder = os.path.join(root, "%d" % pid)
        write_proc(folder, {"stat": STAT_LINE % (pid, name, pid, 1)})
        write_file(folder + "/cmdline", command)


def test_procstatd_of_another_proc(running):
    """What is absent is left out, and nothing else; a process may have any
    name, or have vanished."""
    root = write_proc(running.folder + "/proc", {"stat": EPYC["stat"].replace(
        "processes 2055", "processes 65535")})
    port = start_procstatd(running, "--proc", root)
    values = Client(port).values(b"send\n")
    assert not {"load1", "mem_used", "proc", "mhz"} & set(values)
    write_proc(root, dict(EPYC, stat=read_text(root + "/stat")))
    client = Client(port)
    assert client.values(b"send\n").items() >= dict(
        mem_free="25188573184", mem_used="87937024", shm_tot="9068544",
        forks="65535", cores="2", hostname=os.uname().nodename,
        procstatd_port="%d" % port).items()
    values = client.values(b"quik\n")
    assert abs(int(values.pop("uptime")) - time.time() + 1795226462) < LIMIT_S
    assert values == dict(
        load1="0", load5="0.01", load15="0.05", proc="77", user_ticks="608",
        nice_ticks="0", system_ticks="928", idle_ticks="127363",
        iowait_ticks="38", irq_ticks="0", softirq_ticks="9", steal_ticks="6",
        guest_ticks="0", guest_nice_ticks="0")
    write_processes(root, 20, NAMES)
    os.mkdir(root + "/21")
    page_kb = os.sysconf("SC_PAGE_SIZE") // 1024
    assert sorted(client.ask(b"jobs\n")) == sorted(["20"] + [
        "%d 1 %d S 3 %d 8000 %d %s" % (
            pid, os.getuid(), 250 * page_kb, pid + 1, NAMES[pid % 4][2])
        for pid in range(1, 21)])


def slow_clients_that_read_nothing_hold_little_and_are_dropped(running):
    """So is who is idle, or dribbles a command's bytes.  All command lines
    together are no longer than a reply may be."""
    root, count = write_proc(running.folder + "/proc", EPYC), 1100
    write_processes(root, count, [("long", b"x" * 4000, "")])
    port = start_procstatd(running, "--proc", root, IDLE_S=0.5,
                           LINE_BYTES=9999, CLIENTS_OF_ONE=6)
    _, *lines = Client(port).ask(b"jobs\n")
    assert [len(line.split()[-1]) for line in lines] == [
        (1 << 20) // count] * count
    held_kb = [resident_kb(running.processes[-1].pid)]
    _, dribbler, *deaf = [Client(port) for _ in range(6)]
    for client in deaf:
        client.sock.sendall(b"jobs\n" * 50)

    def are_gone():
        held_kb.append(resident_kb(running.processes[-1].pid))
        with contextlib.suppress(OSError):
            dribbler.sock.send(b"q")
        return serves_nobody(running)
    wait_for(are_gone, 3 * LIMIT_S)
    assert max(held_kb) - held_kb[0] < 15000


def test_hostile_clients_are_dropped_and_refused(running):
    """Four of one user of the node; and a few in all, here three."""
    port = start_procstatd(running, CLIENTS=3)
    silent = [Client(port) for _ in range(3)]
    assert not Client(port).is_served() and silent[0].is_served()
    port = start_procstatd(running)
    for line, is_answered in (b"x" * 256 + b"\n", True), (b"x" * 257, False):
        with Client(port).sock as sock:
            sock.sendall(line)
            assert bool(sock.recv(9)) is is_answered
    wait_for(lambda: serves_nobody(running))
    half, deaf, *rest = [Client(port) for _ in range(4)]
    for address in "127.0.0.1", "127.0.0.9":
        assert not Client(port, address).is_served()    # the fifth
    half.sock.sendall(b"qu")
    deaf.sock.sendall(b"jobs\nsend\n" * 20)
    half.sock.sendall(b"ik\n")
    assert half.sock.recv(9)
    rest[0].sock.close()
    wait_for(lambda: Client(port).is_served())


def test_procstatd_by_its_own_name(running):
    """A link; -d is a daemon, as it was for the original, -v tells."""
    link, path = running.folder + "/procstatd", running.folder + "/pid"
    os.symlink(os.path.join(HERE, "sendstats.py"), link)
    port, verbose = free_port(), free_port()
    assert "usage: procstatd [options] [PORT]" in tool(link, "--help").stdout
    assert tool(link, 7885, 7886).returncode == 2
    ended = tool(link, "-d", "--pid-file", path, port,
                 env=dict(os.environ, NODE="7"))
    running.pids.append(read_pid(path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert Client(port).is_served()
    process = running.start(link, "-v", "--allow", "127.0.0.6/30", "--allow",
                            "127.0.0.1", verbose)
    wait_for(lambda: listens(verbose))
    for end, is_allowed in (1, True), (4, True), (7, True), (3, False):
        assert Client(verbose, "127.0.0.%d" % end).is_served() is is_allowed
    assert process.stderr.readline() == (
        "sendstats: procstatd: 127.0.0.3 refused: not allowed\n")


def slow_all_clients_together_cost_a_fifth_of_a_cpu(running):
    """Whatever they ask; None: they connect and leave, and ask nothing."""
    port, pid = start_procstatd(running), running.processes[-1].pid

    def ask(_):
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                sock = Client(port).sock
                sock.settimeout(0.1)
                while flood and time.monotonic() < end:
                    sock.sendall(flood)
                    with contextlib.suppress(socket.timeout):
                        sock.recv(1 << 20)
    for flood in b"jobs\n", b"quik\n" * 40, b"\n" * 200, None:
        before, end = cpu_s(pid), time.monotonic() + 0.5
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))
        assert cpu_s(pid) - before < 0.25, flood    # 0.1, and their last
        wait_for(lambda: serves_nobody(running))


def slow_procstatd_beside_an_agent(running):
    """Samples and commands go on beside each other; a port that is taken
    keeps no sample back; -J shows the processes."""
    running.recvstats()
    port = free_port()
    running.sendstats("-r", "0.01", "--procstatd", port, 3, "127.0.0.1")
    assert running.wait_up(3).agent.procstatd_port == port
    Client(port).sock.sendall(b"jobs\n" * 50)           # and reads nothing
    with running.open() as cluster:
        before = cluster[3].sequence
        wait_for(lambda: cluster[3].sequence > before + 10)
    client = Client(port)
    for number in range(30):            # of which three meet a sample
        time.sleep(number / 3000)
        assert client.is_served()
    agent = running.sendstats("--procstatd", port, 4, "127.0.0.1")
    assert agent.stderr.readline() == (
        "sendstats: --procstatd %d: Address already in use: trying again\n"
        % port)
    assert running.wait_up(4).agent.procstatd_port == 0
    assert tool("sendstats.py", "--procstatd", port).stderr == (
        "sendstats: --procstatd %d: Address already in use\n" % port)
    shown = running.beostat("-J", "3")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.match(
        r" node +pid user     s  thr +rss  cpu%% command\n(    3 .*\n)*"
        r"    3 +\d+ %.8s .* -r 0.01 --procstatd %d " % (
            pwd.getpwuid(os.getuid()).pw_name, port), shown.stdout)
    assert running.beostat("-J", "--sort", "load").returncode == 2
    shown = running.beostat("-J", "--sort", "rss", "--top", "2", "3,4")
    assert shown.returncode == 1 and len(shown.stdout.splitlines()) == 3
    assert shown.stderr == ("beostat: node 4: runs no procstatd "
                            "(sendstats.py --procstatd)\n")


JOB = b"1\n11 1 0 S 1 1024 4096 7 %s\n\n"
NO_LIST = "answer is not a list of processes"
LIARS = (
    # what a node's procstatd sends, what beostat says of it
    (JOB % b"\xff\x1b[31m", None),
    (None, "Connection refused"),
    (b"5", "no answer in 3 s"),
    (b"x" * (1 << 23), "answer of over 4194304 bytes"),
    (JOB.replace(b"1\n", b"2\n", 1) % b"sleep", NO_LIST),
    (JOB.replace(b"4096", b"9" * 400) % b"sleep", NO_LIST),
    (JOB % (b"x" * 20000), NO_LIST),
    (b"9" * 20000 + b"\n\n", NO_LIST),
    (b"65537\n" + b"1 1 0 S 1 1 1 1 x\n" * 65537 + b"\n", NO_LIST),
    (b"\n\n", NO_LIST),
    ("rude", "Broken pipe"),
)


def play_procstatd(stack, receiver, number, answer):
    """Feed a receiver with a node of 1,000 ticks a second whose procstatd,
    until the stack ends, gives an answer to each line; None: is not there,
    rude: leaves it unread."""
    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    while answer != "rude" and client.recv(64):
                        client.sendall(answer() if callable(answer)
                                       else answer)
                    client.sendall(JOB % b"sleep")
                    client.shutdown(socket.SHUT_WR)
                    select.select([client], [], [])
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    if answer is not None:
        listener.listen(5)
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=serve, daemon=True).start()
    feed(receiver, message(number, body=body_with(
        ticks_per_s=1000, procstatd_port=listener.getsockname()[1])),
         "127.0.0.1")


def slow_jobs_of_nodes_that_lie(running):
    """Each is that node's error line, and the others are shown, with few
    descriptors."""
    with contextlib.ExitStack() as stack:
        receiver = new_receiver(running.folder)
        stack.callback(close, receiver)
        for number, (answer, _) in enumerate(LIARS):
            play_procstatd(stack, receiver, number, answer)
        shown = run("sh", "-c", 'ulimit -n 32; exec "$@"', "sh",
                    sys.executable, os.path.join(HERE, "beostat.py"), "-J",
                    "--table", receiver.table.path)
    assert shown.stdout.splitlines()[1:] == [
        "    0      11 root     S    1   1.0M   0.0 \ufffd\\x1b[31m"]
    assert shown.returncode == 1 and shown.stderr.splitlines() == [
        "beostat: node %d: 127.0.0.1: %s" % (number, error)
        for number, (_, error) in enumerate(LIARS) if error]


def test_jobs_are_measured_in_the_nodes_own_ticks(receiver):
    """One that uses a CPU whole shows 100 %.  All nodes are asked at once."""
    asked = threading.Barrier(2, timeout=LIMIT_S)

    def tell():
        asked.wait()
        return b"1\n11 1 0 R 1 4096 8192 %d sh\n\n" % (
            time.monotonic() * 1000)
    with contextlib.ExitStack() as stack:
        for number in 0, 1:
            play_procstatd(stack, receiver, number, tell)
        _, *rows = map(str.split, shown(receiver, "-J").splitlines())
    assert [row[7] for row in rows] == ["sh", "sh"]
    assert all(50 < float(row[6]) < 200 for row in rows)


def test_jobs_are_fetched_one_by_one_where_no_thread_can_start(
        receiver, monkeypatch):
    start, mine = threading.Thread.start, threading.get_ident()

    def fail(thread):                   # not one of a scenario
        if threading.get_ident() != mine:
            return start(thread)
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, "start", fail)
    for number in range(3):
        feed(receiver, message(number))
    with libbeostat.open(receiver.table.path) as cluster:
        picture = beostat.read_picture(cluster, beostat.parse_args(["-J"]))
    assert len(picture.missing) == 3


# ---- access ------------------------------------------------------------


def test_signed_message_without_a_key_is_shown_as_unverified(receiver):
    assert feed(receiver, sign(message(3), b"key")) == "stored"
    assert "unverified       n3 sign," in shown(receiver, "--daemon")


def slow_keys_from_agent_to_table_and_back(running):
    """Read anew every few seconds, and on SIGHUP: then a request is obeyed."""
    path = write_key(running.folder, b"first")
    receiver = running.recvstats("--key-file", path)
    running.sendstats("-r", "0.1", "--key-file", path, 3, "127.0.0.1")
    running.sendstats("-r", "0.1", 4, "127.0.0.1")
    slow = running.sendstats("-r", 3600, "--key-file", path, 5, "127.0.0.1")
    assert running.wait_up(3).signature == "verified"
    running.wait_up(5)
    running.wait_count("unsigned", 3)
    with running.open() as cluster:
        assert 4 not in cluster
        for keys in (b"second", b"first"), (b"second",):
            write_key(running.folder, *keys)
            receiver.send_signal(signal.SIGHUP)
            before = cluster[3].sequence
            wait_for(lambda: cluster[3].sequence > before + 3)
        slow.send_signal(signal.SIGHUP)
        receiver.kill()
        receiver.wait()
        running.recvstats("--key-file", path)
        wait_for(lambda: cluster[5].sequence > 1)


def slow_agent_needs_no_root(running):
    """Nor does recvstats: test_table_belongs_to_who_made_it."""
    running.recvstats()
    start_as(running, 65534, "sendstats.py", "-p", running.port, 3,
             "127.0.0.1")
    running.wait_up(3)


# ---- faults ------------------------------------------------------------


def read_text(path):
    """Return the text of a file."""
    with open(path, errors="replace") as file:
        return file.read()


def resident_kb(pid="self"):
    """Return the resident memory of a process, less what it maps."""
    return int(re.search(r"RssAnon:\s*(\d+)", read_text(
        "/proc/%s/status" % pid)).group(1))


def cpu_s(pid):
    """Return the CPU time of a process that has not ended."""
    fields = read_text("/proc/%d/stat" % pid).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid):
    """Return whether a process runs."""
    with contextlib.suppress(OSError):
        return " Z " not in read_text("/proc/%d/stat" % pid)


def spawn(running, *command, **more):
    """Start a command; return the process."""
    process = subprocess.Popen([*map(str, command)], **{
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
        "universal_newlines": True, **more})
    running.processes.append(process)
    return process


CHANGED = """
import os, signal, sys
sys.path[:0] = [%r]
import %s as tool
vars(tool).update(%r)
tool.make_parser()
os.kill(os.getpid(), %d)
os._exit(tool.main(sys.argv[1:]))
"""


def start_changed(running, module, constants, *words, told=0, **more):
    """Start a tool of which some constants are others, and which is told a
    signal before it begins."""
    return spawn(running, sys.executable, "-S", "-c", CHANGED % (
        HERE, module, constants, told), *words, **more)


def send_load(port, nodes, rate, seconds):
    """Send messages of nodes in turn, or of none garbage, at a rate."""
    start, data = time.monotonic(), b"garbage" * 9
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for sent in range(rate * seconds):
            if nodes:
                data = message(sent % nodes, 1 + sent // nodes)
            sock.sendto(data, ("127.0.0.1", port))
            wait_s = start + sent / rate - time.monotonic()
            if wait_s > 0.005:
                time.sleep(wait_s)


def count_torn(table, reads):
    """Return how many reads gave a sample, how many one in pieces."""
    whole = torn = 0
    libbeostat.TRIES = 2                # the least that find it whole
    with libbeostat.open(table) as cluster:
        for turn in range(reads):
            if turn % 1000 == 0:
                cluster.refresh(0.0)    # it may have moved
            with contextlib.suppress(libbeostat.BeostatError):
                slot = cluster.read_slot(0, cluster.find(0))
                node = libbeostat.Node(0, slot, 0.0, 0.0)
                body = slot[libbeostat.RECORDS_AT:-libbeostat.CRC_BYTES]
                whole += 1
                torn += (node.received, body) != (
                    node.sequence, PATTERNS[node.sequence % 64])
    return whole, torn


PATTERNS = [bytes([n]) * 2 ** (n % 6 + 8) for n in range(64)]


def read_torn(running, reads):
    """Read beside a writer that never rests, which is this process."""
    receiver, sequence = new_receiver(running.folder), 1
    feed(receiver, message(0, 1, body=PATTERNS[1]))
    with multiprocessing.Pool(2) as pool:
        reading = [pool.apply_async(count_torn, (
            receiver.table.path, reads // 2)) for _ in range(2)]
        while not all(counts.ready() for counts in reading):
            sequence += 1
            feed(receiver, message(0, sequence, body=PATTERNS[sequence % 64]))
        whole, torn = map(sum, zip(*[counts.get() for counts in reading]))
    assert torn == 0 and whole > reads // 100
    return "%d whole, in others the writer was seen, none torn" % whole


def mutants(count, seed, good, fields, covered, crc):
    """Yield bytes made from good ones, most of them with a right CRC.

    fields        offsets of numbers that may become odd ones
    covered, crc  slices: what the CRC is of, and where it stands
    """
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(data) or 1)
            field = chance.choice(fields)
            odd = chance.choice((0, 1, chance.randrange(600), 2**31,
                                 2**32 - 1, chance.getrandbits(32)))
            start, end, new = chance.choice((
                (place, place + 1, bytes([chance.randrange(256)])),
                (place, None, b""),
                (place, None, chance.choice(good)[place:]),
                (place, place + 8, chance.getrandbits(64).to_bytes(
                    8, "little")),
                (field, field + 4, odd.to_bytes(4, "little")),
                (len(data), None, b"x" * chance.randrange(100))))
            data[start:end] = new
        if chance.random() < 0.7:
            data[crc] = struct.pack("<I", zlib.crc32(data[covered]))
        yield bytes(data)


def read_all(cluster):
    """Return the numbers of the nodes, of which every field was read."""
    nodes = list(cluster)
    for node in nodes:
        for part in [*libbeostat.PARTS, *libbeostat.LISTS]:
            getattr(node, part)
    return [node.number for node in nodes]


def mutate_datagrams(running, count):
    """Feed a receiver with damaged datagrams from elsewhere."""
    receiver = new_receiver(running.folder, "--max-nodes", "500")
    honest, now, path = range(400, 500), time.monotonic(), receiver.table.path
    crc = -libbeostat.CRC_BYTES
    bad = mutants(count + 3001, 13, [
        message(number, 5, body=body) for number, body in enumerate(
            (BODY, body_of_counts(64, 0), body_of_counts(1, 0)))], [
                *libbeostat.layout(libbeostat.HEADER)[1].values()],
        slice(crc), slice(crc, None))

    def feed_bad(count):
        return collections.Counter(feed(receiver, data, "10.6.6.6", now)
                                   for data in itertools.islice(bad, count))
    for number in honest:
        feed(receiver, message(number, 2**31), "10.0.0.%d" % (number - 300),
             now)
    feed_bad(3001)                      # all sizes fit from here on
    resident, size = resident_kb(), os.path.getsize(path)
    with libbeostat.open(path) as cluster:
        held = [cluster[number].slot for number in honest]
        counts = feed_bad(count)
        receiver.tick(now)
        grown = resident_kb() - resident
        assert grown <= 1024 and os.path.getsize(path) <= size + (1 << 20)
        assert len(receiver.lines) <= 100, receiver.lines
        assert held == [cluster[number].slot for number in honest]
        assert {*honest} <= {*read_all(cluster)}
    return "%s; %d kB grown" % (dict(counts), grown)


def mutate_tables(running, count):
    """Read damaged table files: a result or a BeostatError."""
    receiver = new_receiver(running.folder, "-N", "6", "--max-nodes", "6")
    for number in range(5):
        feed(receiver, message(number))
    path, good = receiver.table.path, receiver.table.view.tobytes()
    close(receiver)
    at, opened = libbeostat.TABLE_AT, 0
    index = range(libbeostat.TABLE_BYTES, libbeostat.TABLE_BYTES + 28, 4)
    libbeostat.PAUSE_S = 0.0            # nobody writes them
    for data in mutants(count, 19, [good], [*at.values(), *index],
                        slice(at["version"], at["crc"]),
                        slice(at["crc"], libbeostat.TABLE_STRUCT.size)):
        write_file(path, data)
        with contextlib.suppress(libbeostat.BeostatError):
            with libbeostat.open(path) as cluster:
                cluster.status
                read_all(cluster)
                opened += 1
    assert opened > count // 10
    return "%d could be read, the others said why not" % opened


def sustain(running, nodes, seconds, garbage=0):
    """Serve nodes at 1 Hz, beside so much garbage a second."""
    process = running.recvstats("-N", nodes)
    with multiprocessing.Pool(2) as pool:
        honest, noise = [
            pool.apply_async(send_load, (running.port, *load, seconds))
            for load in ((nodes, nodes), (0, garbage))]
        running.wait_count("stored", nodes)
        before = resident_kb(process.pid)
        with running.open() as cluster:
            while not honest.ready():
                assert all(node.state == "up" for node in cluster)
                time.sleep(0.3)
            grown = resident_kb(process.pid) - before
            noise.get()
            running.wait_count("received", nodes * seconds)
            status = cluster.status
            assert len(cluster) == nodes
            if not garbage:
                assert status.stored == nodes * seconds
                assert status.kernel_drops == 0 and grown <= 256
                assert sum(node.lost for node in cluster) == 0
    process.terminate()
    assert len(process.communicate()[1].splitlines()) <= 100
    return "%d of garbage, the kernel dropped %d; %d kB grown to %d" % (
        status.magic_wrong, status.kernel_drops, grown, before + grown)


def run_long(running, times):
    """Take samples, receive them, one a second, and read them, at times in
    a new file; memory and descriptors stay."""
    with Clock() as clock:
        sampler = sendstats.Sampler("/proc", 3, 1.0)
        receiver = new_receiver(running.folder)
        cluster = libbeostat.open(receiver.table.path)
        for turn in range(times):
            clock.now += 1
            data = sampler.make_message(sendstats.SAMPLE)
            assert feed(receiver, data, now=clock.now) == "stored"
            receiver.tick(clock.now)
            receiver.lines.clear()
            if turn % 100 == 0:
                receiver.table.make(len(receiver.table.view))
                cluster.reopen()
            assert read_all(cluster) == [3]
            if turn == times // 10:
                before = resident_kb(), len(os.listdir("/proc/self/fd"))
    grown = resident_kb() - before[0]
    assert grown <= 64 and len(os.listdir("/proc/self/fd")) == before[1]
    return "%d kB grown" % grown


FAULTS = (
    # function, its length in the suite, with LONG=1
    (read_torn, dict(reads=10000), dict(reads=10 ** 7)),
    (mutate_datagrams, dict(count=3000), dict(count=10 ** 6)),
    (mutate_tables, dict(count=500), dict(count=10 ** 5)),
    (sustain, dict(nodes=500, seconds=2, garbage=50000),
     dict(nodes=1000, seconds=20, garbage=200000)),
    (sustain, dict(nodes=2000, seconds=2), dict(nodes=10000, seconds=60)),
    (run_long, dict(times=2000), dict(times=200000)),
)


@pytest.mark.parametrize("function, short, long", FAULTS, ids=[
    function.__name__ for function, *_ in FAULTS])
def test_fault(running, function, short, long):
    """In a process of its own, which tells what it holds, and may fork."""
    what = function.__name__, long if LONG else short, running.folder
    alone = spawn(running, sys.executable, "-c", "from test_all import *\n"
                  "print(play_scenario(lambda running: %s(running, **%r), "
                  "Running(%r)))" % what, cwd=HERE)
    print(*what, *alone.communicate())
    assert alone.returncode == 0


def test_folder_of_the_table_that_is_gone_is_said_once(running):
    folder = running.folder + "/folder"
    os.mkdir(folder)
    receiver, now = new_receiver(folder), time.monotonic()
    shutil.rmtree(folder)
    for second in range(3):
        receiver.tick(now + second)
    assert receiver.lines == [
        "%s: gone, and cannot be made: No such file or directory"
        % receiver.table.path]


def test_drops_are_counted_though_the_kernel_counts_to_32_bits():
    sock = types.SimpleNamespace(
        getsockopt=lambda *_: struct.pack("=9I", *range(9)))
    assert recvstats.read_drops(sock, 2**32 + 3) == 2**32 + 8
    assert recvstats.read_drops(sock, 2**32 + 9) == 2**33 + 8


def test_fault_of_its_own_is_logged(running):
    path = running.folder + "/log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(path)
        log.settimeout(LIMIT_S)
        start_changed(running, "recvstats", dict(SYSLOG=path, SILENT_S=None),
                      "-p", running.port, "--table", running.table)
        while b": ends by a fault of its own: TypeError(" not in log.recv(9999):
            pass


@pytest.mark.parametrize("why, make, was", [row[:3] for row in FOUND])
def test_path_that_names_another_file_meanwhile(receiver, why, make, was):
    """What was a table, or is nothing, is replaced; what is none is left
    alone, said once, and let be for a minute: to look at it may take more
    than a second."""
    path, now = receiver.table.path, time.monotonic()
    made = os.path.join(os.path.dirname(path), "other", "made")
    feed(receiver, message(3))
    with libbeostat.open(path) as cluster:
        os.mkdir(os.path.dirname(made))
        make(made)
        os.unlink(path)
        if why != "nothing":
            os.rename(made, path)
        feed(receiver, message(3, 2))
        receiver.tick(now)
        assert cluster[3].sequence == 2
        receiver.tick(now + 1)
    if was is None:
        line, = [line for line in receiver.lines if "left alone" in line]
        assert "gone, and cannot be made" in line
        os.rename(path, made)
        receiver.tick(now + 2)
        assert not os.path.exists(path)
        receiver.tick(now + 62)
    with libbeostat.open(path) as cluster:
        assert cluster[3].sequence == 2


# A sweep: each kind of system call that a daemon makes fails, once and for
# SWEEP_S.  In the suite a few of them; all with LONG=1.

SWEEP_S = 2.0 if LONG else 0.2
SWEEP = [(call, name) for calls, names in re.findall("([^:,]+):([^,]+)", """
    accept4: EMFILE ECONNABORTED, bind: EADDRNOTAVAIL EADDRINUSE, chdir
    unlink: EACCES, clock_gettime: EINVAL, clone clone3 fork: EAGAIN, close:
    EIO, connect: ENETUNREACH EADDRNOTAVAIL EAGAIN ECONNREFUSED ENOENT, dup2
    dup3 epoll_create1 pipe2: EMFILE, fallocate: ENOSPC EIO, fchmod setsid
    getpriority setpriority: EPERM, flock: ENOLCK, ftruncate pwrite64: ENOSPC,
    getdents64: EIO ENOENT, getpeername getsockname getsockopt: ENOBUFS,
    setsockopt: ENOBUFS ENODEV, ioctl: ENODEV EADDRNOTAVAIL ENOMEM, newfstatat
    stat: EACCES ENOENT, openat: EMFILE EACCES ENOENT, poll: ENOMEM, pread64:
    EIO, read: EIO EISDIR, readlink readlinkat: EACCES ENOENT, recvfrom:
    ECONNREFUSED ENOMEM, rename: EACCES ENOSPC, sendto: ENOBUFS EAGAIN EINVAL
    EHOSTUNREACH ECONNREFUSED EPIPE, socket: EMFILE EACCES, statfs: EIO, uname:
    EFAULT""") for call in calls.split()
         for name in names.split()]


class Strace:
    """strace(1) on a process, with its threads, while this is open."""

    def __init__(self, pid, folder, *options):
        self.path = os.path.join(folder, "trace")
        self.command = ["strace", "-f", "-o", self.path, "-p", "%d" % pid,
                        *options]

    def __enter__(self):
        if not shutil.which("strace"):
            pytest.skip("no strace")
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE)
        if b"attached" not in self.process.stderr.readline():
            self.process.wait()
            pytest.skip("strace may not attach")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(LIMIT_S)
        self.process.stderr.close()

    def calls(self):
        """Return the names of the calls so far, in their order."""
        return re.findall(r"^\d+ +(\w+)\(", read_text(self.path), re.M)

    def met(self):
        """Return how many calls were made to fail."""
        return read_text(self.path).count("(INJECTED)")


def inject(call, name, turn=0):
    """Return strace's options that make a call fail, at a turn or each."""
    return "-e", "trace=setsid," + call, "-e", "inject=%s:error=%s%s" % (
        call, name, ":when=%d" % turn if turn else "")


def sweep(few, turns, attempt):
    """Make calls fail; return how many faults were met.

    few      the faults to try, unless LONG
    turns    at which of a call's turns, 0 is at each
    attempt  function of the call, "" none, and strace's options: has a
             tool do what it does, and returns the Strace when it is well
    """
    calls, met, missed = attempt("").calls(), 0, 0
    few = [tuple(fault.split()) for fault in few.split(", ")]
    for call, name in SWEEP if LONG else few:
        for turn in turns:
            if calls.count(call) < max(turn, 1):
                break
            try:
                count = attempt(call, *inject(call, name, turn)).met()
                spins = count > 10 * calls.count(call) + 100
                # One's own pipe can be read; Python itself tries again to
                # send what a socket with a timeout did not take.
                assert not spins or call == "read" or name == "EAGAIN"
            except Exception as error:
                raise AssertionError((call, name, turn)) from error
            met, missed = met + (count > 0), missed + (not count and turn < 2)
            if not count:
                break
    assert met > 9 * missed
    return "%d faults met" % met


class Pair:
    """A recvstats and an agent that run, one of which is swept."""

    def __init__(self, running, swept):
        self.running, self.swept, self.port = running, swept, free_port()
        self.path = os.path.join(running.folder, "errors")
        self.numbers, self.lost = itertools.count(10), None
        key = write_key(running.folder, b"key")
        with open(self.path, "w") as stderr:
            self.daemons = {name: spawn(
                running, sys.executable, "-S", os.path.join(HERE, name), "-f",
                "-p", running.port, "-i", "lo", "--key-file", key, *words,
                stderr=stderr) for name, words in (
                    ("recvstats.py", (
                        "--table", running.table, "--rate", "0.1", "--allow",
                        "127.0.0.0/24")),
                    ("sendstats.py", (
                        "-r", "0.1", "--procstatd", self.port, 7, "127.0.0.1",
                        "localhost:9", "239.255.11.224:%d" % free_port())))}
        self.pid = self.daemons[swept].pid
        wait_for(lambda: os.path.exists(running.table))
        running.wait_up(7)
        self.send(3, sendstats.FAREWELL)
        self.see_well([])

    def send(self, number, kind=sendstats.SAMPLE):
        """Send a message of another node."""
        self.running.send(sign(message(number, kind=kind), b"key"))

    def errors(self):
        """Return the lines of both, but for a table that is gone or cannot
        grow."""
        return [line for line in read_text(self.path).splitlines()
                if "made anew" not in line and "cannot grow" not in line]

    def drive(self):
        """Have both do all that they do: make the table anew, let it grow,
        read keys, ask, answer."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.running.table)
        self.send(next(self.numbers))
        end = time.monotonic() + SWEEP_S
        while time.monotonic() < end:
            for daemon in self.daemons.values():
                daemon.send_signal(signal.SIGHUP)
            with contextlib.suppress(OSError):
                sock = Client(self.port).sock
                sock.settimeout(0.1)
                sock.sendall(b"quik\nsend\njobs\n")
                while sock.recv(1 << 20):
                    pass
            time.sleep(0.05)

    def see_well(self, lines):
        """See that whole samples arrive, none was lost but where there was
        trouble with the interface, and the states are true."""
        self.daemons["recvstats.py"].send_signal(signal.SIGHUP)
        before = self.running.wait_up(7).sequence
        wait_for(lambda: self.running.wait_up(7).sequence > before + 1)
        wait_for(lambda: Client(self.port).is_served())
        with self.running.open() as cluster:
            left, node = cluster[3], cluster[7]
        assert (left.state, node.state, node.restarts) == ("left", "up", 0)
        assert node.memory.total_bytes and node.kernel.boot_time_s
        assert node.load.one is not None and node.disk.blocks
        assert node.interfaces and len(node.cpus) == node.agent.cpus > 0
        lost, self.lost = self.lost, node.lost
        assert (lost in (None, node.lost) or self.swept == "sendstats.py"
                or "interface lo" in str(lines))

    def attempt(self, _, *options):
        """Drive both while some calls of one fail."""
        seen = len(self.errors())
        with Strace(self.pid, self.running.folder, *options) as strace:
            for _ in range(3):          # starved, it may do little at first
                self.drive()
                if strace.met() or not options:
                    break
        lines = self.errors()[seen:]
        assert len({*lines}) == len(lines) and "Traceback" not in str(lines)
        self.see_well(lines)
        return strace


def sweep_running(running, swept, few):
    """Sweep a recvstats or an agent; then Ctrl-C ends both though calls
    fail."""
    pair = Pair(running, swept)
    met, said = sweep(few, (1, 0), pair.attempt), pair.errors()
    assert "down: n7" not in str(said)
    if swept == "sendstats.py":
        assert len({*said}) == len(said)
        for number in errno.ENOMEM, errno.EIO, errno.ENOBUFS:
            assert os.strerror(number) in str(said)
    else:
        assert "goes on after: " + os.strerror(errno.ENOMEM) in str(said)
        fault = Strace(pair.pid, running.folder, *inject("recvfrom", "ENOMEM"))
        with running.open() as cluster, fault:
            wait_for(lambda: not cluster.running)
            assert cluster[7].state == "up"     # not to hear is no silence
    for name, call in ("sendstats.py", "poll"), (
            "recvstats.py", "recvfrom" if swept == "recvstats.py" else "poll"):
        daemon = pair.daemons[name]
        with Strace(daemon.pid, running.folder, *inject(call, "ENOMEM")):
            daemon.send_signal(signal.SIGINT)
            assert daemon.wait(LIMIT_S) == 0
    return met


def slow_fault_sweep_of_a_running_agent(running):
    return sweep_running(running, "sendstats.py",
                         "poll ENOMEM, pread64 EIO, sendto ENOBUFS")


def slow_fault_sweep_of_a_running_receiver(running):
    return sweep_running(running, "recvstats.py",
                         "poll ENOMEM, ioctl ENOMEM, recvfrom ENOMEM")


def slow_sample_asks_the_kernel_for_nothing_that_seldom_changes(running):
    """Each asked three times for its interface, and once for /etc/hosts."""
    with played_master() as master:
        agent = running.sendstats(
            "-r", "0.05", "-i", "lo", 7, "239.255.11.224",
            "localhost:%d" % master.getsockname()[1])
        master.recv(65536)
        with Strace(agent.pid, running.folder) as strace:
            for _ in range(8):
                master.recv(65536)
    calls = strace.calls()
    assert calls.count("sendto") > 10
    assert calls.count("ioctl") <= 3            # one look, in 5 s
    assert calls.count("stat") + calls.count("newfstatat") <= 1


def slow_interface_that_stays_keeps_its_socket(running):
    running.recvstats("-i", "lo")
    agent = start_changed(running, "sendstats", dict(REFRESH_S=0.05), "-f",
                          "-p", running.port, "-r", "0.05", "-i", "lo", 7)
    running.wait_up(7)
    with Strace(agent.pid, running.folder) as strace:
        wait_for(lambda: strace.calls().count("ioctl") > 9)
    assert "connect" not in strace.calls()


def start_traced(running, module, words, *options):
    """Return the exit status of a tool, None when it hangs, its output, the
    lines of its errors, and the Strace of its calls from main() on."""
    shown, said = running.folder + "/shown", running.folder + "/said"
    with open(shown, "w") as stdout, open(said, "w") as stderr:
        process = start_changed(running, module, {}, *words, stdout=stdout,
                                stderr=stderr, told=signal.SIGSTOP)
    wait_for(lambda: " T " in read_text("/proc/%d/stat" % process.pid))
    with Strace(process.pid, running.folder, *options) as strace:
        process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT_S)
    status = process.returncode
    process.kill()
    return status, read_text(shown), read_text(said).splitlines(), strace


def sweep_start(running, module, few, *words):
    """Sweep the start of a daemon, whose other half of the pair runs: it
    works, or ends with a line and leaves nothing behind."""
    path = os.path.join(running.folder, "pid")
    files = {"pid", "table", "keys", "shown", "said", "trace"}

    def attempt(call, *options):
        status, _, lines, strace = start_traced(
            running, module, [*words, "-p", running.port, "--pid-file", path],
            *options)
        pids = {int(line.split()[0])
                for line in read_text(strace.path).splitlines()}
        try:
            if status == 0:
                before = running.wait_up(7).sequence
                wait_for(lambda: running.wait_up(7).sequence != before)
                assert is_alive(read_pid(path))
                assert "Traceback" not in str(lines)
            elif (call, status, lines) not in (
                    ("write", 1, []),           # nobody took its line
                    ("close", None, [])):       # it waits for what is open
                assert status == 1 and lines[-1].startswith(module)
                assert len(lines) == 1 or "hashlib" in str(lines)
                wait_for(lambda: not any(map(is_alive, pids)))
                assert not (os.path.exists(path) and read_text(path))
        finally:
            with contextlib.suppress(OSError, ValueError):
                pids.add(read_pid(path))        # it may have made no call
                os.unlink(path)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert {*os.listdir(running.folder)} <= files
        return strace
    return sweep(few, range(1, 99) if LONG else (1,), attempt)


def slow_fault_sweep_of_the_start_of_an_agent(running):
    running.recvstats()
    return sweep_start(
        running, "sendstats", "clone EAGAIN, pipe2 EMFILE, poll ENOMEM, "
        "flock ENOLCK, write EPIPE", "-r", "0.1", 7, "127.0.0.1")


def slow_fault_sweep_of_the_start_of_a_receiver(running):
    """Of one that makes its table; with LONG=1 of one that adopts it."""
    key = write_key(running.folder, b"key")
    running.sendstats("-r", "0.1", "--key-file", key, 7, "127.0.0.1")
    return [sweep_start(
        running, "recvstats", "clone EAGAIN, fallocate ENOSPC, poll ENOMEM",
        "--table", running.table, *words) for words in (
            ("--fresh", "-N", "9", "--iprange", "127.0.0.1"),
            ("-i", "lo", "--allow", "127.0.0.0/8", "--key-file", key))[
                :None if LONG else 1]]


def sweep_view(running, view):
    """Sweep a view of beostat: the same is shown, or what is wrong."""
    def start(*options):
        status, shown, lines, strace = start_traced(
            running, "beostat", ["--table", running.table, *view.split()],
            *options)
        steady = [re.sub(r"[-\d.:]+[kMGT]?|\s+", "", line)
                  for line in shown.splitlines()]
        return (status, steady[:1 if "-J" in view else None]), lines, strace

    def attempt(_, *options):
        shown, lines, strace = start(*options)
        assert (shown == usual or "cannotberead" in str(shown)
                or shown[0] in (1, 3) and len(lines) == 1
                and lines[0].startswith("beostat: "))
        return strace
    usual, _, _ = start()
    return sweep("pread64 EIO", range(1, 99) if LONG else (1, 2), attempt)


def slow_fault_sweep_of_beostat(running):
    running.recvstats()
    running.sendstats("-r", "0.5", "--procstatd", free_port(), 7, "127.0.0.1")
    running.wait_up(7)
    return [sweep_view(running, view) for view in (
        "", "--json", "-a 7", "-J 7", "--daemon", "5")[:None if LONG else 1]]


def slow_fault_does_not_end_a_watcher(running):
    running.recvstats()
    numbers = itertools.count()
    for words in ("--events", "--json", "")[:None if LONG else 1]:
        watcher = running.start("beostat.py", "--table", running.table,
                                *words.split(), "-w", "0.1")

        def has_written():
            running.send(message(next(numbers)))
            return select.select([watcher.stdout], [], [], 0.1)[0]
        wait_for(has_written)
        with Strace(watcher.pid, running.folder, *inject("pread64", "EIO")):
            assert "Input/output error" in watcher.stderr.readline()
        number = 4711 + next(numbers)
        running.send(message(number))
        wait_for(lambda: "%d" % number in watcher.stdout.readline())
        watcher.terminate()
        assert "Traceback" not in watcher.communicate()[1]


def slow_fault_of_growing_passes(running):
    """Until then what fits is stored, and all of it afterwards."""
    big, sequences = body_of_counts(2900, 0), itertools.count(1)

    def look():
        sequence = next(sequences)
        running.send(message(0, sequence), *[
            message(number, sequence, body=big) for number in range(1, 9)])
        time.sleep(0.1)
        with running.open() as cluster:
            return cluster[0].sequence == sequence and [
                cluster[0].state, len(cluster)]
    for call, name in ("fallocate", "EFBIG"), ("mmap", "ENOMEM"):
        process = running.recvstats("--fresh")
        with Strace(process.pid, running.folder, "-P", running.table,
                    *inject(call, name)):
            wait_for(look)
            running.wait_count("no_space", 3)
            assert wait_for(look)[1] < 9
        wait_for(lambda: look() == ["up", 9])
        found = os.stat(running.table)
        assert found.st_size <= found.st_blocks * 512       # no SIGBUS later
        process.terminate()
        assert process.communicate()[1].count("cannot grow: %s" % os.strerror(
            getattr(errno, name))) == 1 and process.returncode == 0
        running.masters.clear()


def test_standard_error_that_takes_nothing(running):
    """It is full; then its reader goes."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 4096)     # F_SETPIPE_SZ
    running.masters.append(spawn(
        running, sys.executable, "-S", os.path.join(HERE, "recvstats.py"),
        "-d", "-p", running.port, "--table", running.table, stderr=writer))
    os.close(writer)
    wait_for(lambda: os.path.exists(running.table))
    for node in 0, 1:
        running.send(*[message(node, turn) for turn in range(1, 102)])
        running.wait_up(node)
        running.wait_count("log_drops", 101 * (node + 1))
        if node == 0:
            os.close(reader)
    running.masters[0].terminate()
    assert running.masters[0].wait(LIMIT_S) == 0


def test_output_that_another_has_set_not_to_block(running):
    running.recvstats("-N", 20000)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    shown = spawn(running, sys.executable, os.path.join(HERE, "beostat.py"),
                  "--json", "--table", running.table, stdout=writer)
    os.close(writer)
    assert len(json.loads(read_text(reader))["never"]) == 20000
    assert shown.wait(LIMIT_S) == 0


def slow_syslog_that_is_full_and_one_that_vanishes(running):
    path, pid_file = running.folder + "/log", running.folder + "/pid"

    def open_log():
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(path)
        sock.setblocking(False)
        return sock

    def drops(number):
        """Return how many lines were lost, behind a node's message."""
        running.send(message(number))
        running.wait_up(number)
        os.kill(pid, signal.SIGHUP)
        with running.open() as cluster:
            return cluster.status.log_drops

    def is_said(number):
        drops(number)
        with contextlib.suppress(BlockingIOError):
            return log.recv(9999).endswith(b"]: up: n%d" % number)
    with open_log() as log, contextlib.suppress(BlockingIOError):
        start_changed(running, "recvstats", dict(SYSLOG=path), "-p", (
            running.port), "--table", running.table, "--pid-file", pid_file)
        wait_for(lambda: os.path.exists(running.table))
        pid = read_pid(pid_file)
        running.pids.append(pid)
        wait_for(lambda: is_said(5))
        while True:
            log.sendto(b"<30>Jan  1 filler: x", path)
    lost = wait_for(lambda: drops(7))
    os.unlink(path)
    wait_for(lambda: drops(8) > lost)
    with open_log() as log:
        wait_for(lambda: is_said(9))
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not is_alive(pid))
    with running.open() as cluster:
        assert cluster.status.stopped and len(cluster) == 4


# ---- upgrade -----------------------------------------------------------

def test_an_earlier_agents_sample_stands_beside_todays(receiver):
    """And what is newer than the master is refused, with what to do."""
    shares, today = struct.pack("<4f", .1, 0, .025, .05), RECORDED[0][0]
    first = today.replace(shares, b"")      # as agents of version 1 began
    first = broken(first, length=len(first))
    node, today = decode(first, 7), decode(today, 7)
    for name in "processor kernel load memory cpus interfaces".split():
        assert getattr(node, name) == getattr(today, name), name
    assert node.cpu == today.cpu._replace(**dict.fromkeys(
        "user_fraction nice_fraction system_fraction iowait_fraction".split()))
    version = libbeostat.RECORDS_VERSION
    feed(receiver, first)
    feed(receiver, message(8), "10.0.0.8")
    feed(receiver, broken(message(9), version=version + 1), "10.0.0.9")
    feed(receiver, broken(message(3), magic=b"BEO\2"))
    receiver.tick(time.monotonic())
    assert receiver.lines[-1] == (
        "version_wrong: 1 datagrams dropped, the last one from 10.0.0.1:4000: "
        "it is newer: update the master first")
    for view in "", "--json", "--prometheus", "--ganglia", "--html", "-cs":
        text = shown(receiver, *view.split())
        assert "n7" in text and os.uname().nodename in text, view
    assert (
        "refused: node 9: sample of version %d, this libbeostat knows %d: "
        "update the master's tools, which come first\n" % (
            version + 1, version)) in shown(receiver)


# ---- wrong turns -------------------------------------------------------
# The mistakes of a first day, and the line that stands where one looks.

UNHEARD = ("no agent was heard on port 5545: start sendstats.py on the nodes; "
           "to try one here: sendstats.py --once -d -p 5545 0 127.0.0.1")
DROPPED = ("all %d datagrams on port 5545 were dropped: see README, and "
           "journalctl -t recvstats")
HEARD = (
    # options of recvstats, what comes, what beostat says last
    ("", [], UNHEARD),
    ("-N 3", [], UNHEARD),
    ("", [message(-2)], DROPPED % 1),
    ("--allow 192.0.2.0/24", [message(7), message(7, 2)], DROPPED % 2),
)


@pytest.mark.parametrize("options, messages, line", HEARD)
def test_a_master_that_hears_nobody_says_so(tmp_path, options, messages, line,
                                            capsys):
    receiver = new_receiver(tmp_path, *options.split())
    for data in messages:
        feed(receiver, data)
        receiver.table.counts["received"] += 1
    receiver.tick(time.monotonic())
    with libbeostat.open(receiver.table.path) as cluster:
        for view in "--json", "-b --up", "--names", "--dots", "7", "":
            args = beostat.parse_args(view.split())
            picture = beostat.read_picture(cluster, args)
            status = beostat.report(picture, args)
            said = capsys.readouterr().err.splitlines()
            assert (status, said[-1:]) == ((0, []) if view == "--json" else (
                3, ["beostat: " + line])), view
    assert beostat.format_watched(picture, args)[-1] == (line, "red")
    assert line[:30] in shown(receiver, "--html")
    close(receiver)


@pytest.mark.parametrize("file", TOOLS)
def test_an_older_python_stops_at_the_line_that_tells_why(file):
    """It knows no f"": only names and imports, which it knows, are before."""
    body = ast.parse(read_text(os.path.join(HERE, file))).body
    told = [isinstance(getattr(each, "value", None), ast.JoinedStr)
            for each in body].index(True)
    assert all(isinstance(each, (ast.Expr, ast.Import, ast.Try))
               or isinstance(each.value, (ast.Call, ast.Constant))
               for each in body[:told])


def test_table_on_a_disk_is_said(running):
    """Where the tests' folder is on one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for folder in running.folder, memory:
            process = running.start("recvstats.py", "-f", "-p", free_port(),
                                    "--table", folder + "/t")
            assert process.stderr.readline().endswith(
                "; it is on a disk: put it on a tmpfs, as /dev/shm\n"
                if os.major(os.stat(folder).st_dev) else "taken over\n")


# ---- README ------------------------------------------------------------

README = read_text(os.path.join(HERE, "README"))
NAMES_SHOWN = 12                # of a row; of more, the first and the last


def describe(rows):
    """Return a record's table as README shows it."""
    record, offset = sendstats.layout(rows)
    lines = [", %d bytes:" % record.size]
    for fields, code, unit, meaning in rows:
        first, *others = fields.split()
        if unit.replace("/", "_per_").lower() not in first:
            fields += " (%s)" % unit
        if len(others) > NAMES_SHOWN:
            fields = "%s ... %s" % (first, others[-1])
        lines += textwrap.wrap(
            "%s: %s" % (fields, meaning), 79, break_long_words=False,
            initial_indent="%6d  %-4s " % (offset[first], code),
            subsequent_indent=" " * 13)
    return "\n".join(lines) + "\n"


# The counters are told among what else may be wrong.
TABLE_SHOWN = libbeostat.STATUS + (
    (" ".join(field for field, *_ in libbeostat.COUNTERS), "Q", "",
     "the counters, in TROUBLESHOOTING's order"),
    ) + libbeostat.TABLE_HEADER[-2:]


@pytest.mark.parametrize("rows", [
    libbeostat.HEADER, libbeostat.NODE, libbeostat.ONE_CPU,
    libbeostat.INTERFACE, libbeostat.ASK, TABLE_SHOWN, libbeostat.SLOT],
    ids="header node cpu interface request table slot".split())
def test_readme_formats_are_the_layouts(rows):
    assert describe(rows) in README


def test_readme_explains_every_counter():
    """What each counts, and what to do."""
    assert "".join(textwrap.fill(
        "%-16s %s" % (counter, re.sub("; dropped$", "", meaning)), 79,
        initial_indent=" " * 4, subsequent_indent=" " * 21) + "\n"
        for counter, _, _, meaning in libbeostat.COUNTERS) in README


def readme_programs(first):
    """Return the indented texts of README whose first line is this."""
    blocks = re.findall(r"(?:^        .*\n|^\n(?=        ))+", README, re.M)
    blocks = [textwrap.dedent(block).strip("\n") + "\n" for block in blocks]
    return [block for block in blocks if block.startswith(first)]


def test_readme_fits_a_terminal_and_has_scripts_and_units():
    assert max(map(len, README.splitlines())) <= 79
    for first, count in (("#!/bin/sh\n# $NODE", 1), (
            "#!/bin/sh\nbeostat --events", 1), ("#!/usr/bin/env python3", 2)):
        assert len(readme_programs(first)) == count
    for unit in "recvstats sendstats serve ganglia@".split():
        assert "# /etc/systemd/system/beostat-%s.service\n" % unit in README
    for text in readme_programs("#!/bin/sh"):
        assert run("sh", "-n", input=text).returncode == 0


README_COMMANDS = re.findall(
    r"(?:^ +python3 (?:-I -S )?|^\$ |^ +ExecStart=-?/usr/s?bin/"
    r"|\$\(python3 |`)"
    r"(sendstats|recvstats|beostat)(?:\.py)?((?: [^`)|>#\n]*)?)",
    README, re.M)
HELP_COMMANDS = re.findall(
    r"^  (?:pdsh -w \$\()?(sendstats|recvstats|beostat)\.py((?: [^\s)]+)*)",
    "".join(tool.__doc__ for tool in (sendstats, recvstats, beostat)), re.M)


@pytest.mark.parametrize("name, words", README_COMMANDS + HELP_COMMANDS)
def test_example_parses(name, words):
    more = [{"NODE": "7"}] * (name == "sendstats")
    assert globals()[name].parse_args(words.split(), *more)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_has_an_example(name):
    used = {"-h", "-v"}
    assert name in dict(HELP_COMMANDS)
    for word in re.findall(r"(?<!\S)-\S+", " ".join(
            words for tool, words in README_COMMANDS if tool == name)):
        used |= {word} | {"-" + letter for letter in word[1:]}
    for action in globals()[name].make_parser()._actions:
        options = set(action.option_strings)
        assert used & options or not options, action


@pytest.mark.parametrize("script", readme_programs("#!/usr/bin/env python3"))
def test_readme_script_runs(seven, script):
    ended = run(sys.executable, "-c", script, env=dict(
        os.environ, PYTHONPATH=HERE, BEOSTAT_TABLE=seven.table.path))
    assert (ended.returncode, ended.stderr) == (0, "") and ended.stdout


MINIMAL = """
mkdir -p root/proc && cd root &&
apt-get download python3.11-minimal libpython3.11-minimal || exit
for package in *.deb; do dpkg -x $package . && rm $package; done
ldd usr/bin/python3.11 | grep -o '/[^ ]*' | xargs cp -L --parents -t .
rm -rf etc
"""


def slow_agent_under_a_minimal_python(running):
    """Debian's, and the libraries it needs, in a read-only root: no /etc, no
    /dev, no terminal, no open files, only Python and /proc."""
    if os.geteuid() or run("sh", "-c", MINIMAL, cwd=running.folder).returncode:
        pytest.skip("not root, or its packages cannot be had")
    root = running.folder + "/root"
    shutil.copy(os.path.join(HERE, "sendstats.py"), root)
    write_key(root, b"key")

    def agent(words):
        return run(
            "unshare", "-m", "sh", "-c", "mount --bind {0} {0} && mount "
            "--rbind /proc {0}/proc && mount -o remount,bind,ro {0} && exec "
            "chroot {0} /usr/bin/python3.11 -S /sendstats.py {1}".format(
                root, words), stdin=subprocess.DEVNULL,
            env=dict(PYTHONHOME="/usr", PATH=os.environ["PATH"]))
    assert "examples:" in agent("--help").stdout
    assert "usage:" in agent("--nonsense").stderr
    assert agent("--pid-file /pid 3 127.0.0.1").stderr == (
        "sendstats: /pid: Read-only file system\n")
    running.recvstats()
    assert agent("-r 0.2 -p %d --key-file /keys --procstatd %d 4 127.0.0.1 "
                 "<&- >&- 2>&-" % (running.port, free_port())).returncode == 0
    node = running.wait_up(4)
    running.pids += map(int, re.findall(
        r"pid (\d+)", recvstats.find_user(node.port)))
    assert (node.signature == "unverified" and node.memory.total_bytes
            and node.load.total)
    with running.open() as cluster:
        wait_for(lambda: cluster[4].sequence > node.sequence + 2)


README_VIEWS = dict(re.findall(
    r"^\$ beostat.py ?(.*)\n((?:(?!\$).*\n)*)(?=\$)", README, re.M))


@pytest.mark.parametrize("words", sorted(README_VIEWS))
def test_readme_shows_what_is_printed(seven, words):
    options, _, pipe = words.partition(" | ")
    text = shown(seven, *options.split())
    if pipe:
        text = run("sh", "-c", pipe, input=text).stdout
    assert README_VIEWS[words] == text


def test_daemon_shows_every_counter(seven):
    names = re.findall(r"^\w+", shown(seven, "--daemon"), re.M)
    assert not {*recvstats.COUNTER_NAMES} - {*names}


NAMED = (
    # where in README, what is named there
    *[(re.search(r"\n  %s\.py (.*?)\n(?:  )?\S" % name, README, re.S).group(1),
       options_of(name)) for name in PROGRAMS],
    (README.split("returns\n")[1], ["    " + name for name, *_ in CALLS]),
    (README.split("Node record, as")[1].split(":")[0], libbeostat.PARTS),
    (libbeostat.Node.__doc__, libbeostat.PARTS),
    (README, [name for name, kind in vars(libbeostat).items()
              if isinstance(kind, type) and issubclass(kind, Exception)]),
)


def test_readme_names_each_option_function_record_and_error():
    for text, names in NAMED:
        for name in names:
            assert re.search(r"(?<![\w-])%s(?![\w-])" % name, text), name


# ---- scenarios that take time ------------------------------------------
# A function `slow_...(running)` mostly waits.  All of them begin with the
# session, a few at once, beside the other tests; here each is awaited.

SLOW = {name[5:]: function for name, function in list(globals().items())
        if name.startswith("slow_")}
SLOW_AT_ONCE = 6


def play_scenario(scenario, running):
    """Return what a scenario does; end its processes."""
    try:
        return scenario(running)
    finally:
        running.end()


@pytest.fixture(scope="session", autouse=True)
def scenarios(request, tmp_path_factory):
    """{name: Future} of the scenarios that are selected."""
    played = {item.callspec.params["name"]: Running(tmp_path_factory.mktemp(
        "slow")) for item in request.session.items
              if item.name.startswith("test_slow[")}

    with concurrent.futures.ThreadPoolExecutor(SLOW_AT_ONCE) as pool:
        futures = {name: pool.submit(play_scenario, SLOW[name], running)
                   for name, running in played.items()}
        yield futures
        for name, running in played.items():
            if not futures[name].cancel():
                running.end()           # one that hangs hears no more


@pytest.mark.parametrize("name", SLOW)
def test_slow(name, scenarios):
    print(scenarios[name].result() or "")
