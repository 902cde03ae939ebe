#!/usr/bin/env python3
"""sendstats - report this node's statistics to the masters

usage: sendstats.py [options] [NODENUMBER] [ADDRESS[:PORT] ...]

Reads /proc once a period and sends a datagram to every master.  NODENUMBER
is 0, 1, 2 ... or -1, the master itself; default $NODE, else the master
goes by the address.  ADDRESS may be a name; default master.
  -r, --rate SECONDS     period; default 1
  -p, --port PORT        UDP port of the masters; default 5545, with -i 3040
  -a, --address ADDRESS  local address to send from
  -i, --interface IF     send to group 239.255.11.224, or another, on IF
  -f, --foreground       stay in the foreground
  -d, --debug            the same, and say what is sent
  --once                 send one message and exit
  --proc DIR             root of /proc; default /proc
  --pid-file FILE        hold the process id in FILE while running
  --key-file FILE        sign with its first key, take requests of any
  --procstatd PORT       answer about this node on TCP; by custom 7885
  --allow NETWORK        who may connect; default the masters, loopback
  -h, --help, -v, --version
Exit status: 0 told to stop, 1 could not start, 2 usage.
examples:
  sendstats.py 7 10.0.0.1       node 7 reports to 10.0.0.1 once a second
  sendstats.py -r 10 7 m1 m2    every 10 seconds, to two masters
  sendstats.py --once -d 7 m1   one message, and say what is sent
"""

import _thread
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
import types
import zlib

# ---- constants ---------------------------------------------------------

f"needs Python 3.6 or newer"    # an older one shows this line, and ends
VERSION = "1.1"
PORT = 5545
PERIOD_S = 1.0
FIRST_S = 0.2                   # from the start to the first message
RETRY_S = 1.0                   # before what failed is tried again
MESSAGE_BYTES = 65000           # no message is longer
CRC_BYTES, MAC_BYTES = 4, 16
CRC_RESIDUE = 0x2144df1c        # CRC-32 of any bytes and their own CRC-32
READ_BYTES = 65536              # of a file, at a time
GOLDEN = 0.6180339887498949     # spreads whole numbers evenly over 0 to 1
NEVER = float("inf")


class StartError(Exception):
    """What keeps the program from starting, and what to do."""


def ignore(*_):
    """Do nothing."""


def attempt(call, *args):
    """Make a call that may fail; return whether it did not."""
    try:
        call(*args)
    except OSError:
        return False
    return True


def explain(error):
    """Return what an error says, and of which file."""
    if isinstance(error, OSError) and error.strerror:
        return ("%s: %s" % (error.filename, error.strerror)
                if error.filename else error.strerror)
    return str(error)


# ---- layout: rows ------------------------------------------------------
# A row is (fields, code): each of its fields has the code.  Meanings and
# units stand beside the same rows of libbeostat.py, and in README.


def layout(rows, only=None):
    """Return (Struct, {field: byte offset}) of a table of fields; the Struct
    passes over those that are not among `only`."""
    code, size, offset = "<", 0, {}
    for fields, field_code, *_ in rows:
        width = struct.calcsize("<" + field_code)
        for field in fields.split():
            offset[field] = size
            size += width
            code += ("%dx" % width if only and field not in only
                     else field_code)
    return struct.Struct(code), offset


# ---- layout: header ----------------------------------------------------
# A change of size or order here raises the last byte of MAGIC.

MAGIC = b"BEO\x01"
SAMPLE, FAREWELL, REQUEST = 1, 2, 3
MASTER, UNNUMBERED = -1, -2
HEADER = (
    ("magic", "4s"), ("length", "I"), ("node", "i"), ("kind version", "H"),
    ("start_us", "Q"), ("sequence", "I"), ("period_s", "f"),
    ("time_s", "d"))
ASK = (("spread_s", "f"), ("agent_start_us", "Q"))  # the body of a request
GROUP, GROUP_PORT = "239.255.11.224", 3040      # requests: the next port

# ---- layout: records ---------------------------------------------------
# A change of size or order here raises RECORDS_VERSION.  A value that the
# node does not know is ABSENT; an unknown text is empty.  Where a row has
# a third text, it is what the kernel calls the fields.

RECORDS_VERSION = 1
ABSENT = {"H": 2**16 - 1, "I": 2**32 - 1, "Q": 2**64 - 1, "f": -1.0}
ENDLESS = 1e38                  # from here on no "f" can hold it
CLIPPED, CPUS_CLIPPED = 1, 2    # flags: some interfaces, CPUs did not fit
HOST = (("hostname release", "64s"), ("machine", "16s"))
PROCESSOR = (
    ("vendor", "16s"), ("model", "64s"), ("mhz", "f"), ("cache_kb", "I"),
    ("bogomips", "f"), ("sockets cores ticks_per_s", "H"))
KERNEL = (
    ("boot_time_s context_switches interrupts forks", "Q",
     "btime ctxt intr processes"),
    ("running blocked", "I", "procs_running procs_blocked"))
CPU = (
    ("user_ticks nice_ticks system_ticks idle_ticks iowait_ticks irq_ticks "
     "softirq_ticks steal_ticks guest_ticks guest_nice_ticks", "Q"),
    ("busy_fraction user_fraction nice_fraction system_fraction "
     "iowait_fraction", "f"))
LOAD = (("one five fifteen", "f"), ("active total last_pid", "I"))
MEMORY = (
    ("total_bytes free_bytes available_bytes buffers_bytes cached_bytes "
     "shared_bytes reclaimable_bytes swap_total_bytes swap_free_bytes", "Q",
     "MemTotal: MemFree: MemAvailable: Buffers: Cached: "
     "Shmem: SReclaimable: SwapTotal: SwapFree:"),)
DISK = (
    ("block_bytes blocks free_blocks available_blocks files free_files", "Q"),
    ("name_max", "I"))
NETWORK = (("rx_bytes_per_s tx_bytes_per_s", "Q"),)
AGENT = (
    ("cost_us send_errors skipped", "I"),
    ("procstatd_port flags cpus interfaces", "H"))
NODE = HOST + PROCESSOR + KERNEL + CPU + LOAD + MEMORY + DISK + NETWORK + AGENT
ONE_CPU = (
    ("id busy", "H"), ("user_ticks nice_ticks system_ticks idle_ticks", "I"))
INTERFACE = (
    ("name", "16s"), ("rx_bytes rx_packets", "Q"),
    ("rx_errors rx_dropped rx_fifo rx_frame rx_compressed rx_multicast", "I"),
    ("tx_bytes tx_packets", "Q"),
    ("tx_errors tx_dropped tx_fifo tx_collisions tx_carrier tx_compressed",
     "I"),
    ("rx_bytes_per_s tx_bytes_per_s", "Q"))


def codes(rows):
    """Return the code of each field of a table, in order."""
    return [code for fields, code, *_ in rows for _ in fields.split()]


def kernel_names(rows):
    """Return what begins the kernel's line of each field of a table."""
    return [b"\n" + name.encode() for *_, names in rows
            for name in names.split()]


def absent(rows):
    """Return the values of a record of which nothing is known."""
    return tuple(ABSENT.get(code, b"") for code in codes(rows))


def fitting(code, value):
    """Return a number that its code can hold.

    One too large wraps, as the kernel's own counters do; one that makes
    no sense, negative or endless, is absent.
    """
    if code == "f":
        return value if 0 <= value < ENDLESS else ABSENT[code]
    if code in ABSENT:
        return value & ABSENT[code] if value >= 0 else ABSENT[code]
    return value


# ---- parse -------------------------------------------------------------
# Texts of /proc to values of records; counters to shares and rates.

MEMINFO, STAT = kernel_names(MEMORY), kernel_names(KERNEL)
CPUINFO = (                     # of vendor, model, mhz, cache_kb, bogomips:
    (b"vendor_id", b"CPU implementer"),         # keys, the best first
    (b"model name", b"cpu model", b"cpu", b"Processor"),
    (b"cpu MHz", b"clock", b"cpu MHz static"),
    (b"cache size",),
    (b"bogomips", b"BogoMIPS", b"bogomips per cpu"),
)
COUNT_BYTES = 48                # no key, and its number, is longer
FIRST_LINES = 100               # of /proc/cpuinfo: more than one CPU's
WRAP = ABSENT["I"]              # the ticks of one CPU do
IDLE = 3                        # of the ten tick counters, the idle one
FULL = 10000                    # the busy share of a CPU that never idles


