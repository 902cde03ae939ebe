#!/usr/bin/env python3
"""bench - measure what beostat promises, each figure beside its reference

    python3 .ci/bench.py [--json] [PART ...]

Parts: agent receiver load growth table library views; default all of them.
A figure and its reference are measured in turns or side by side; shown are
the median, the lowest and the highest.  gmond and collectd run beside the
agent where they are installed; the blocking loop is in C where there is cc.
Run it as root, for the large receive buffer, on Linux 4.18 or newer.
Run it by the Python that the daemons have: one built without its optimizations
takes a third more.
Exit status: 0 no goal is missed, 1 some are, 2 usage.
"""

import argparse
import contextlib
import glob
import json
import operator
import os
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

import libbeostat                       # noqa: E402
import recvstats                        # noqa: E402
import sendstats                        # noqa: E402

# ---- processes ---------------------------------------------------------
# Each ends when the ExitStack that it was started with does.

LIMIT_S, SETTLE_S = 30.0, 0.2           # for anything to happen; to be still
PYTHON = sys.executable, "-I", "-S"


def tool(name):
    """Return the path of one of the four programs."""
    return os.path.join(HERE, name)


def free_port():
    """Return a UDP port that nobody uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(stack, *words):
    """Return the id of a process that runs."""
    process = subprocess.Popen(
        [str(word) for word in words], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)        # first: the last that came
    return process.pid


def wait_for(what):
    """Return the first true value of what()."""
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        value = what()
        if value:
            return value
        time.sleep(0.01)
    sys.exit("bench: waited %g s in vain" % LIMIT_S)


def run_us(pid):
    """Return the CPU time of a process' threads so far, from schedstat."""
    total_ns = 0
    for path in glob.glob("/proc/%d/task/*/schedstat" % pid):
        with open(path) as file:
            total_ns += int(file.read().split()[0])
    return total_ns / 1e3


def read_sizes_kb(pid):
    """Return {name: kB} of what a process holds, from its status."""
    with open("/proc/%d/status" % pid) as file:
        return {name: int(size) for name, size in re.findall(
            r"(\w+):\s+(\d+) kB", file.read())}


def write_file(folder, name, text):
    """Return the path of a file with a text, that only we may read."""
    path = os.path.join(folder, name)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(text)
    return path


# ---- messages ----------------------------------------------------------

BLOCKS = 4                              # of sequences, a quarter apart
UP_S = 60.0                             # their period: up for three of them
UDP_SEGMENT, BURSTS = 103, 5000         # linux/udp.h; the most calls a second
NODE = sendstats.Sampler("/proc", 0, 1.0).make_message(sendstats.SAMPLE)[
    sendstats.HEADER_STRUCT.size:][:libbeostat.NODE_AT["cpus"]]


def pack_body(cpus, interfaces):
    """Return the body of a message of that many CPUs and interfaces."""
    return b"".join(
        [NODE, struct.pack("<HH", cpus, interfaces)]
        + [sendstats.CPU_STRUCT.pack(cpu, 5000, 7, 7, 7, 7)
           for cpu in range(cpus)]
        + [sendstats.INTERFACE_STRUCT.pack(b"eth%d" % number, *[7] * 18)
           for number in range(interfaces)])


BODY = pack_body(8, 3)


def message(number, sequence, body=BODY):
    """Return a message of 8 CPUs and 3 interfaces, or of another body."""
    return sendstats.pack_message(
        (number, sendstats.SAMPLE, 1000, sequence, UP_S, time.time()), body)


def endless(nodes, turns):
    """Return messages of which each is newer than the one before it of its
    node, also when all of them are sent again, and again."""
    return [message(number, (block << 30) + turn + 1)
            for block in range(BLOCKS) for turn in range(turns)
            for number in range(nodes)]


def send(port, messages, rate, times=1):
    """Send messages of one size some times; return how many a second.

    rate  a second, 0 as fast as it goes; many leave by one call
    """
    step, due = rate // BURSTS + 1, time.monotonic()
    bursts, began = [b"".join(messages[first:first + step])
                     for first in range(0, len(messages), step)], due
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(messages[0]))
        for burst in bursts * times:
            sock.send(burst)
            if rate:
                due += step / rate
                time.sleep(max(due - time.monotonic(), 0))
    return times * len(messages) / (time.monotonic() - began)