def parse_counts(text, keys):
    """Return the number behind each key, ABSENT["Q"] where there is none.

    Raises  ValueError, IndexError when something else follows a key
    """
    counts = []
    for key in keys:
        at = text.find(key)
        counts.append(ABSENT["Q"] if at < 0 else int(
            text[at:at + COUNT_BYTES].split(None, 2)[1]))
    return counts


def parse_meminfo(text):
    """Return the values of MEMORY.

    Raises  ValueError, IndexError when a number is not one
    Source  proc(5), /proc/meminfo, whose unit is the kB of 1,024 bytes
    """
    return [kb if kb == ABSENT["Q"] else kb * 1024
            for kb in parse_counts(b"\n" + text, MEMINFO)]


def parse_loadavg(text):
    """Return the values of LOAD.

    Raises  ValueError when these are not the columns we know
    Source  proc(5), /proc/loadavg
    """
    *means, processes, last_pid = text.split()
    one, five, fifteen = means = list(map(float, means))
    if not 0 <= min(means) <= sum(means) < ENDLESS:
        raise ValueError("/proc/loadavg: a mean that makes no sense")
    active, total = processes.split(b"/")
    return (one, five, fifteen, max(int(active) - 1, 0), int(total),
            int(last_pid))


def parse_stat(text):
    """Return (sums, lines, kernel) of /proc/stat.

    sums    the ten tick counters of all CPUs: user, nice, system ...
    lines   of each CPU its id, and as many of these as the kernel has
    kernel  the values of KERNEL
    Raises  ValueError when the cpu lines are not alike; IndexError
    """
    _, *lines = text.split(b"cpu")
    lines[-1], _, rest = lines[-1].partition(b"\n")
    sums, *lines = [list(map(int, line.split())) for line in lines]
    if len(sums) < 4 or set(map(len, lines)) - {len(sums) + 1}:
        raise ValueError("/proc/stat: cpu lines of different width")
    if max(lines, default=[0])[0] >= ABSENT["H"]:
        raise ValueError("/proc/stat: CPU number too high")
    *counts, running, blocked = parse_counts(b"\n" + rest, STAT)
    if 0 < running < ABSENT["Q"]:
        running -= 1                    # the agent itself
    return (sums + 10 * [ABSENT["Q"]])[:10], lines, (
        *counts, running & ABSENT["I"], blocked & ABSENT["I"])


def measure_sums(sums, before, period_ticks):
    """Return the values of CPU.

    sums, before  the ten tick counters of all CPUs, now and a period ago;
                  empty when they are not known
    period_ticks  what all CPUs count in the period, which stands in for an
                  idle counter that went backwards
    """
    if not sums:
        return absent(CPU)
    before = before or sums
    user, nice, system, idle, iowait, irq, softirq, steal, *_ = [
        now - then if now > then else 0 for now, then in zip(sums, before)]
    system += irq + softirq + steal
    used = user + nice + system
    if sums[IDLE] < before[IDLE]:
        idle = max(int(period_ticks) - used - iowait, 0)
    total = used + idle + iowait or 1
    return [*sums, used / total, user / total, nice / total, system / total,
            ABSENT["f"] if sums[4] == ABSENT["Q"] else iowait / total]


def measure_cpus(lines, before, period_ticks):
    """Return (records of ONE_CPU, {CPU's id: its (used, idle) ticks}).

    Of all time, irq, softirq and steal count as system, iowait as idle;
    guest time is in user and nice already.
    before        the same ticks, a period ago
    period_ticks  length of the period, which stands in for an idle
                  counter that went backwards
    """
    records, ticks = [], {}
    for line in lines:
        # An old kernel has less columns.
        cpu, user, nice, system, idle, iowait, irq, softirq, steal, *_ = (
            *line, 0, 0, 0, 0)
        system, idle = system + irq + softirq + steal, idle + iowait
        used = user + nice + system
        ticks[cpu] = used, idle
        used_before, idle_before = before.get(cpu, ticks[cpu])
        busy, rest = used - used_before, idle - idle_before
        if rest < 0:
            rest = max(int(period_ticks) - busy, 0)
        records.append(pack(CPU_STRUCT, ONE_CPU, (
            cpu, busy * FULL // (busy + rest) if busy > 0 else 0,
            user & WRAP, nice & WRAP, system & WRAP, idle & WRAP)))
    return records, ticks


def parse_net_dev(text):
    """Return the lines of /proc/net/dev: of each interface its name and its
    16 counters.

    Raises  ValueError when the kernel's columns are not the 16 we know
    Source  proc(5), /proc/net/dev
    """
    lines = []
    for line in text.split(b"\n")[2:-1]:        # behind two heading lines
        name, _, counts = line.rpartition(b":")
        lines.append((name.strip(), *map(int, counts.split())))
    if not set(map(len, lines)) <= {17}:
        raise ValueError("/proc/net/dev: not 16 columns")
    return lines


def measure_interfaces(lines, before, elapsed_s):
    """Return the values of NETWORK, records of INTERFACE, and
    {interface: its bytes (received, sent)}.

    before  the same bytes elapsed_s ago
    """
    received = sent = 0
    records, counts = [], {}
    for line in lines:
        name, rx, tx = line[0], line[1], line[9]
        counts[name] = rx, tx
        rx_before, tx_before = before.get(name, (rx, tx))
        # A counter that went backwards was reset.
        rx_rate = int((rx - rx_before) / elapsed_s) if rx > rx_before else 0
        tx_rate = int((tx - tx_before) / elapsed_s) if tx > tx_before else 0
        if name != b"lo":
            received += rx_rate
            sent += tx_rate
        records.append(pack(INTERFACE_STRUCT, INTERFACE, (
            name if name.isalnum() else text_bytes(name, 16),
            *line[1:], rx_rate, tx_rate)))
    return (received, sent) if lines else absent(NETWORK), records, counts


def parse_cpuinfo(text):
    """Return the values of PROCESSOR but ticks_per_s.

    Raises  ValueError when a word is not a number
    Source  /proc/cpuinfo, whose keys differ from machine to machine
    """
    found = {}
    for line in text.split(b"\n", FIRST_LINES)[:FIRST_LINES]:
        key, _, value = line.partition(b":")
        found.setdefault(key.strip(), value.strip())
    vendor, model, mhz, cache, bogomips = [
        next((found[key] for key in keys if found.get(key)), b"")
        for keys in CPUINFO]
    sockets = [line for line in text.split(b"\n")
               if line.startswith((b"physical id", b"core id"))]
    cores = set(zip(sockets[::2], sockets[1::2]))
    return (vendor, model,
            float(mhz.rstrip(b"MHz") or ABSENT["f"]),
            int(cache.partition(b" ")[0] or ABSENT["I"]),
            float(bogomips or ABSENT["f"]),
            len({socket_id for socket_id, _ in cores}) or ABSENT["H"],
            len(cores) or ABSENT["H"])


# ---- sample ------------------------------------------------------------

IDENTITY_S = 60.0               # between two reads of /proc/cpuinfo
EARLY = 0.9                     # a sample is as old as it should, or nearly
STEP_S = 1.0                    # a clock that moved more than this was set
MOST_CPUS = 3000                # that a message can hold
WHOLE_BYTES = 2048              # a shorter read was all of the file
MOST_BYTES = 16 << 20           # no file of /proc that we read is longer
IDENTITY = HOST + PROCESSOR     # of a node record, what seldom changes
VALUES = NODE[len(IDENTITY):]
HEADER_STRUCT, _ = layout(HEADER)
IDENTITY_STRUCT, _ = layout(IDENTITY)
VALUES_STRUCT, _ = layout(VALUES)
NODE_STRUCT, _ = layout(NODE)
CPU_STRUCT, _ = layout(ONE_CPU)
INTERFACE_STRUCT, _ = layout(INTERFACE)
RECORDS_BYTES = (               # for all CPUs and interfaces of a message
    MESSAGE_BYTES - HEADER_STRUCT.size - NODE_STRUCT.size - CRC_BYTES
    - MAC_BYTES)


def text_bytes(text, size):
    """Return text as whole UTF-8 characters in at most size bytes."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return (text.encode("utf-8", "replace")[:size]
            .decode("utf-8", "ignore").encode("utf-8"))


def pack(record, rows, values):
    """Return the bytes of a record, whatever /proc made us count.

    record  the Struct of its table of fields
    """
    try:
        return record.pack(*values)
    except (struct.error, OverflowError):
        return record.pack(*map(fitting, codes(rows), values))


def pack_records(values, cpus, interfaces):
    """Return the bytes of a node's records, behind its identity: of CPUs and
    interfaces as many as fit, and flags that say if that is not all.

    values            of VALUES, as far as the flags
    cpus, interfaces  records of ONE_CPU, of INTERFACE
    """
    flags = CPUS_CLIPPED if len(cpus) > MOST_CPUS else 0
    cpus = cpus[:MOST_CPUS]
    most = (RECORDS_BYTES - len(cpus) * CPU_STRUCT.size) // (
        INTERFACE_STRUCT.size)
    flags |= CLIPPED if len(interfaces) > most else 0
    interfaces = interfaces[:most]
    return b"".join([pack(VALUES_STRUCT, VALUES, (
        *values, flags, len(cpus), len(interfaces))), *cpus, *interfaces])


def pack_message(header, body):
    """Return a message: its header, its body and their CRC-32.

    header  (node, kind, start_us, sequence, period_s, time_s)
    """
    node, kind, start_us, sequence, period_s, time_s = header
    data = HEADER_STRUCT.pack(
        MAGIC, HEADER_STRUCT.size + len(body) + CRC_BYTES, node, kind,
        RECORDS_VERSION, start_us, sequence, period_s, time_s) + body
    return data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")


def open_proc(root, name):
    """Return a descriptor of a file of /proc.

    Raises  OSError
    """
    path = os.path.join(root, name)
    if "/" in name and os.path.realpath(root) != "/proc":
        # net is a link to the reader's own network, not the host's.
        of_init = os.path.join(root, "1", name)
        if os.path.exists(of_init):
            path = of_init
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def read_all(fd):
    """Return the bytes of a /proc file.

    One pread may return only the first page of a long file; a read of
    less than half a page was all of it.
    """
    data = more = os.pread(fd, READ_BYTES, 0)
    while more and WHOLE_BYTES < len(data) < MOST_BYTES:
        more = os.pread(fd, READ_BYTES, len(data))
        data += more
    return data


class Sampler:
    """The node's /proc files, kept open, and the last counters read.

    What cannot be read or is odd gives absent values, is said, and is
    tried again by the next sample.
    say     function that is told what is wrong, each time
    past    what rates go back to, the oldest first: of each sample
            (CLOCK_MONOTONIC, of all CPUs, of each, of interfaces)
    """

    def __init__(self, root, node, period_s, say=ignore):
        self.root, self.node, self.period_s = root, node, period_s
        self.procstatd_port, self.say = 0, say
        self.start_us = self.sequence = self.send_errors = self.skipped = 0
        self.clock_s = NEVER            # the wall clock's lead on ours
        self.cost_s = time.process_time()
        self.files, self.past = {}, []
        self.identity, self.identity_due = b"", 0.0
        self.ticks_per_s = os.sysconf("SC_CLK_TCK")

    def begin(self):
        """Read what the rates of the next sample go back to."""
        self.read_records(time.monotonic())

    def close(self):
        """Close the files."""
        while self.files:
            attempt(os.close, self.files.popitem()[1])

    def read(self, name, parse):
        """Return what parse makes of a file, None when it makes nothing."""
        try:
            if name not in self.files:
                self.files[name] = open_proc(self.root, name)
            return parse(read_all(self.files[name]))
        except (OSError, ValueError, IndexError) as error:
            self.say("%s: %s: its values are absent" % (
                os.path.join(self.root, name),
                getattr(error, "strerror", "not as proc(5) has it")))
            if name in self.files:      # it may be another file by now
                attempt(os.close, self.files.pop(name))
            return None

    def read_identity(self):
        """Read what seldom changes, from files that are opened anew: of a
        --proc they may be others by now."""
        self.close()
        host = os.uname()
        vendor, model, *numbers = (self.read("cpuinfo", parse_cpuinfo)
                                   or absent(PROCESSOR)[:-1])
        self.identity = pack(IDENTITY_STRUCT, IDENTITY, (
            text_bytes(host.nodename, 64), text_bytes(host.release, 64),
            text_bytes(host.machine, 16), text_bytes(vendor, 16),
            text_bytes(model, 64), *numbers, self.ticks_per_s))

    def read_disk(self):
        """Return the values of DISK, of the root file system."""
        try:
            _, *sizes, _, _, name_max = os.statvfs("/")
        except OSError as error:
            self.say("statvfs of /: %s: its values are absent"
                     % error.strerror)
            return absent(DISK)
        return (*sizes, name_max)

    def find_past(self, now):
        """Return the newest counters that are at least a period, or
        FIRST_S, old; the oldest ones when all are newer."""
        old_s = min(self.period_s, FIRST_S) * EARLY
        while len(self.past) > 1 and now - self.past[1][0] >= old_s:
            del self.past[0]
        return self.past[0] if self.past else (now, [], {}, {})

    def make_message(self, kind):
        """Return the message of a new sample.

        The start and the sequence begin anew when the clock was set.
        """
        now, time_s = time.monotonic(), time.time()
        if abs(time_s - now - self.clock_s) > STEP_S:
            self.start_us, self.sequence = int(time_s * 1e6), 0
        self.clock_s = time_s - now
        body = self.read_records(now)
        self.sequence = self.sequence + 1 & ABSENT["I"]
        return pack_message((self.node, kind, self.start_us, self.sequence,
                             self.period_s, time_s), body)

    def read_records(self, now):
        """Return the bytes of the node record, the CPUs, the interfaces."""
        if now >= self.identity_due:
            self.identity_due = now + IDENTITY_S
            self.read_identity()
        past_s, sums_before, ticks_before, bytes_before = (
            self.find_past(now))
        elapsed_s = now - past_s or 1.0
        period_ticks = elapsed_s * self.ticks_per_s
        sums, lines, kernel = self.read("stat", parse_stat) or (
            [], [], absent(KERNEL))
        cpu = measure_sums(sums, sums_before, period_ticks * len(lines))
        cpus, ticks = measure_cpus(lines, ticks_before, period_ticks)
        if ticks and ticks_before and ticks.keys() != ticks_before.keys():
            self.identity_due = 0.0
        network, interfaces, bytes_now = measure_interfaces(
            self.read("net/dev", parse_net_dev) or [], bytes_before, elapsed_s)
        self.past.append((now, sums, ticks, bytes_now))
        load = self.read("loadavg", parse_loadavg) or absent(LOAD)
        memory = self.read("meminfo", parse_meminfo) or absent(MEMORY)
        disk = self.read_disk()
        cost_s, self.cost_s = self.cost_s, time.process_time()
        return self.identity + pack_records([
            *kernel, *cpu, *load, *memory, *disk, *network,
            int((self.cost_s - cost_s) * 1e6), self.send_errors,
            self.skipped, self.procstatd_port], cpus, interfaces)


# ---- masters -----------------------------------------------------------
# Where samples go: addresses, names that are resolved, a multicast group.

RESOLVED_S = 60.0               # until a master's name is resolved again
HOSTS = "/etc/hosts"
GROUPS = range(224, 240)        # first bytes of a multicast address
TTL = 1                         # the group is of one network
REFUSED = "refused: nobody listens there"
CURES = {                       # what to do, by a master's trouble
    REFUSED: ": start recvstats, or name its port with -p",
    os.strerror(errno.EHOSTUNREACH): ": a firewall or a route refuses",
    os.strerror(errno.ENETUNREACH): ": no route leads there",
    os.strerror(errno.EADDRNOTAVAIL): ": -a is no address of this machine"}
IFNAMSIZ = 16                   # linux/if.h
SIOCGIFINDEX, SIOCGIFADDR, SIOCGIFNETMASK = 0x8933, 0x8915, 0x891b
INTERFACE_TROUBLE = {           # of ioctl, by netdevice(7)
    errno.ENODEV: " is not there",
    errno.EADDRNOTAVAIL: " has no IPv4 address"}


def parse_destination(text, port):
    """Return (host, port) of `ADDRESS[:PORT]`.

    Raises  ValueError, which says that it is not one
    """
    host, colon, number = text.partition(":")
    if colon:
        port = int(number) if number.isdecimal() else 0
    if not host or host.startswith("-") or not 0 < port < 65536:
        raise ValueError("%s is not ADDRESS[:PORT]" % text)
    return host, port


def is_address(host):
    """Return whether host is an IPv4 address rather than a name."""
    return attempt(socket.inet_pton, socket.AF_INET, host)


def is_group(host):
    """Return whether host is a multicast address."""
    return is_address(host) and int(host.partition(".")[0]) in GROUPS


def network(text):
    """Return the network of `ADDRESS[/BITS]`."""
    from ipaddress import IPv4Network   # 0.3 MB: only who names one pays
    return IPv4Network(text, strict=False)


def is_in(address, networks):
    """Return whether an address, a.b.c.d, is in one of the networks."""
    from ipaddress import IPv4Address
    return any(IPv4Address(address) in each for each in networks)


def interface(name):
    """Return what may be the name of an interface, as it is.

    Raises  ValueError
    """
    if not 0 < len(os.fsencode(name)) < IFNAMSIZ:
        raise ValueError("not a name of 1 to 15 bytes: %r" % name)
    return name


def find_interface(name):
    """Return (index, network) of an interface.

    Raises  OSError; ENODEV when it is not there
    """
    request = struct.pack("16s24x", os.fsencode(name))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            index, address, mask = [
                fcntl.ioctl(sock, code, request)[16:24]
                for code in (SIOCGIFINDEX, SIOCGIFADDR, SIOCGIFNETMASK)]
    except OSError as error:
        raise OSError(error.errno, "interface %s%s" % (
            name, INTERFACE_TROUBLE.get(error.errno,
                                        ": " + error.strerror)))
    return struct.unpack_from("=i", index)[0], network("%s/%s" % (
        socket.inet_ntoa(address[4:]), socket.inet_ntoa(mask[4:])))


def read_hosts_time():
    """Return when /etc/hosts was changed, 0 without it."""
    try:
        return os.stat(HOSTS).st_mtime_ns
    except OSError:
        return 0


def resolve_forever(master, wanted):
    """Resolve a master's name: once a minute, after growing waits while
    there is no answer, and when the lock `wanted` is let go.

    In a thread, so that a name server that is silent delays no sample.
    """
    retry_s = RETRY_S
    while True:
        wait_s = RESOLVED_S
        try:
            # As bytes: a str would make Python load its IDNA tables.
            master.address = socket.getaddrinfo(
                master.host.encode(), None, socket.AF_INET,
                socket.SOCK_DGRAM)[0][4][0]
            retry_s = RETRY_S
        except (OSError, UnicodeError) as error:
            master.trouble = "%s: name it in /etc/hosts" % explain(error)
            wait_s, retry_s = retry_s, min(retry_s * 2, RESOLVED_S)
        time.sleep(RETRY_S)
        wanted.acquire(True, wait_s - RETRY_S)


class Master:
    """One that samples are sent to, and the socket for it.

    address    of the host, "" until its name is resolved
    interface  name of the interface to use, of a group, if any
    index, network  of that interface, as last found
    sock       connected to peer, which the address was then; or None
    group      the socket that hears the group, or None
    trouble    what became of the last message, "" nothing bad
    refused    whether nobody listened to it; the socket stays, so that
               requests find it
    """

    def __init__(self, host, port, local, interface):
        self.host, self.port, self.local = host, port, local
        self.name = "%s:%d" % (host, port)
        self.interface = interface if is_group(host) else ""
        self.index, self.network = 0, None
        self.address = host if is_address(host) else ""
        self.peer, self.sock, self.group = "", None, None
        self.trouble = "" if self.address else "name not resolved yet"
        self.refused = False
        self.wanted, self.hosts_time = None, 0

    def refresh(self, anew):
        """Have the host's name resolved, if it is one, at once when this is
        wanted anew or /etc/hosts has changed; and see whether a group's
        interface is what it was."""
        if not is_address(self.host):
            before, self.hosts_time = self.hosts_time, read_hosts_time()
            self.resolve(anew or before != self.hosts_time)
        before = self.index, self.network
        if self.interface and self.sock and not (
                attempt(self.find) and before == (self.index, self.network)):
            self.sock = None

    def resolve(self, anew):
        """Have the name resolved, in a thread; at once when wanted anew."""
        try:
            if not self.wanted:
                wanted = _thread.allocate_lock()
                wanted.acquire()
                _thread.start_new_thread(resolve_forever, (self, wanted))
                self.wanted = wanted
            elif anew and self.wanted.locked():
                self.wanted.release()
        except RuntimeError as error:           # the next refresh tries again
            self.trouble = str(error)

    def find(self):
        """Find the interface.

        Raises  OSError
        """
        self.index, self.network = find_interface(self.interface)

    def connect(self):
        """Open a new socket, for the address and the interface of now.

        Raises  OSError
        """
        if self.interface:
            self.find()
        self.peer, self.group = self.address, None
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        if self.interface:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF,
                            struct.pack("=4s4si", bytes(4), bytes(4),
                                        self.index))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, TTL)
        sock.bind((self.local, 0))
        sock.connect((self.peer, self.port))
        self.sock = sock

    def send(self, message, sign):
        """Return whether the kernel took the message.

        sign  None, or the function that signs what leaves by a socket

        An error may be the answer to the message before this one, or tell
        of a route that is gone: so once more, then from a new socket.
        """
        refused, self.refused = self.refused, False
        for _ in range(2 if self.address else 0):
            try:
                if not self.sock or self.peer != self.address:
                    self.connect()
                self.sock.send(sign(message, self.sock) if sign else message)
                self.trouble = REFUSED if refused else ""
                return True
            except ConnectionRefusedError:
                refused, self.trouble = True, REFUSED
            except OSError as error:
                self.trouble, self.sock = explain(error), None
        if self.address and self.wanted:
            self.resolve(anew=True)     # it may have moved
        return False

    def is_refused(self, wait_s):
        """Return whether an answer comes within wait_s that nobody listens,
        or that nobody is there; there is none when somebody is.

        Raises  OSError
        """
        poll = select.poll()
        poll.register(self.sock, 0)     # errors alone
        poll.poll(wait_s * 1000)
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error == errno.ECONNREFUSED:
            self.refused, self.trouble = True, REFUSED
        elif error:
            self.sock, self.trouble = None, os.strerror(error)
        return bool(error)


# ---- requests ----------------------------------------------------------
# A master asks for a sample now, and for a period from now on: on the
# socket that samples leave from, or through the group.

ASKED_PERIODS_S = 0.1, 3600.0   # the shortest and the longest
OBEYED_S = 3600.0               # a period asked for holds no longer
ANSWER_S = 0.2                  # least time between two answers
SPREAD_MOST_S = 60.0
READS = 64                      # of a socket at a time
ASK_STRUCT, _ = layout(ASK)
REQUEST_BYTES = HEADER_STRUCT.size + ASK_STRUCT.size + CRC_BYTES


def split_mac(datagram):
    """Return (message, what follows it) of a datagram.

    Raises  ValueError when it is too short for a message
    """
    if len(datagram) < HEADER_STRUCT.size:
        raise ValueError("shorter than a header")
    _, length, *_ = HEADER_STRUCT.unpack_from(datagram)
    return datagram[:length], datagram[length:]


def parse_request(data):
    """Return (node, start_us, sequence, period_s, spread_s, agent_start_us).

    data    of a request; that of an older recvstats has no agent_start_us
    Raises  ValueError when it is not one
    """
    if not HEADER_STRUCT.size + CRC_BYTES < len(data) <= REQUEST_BYTES or (
            zlib.crc32(data) != CRC_RESIDUE):
        raise ValueError("not a request")
    magic, _, node, kind, _, start_us, sequence, period_s, _ = (
        HEADER_STRUCT.unpack_from(data))
    spread_s, agent_start_us = ASK_STRUCT.unpack(
        data[HEADER_STRUCT.size:-CRC_BYTES].ljust(ASK_STRUCT.size, b"\0"))
    low, high = ASKED_PERIODS_S
    if (magic != MAGIC or kind != REQUEST or not 0 <= spread_s <= SPREAD_MOST_S
            or not (period_s == 0 or low * 0.999 <= period_s <= high)):
        raise ValueError("a request that makes no sense")
    return node, start_us, sequence, period_s, spread_s, agent_start_us


def join_group(group, port, index):
    """Return a socket that hears a multicast group on one interface.

    Raises  OSError
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack(
        "=4s4si", socket.inet_aton(group), bytes(4), index))
    sock.bind((group, port))
    return sock