class Master:
    """recvstats at work, with a port and a table of its own, which end with
    the ExitStack."""

    def __init__(self, stack, folder, *options, program=(
            *PYTHON, tool("recvstats.py"))):
        self.port = free_port()
        self.table = os.path.join(folder, "table%d" % self.port)
        self.pid = start(stack, *program, "-f", "-p", self.port, "--table",
                         self.table, *options)
        wait_for(lambda: os.path.exists(self.table))
        stack.callback(os.unlink, self.table)
        self.cluster = stack.enter_context(libbeostat.open(self.table))

    def stored(self):
        """Return how many messages were stored so far.

        SIGHUP makes recvstats say so, when it has stored what waits.
        """
        time.sleep(SETTLE_S)
        told_s = self.cluster.status.heartbeat_s
        os.kill(self.pid, signal.SIGHUP)
        wait_for(lambda: self.cluster.status.heartbeat_s > told_s)
        return self.cluster.status.stored

    def hold(self, nodes):
        """Return this, with that many nodes, all of them up."""
        send(self.port, [message(number, 1) for number in range(nodes)],
             10000)
        if self.stored() != nodes:
            sys.exit("bench: the receive buffer is too small: run it as root")
        return self


# ---- agent -------------------------------------------------------------
# All at 1 Hz, where caches are cold, each in a phase of its own.

SECONDS, START_S = 25, 3
LEAST = """
import os, socket, struct, sys, time, zlib
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("127.0.0.1", int(sys.argv[1])))
files = [os.open("/proc/" + name, os.O_RDONLY)
         for name in ("stat", "meminfo", "loadavg", "net/dev")]
due = time.monotonic()
while True:
    due += 1
    time.sleep(max(due - time.monotonic(), 0))
    stat, meminfo, load, net = [
        os.pread(fd, 65536, 0).split() for fd in files]
    numbers = [int(word) for word in stat[1:11] + meminfo[1:28:3]]
    for place in range(11, stat.index(b"intr"), 11):
        numbers += [int(word) for word in stat[place + 1:place + 11]]
    for place in range(20, len(net), 17):
        numbers += [int(word) for word in net[place + 1:place + 17]]
    numbers += os.statvfs("/")[:6]
    data = struct.pack("<%dQ" % len(numbers), *numbers)
    sock.send(data + zlib.crc32(data).to_bytes(4, "little"))
"""
GMOND_CONF = "/etc/ganglia/gmond.conf"  # says where its modules are
PEERS = (
    # command, option before its configuration, the configuration
    ("gmond", "-c", """globals {{ daemonize = no\n setuid = no\n deaf = yes }}
cluster {{ name = "bench" }}
udp_send_channel {{ host = 127.0.0.1\n port = {port} }}
{modules}
collection_group {{ collect_every = 1\n time_threshold = 1
metric {{ name_match = "(cpu|load|proc|mem|swap|bytes|pkts|disk)_.+" }} }}
"""),
    ("collectd", "-C", """Interval 1\nReadThreads 1\nWriteThreads 1
BaseDir "{folder}"\nPIDFile "{folder}/pid"
LoadPlugin cpu\nLoadPlugin memory\nLoadPlugin swap\nLoadPlugin load
LoadPlugin interface\nLoadPlugin df\nLoadPlugin network
<Plugin df>\nMountPoint "/"\n</Plugin>
<Plugin network>\nServer "127.0.0.1" "{port}"\n</Plugin>
"""))