class Requests:
    """What masters ask for.

    period_s    between samples: the one asked for, or the agent's own
    until       when the period asked for ends
    due         when a sample asked for is to leave, or never
    answered    when the last sample left
    listen_at   nobody is listened to before: no master makes the agent
                work more than five times a second
    group_due   no request through a group is answered before
    orders      {(master, whether through the group): (start_us, sequence)}
                of the last signed request
    """

    def __init__(self, sampler, phase, keys, say):
        self.sampler, self.phase = sampler, phase
        self.keys, self.say = keys, say
        self.own_s = self.period_s = sampler.period_s
        self.due = self.until = NEVER
        self.listen_at = self.answered = self.group_due = 0.0
        self.orders = {}

    def join(self, masters):
        """Hear the masters' groups, on the interfaces that they have now."""
        for master in masters:
            if master.index and not master.group:
                try:
                    master.group = join_group(master.address, master.port + 1,
                                              master.index)
                except OSError as error:
                    self.say("%s: requests cannot be heard: %s"
                             % (master.name, explain(error)))

    def sources(self, masters):
        """Return {socket: (its master, whether it hears a group)}."""
        return {sock: (master, sock is master.group) for master in masters
                for sock in (master.sock, master.group) if sock}

    def receive(self, sock, master, grouped, now):
        """Read what came to a socket, and obey what a master asks."""
        self.listen_at = now + ANSWER_S
        try:
            for _ in range(READS):
                data, (address, _) = sock.recvfrom(
                    REQUEST_BYTES + MAC_BYTES + 1)
                if not grouped or is_in(address, [master.network]):
                    self.obey(data, master, grouped, now)
        except BlockingIOError:
            pass                        # that was all
        except ConnectionRefusedError:
            master.refused = True
        except OSError as error:        # it is of no use
            if grouped:
                master.group = None
            else:
                master.sock, master.trouble = None, explain(error)

    def check(self, datagram, master, grouped):
        """Return (period_s, spread_s) that a datagram asks for.

        An agent without a number cannot tell whether it is meant, but on
        its own socket.  A signed request must name this very agent, unless
        it is for all: one recorded earlier is worth nothing.
        Raises  ValueError when this agent is not to obey it
        """
        data, mac = split_mac(datagram)
        node, *order, period_s, spread_s, agent_start_us = parse_request(data)
        ours = self.sampler.node
        if node not in (UNNUMBERED, ours) and (grouped or ours != UNNUMBERED):
            raise ValueError("for another node")
        if agent_start_us not in (0, self.sampler.start_us):
            raise ValueError("for an agent before this one")
        if len(mac) not in (0, MAC_BYTES):
            raise ValueError("with more behind it than a MAC")
        if self.keys:
            if not (self.keys.verify(data, mac)
                    and (grouped or agent_start_us)
                    and order > self.orders.get((master, grouped), [])):
                raise ValueError("not signed, or not now")
            self.orders[master, grouped] = order
        return period_s, spread_s

    def obey(self, datagram, master, grouped, now):
        """Do what a datagram asks, if it is from one that may.

        Of a group anybody may be the sender: it makes the agent no faster
        than its own period, and asks for one sample more in that time.
        """
        try:
            period_s, spread_s = self.check(datagram, master, grouped)
        except ValueError:
            return
        period_s = period_s or self.own_s
        due = max(now + spread_s * self.phase, self.answered + ANSWER_S)
        if grouped:
            period_s = max(period_s, self.own_s)
            due = max(due, self.group_due)
            self.group_due = min(due, self.due) + self.own_s
        self.due = min(self.due, due)
        self.period_s, self.until = period_s, now + OBEYED_S

    def answer(self, now):
        """A sample left, which answers whoever asked: go back to the agent's
        own period in its time."""
        self.answered, self.due = now, NEVER
        if now >= self.until:
            self.period_s, self.until = self.own_s, NEVER


# ---- keys --------------------------------------------------------------


class Keys:
    """The keys of a file, one per line: the first signs, all verify.

    trouble  why the file as it is now will not do, or ""
    Raises   StartError when others may read the file, or it holds none
    """

    def __init__(self, path):
        # It loads OpenSSL, which costs 3 MB: only those who sign pay.
        from hashlib import blake2b
        self.blake2b, self.path, self.trouble = blake2b, path, ""
        self.read()

    def read(self):
        """Read the file."""
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                keys = file.read().split(b"\n")
        except OSError as error:
            raise StartError("%s: %s" % (self.path, error.strerror))
        keys = [key.strip() for key in keys if key.strip()]
        if found.st_mode & 0o007:
            raise StartError("%s: others may read it: chmod o= %s"
                             % (self.path, self.path))
        if not keys or max(map(len, keys)) > self.blake2b.MAX_KEY_SIZE:
            raise StartError("%s: must hold keys of 1 to %d bytes, one a "
                             "line" % (self.path, self.blake2b.MAX_KEY_SIZE))
        self.states = [self.blake2b(key=key, digest_size=MAC_BYTES)
                       for key in keys]
        self.seen = self.version(found)

    def version(self, found):
        """Return what of a stat result changes when the file does."""
        return found.st_ino, found.st_size, found.st_mtime, found.st_ctime

    def refresh(self, anew=False):
        """Read the file when it has changed, or anew; keep the old keys
        when the new file will not do, and say why in self.trouble."""
        try:
            if anew or self.version(os.stat(self.path)) != self.seen:
                self.read()
            self.trouble = ""
        except (OSError, StartError) as error:
            self.trouble = explain(error)

    def sign(self, data, state=None):
        """Return the MAC_BYTES to put behind a message."""
        mac = (state or self.states[0]).copy()
        mac.update(data)
        return mac.digest()

    def verify(self, data, mac):
        """Return whether one of the keys made the MAC.

        A set looks for a salted hash first: its time does not tell where
        two MACs differ (hmac is not in a minimal Python).
        """
        return bytes(mac) in {self.sign(data, state) for state in self.states}


# ---- procstatd ---------------------------------------------------------
# Answers TCP clients about this node, each in a thread of its own.

CLIENTS, CLIENTS_OF_ONE = 10, 4         # in all, and of one address
IDLE_S = 30.0                   # for a whole command, and to read a reply
LINE_BYTES = 256                # a command is no longer
RESTS = 4                       # times the CPU time of a reply
COMMAND_CHARACTERS = 1024       # of a process, in the list of jobs
REPLY_BYTES = 1 << 20           # for the command lines of all of them
LOOPBACK = "127.0.0.0/8"
PROCSTATD_NAMES = (             # its name of a field
    ("load1", "one"), ("load5", "five"), ("load15", "fifteen"),
    ("mem_free", "free_bytes"), ("shm_tot", "shared_bytes"),
    ("proc", "total"))