def start_agent(stack):
    """Return (pid, port that it sends to) of an agent that runs as its start
    script has it."""
    master = stack.enter_context(
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    master.bind(("127.0.0.1", 0))
    port = master.getsockname()[1]
    subprocess.check_call([*PYTHON, tool("sendstats.py"), "0",
                           "127.0.0.1:%d" % port])
    _, (_, sender) = master.recvfrom(1)
    pid = int(re.search(r"pid (\d+)", recvstats.find_user(sender))[1])
    stack.callback(os.kill, pid, signal.SIGKILL)
    return pid, port


def start_peers(stack, folder, port):
    """Return {name: pid} of the peers that are installed."""
    modules, pids = "", {}
    with contextlib.suppress(OSError), open(GMOND_CONF) as file:
        modules = re.search(r"^modules .*?^\}", file.read(), re.M | re.S)[0]
    for name, option, text in PEERS:
        if shutil.which(name):
            pids[name] = start(stack, name, "-f", option, write_file(
                folder, name, text.format(folder=folder, port=port,
                                          modules=modules)))
    return pids


def measure_agent(folder):
    """Return CPU us a second of agents that run side by side, the MB of
    ours, and the kB by which it grew."""
    with contextlib.ExitStack() as stack:
        ours, port = start_agent(stack)
        pids = dict(start_peers(stack, folder, port), sendstats=ours,
                    least=start(stack, *PYTHON, "-c", LEAST, port))
        figures = {name: [] for name in pids}
        time.sleep(START_S)
        early_kb = read_sizes_kb(ours)["VmRSS"]
        for _ in range(SECONDS):
            before = {name: run_us(pid) for name, pid in pids.items()}
            time.sleep(1)
            for name, pid in pids.items():
                figures[name].append(run_us(pid) - before[name])
        late_kb = read_sizes_kb(ours)["VmRSS"]
    return dict(figures, resident=[late_kb / 1024], grown=[late_kb - early_kb])


# ---- receiver ----------------------------------------------------------

TURNS = 9
LOAD_S, LOADS, KEPT_UP = 3, 3, 0.98
BUSY = "while True: pass"
LOOP = """
import sys
sys.path.append(sys.argv[1])
import recvstats
sock = recvstats.open_socket(int(sys.argv[2]), None)
sock.setblocking(True)
buffer, receive = bytearray(65536), sock.recv_into
while True:
    receive(buffer)
"""
LOOP_IN_C = """
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
unsigned long crc32(unsigned long, const unsigned char *, unsigned);
int main(int count, char **words) {
    static unsigned char buffer[2048], slots[1024][2048];
    int sock = socket(AF_INET, SOCK_DGRAM, 0), room = 16 << 20;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(atoi(words[2]))}, from;
    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    bind(sock, (struct sockaddr *) &address, sizeof address);
    for (;;) {
        socklen_t length = sizeof from;
        ssize_t size = recvfrom(sock, buffer, sizeof buffer, 0,
                                (struct sockaddr *) &from, &length);
        if (size > 12 && crc32(0, buffer, size) == 0x2144df1c)
            memcpy(slots[(buffer[8] | buffer[9] << 8) % 1024], buffer, size);
    }
}
"""


def compiled(folder):
    """Return the words that start the C loop; those of the Python loop where
    there is no compiler.  zlib is where Python is; its header need not."""
    path = os.path.join(folder, "loop")
    try:
        subprocess.run(["cc", "-O2", "-x", "c", "-", "-o", path,
                        "-l:libz.so.1"], input=LOOP_IN_C.encode(), check=True)
        return [path]
    except (OSError, subprocess.CalledProcessError):
        return [*PYTHON, "-c", LOOP]


def read_socket(port):
    """Return the words of a port's socket in /proc/net/udp, the last of
    which counts what was dropped; [] while there is none."""
    with open("/proc/net/udp") as file:
        rows = [line.split() for line in file]
    return next((row for row in rows if row[1].endswith(":%04X" % port)), [])


def start_loop(stack, *words):
    """Return (pid, port) of a loop that receives."""
    port = free_port()
    pid = start(stack, *words, HERE, port)
    wait_for(lambda: read_socket(port))
    return pid, port


def cost(pid, port, messages, rate):
    """Return CPU us per datagram of a process that gets them at a rate; at
    rate 0 it finds all of them waiting, and never sleeps between two."""
    dropped, before = int(read_socket(port)[-1]), run_us(pid)
    os.kill(pid, signal.SIGSTOP if rate == 0 else signal.SIGCONT)
    send(port, messages, rate)
    os.kill(pid, signal.SIGCONT)
    time.sleep(SETTLE_S)
    dropped -= int(read_socket(port)[-1])
    return (run_us(pid) - before) / (len(messages) + dropped)


def measure_receiver(folder):
    """Return CPU us per datagram of recvstats and of loops, in turns."""
    figures, many, few = {}, endless(1000, 2), endless(100, 5)
    key_file = write_file(folder, "key", "key")
    keys = recvstats.Keys(key_file)
    signed = [data + keys.sign(data) for data in many]
    with contextlib.ExitStack() as stack:
        ours, keyed = [Master(stack, folder, *options) for options in (
            [], ["--key-file", key_file])]
        bare = start_loop(stack, *PYTHON, "-c", LOOP)
        blocking = start_loop(stack, *compiled(folder))
        turns = (
            ("bare", *bare, many, 0),
            ("recvstats", ours.pid, ours.port, many, 0),
            ("keyed", keyed.pid, keyed.port, signed, 0),
            ("blocking", *blocking, few, 1000),
            ("paced", ours.pid, ours.port, few, 1000))
        for _ in range(TURNS):
            for name, *words in turns:
                figures.setdefault(name, []).append(cost(*words))
    return figures


def measure_load(folder):
    """Return what was lost, of rates that the sender kept up.

    recvstats has the first CPU, with busy loops or alone, the sender the
    last.
    """
    figures, messages = {}, endless(1000, 2)
    cpus = sorted(os.sched_getaffinity(0))
    for name, rate, busy in ("alone", 200000, 0), ("shared", 100000, 2):
        lost, reached = figures[name], figures[name + " sent"] = [], []
        times = rate * LOAD_S // len(messages)
        with contextlib.ExitStack() as stack:
            master = Master(stack, folder)
            for pid in [master.pid] + [start(stack, *PYTHON, "-c", BUSY)
                                       for _ in range(busy)]:
                os.sched_setaffinity(pid, cpus[:1])
            stack.callback(os.sched_setaffinity, 0, cpus)
            os.sched_setaffinity(0, cpus[-1:])
            for _ in range(LOADS):
                before = master.stored()
                reached.append(send(master.port, messages, rate, times))
                missed = before + times * len(messages) - master.stored()
                if reached[-1] > KEPT_UP * rate:
                    lost.append(missed)
    return figures


# ---- table -------------------------------------------------------------

GROWTHS, GROWTH_RATE = 5, 20000
WIDE = (sendstats.RECORDS_BYTES // sendstats.INTERFACE_STRUCT.size
        - 2)                            # of 700, what fits with 8 CPUs


def time_longest(receiver, messages):
    """Return the ms of the longest of the calls that store messages."""
    longest_s, clock = 0.0, time.perf_counter
    for data in messages:
        receiver.message[:len(data)] = data
        before = clock()
        receiver.accept(len(data), ("127.0.0.1", 1), time.monotonic())
        longest_s = max(longest_s, clock() - before)
    return longest_s * 1e3


def measure_growth(folder):
    """Return what is lost while the table grows, and the longest pauses
    beside those of the same messages when it has grown."""
    figures = {"lost": [], "growing": [], "grown": []}
    first, second = [[message(number, sequence) for number in range(10000)]
                     for sequence in (1, 2)]
    both = [data for pair in zip(first, second) for data in pair]
    for turn in range(GROWTHS):
        with contextlib.ExitStack() as stack:
            master = Master(stack, folder)
            send(master.port, both, GROWTH_RATE)
            figures["lost"].append(len(both) - master.stored())
        args = recvstats.parse_args(
            ["--table", os.path.join(folder, "grows%d" % turn)])
        table, _ = recvstats.open_table(args, recvstats.ignore)
        receiver = recvstats.Receiver(table, args, recvstats.ignore, None)
        figures["growing"].append(time_longest(receiver, first))
        figures["grown"].append(time_longest(receiver, second))
        table.unmap()
        os.close(table.fd)
        os.unlink(table.path)
    return figures


def compile_receiver(folder):
    """Return the words that start recvstats as DEPLOYMENT does."""
    shutil.copy(tool("recvstats.py"), folder)
    subprocess.check_call([*PYTHON, "-m", "py_compile", "recvstats.py"],
                          cwd=folder)
    return (*PYTHON, "-c", "import sys; sys.path[:0] = [%r]\n"
            "import recvstats; recvstats.main()" % folder)


def measure_table(folder):
    """Return the MB of tables, and of recvstats beside the larger one."""
    figures, wide = {}, pack_body(8, WIDE)
    for nodes, figure, more in (
            (1000, "", {}), (10000, "script", {}),
            (10000, "compiled", {"program": compile_receiver(folder)})):
        with contextlib.ExitStack() as stack:
            master = Master(stack, folder, **more).hold(nodes)
            if nodes == 10000:
                send(master.port, [message(7, 2, wide)], 1)
                master.stored()
            figures[nodes] = [os.stat(master.table).st_size / 1e6]
            sizes_kb = read_sizes_kb(master.pid)
            # The table's own pages, RssShmem, are counted already.
            figures[figure] = [
                (sizes_kb["RssAnon"] + sizes_kb["RssFile"]) / 1024]
    return figures


# ---- readers -----------------------------------------------------------

RUNS = 15
VIEWS = (
    # options, the most ms beyond `python3 -c pass` of 1,000, 10,000 nodes
    ("", 15, 100),
    ("--prometheus", 80, 1000),
    ("--json", 60, 500),
)
WAYS = ("beostat.py",), ("-m", "beostat")       # compiled anew, and not


def timed(function, times):
    """Return the us of a call, of each of some runs."""
    figures = []
    for _ in range(RUNS):
        before = time.perf_counter()
        for _ in range(times):
            function()
        figures.append((time.perf_counter() - before) / times * 1e6)
    return figures


def measure_library(folder):
    """Return the us of one node and the ms of 10,000."""
    load = operator.attrgetter("state", "load")
    everything = operator.attrgetter(*libbeostat.PARTS, "cpus", "interfaces")
    with contextlib.ExitStack() as stack:
        cluster = Master(stack, folder).hold(10000).cluster
        return {"load": timed(lambda: load(cluster.node(7)), 1000),
                "all": timed(lambda: everything(cluster.node(7)), 200),
                "iteration": [us / 1e3 for us in timed(
                    lambda: sum(1 for _ in cluster), 1)]}


def time_command(words, folder, table):
    """Return the ms of a command, all of whose nodes are up."""
    before = time.perf_counter()
    subprocess.check_call(
        [sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL,
        env=dict(os.environ, BEOSTAT_TABLE=table, PYTHONDONTWRITEBYTECODE=""))
    return (time.perf_counter() - before) * 1e3


def measure_views(folder):
    """Return the ms of views beyond an empty interpreter, all in turns."""
    for name in "beostat.py", "libbeostat.py":  # with their compiled files
        shutil.copy(tool(name), folder)
    commands = [(*way, *options.split()) for options, *_ in VIEWS
                for way in WAYS]
    figures = {"pass": []}
    for nodes, turns in (1000, 15), (10000, 5):
        with contextlib.ExitStack() as stack:
            master = Master(stack, folder).hold(nodes)
            for words in commands:
                time_command(words, folder, master.table)
            for _ in range(turns):
                empty = time_command(("-c", "pass"), folder, master.table)
                figures["pass"].append(empty)
                for words in commands:
                    figures.setdefault((nodes, *words), []).append(
                        time_command(words, folder, master.table) - empty)
    return figures


# ---- rows --------------------------------------------------------------
# Of each part its name, what measures it and its rows: what, unit, the
# figure, its reference, and the goal: the most of the figure, or, where it
# has a reference, of their ratio.

PARTS = (
    ("agent", measure_agent, (
        ("CPU per sample, 1 Hz, beside gmond", "us", "sendstats", "gmond", .9),
        ("the same, beside the least in Python", "us", "sendstats", "least",
         1.15),
        ("the same, beside collectd", "us", "sendstats", "collectd", None),
        ("resident, as its script starts it", "MB", "resident", None, 12.5),
        ("grown in 25 samples", "kB", "grown", None, 64))),
    ("receiver", measure_receiver, (
        ("CPU per datagram, beside a bare loop", "us", "recvstats", "bare",
         2.2),
        ("the same, with --key-file", "us", "keyed", "bare", 3.5),
        ("1,000 a second, beside a blocking one", "us", "paced", "blocking",
         1))),
    ("load", measure_load, (
        ("lost of 600,000 in 3 s", "", "alone", None, 0),
        ("sent a second", "", "alone sent", None, None),
        ("lost of 300,000, two loops on its CPU", "", "shared", None, 0),
        ("sent a second", "", "shared sent", None, None))),
    ("growth", measure_growth, (
        ("lost, 10,000 new nodes in a second", "", "lost", None, 0),
        ("longest pause", "ms", "growing", None, 2),
        ("the same when nothing grows", "ms", "grown", None, None))),
    ("table", measure_table, (
        ("1,000 nodes of 8 CPUs", "MB", 1000, None, 2),
        ("10,000 nodes, one of 700 interfaces", "MB", 10000, None, 20),
        ("recvstats beside it, as deployed", "MB", "compiled", None, 15),
        ("the same, the script itself", "MB", "script", None, None))),
    ("library", measure_library, (
        ("a node's state and load", "us", "load", None, 5),
        ("all of a node", "us", "all", None, 40),
        ("one iteration of 10,000 nodes", "ms", "iteration", None, 40))),
    ("views", measure_views, (
        ("python3 -c pass", "ms", "pass", None, None),
        *[("%d nodes, %s" % (nodes, " ".join((*way, options))), "ms",
           (nodes, *way, *options.split()), None, most)
          for options, *goals in VIEWS
          for nodes, most in zip((1000, 10000), goals) for way in WAYS])),
)


def make_row(part, row, figures):
    """Return {name: value} of a row of PARTS; what could not be measured is
    None."""
    what, unit, name, reference, goal = row
    values, others = figures.get(name, []), figures.get(reference, [])
    figure = statistics.median(values) if values else None
    other = statistics.median(others) if others else None
    ratio = figure / other if values and other else None
    reached = ratio if reference else figure
    return dict(
        part=part, what=what, unit=unit, figure=figure,
        low=min(values, default=None), high=max(values, default=None),
        reference=other, ratio=ratio, goal=goal,
        met=None if None in (goal, reached) else reached <= goal)


def format_row(row):
    """Return a line of text."""
    numbers = ["-" if row[name] is None else "%.*f" % (
        2 if row[name] < 1000 and row[name] % 1 else 0, row[name])
        for name in ("figure", "low", "high", "reference", "ratio")]
    goal = "" if row["goal"] is None else "<= %-5g %s" % (row["goal"], {
        True: "met", False: "NOT MET", None: "not measured"}[row["met"]])
    return "%-9s%-39s%-3s%9s%8s%8s%8s%6s %s" % (
        row["part"], row["what"], row["unit"], *numbers, goal)


# ---- command line ------------------------------------------------------


def parse_args(argv):
    """Return the options; argparse exits 2 on a usage error."""
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__.splitlines()[0])
    names = [name for name, *_ in PARTS]
    parser.add_argument("--json", action="store_true",
                        help="one document, at the end")
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help=" ".join(names))
    args = parser.parse_args(argv)
    for name in set(args.parts) - set(names):
        parser.error("no part %s: choose from %s" % (name, " ".join(names)))
    args.parts = args.parts or names
    return args


def main(argv=None):
    """Return the exit status: 0 no goal is missed, 1 some are."""
    args, rows = parse_args(argv), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine = dict(python=sys.version.split()[0], cpus=os.cpu_count(),
                   linux=os.uname().release, load=os.getloadavg()[0])
    say = print if not args.json else recvstats.ignore
    say("Python %(python)s, %(cpus)d CPUs, Linux %(linux)s, load %(load).1f"
        % machine)
    say("%60s%8s%8s%8s%6s goal" % ("figure", "lowest", "highest", "other",
                                   "ratio"))
    for part, measure, part_rows in PARTS:
        if part in args.parts:
            with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
                figures = measure(folder)
            for row in part_rows:
                rows.append(make_row(part, row, figures))
                say(format_row(rows[-1]))
                sys.stdout.flush()
    if args.json:
        print(json.dumps(dict(machine, rows=rows), indent=1))
    return int(any(row["met"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