def parse_job(stat, page_kb):
    """Return (name, ppid, state, threads, rss_kb, vsize_kb, ticks).

    stat    text of /proc/PID/stat, whose name may hold blanks and brackets
    Raises  ValueError, IndexError
    """
    head, _, tail = stat.rpartition(b")")
    fields = tail.split()
    return (head.partition(b"(")[2], int(fields[1]), fields[0].decode(),
            int(fields[17]), int(fields[21]) * page_kb,
            int(fields[20]) // 1024, int(fields[11]) + int(fields[12]))


def printable(data):
    """Return bytes of any kind as text on one line."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else
                   char.encode("unicode_escape").decode() for char in text)


def name_values(rows, values):
    """Return {field: value} of a record, without what is absent."""
    named = {}
    for field, code, value in zip(layout(rows)[1], codes(rows), values):
        if isinstance(value, bytes):
            value = value.rstrip(b"\0").decode()
        if value not in ("", ABSENT.get(code)):
            named[field] = value
    return named


def format_values(node, more):
    """Return a reply, a line per value that is known: under procstatd's own
    names, then more.

    node, more  {field of the node record: value}, {name: value}
    """
    named = {name: node[field] for name, field in PROCSTATD_NAMES
             if field in node}
    if "boot_time_s" in node:
        named["uptime"] = int(time.time()) - node["boot_time_s"]
    if "total_bytes" in node and "free_bytes" in node:
        named["mem_used"] = node["total_bytes"] - node["free_bytes"]
    lines = ["%s %s" % (name, "%.7g" % value if isinstance(value, float)
                        else value)
             for values in (named, more) for name, value in values.items()]
    return ("\n".join(lines) + "\n\n").encode()


def read_job(folder, page_kb, characters):
    """Return [the line of a process], [] when it has vanished.

    characters  how much of the command line to show
    Source      proc(5), /proc/PID/stat and cmdline, of its folder
    """
    texts = []
    try:
        for name in "stat", "cmdline":
            with open(os.path.join(folder, name), "rb", 0) as file:
                texts.append(file.read(READ_BYTES))
        name, ppid, *numbers = parse_job(texts[0], page_kb)
        uid = os.stat(folder).st_uid
    except (OSError, ValueError, IndexError):
        return []
    command = texts[1].rstrip(b"\0").replace(b"\0", b" ")
    command = command or b"[" + name + b"]"     # a thread of the kernel
    return ["%s %d %d %s %d %d %d %d %s\n" % (
        os.path.basename(folder), ppid, uid, *numbers,
        printable(command[:characters])[:characters])]


def reply_unknown(_, line):
    """Return what there is, for a line that is not a command."""
    return ("unknown command: %s; there are init send quik jobs quit\n\n"
            % printable(line)).encode()


def reply_init(sampler, _):
    """Begin to measure: the rates of `send` go back to here."""
    sampler.past.clear()
    sampler.begin()
    return b"\n"


def reply_send(sampler, _):
    """Return everything that a sample has."""
    if not sampler.past:                # without `init`: rates need two
        sampler.begin()
        time.sleep(FIRST_S)
    node = name_values(NODE, NODE_STRUCT.unpack_from(
        sampler.make_message(SAMPLE), HEADER_STRUCT.size))
    return format_values(node, node)


def reply_quik(sampler, _):
    """Return what /proc/stat and /proc/loadavg have."""
    sums, _, kernel = sampler.read("stat", parse_stat) or (
        [], [], absent(KERNEL))
    load = sampler.read("loadavg", parse_loadavg) or absent(LOAD)
    return format_values(name_values(KERNEL + LOAD, (*kernel, *load)),
                         name_values(CPU, sums))


def reply_jobs(sampler, _):
    """Return the number of processes, then a line for each."""
    page_kb = os.sysconf("SC_PAGE_SIZE") // 1024
    pids = list(filter(str.isdigit, os.listdir(sampler.root)))
    characters = min(COMMAND_CHARACTERS, REPLY_BYTES // (len(pids) or 1))
    lines = [line for pid in pids
             for line in read_job(os.path.join(sampler.root, pid), page_kb,
                                  characters)]
    return ("%d\n%s\n" % (len(lines), "".join(lines))).encode()


REPLIES = {b"init": reply_init, b"send": reply_send, b"quik": reply_quik,
           b"jobs": reply_jobs}


def rest(spent_s):
    """Rest for this thread's CPU time since it was spent_s; return it."""
    now_s = time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)
    time.sleep(RESTS * (now_s - spent_s))
    return now_s


def read_lines(sock):
    """Yield a client's lines until `quit`; the last may have no end.

    Raises  OSError, also when a line takes longer than IDLE_S
    """
    data = b""
    while True:
        limit = time.monotonic() + IDLE_S
        while b"\n" not in data:
            sock.settimeout(max(limit - time.monotonic(), 1e-3))
            more = sock.recv(LINE_BYTES)
            data += more or (b"\nquit\n" if data else b"quit\n")
            if len(data.partition(b"\n")[0]) > LINE_BYTES:
                return                  # no command
        line, _, data = data.partition(b"\n")
        if line.strip().lower() == b"quit":
            return
        yield line.strip()


def serve_client(sock, address, root, turn, clients):
    """Answer a client's lines until it quits or is idle for too long.

    turn     lock of all clients, held while a reply is made and while its
             thread then rests: all together cost a fifth of a CPU
    clients  addresses of all of them, this one's too
    """
    sampler, spent_s = Sampler(root, UNNUMBERED, FIRST_S), 0.0
    try:
        _, sampler.procstatd_port = sock.getsockname()
        for line in read_lines(sock):
            with turn:
                reply = REPLIES.get(line.lower(), reply_unknown)(
                    sampler, line)
                spent_s = rest(spent_s)
            sock.settimeout(IDLE_S)
            sock.sendall(reply)
            del reply                   # it may be large, the pause long
    except OSError:
        pass                            # gone, or too slow
    finally:
        attempt(sock.close)
        sampler.close()
        with turn:
            attempt(rest, spent_s)
        clients.remove(address)


def refusal(address, clients, allow, masters):
    """Return why an address may not connect, or "".

    Without --allow the loopback may, a master, and the network of a group.
    """
    networks = allow or [network(LOOPBACK)] + [
        master.network for master in masters if master.network]
    named = () if allow else [master.address for master in masters]
    if address not in named and not is_in(address, networks):
        return "not allowed"
    if len(clients) >= CLIENTS or (
            clients.count(whose(address)) >= CLIENTS_OF_ONE):
        return "too many clients"
    return ""


def whose(address):
    """Return who connects from an address: a local user has the loopback's
    16 million."""
    return "127" if address.startswith("127.") else address


def serve_procstatd(listener, root, allow, masters, say):
    """Accept clients for ever, each in a thread; say who is refused."""
    clients, turn, spent_s = [], _thread.allocate_lock(), 0.0
    while True:
        try:
            with turn:
                spent_s = rest(spent_s)
            sock, (address, _) = listener.accept()
        except OSError:
            time.sleep(RETRY_S)         # no descriptor is left
            continue
        trouble = refusal(address, clients, allow, masters)
        client = whose(address)
        try:
            clients.append(client)
            if not trouble:
                _thread.start_new_thread(serve_client, (
                    sock, client, root, turn, clients))
                continue
        except RuntimeError as error:
            trouble = str(error)
        clients.remove(client)
        attempt(sock.close)
        say("procstatd: %s refused: %s" % (address, trouble))


def start_procstatd(port, root, allow, masters, say):
    """Listen for clients, and serve them in threads.

    Raises  StartError
    """
    network(LOOPBACK)                   # loads what threads then have
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
        listener.listen(CLIENTS)
        _thread.start_new_thread(serve_procstatd, (
            listener, root, allow, masters, say))
    except (OSError, RuntimeError) as error:
        listener.close()
        raise StartError("--procstatd %d: %s" % (port, explain(error)))


# ---- daemon ------------------------------------------------------------
# What a process needs that runs for years beside others.

STOP = signal.SIGTERM, signal.SIGINT
OOM_SCORE = b"-900"
SAY_S = 3600.0                  # before the same is said again
FDS = 65536                     # may be open, where /proc does not tell


def wait_for(files, wait_s):
    """Return those files that can be read within wait_s seconds.

    By poll, since select knows no descriptor above 1,023.
    Raises  OSError
    """
    poll = select.poll()
    fds = {}
    for file in files:
        fd = file if isinstance(file, int) else file.fileno()
        fds[fd] = file
        poll.register(fd, select.POLLIN)
    ready = poll.poll(None if wait_s == NEVER else max(wait_s, 0) * 1000)
    return [fds[fd] for fd, _ in ready]


def open_signals(numbers):
    """Return a descriptor that reads a byte, the number, per signal."""
    reader, writer = os.pipe()
    for fd in reader, writer:
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writer)
    for number in numbers:
        signal.signal(number, ignore)
    return reader


def read_signals(reader):
    """Return the numbers of the signals that came, b"" when none did."""
    try:
        return os.read(reader, READ_BYTES)
    except OSError:
        return b""


def close_inherited():
    """Close what the caller left open, lest its locks be held for ever, and
    open the standard files, lest a socket get their numbers.

    Raises  OSError
    """
    try:
        fds = os.listdir("/proc/self/fd")
    except OSError:
        fds = []
    os.closerange(3, max(map(int, fds), default=FDS) + 1)
    spare = 0
    while spare <= 2:
        spare = os.open("/", os.O_RDONLY)
    os.close(spare)


def is_ready(reader, wait_s):
    """Return whether a daemon's child is, or may yet be, within wait_s.

    reader  what the child writes a byte to when it is ready
    """
    try:
        late = not wait_for([reader], wait_s)
    except OSError:
        late = False                    # wait for as long as it takes
    try:
        return late or bool(os.read(reader, 1))
    except OSError:
        return True                     # the child goes on without us


def release_standard():
    """Let go of the caller's terminal.

    Raises  OSError
    """
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:                     # a root without /dev
        null = os.open("/", os.O_RDONLY)
    for fd in 0, 1, 2:
        attempt(os.dup2, null, fd)
    os.close(null)


def daemonize(wait_s):
    """Fork; in the child, return the function that lets the parent go.

    The parent exits 0 when the child calls it, or after wait_s, and 1 when
    the child ends before.  Until then the child's errors reach the
    caller's terminal.  The parent's end changes nothing for the child.
    Raises  OSError
    """
    close_inherited()
    reader, writer = os.pipe()
    if os.fork():
        attempt(os.close, writer)
        os._exit(0 if is_ready(reader, wait_s) else 1)
    attempt(os.close, reader)
    os.setsid()

    def release():
        attempt(os.chdir, "/")          # what lies elsewhere may go
        attempt(release_standard)
        attempt(os.write, writer, b".")
        attempt(os.close, writer)
    return release


def tell_ready():
    """Tell systemd that the daemon is ready, where it waits for that.

    Source  sd_notify(3)
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            attempt(sock.sendto, b"READY=1",
                    path[:1].replace("@", "\0") + path[1:])


def is_in_place(fd, path):
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def lock_pid_file(path):
    """Return the descriptor of a pid file that is locked, and in place.

    Raises  StartError when it is of another that runs, OSError
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
                     | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, READ_BYTES, 0).strip()
            raise StartError(
                "%s: is of another that runs (pid %s): end it, or choose "
                "another with --pid-file" % (
                    path, text.decode() if text.isdigit() else "unknown"))
        if is_in_place(fd, path):
            return fd
        os.close(fd)                    # its process has just ended


def hold_pid_file(path):
    """Write this process's number to a file, if one is named; return the
    function that removes the file, if it still is this one.

    It stays locked while this runs, which tells a stale one, and has a mode
    that lets nobody else lock it.
    Raises  StartError, also when the file is not a pid file of ours
    """
    if not path:
        return ignore
    try:
        fd, text = lock_pid_file(path), b"not a plain file"
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            text = os.pread(fd, READ_BYTES, 0).strip()
        if text and not text.isdigit():
            raise StartError("%s: is not a pid file: name another" % path)
        if found.st_uid != os.geteuid():
            raise StartError("%s: belongs to another user: remove it, or name "
                             "another" % path)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        raise StartError("%s: %s" % (path, error.strerror))

    def remove():
        if is_in_place(fd, path):
            attempt(os.unlink, path)
    return remove


def lower_oom_score():
    """Have the kernel end others first when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "wb", 0) as file:
            file.write(OOM_SCORE)
    except OSError:
        pass                            # only root may


def write_line(stream, text):
    """Write a line of text at once, if anybody takes it."""
    if stream:                          # a closed one is None
        attempt(os.write, stream.fileno(),
                (text + "\n").encode("utf-8", "backslashreplace"))


def once_per_hour(write):
    """Return a function that writes a text, unless it did within SAY_S."""
    said = {}

    def say(text):
        now = time.monotonic()
        if now - said.get(text, -NEVER) > SAY_S:
            said[text] = now
            write(text)
    return say


# ---- run ---------------------------------------------------------------

START_S = 1.0                   # a daemon's command waits for a first message
LATE_S = 1.0                    # and longer, should a call hang
REFRESH_S = 5.0                 # between two reads of what seldom changes
ONCE_S = 2.0                    # the longest --once tries to send
REFUSED_S = 0.05                # the longest -d and --once wait for it
SETTLE_S = 0.05                 # a master on this machine stores meanwhile


def phase_of(node):
    """Return where in the period a node's samples fall, 0 to 1.

    One without a number, as all may be at boot, takes any (urandom would
    wait for entropy then).
    """
    if node == UNNUMBERED:
        node = int(time.monotonic() * 1e6) ^ os.getpid()
    return (node - UNNUMBERED) * GOLDEN % 1


def next_due(now, period_s, phase_s):
    """Return the first instant of a fixed phase that is not too near.

    An instant that passed while a sample overran is skipped.
    """
    due = now + period_s - (now - phase_s) % period_s
    if due - now < min(FIRST_S, period_s / 2):
        due += period_s
    return due


class Agent:
    """One run: its samples, and when they go where.

    on           whether to go on: no signal told it to stop
    due          when the next sample is, or never
    refresh_due  when to read next what seldom changes
    """

    def __init__(self, args):
        self.args, self.phase = args, phase_of(args.node)
        self.say = once_per_hour(complain)
        self.keys = Keys(args.key_file) if args.key_file else None
        self.sampler = Sampler(args.proc, args.node, args.rate, self.say)
        self.masters = [Master(host, port, args.address, args.interface)
                        for host, port in args.masters]
        self.requests = Requests(self.sampler, self.phase, self.keys,
                                 self.say)
        if args.procstatd and not self.masters:
            self.start_procstatd()
        self.signals = open_signals(STOP + (signal.SIGHUP,))
        self.on, self.due, self.refresh_due = True, NEVER, 0.0
        self.sampler.begin()

    def start_procstatd(self):
        """Begin to answer clients.

        Raises  StartError
        """
        start_procstatd(self.args.procstatd, self.args.proc, self.args.allow,
                        self.masters,
                        complain if self.args.debug else ignore)
        self.sampler.procstatd_port = self.args.procstatd

    def refresh(self, now, anew=False):
        """Read what seldom changes: keys, names, interfaces; and try to get
        procstatd's port, where somebody else had it.

        anew  whatever was read before, as SIGHUP wants it
        """
        self.refresh_due = now + REFRESH_S
        if self.keys:
            self.keys.refresh(anew)
            if self.keys.trouble:
                self.say(self.keys.trouble + ": its last keys stay in use")
        for master in self.masters:
            master.refresh(anew)
        if self.args.procstatd != self.sampler.procstatd_port:
            try:
                self.start_procstatd()
            except StartError as error:
                self.say("%s: trying again" % error)

    def wait(self):
        """Listen to masters until a sample is due; return whether one is,
        and no signal came before."""
        while True:
            now = time.monotonic()
            if self.requests.period_s != self.sampler.period_s:
                self.plan(now)
            until = min(self.due, self.requests.due)
            if now >= until:
                return True
            sources = self.requests.sources(self.masters)
            if now < self.requests.listen_at:
                sources, until = {}, min(until, self.requests.listen_at)
            try:
                ready = wait_for([self.signals, *sources], until - now)
            except OSError as error:
                self.say("cannot wait: %s" % explain(error))
                time.sleep(min(until - now, RETRY_S))
                ready = [self.signals]
            if self.signals in ready:
                told = read_signals(self.signals)
                if not told:
                    continue
                self.on = not set(told) & set(STOP)
                if self.on:
                    self.refresh(time.monotonic(), anew=True)
                return False
            for sock in ready:
                self.requests.receive(sock, *sources[sock],
                                      time.monotonic())

    def plan(self, now):
        """Set when the next sample is due, by the period of now."""
        period_s = self.sampler.period_s = self.requests.period_s
        self.due = next_due(now, period_s, self.phase * period_s)

    def send(self, kind):
        """Send a sample; return to how many masters."""
        message, sent = self.sampler.make_message(kind), []
        for master in self.masters:
            if master.send(message, self.keys and self.sign):
                sent.append(master)
            else:
                self.sampler.send_errors += 1
        self.requests.join(self.masters)
        self.requests.answer(time.monotonic())
        if self.args.debug or self.args.once:
            size = len(message) + (MAC_BYTES if self.keys else 0)
            sent = self.tell(size, sent)
        return len(sent)

    def sign(self, message, sock):
        """Return a message with its MAC, as it leaves by a socket.

        A node without a number is known by its address: that is signed, too.
        """
        address = b""
        if self.sampler.node == UNNUMBERED:
            address = socket.inet_aton(sock.getsockname()[0])
        return message + self.keys.sign(message + address)

    def tell(self, size, sent):
        """Return those of the masters sent to that do not refuse; with -d,
        say what became of a message of some size."""
        wait_s = min(REFUSED_S, self.sampler.period_s / 4)
        sent = [master for master in sent if not master.is_refused(wait_s)]
        for master in self.masters if self.args.debug else ():
            write_line(sys.stdout, "sequence %d, %d bytes to %s: %s" % (
                self.sampler.sequence, size, master.name,
                "sent" if master in sent else master.trouble))
        return sent

    def troubles(self):
        """Return a text for each master that samples do not reach, as far
        as it is known here."""
        return ["%s: %s%s" % (master.name, master.trouble,
                              CURES.get(master.trouble, ""))
                for master in self.masters if master.trouble]

    def report(self, then=": trying again"):
        """Say what does not go well, and what is done then."""
        for trouble in self.troubles():
            self.say(trouble + then)

    def start(self):
        """Send the first message, or try for START_S.

        Returns  whether to go on: it was not told to stop, nor --once
        Raises   StartError when --once could not send
        """
        sent, once = 0, self.args.once
        limit = time.monotonic() + (ONCE_S if once else START_S)
        self.refresh(time.monotonic())
        while (self.masters and self.on and not sent
               and time.monotonic() < limit):
            self.due = time.monotonic() + FIRST_S
            if self.wait():
                sent = self.send(SAMPLE)
                if once and any(master.trouble == REFUSED
                                for master in self.masters):
                    break
        if once and not sent:
            raise StartError("; ".join(self.troubles()) or "told to stop")
        if not once:
            time.sleep(SETTLE_S)
            for master in self.masters:
                if master.sock:
                    attempt(master.is_refused, 0)
        self.report("" if once else ": trying again")
        return not once and self.on

    def turn(self):
        """Wait for a sample, and send it."""
        if not self.wait():
            return
        due = self.due
        self.send(SAMPLE)
        self.report()
        now = time.monotonic()
        if now >= self.refresh_due:
            self.refresh(now)
        if now >= due:                  # else a master asked for this one
            self.plan(now)
            self.sampler.skipped += max(
                round((self.due - due) / self.sampler.period_s) - 1, 0)

    def run(self):
        """Send a sample a period until told to stop, then a farewell.

        Whatever call fails that nobody thought of: the next turn comes.
        """
        if self.masters:
            self.plan(time.monotonic())
        while self.on:
            try:
                self.turn()
            except (OSError, MemoryError, ArithmeticError) as error:
                self.say("no sample: %s" % (explain(error)
                                            or type(error).__name__))
                attempt(time.sleep, FIRST_S)
        if self.masters:
            attempt(self.send, FAREWELL)


# ---- command line ------------------------------------------------------

PERIODS_S = 0.01, 3600.0        # the shortest and the longest
PROCSTATD_PORT = 7885           # by custom
DEFAULTS = dict(operands=[], rate=PERIOD_S, port=None, address="0.0.0.0",
                interface=None, foreground=False, debug=False, once=False,
                proc="/proc", pid_file=None, key_file=None, procstatd=0,
                allow=None)


def number_in(low, high, kind=float):
    """Return argparse's check of a number between two others."""
    from argparse import ArgumentTypeError

    def number(text):
        value = kind(text)
        if not low <= value <= high:
            raise ArgumentTypeError(
                "%s is not between %s and %s" % (text, low, high))
        return value
    return number


def address(text):
    """Return text that is an IPv4 address.

    Raises  ValueError
    """
    if not is_address(text):
        raise ValueError("not an address")
    return text


def node_number(text):
    """Return a node number.

    Raises  ValueError when text is not one
    """
    node = int(text)
    if not UNNUMBERED <= node < 2**31:
        raise ValueError("node number %s is out of range" % text)
    return node


def is_like_number(word):
    """Return whether a word was meant for a node number: 4, +4, n4, 4.0."""
    return word.lstrip("+-n.").replace(".", "", 1).isdigit()


def parse_operands(args, operands, environment):
    """Set the node number and the masters of args.

    Raises  ValueError, which says what is wrong
    """
    args.node, args.masters = UNNUMBERED, []
    if operands and operands[0].lstrip("-").isdecimal():
        args.node = node_number(operands.pop(0))
    elif environment.get("NODE"):
        try:
            args.node = node_number(environment["NODE"])
        except ValueError:
            raise ValueError("$NODE is not a node number: %r"
                             % environment["NODE"])
    elif args.procstatd and not operands:
        if args.once:
            raise ValueError("--once: name a node or a master")
        return                          # procstatd alone
    for operand in operands:
        if is_like_number(operand):
            raise ValueError("%s is not ADDRESS[:PORT]; a node number is "
                             "digits alone, and comes first" % operand)
    args.masters = [parse_destination(operand, args.port)
                    for operand in operands or [
                        GROUP if args.interface else "master"]]


def is_option(word):
    """Return whether a word is an option, rather than a node's number."""
    return word.startswith("-") and not word[1:].isdecimal()


def open_parser(name, usage):
    """Return an empty parser of a program's options."""
    import argparse
    return argparse.ArgumentParser(
        prog=name, usage=usage,
        # A width, lest it load shutil, which a minimal Python has not.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=79))


def parse_procstatd(argv):
    """Return the options of sendstats that those of procstatd stand for."""
    parser = open_parser("procstatd", "procstatd [options] [PORT]")
    option = parser.add_argument
    option("-d", dest="daemon", action="store_true",
           help="become a daemon; else stay in the foreground")
    option("-v", dest="verbose", action="store_true",
           help="say who is refused, in the foreground")
    option("--allow", action="append", default=[], metavar="NETWORK",
           help="who may connect; default the loopback alone")
    option("--pid-file", metavar="FILE", help="hold the process id in FILE")
    option("port", nargs="?", default=PROCSTATD_PORT, metavar="PORT",
           type=number_in(1, 65535, int), help="TCP port; default %(default)s")
    args = parser.parse_args(argv)
    words = [] if args.daemon else ["-d" if args.verbose else "-f"]
    words += ["--allow=" + each for each in args.allow]
    if args.pid_file:
        words += ["--pid-file", args.pid_file]
    return words + ["--procstatd", "%d" % args.port]


def make_parser():
    """Return the parser of the options; its help is the text on top."""
    parser = open_parser("sendstats", "sendstats.py [options] [NODENUMBER] "
                         "[ADDRESS[:PORT] ...]")
    parser.format_help = lambda: __doc__ or parser.format_usage()
    option = parser.add_argument
    option("operands", nargs="*")
    option("-r", "--rate", type=number_in(*PERIODS_S))
    option("-p", "--port", type=number_in(1, 65535, int))
    option("-a", "--address", type=address)
    option("-i", "--interface", type=interface)
    option("-f", "--foreground", action="store_true")
    option("-d", "--debug", action="store_true")
    option("--once", action="store_true")
    option("--proc", type=os.path.abspath)
    option("--pid-file", type=os.path.abspath)
    option("--key-file", type=os.path.abspath)
    option("--procstatd", type=number_in(1, 65535, int))
    option("--allow", type=network, action="append")
    option("-v", "--version", action="version",
           version="sendstats " + VERSION)
    parser.set_defaults(**DEFAULTS)
    return parser


def parse_args(argv, environment):
    """Return the options; argparse exits 2 on a usage error.

    Where there is no option, as in start scripts, it is not loaded: the
    agent has 1 of 13 MB less for as long as it runs.
    """
    args, more = types.SimpleNamespace(**DEFAULTS), argv
    if any(map(is_option, argv)):
        args, more = make_parser().parse_known_args(argv)
    args.port = args.port or (GROUP_PORT if args.interface else PORT)
    try:        # argparse loses operands that follow an option
        for word in filter(is_option, more):
            raise ValueError("unrecognized argument: " + word)
        parse_operands(args, args.operands + more, environment)
    except ValueError as error:
        make_parser().error(str(error))
    return args


def complain(text):
    """Write a line to standard error."""
    write_line(sys.stderr, "sendstats: " + text)


def main(argv=None):
    """Return the exit status: 0 told to stop, 1 could not start."""
    argv = sys.argv[1:] if argv is None else argv
    environment = os.environ
    if os.path.basename(sys.argv[0]).startswith("procstatd"):
        argv, environment = parse_procstatd(argv), {}   # its link
    args = parse_args(argv, environment)
    remove_pid_file, release = ignore, tell_ready
    try:
        if not os.path.isdir(args.proc):
            raise StartError("--proc %s: no such folder" % args.proc)
        if not (args.debug or args.foreground or args.once):
            release = daemonize(START_S + LATE_S)
        remove_pid_file = hold_pid_file(args.pid_file)
        lower_oom_score()
        agent = Agent(args)
        if agent.start():
            release()
            agent.run()
    except (StartError, OSError) as error:
        complain(explain(error))
        return 1
    finally:
        remove_pid_file()
    return 0


if __name__ == "__main__":
    sys.exit(main())
