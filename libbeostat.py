#!/usr/bin/env python3
"""libbeostat - read the table of statistics that recvstats keeps

    import libbeostat
    with libbeostat.open() as cluster:
        for node in cluster:
            print(node.number, node.state, node.load.one)

Source   the shared file named by the argument of open(), else by
         $BEOSTAT_TABLE, else /dev/shm/beostat
Raises   BeostatError, of which every other error here is a kind

Reading takes no lock and never writes.  The original's C functions stand
at the end, without their beostat_ prefix.
"""

import collections
import functools
import os
import re
import stat
import struct
import time
import zlib

# ---- constants ---------------------------------------------------------

f"needs Python 3.6 or newer"    # an older one shows this line, and ends
VERSION = "1.1"
CRC_BYTES = 4
CRC_RESIDUE = 0x2144df1c        # CRC-32 of any bytes and their own CRC-32

# ---- errors ------------------------------------------------------------


class BeostatError(Exception):
    """Base of all errors of this library."""


class NoTable(BeostatError):
    """There is no table at the path."""


class NotATable(BeostatError):
    """The file at the path cannot be read, is no table, or a damaged one."""


class OtherVersion(BeostatError):
    """The table or the sample is of another version than this library."""


class NoSuchNode(BeostatError):
    """The table has no such node, or the node no such CPU."""


class NeverHeard(NoSuchNode):
    """The node is expected, and recvstats never heard from it."""


class BadSample(BeostatError):
    """The node's sample is damaged, or says what cannot be."""


class SampleChanging(BeostatError):
    """The sample was being written at each of many tries."""


class BadNodeList(BeostatError):
    """The text is no list of nodes."""

# ---- layout: rows ------------------------------------------------------
# A row is (fields, code, unit, meaning): each of its fields has the code.


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
    ("magic", "4s", "", "b'BEO' and the header's version, 1"),
    ("length", "I", "bytes", "of the message, its CRC included"),
    ("node", "i", "", "-1 the master, -2 told by address; of a request, -2 "
     "all"),
    ("kind", "H", "", "1 sample, 2 farewell, 3 request"),
    ("version", "H", "", "of the records that follow"),
    ("start_us", "Q", "us", "agent's start, or its clock's setting, since "
     "the epoch"),
    ("sequence", "I", "", "1, 2, 3 ... since that start; it wraps"),
    ("period_s", "f", "s", "of a request, to use from now on, 0 the agent's"),
    ("time_s", "d", "s", "of the sample, since the epoch, node's clock"),
)
ASK = (                         # the body of a request
    ("spread_s", "f", "s", "answers fall within it, by node number"),
    ("agent_start_us", "Q", "us", "of the agent meant; 0 any, if unsigned "
     "or to all"),
)

# ---- layout: records ---------------------------------------------------
# A change of size or order here raises RECORDS_VERSION.  A value that the
# node does not know is ABSENT; an unknown text is empty.

RECORDS_VERSION = 1
ABSENT = {"H": 2**16 - 1, "I": 2**32 - 1, "Q": 2**64 - 1, "f": -1.0}
HOST = (
    ("hostname release", "64s", "", "node name, kernel release; uname(2)"),
    ("machine", "16s", "", "hardware name; uname(2)"),
)
PROCESSOR = (
    ("vendor", "16s", "", "vendor_id; /proc/cpuinfo"),
    ("model", "64s", "", "model name; /proc/cpuinfo"),
    ("mhz", "f", "MHz", "cpu MHz of the first CPU; /proc/cpuinfo"),
    ("cache_kb", "I", "kB", "cache size; /proc/cpuinfo"),
    ("bogomips", "f", "", "of the first CPU; /proc/cpuinfo"),
    ("sockets cores", "H", "", "distinct physical ids, cores in them; "
     "/proc/cpuinfo"),
    ("ticks_per_s", "H", "Hz", "USER_HZ; sysconf(3)"),
)
KERNEL = (
    ("boot_time_s", "Q", "s", "btime, since the epoch; /proc/stat"),
    ("context_switches interrupts forks", "Q", "", "ctxt intr processes; "
     "/proc/stat"),
    ("running blocked", "I", "", "procs_running less the agent, "
     "procs_blocked"),
)
CPU = (
    ("user_ticks nice_ticks system_ticks idle_ticks iowait_ticks irq_ticks "
     "softirq_ticks steal_ticks guest_ticks guest_nice_ticks", "Q", "ticks",
     "of all CPUs since boot; cpu line of /proc/stat"),
    ("busy_fraction user_fraction nice_fraction system_fraction "
     "iowait_fraction", "f", "", "of the last period; busy is user, nice, "
     "system"),
)
LOAD = (
    ("one five fifteen", "f", "", "load averages; /proc/loadavg"),
    ("active total last_pid", "I", "", "active is without the agent; "
     "/proc/loadavg"),
)
MEMORY = (
    ("total_bytes free_bytes available_bytes buffers_bytes cached_bytes "
     "shared_bytes reclaimable_bytes swap_total_bytes swap_free_bytes",
     "Q", "bytes", "MemTotal MemFree MemAvailable Buffers Cached Shmem "
     "SReclaimable SwapTotal SwapFree; /proc/meminfo"),
)
DISK = (
    ("block_bytes", "Q", "bytes", "size of a block of /; statvfs(3)"),
    ("blocks free_blocks available_blocks", "Q", "blocks", "of /; "
     "available to users"),
    ("files free_files", "Q", "", "inodes of /; statvfs(3)"),
    ("name_max", "I", "", "longest file name in /; statvfs(3)"),
)
NETWORK = (
    ("rx_bytes_per_s tx_bytes_per_s", "Q", "bytes/s", "of all but lo, in "
     "the last period"),
)
AGENT = (
    ("cost_us", "I", "us", "CPU time of the agent since its last sample"),
    ("send_errors", "I", "", "messages that the kernel refused to send"),
    ("skipped", "I", "", "samples left out because one overran"),
    ("procstatd_port", "H", "", "TCP port of its procstatd, 0 none"),
    ("flags", "H", "", "1 some interfaces, 2 some CPUs did not fit in the "
     "message"),
    ("cpus interfaces", "H", "", "records that follow (CPUs on line, 0 "
     "unknown)"),
)
NODE = HOST + PROCESSOR + KERNEL + CPU + LOAD + MEMORY + DISK + NETWORK + AGENT
ONE_CPU = (
    ("id", "H", "", "CPU number; /proc/stat"),
    ("busy", "H", "1/10000", "share of the last period"),
    ("user_ticks nice_ticks system_ticks idle_ticks", "I", "ticks",
     "since boot, they wrap; system has irq, softirq, steal, idle has "
     "iowait; /proc/stat"),
)
INTERFACE = (
    ("name", "16s", "", "of the interface; /proc/net/dev"),
    ("rx_bytes rx_packets", "Q", "", "received; /proc/net/dev"),
    ("rx_errors rx_dropped rx_fifo rx_frame rx_compressed rx_multicast",
     "I", "", "they wrap; /proc/net/dev"),
    ("tx_bytes tx_packets", "Q", "", "sent; /proc/net/dev"),
    ("tx_errors tx_dropped tx_fifo tx_collisions tx_carrier tx_compressed",
     "I", "", "they wrap; /proc/net/dev"),
    ("rx_bytes_per_s tx_bytes_per_s", "Q", "bytes/s", "over the last "
     "period"),
)
EARLIER = (     # version, the values of NODE that its samples do not have
    (1, "user_fraction nice_fraction system_fraction iowait_fraction"),
)

# ---- layout: table -----------------------------------------------------
# A header, padded to TABLE_BYTES; the index, a u32 for each number from -1
# on, the place of the node's slot in units of UNIT_BYTES, 0 never heard; the
# slots, each a SLOT record and the node's last message.  A change of size
# or order here raises TABLE_VERSION.

TABLE_MAGIC, TABLE_VERSION = b"BEOTABLE", 2
TABLE_BYTES, ENTRY_BYTES, UNIT_BYTES = 4096, 4, 64
SILENT_PERIODS, SILENT_S = 3, 3.0       # down after these, the longer one
SIGNED, VERIFIED = 1, 2                 # flags of a slot
STATUS = (
    ("magic", "8s", "", "b'BEOTABLE'"),
    ("word", "Q", "", "odd while the header is being written"),
    ("version", "I", "", "of this layout, 2"),
    ("entries", "I", "", "numbers that the index has room for, from -1"),
    ("pid port", "I", "", "process id of recvstats, UDP port it listens on"),
    ("pid_start_ticks", "Q", "ticks", "its start, since boot; "
     "/proc/PID/stat"),
    ("pid_namespace", "Q", "", "inode of its PID namespace, 0 unknown"),
    ("start_time_s", "d", "s", "its start, since the epoch"),
    ("used_bytes", "Q", "bytes", "up to the end of the last slot"),
    ("used_entries", "I", "", "entries up to the highest number heard"),
    ("expected", "I", "", "nodes that are expected, from 0 (-N)"),
    ("messages_per_s", "I", "", "datagrams in the last second"),
    ("stopped", "I", "", "1: recvstats was told to stop, and did"),
    ("heartbeat_s", "d", "s", "its last sign of life; CLOCK_MONOTONIC"),
    ("uptime_s", "d", "s", "from its start to that"),
    ("away_s", "d", "s", "in which nobody listened since the table was made"),
    ("request_time_s", "d", "s", "last request sent, since the epoch, or 0"),
)
COUNTERS = (
    ("received", "Q", "", "datagrams received since the start"),
    ("stored", "Q", "", "samples and farewells stored"),
    ("late", "Q", "", "arrived after a newer one; not stored, not lost"),
    ("repeated", "Q", "", "arrived before, or too late to tell; dropped"),
    ("stale", "Q", "", "two agents on one node, or its clock went back; "
     "dropped"),
    ("conflict", "Q", "", "two nodes have one number: the log names both "
     "addresses; dropped"),
    ("clock_wrong", "Q", "", "signed, over 60 s in the future: set the "
     "node's clock; dropped"),
    ("short", "Q", "", "cut off, or shorter than any message; dropped"),
    ("long", "Q", "", "with bytes behind the message; dropped"),
    ("magic_wrong", "Q", "", "not a message of ours; dropped"),
    ("version_wrong", "Q", "", "with another header version: update the "
     "master first; dropped"),
    ("crc_wrong", "Q", "", "damaged on the way; dropped"),
    ("header_wrong", "Q", "", "of no known kind or period; dropped"),
    ("number_wrong", "Q", "", "not from -1 to --max-nodes less 1: raise it; "
     "dropped"),
    ("unnumbered", "Q", "", "node -2, address not in --iprange: give it a "
     "number; dropped"),
    ("not_allowed", "Q", "", "not in --allow, or not on -i's interface; "
     "dropped"),
    ("unsigned", "Q", "", "from an agent without --key-file; dropped"),
    ("signature_wrong", "Q", "", "signed with none of the keys here; "
     "dropped"),
    ("no_space", "Q", "", "no room for a new slot: /dev/shm or --max-bytes "
     "is full; dropped"),
    ("requests", "Q", "", "of a master, heard on the group; ignored"),
    ("kernel_drops", "Q", "", "receive buffer full: be root, or raise "
     "net.core.rmem_max"),
    ("log_drops", "Q", "", "lines of log that syslog did not take"),
)
RECENT = (
    (" ".join("recent_" + field for field, *_ in COUNTERS), "Q", "",
     "the same, in the last minute"),
)
TABLE_HEADER = STATUS + COUNTERS + RECENT + (
    ("crc", "I", "", "CRC-32 of the fields from version on"),
)
SLOT = (
    ("word", "Q", "", "odd exactly while the slot is being written"),
    ("heard_s", "d", "s", "when the message came; CLOCK_MONOTONIC"),
    ("heard_time_s", "d", "s", "the same since the epoch, master's clock"),
    ("silent_from_s", "d", "s", "heard_s less the away_s of then"),
    ("window", "Q", "", "bit n is 0: the message n before the newest is "
     "missing"),
    ("received lost", "Q", "", "messages of the node; those that never "
     "came"),
    ("address", "4s", "", "IPv4 address of the sender"),
    ("number", "i", "", "of the node whose slot this is"),
    ("message_bytes room_bytes", "I", "bytes", "its size, 0 none yet; "
     "room for one"),
    ("restarts", "I", "", "starts of the agent after the first one seen"),
    ("port", "H", "", "UDP port of the sender"),
    ("flags", "H", "", "1 signed, 2 and verified with a key"),
    ("unused", "48s", "", "zeros"),
)

# ---- node lists --------------------------------------------------------

NODES_AT_MOST = 1000000         # a node list may name
PREFIXES = "", ".", "n", "node"
MASTER_NAMES = "master", "-1", ".-1"
CHOSEN = {"all": ("up", "down", "left"), "up": ("up",),
          "down": ("down", "left")}     # states, by the word for them
ITEMS = r"(?:\[[^][]*\]|[^,])+"          # of a list, at its commas
RANGE = r"(\.|n|node|)([0-9]+-[0-9]+)"  # without brackets
WORD = r"[^][\s]{1,255}"        # no host's name is longer
DIGITS = 18                     # nor any number
SPAN = "[0-9]{1,%d}(-[0-9]{1,%d})?" % (DIGITS, DIGITS)
LIST = r"^[0-9,-]*$|[][,\s]"    # what is no host's name


def expand_span(text):
    """Return the numbers of `8` or `07-10` as written, zeros kept.

    Raises  BadNodeList
    """
    first, dash, last = text.strip().partition("-")
    last = last if dash else first
    if not re.fullmatch(SPAN, text.strip()):
        raise BadNodeList("%r is not a number and not a range" % text)
    if not int(first) <= int(last) < int(first) + NODES_AT_MOST:
        raise BadNodeList("%s ends before it begins, or is too long" % text)
    width = len(first) if first[0] == "0" else 1
    return ["%0*d" % (width, number)
            for number in range(int(first), int(last) + 1)]


def expand_item(item):
    """Return the names that one item of a list stands for.

    item    a name; `0-3`, `n0-3`; or with brackets anywhere, `r[1-2]n[0-3]`
    Raises  BadNodeList
    """
    first, *others = re.split(r"\[([^][]*)\]", item)
    bare = re.fullmatch(RANGE, item)
    if bare:
        first, others = bare.group(1), [bare.group(2), ""]
    names = [first]
    for spans, text in zip(others[::2], others[1::2]):
        numbers = [digits + text for span in spans.split(",")
                   for digits in expand_span(span)]
        if len(names) * len(numbers) > NODES_AT_MOST:
            raise BadNodeList("%s: too many nodes" % item)
        names = [name + number for name in names for number in numbers]
    if not re.fullmatch(WORD, names[0]):
        raise BadNodeList("%r is no node and no list of nodes" % item)
    return names


def split_items(text):
    """Return the items of a list, at its commas.

    Raises  BadNodeList when it has none
    """
    items = [item.strip() for item in re.findall(ITEMS, text)]
    if not items:
        raise BadNodeList("%r names no node" % text)
    return items


def expand_nodes(text):
    """Return the names that a list of nodes stands for, zeros kept.

    text    as in `0-3,8,n[007-010],gpu[1-2]-ib,login,.4,master`
    Raises  BadNodeList
    """
    return [name for item in split_items(text) for name in expand_item(item)]


def parse_nodes(text, nodes=()):
    """Return the node numbers of a list, each once, -1 for the master.

    text    as in `0-3,8,n[10-12],.4,master`; with nodes also their host
            names, which come before any reading as a number, and the words
            all, up and down (which are those that have left as well)
    nodes   Nodes, of a Cluster; a host name that is one of these words, a
            plain number or a list is not believed
    Raises  BadNodeList
    """
    hosts, numbers = {}, {}
    for node in nodes:
        name = node.host.hostname
        if not (name in CHOSEN or name in MASTER_NAMES
                or re.search(LIST, name)):
            hosts.setdefault(name, []).append(node.number)
    for item in dict.fromkeys(split_items(text)):
        if item in CHOSEN and nodes:
            numbers.update([(node.number, None) for node in nodes
                            if node.state in CHOSEN[item]])
        else:
            for name in [item] if item in hosts else expand_item(item):
                numbers.update(dict.fromkeys(
                    hosts.get(name) or [parse_number(name)]))
    return list(numbers)


def parse_number(name):
    """Return the node number that a name is: 7, .7, n7, node7, master.

    Raises  BadNodeList
    """
    prefix = name.rstrip("0123456789")
    digits = name[len(prefix):]
    if name in MASTER_NAMES:
        return MASTER
    if prefix not in PREFIXES or not 0 < len(digits) <= DIGITS:
        raise BadNodeList("%r is no node number and no node's name" % name)
    return int(digits)


def fold_spans(numbers):
    """Return [(first, last)] of numbers as they are written.

    A span stands for its numbers printed with the width of a first one
    that begins with 0, so that no zero is lost or invented.
    """
    spans, open_spans = [], {}          # by width
    for digits in sorted(sorted(set(numbers)), key=int):
        for width, span in open_spans.items():
            if (int(digits) == int(span[1]) + 1
                    and digits == "%0*d" % (width, int(digits))):
                span[1] = digits
                break
        else:
            span = [digits, digits]
            open_spans[len(digits) if digits[0] == "0" else 1] = span
            spans.append(span)
    return spans


def fold_group(texts, rows):
    """Return folded names that differ in their numbers alone.

    texts   between the numbers, one more than there are numbers
    rows    the numbers of each name, as written
    """
    if len(texts) == 1:
        return [texts[0]]
    columns = [len(set(column)) > 1 for column in zip(*rows)]
    nth = max([nth for nth, varies in enumerate(columns) if varies],
              default=len(columns) - 1)
    folds, names = {}, []
    for row in rows:
        folds.setdefault((row[:nth], row[nth + 1:]), []).append(row[nth])
    for (before, after), numbers in folds.items():
        spans = [first if first == last else "%s-%s" % (first, last)
                 for first, last in fold_spans(numbers)]
        name = ["".join(pair) for pair in zip(texts, before)]
        name += [texts[nth], ",".join(spans), texts[nth + 1]]
        name += ["".join(pair) for pair in zip(after, texts[nth + 2:])]
        if len(numbers) > 1 or re.fullmatch(RANGE, "".join(name)):
            name[nth + 1] = "[%s]" % name[nth + 1]
        names.append("".join(name))
    return names


def fold_nodes(nodes, prefix="n"):
    """Return a folded list of nodes, `n[0-3,8]`, that expands to them.

    nodes   numbers (they get the prefix, -1 is `master`) or names, which
            are folded at the last number that differs: `r1n[07-10]-ib`
    """
    folded, groups = [], {}
    for node in dict.fromkeys(nodes):
        if node in (MASTER,) + MASTER_NAMES:
            folded = [MASTER_NAMES[0]]
        elif isinstance(node, int):
            groups.setdefault((prefix, ""), []).append(("%d" % node,))
        else:
            parts = tuple(re.split("([0-9]+)", node))
            groups.setdefault(parts[::2], []).append(parts[1::2])
    for texts, rows in groups.items():
        folded += fold_group(texts, rows)
    return ",".join(folded)


# ---- unpack ------------------------------------------------------------

FULL = 10000                    # the busy share of a CPU that never idles
ROUND = 1000                    # 32-bit floats hold 4 decimals below it
TIME_MOST_S = 1e12              # no clock and no value is beyond
SIGNATURES = "none", "unverified", "none", "verified"   # by a slot's flags
HEADS = ("heard_time_s", "time_s", "start_time_s", "period_s", "sequence",
         "address", "port", "received", "lost", "restarts", "signature")

# Of a slot, and its message in it.
HEADER_STRUCT, _ = layout(HEADER)
SLOT_STRUCT, _ = layout(SLOT)
NODE_STRUCT, NODE_AT = layout(NODE)
NODE_CODES = {field: code for fields, code, *_ in NODE
              for field in fields.split()}
CPU_STRUCT, _ = layout(ONE_CPU)
INTERFACE_STRUCT, _ = layout(INTERFACE)
MESSAGE_AT, BODY = SLOT_STRUCT.size, HEADER_STRUCT.size
RECORDS_AT = MESSAGE_AT + BODY
CPUS_AT = RECORDS_AT + NODE_STRUCT.size

# What is unpacked to see if it is whole, and in which state.
FLOATS = [field for fields, code, *_ in HEADER + NODE if code in "df"
          for field in fields.split()]
FRACTIONS = slice(FLOATS.index("busy_fraction"),
                  FLOATS.index("iowait_fraction") + 1)
HOLDS, _ = layout(SLOT + HEADER, ("number", "message_bytes", "length"))
HEARD, _ = layout(SLOT + HEADER, (
    "heard_s", "silent_from_s", "kind", "period_s"))
SHAPE, _ = layout(SLOT + HEADER + NODE, {
    "version", *FLOATS, "cpus", "interfaces"})

ONE_CPU_SHOWN = (
    ("id", "", "", "CPU number"),
    ("busy_fraction", "", "", "0 to 1, of the last period")) + ONE_CPU[2:]
PARTS = {"host": HOST, "processor": PROCESSOR, "kernel": KERNEL, "cpu": CPU,
         "load": LOAD, "memory": MEMORY, "disk": DISK, "network": NETWORK,
         "agent": AGENT}
LISTS = "cpus", "interfaces"


def unpack_text(data):
    """Return the text of a field padded with zeros, whatever its bytes."""
    return data.rstrip(b"\0").decode("utf-8", "replace")


def rounded(value):
    """Return a 32-bit float in decimals that it holds."""
    if value < ROUND:
        return int(value * 1e4 + 0.5) / 1e4     # a third of round's time
    return round(value, 3)


@functools.lru_cache(None)      # each costs 0.25 ms
def record(name, rows):
    """Return the namedtuple class of a table of fields, documented by it."""
    made = collections.namedtuple(
        name[0].upper() + name[1:], " ".join(fields for fields, *_ in rows))
    made.__doc__ = "\n".join(
        "%s  %s (%s)" % (fields, meaning, unit or "-")
        for fields, _code, unit, meaning in rows)
    return made


def picker(names):
    """Return a function that gives some fields of a Node as a sequence.

    It unpacks nothing else, which makes it the fast way to read many
    nodes.  Floats are as precise as they were sent.
    names   as in "load.one", in the order of the node record
    Raises  ValueError in another order
    """
    fields = [name.partition(".")[2] for name in names]
    struct_, at = layout(NODE, set(fields))
    if [field for field in at if field in fields] != fields:
        raise ValueError("not in the order of the node record: %s" % names)
    absents = [ABSENT.get(NODE_CODES[field]) for field in fields]
    none = frozenset(absents)

    def pick(node):
        values = struct_.unpack_from(node.slot, RECORDS_AT)
        if none.isdisjoint(values):
            return values
        return [None if value == absent else value
                for value, absent in zip(values, absents)]
    return pick


def converter(names, convert_text):
    """Return a function that gives some fields of a Node as a list, floats
    rounded.

    names   as of picker(), convert_text: what makes a text of bytes
    """
    pick = picker(names)
    codes = [NODE_CODES[name.partition(".")[2]][-1] for name in names]
    conversions = [(nth, rounded if code == "f" else convert_text)
                   for nth, code in enumerate(codes) if code in "fs"]

    def convert(node):
        values = list(pick(node))
        for nth, conversion in conversions:
            if values[nth] is not None:
                values[nth] = conversion(values[nth])
        return values
    return convert


@functools.lru_cache(None)      # few are used
def unpacker(name):
    """Return the function that gives a record, or a list, of a Node."""
    if name == "cpus":
        make = record("OneCpu", ONE_CPU_SHOWN)._make
        return lambda node: [
            make((cpu, busy / FULL, *ticks)) for cpu, busy, *ticks
            in CPU_STRUCT.iter_unpack(node.records()[0])]
    if name == "interfaces":
        make = record("Interface", INTERFACE)._make
        return lambda node: [
            make((unpack_text(device), *counts)) for device, *counts
            in INTERFACE_STRUCT.iter_unpack(node.records()[1])]
    made = record(name, PARTS[name])
    convert = converter(["%s.%s" % (name, field) for field in made._fields],
                        unpack_text)
    return lambda node: made._make(convert(node))


@functools.lru_cache(None)      # most nodes are alike
def shares(cpus):
    """Return the Struct of the shares of so many CPUs."""
    return layout(ONE_CPU * cpus, ("busy",))[0]


def check(slot, known=RECORDS_VERSION):
    """See that a slot, whose message is whole, says what can be.

    known   the version that it is to be of
    Raises  BadSample, OtherVersion
    """
    if len(slot) < CPUS_AT + CRC_BYTES:
        raise BadSample("sample is cut off")
    version, *floats, cpus, interfaces = SHAPE.unpack_from(slot)
    if version != known:
        raise OtherVersion("sample of version %d, this libbeostat knows %d: "
                           "update the master's tools, which come first"
                           % (version, known))
    names_at = CPUS_AT + cpus * CPU_STRUCT.size
    if len(slot) != (names_at + interfaces * INTERFACE_STRUCT.size
                     + CRC_BYTES):
        raise BadSample("sample does not hold the records it counts")
    if not (sum(floats) < TIME_MOST_S and (min(floats) >= 0 or all(
            value >= 0 or value == ABSENT["f"] for value in floats))):
        raise BadSample("sample with a value that is not a number")
    if (max(floats[FRACTIONS]) > 1
            or max(shares(cpus).unpack_from(slot, CPUS_AT) or (0,)) > FULL):
        raise BadSample("sample with a CPU that is over 100 % busy")


def renew(slot):
    """Return a slot that passes check(), one of an EARLIER layout as one of
    today's: what it does not have is ABSENT.

    Raises  BadSample, OtherVersion
    """
    try:
        check(slot)
        return slot
    except BeostatError:
        for version, names in EARLIER:
            renewed = slot
            for field in sorted(names.split(), key=NODE_AT.get):
                at, code = RECORDS_AT + NODE_AT[field], NODE_CODES[field]
                renewed = b"".join((renewed[:at], struct.pack(
                    "<" + code, ABSENT.get(code, b"")), renewed[at:]))
            try:
                check(renewed, version)
                return renewed
            except BeostatError:
                pass
        raise


class Node:
    """One node's last sample.

    number, state       -1 the master; up, down, left
    age_s               since the master heard it
    heard_time_s        when that was, since the epoch, master's clock
    time_s, start_time_s  of the sample, of the agent's start, node's clock
    period_s, sequence  between samples; this one's number
    address, port       of the sender
    received, lost, restarts  messages that came and did not, agent starts
    signature           none, unverified (recvstats has no key), verified
    host, processor, kernel, cpu, load, memory, disk, network, agent
                        records of the kinds Host, Processor ...; a value
                        that the node does not know is None
    cpus, interfaces    lists of OneCpu and Interface
    """

    def __init__(self, number, slot, now, clock_s):
        self.number, self.slot, self.state = number, slot, "up"
        heard_s, silent_from_s, kind, period_s = HEARD.unpack_from(slot)
        self.age_s = max(now - heard_s, 0.0)
        silent_s = clock_s - silent_from_s
        if kind == FAREWELL:
            self.state = "left"
        elif silent_s > SILENT_S and silent_s > SILENT_PERIODS * period_s:
            self.state = "down"

    def __getattr__(self, name):
        """Unpack what is wanted, the first time that it is."""
        if name in PARTS or name in LISTS:
            setattr(self, name, unpacker(name)(self))
        elif name in HEADS:
            self.unpack_heads()
        else:
            raise AttributeError("a node has no " + name)
        return getattr(self, name)

    def unpack_heads(self):
        """Set what the slot's and the message's header tell."""
        (_, _, self.heard_time_s, _, _, self.received, self.lost, address, _,
         _, _, self.restarts, self.port, flags, _) = SLOT_STRUCT.unpack_from(
             self.slot)
        (_, _, _, _, _, start_us, self.sequence, period_s, self.time_s
         ) = HEADER_STRUCT.unpack_from(self.slot, MESSAGE_AT)
        self.address = "%d.%d.%d.%d" % tuple(address)
        self.signature = SIGNATURES[flags & (SIGNED | VERIFIED)]
        self.start_time_s = start_us / 1e6
        self.period_s = rounded(period_s)

    def records(self):
        """Return the bytes of the CPU and of the interface records."""
        *_, cpus, _ = SHAPE.unpack_from(self.slot)
        interfaces_at = CPUS_AT + cpus * CPU_STRUCT.size
        return (self.slot[CPUS_AT:interfaces_at],
                self.slot[interfaces_at:-CRC_BYTES])


# ---- table -------------------------------------------------------------
# Its file, its header, its index.

TABLE = "/dev/shm/beostat"
FIRST_USER = 1000               # lower user ids are the system's: trusted
TRIES, QUICK_TRIES = 200, 20    # to find a slot that nobody is writing
PAUSE_S = 0.0005                # after the quick ones: its writer waits
REFRESH_S = 0.1                 # header and index are read again after it
HEARTBEAT_S = 3.5               # recvstats is gone when silent for longer
READ_BYTES = 4096               # most slots are shorter
SLOT_MOST_BYTES = 2**17         # and none is longer
CHUNK_BYTES = 2**16             # of slots that are read together
NUMBERS = 2**24 + 1             # that an index may have room for
TABLE_STRUCT, TABLE_AT = layout(TABLE_HEADER)
VERSION_AT = TABLE_AT["version"]
TIMES, _ = layout(TABLE_HEADER, [
    field for fields, code, *_ in STATUS if code == "d"
    for field in fields.split()])
STATUS_SHOWN = (
    ("running", "", "", "whether recvstats is at work"),
    ) + STATUS[2:] + COUNTERS + (
    ("recent", "", "", "{counter: what was added to it in the last minute}"),)


def open_table(path):
    """Return the descriptor of a file that may be a table.

    Raises  NoTable, NotATable
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                     | (os.O_NOFOLLOW if path == TABLE else 0))
        found, reason = os.fstat(fd), ""
    except FileNotFoundError as error:
        raise NoTable("%s: %s" % (path, error.strerror))
    except OSError as error:
        raise NotATable("%s: %s" % (path, error.strerror))
    if not stat.S_ISREG(found.st_mode):
        reason = "not a table of recvstats"
    elif (path == TABLE and found.st_uid >= FIRST_USER
          and found.st_uid != os.geteuid()):
        reason = ("belongs to user %d, whose table nobody believes: run "
                  "recvstats as root or a system user" % found.st_uid)
    if reason:
        close_table(fd)
        raise NotATable("%s: %s" % (path, reason))
    return fd


def close_table(fd):
    """Close a file that was only read: whatever that says, it is."""
    try:
        os.close(fd)
    except OSError:
        pass


def read_table(fd, size, offset, path):
    """Return bytes of a file.

    Raises  NotATable
    """
    try:
        return os.pread(fd, size, offset)
    except OSError as error:
        raise NotATable("%s: %s" % (path, error.strerror))


def read_header(fd, path):
    """Return {field: value} of a table's header.

    Raises  NotATable, OtherVersion
    """
    for turn in range(TRIES):
        data = read_table(fd, TABLE_STRUCT.size, 0, path)
        if not data.startswith(TABLE_MAGIC) or len(data) < TABLE_STRUCT.size:
            raise NotATable("%s: not a table of recvstats" % path)
        header = dict(zip(TABLE_AT, TABLE_STRUCT.unpack(data)))
        if header["version"] != TABLE_VERSION:
            raise OtherVersion(
                "%s: table of version %d, this libbeostat knows %d: update %s"
                % (path, header["version"], TABLE_VERSION, "recvstats"
                   if header["version"] < TABLE_VERSION else "libbeostat"))
        times = TIMES.unpack_from(data)
        if (zlib.crc32(data[VERSION_AT:]) == CRC_RESIDUE
                and min(times) >= 0 and sum(times) < TIME_MOST_S
                and max(header["used_entries"], header["expected"])
                <= header["entries"] <= NUMBERS):
            return header
        time.sleep(PAUSE_S if turn >= QUICK_TRIES else 0)
    raise NotATable("%s: damaged header" % path)


def read_index(fd, path, header):
    """Return the places of a table's slots, in UNIT_BYTES, from the master's
    on, 0 never heard.

    Raises  NotATable
    """
    size = header["used_entries"] * ENTRY_BYTES
    data = read_table(fd, size, TABLE_BYTES, path)
    if len(data) < size:
        raise NotATable("%s: cut off" % path)
    return memoryview(data).cast("I")


# ---- cluster -----------------------------------------------------------


def find_slot(first, again, at, number):
    """Return a node's slot up to the end of its message, None unless that
    is whole, and the same when read twice."""
    if len(first) < at + RECORDS_AT:
        return None
    owner, held_bytes, length = HOLDS.unpack_from(first, at)
    slot = first[at:at + MESSAGE_AT + length]
    if (owner == number and BODY <= length <= held_bytes
            and again.startswith(slot, at)
            and zlib.crc32(slot[MESSAGE_AT:]) == CRC_RESIDUE):
        return slot
    return None


def open(path=None):
    """Return the Cluster of a table.

    path    default $BEOSTAT_TABLE, else /dev/shm/beostat
    Raises  NoTable, NotATable, OtherVersion
    """
    return Cluster(path or os.environ.get("BEOSTAT_TABLE") or TABLE)


class Cluster:
    """The nodes of a table; every access reads it anew.

    for node in cluster     each node heard of, as one whole sample, all read
                            when the loop begins
    cluster[7]              one node; the same as cluster.node(7)
    7 in cluster            whether it was heard
    len(cluster)            how many were
    running                 whether recvstats is at work: when it is not,
                            states stay as they were, and ages go on
    refused                 {number: error} of the last iteration: nodes
                            it left out, because of what they sent
    """

    def __init__(self, path):
        self.path, self.fd, self.refused = path, None, {}
        self.reopen()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def close(self):
        """Close the table."""
        if self.fd is not None:
            close_table(self.fd)
            self.fd = None

    def reopen(self):
        """Open the file that the path names now.

        Raises  NoTable, NotATable, OtherVersion; the file that was open
                stays so
        """
        fd = open_table(self.path)
        try:
            header = read_header(fd, self.path)
            index = read_index(fd, self.path, header)
        except BeostatError:
            close_table(fd)
            raise
        self.close()
        self.fd = fd
        self.use(header, index, time.monotonic())

    def use(self, header, index, now):
        """Tell states by a header from now on, and places by an index."""
        self.header, self.index = header, index
        self.refresh_due = now + REFRESH_S
        self.clock_s = min(now, header["heartbeat_s"]) - header["away_s"]

    def refresh(self, now):
        """Read header and index anew; follow the path when recvstats was
        gone and has made another table.

        A path that names nothing good leaves the old one in use: its
        nodes grow old in plain sight.
        """
        header = read_header(self.fd, self.path)
        self.use(header, read_index(self.fd, self.path, header), now)
        if not self.is_running(now):
            try:
                if not os.path.samestat(os.stat(self.path),
                                        os.fstat(self.fd)):
                    self.reopen()
            except (OSError, BeostatError):
                pass

    def is_running(self, now):
        """Return whether recvstats was at work, as last read."""
        age_s = now - self.header["heartbeat_s"]
        return not self.header["stopped"] and age_s <= HEARTBEAT_S

    @property
    def running(self):
        """Whether recvstats is at work."""
        self.refresh(time.monotonic())
        return self.is_running(time.monotonic())

    @property
    def status(self):
        """recvstats' own state, a Status."""
        running = self.running
        made = record("Status", STATUS_SHOWN)
        return made(running, *[
            self.header[field] for field in made._fields[1:-1]], {
                field: self.header["recent_" + field]
                for field, *_ in COUNTERS})

    def find(self, number):
        """Return the place of a node's slot, as last read.

        Raises  NoSuchNode, NeverHeard
        """
        if -1 <= number < len(self.index) - 1 and self.index[number + 1]:
            return self.index[number + 1] * UNIT_BYTES
        if 0 <= number < self.header["expected"]:
            raise NeverHeard("node %d: never heard" % number)
        raise NoSuchNode("node %d: not in the table" % number)

    def read_twice(self, size, place):
        """Return bytes of the table, and the same read again.

        What has one even word in both was not written between the two, and
        is whole where they are the same.  Once would not be enough: a
        processor may copy the end of a slot before its beginning.
        Raises  BadSample
        """
        try:
            return (os.pread(self.fd, size, place),
                    os.pread(self.fd, size, place))
        except OSError as error:
            raise BadSample("cannot be read: %s" % error.strerror)

    def read_slot(self, number, place):
        """Return a slot up to the end of its message.

        A word that stays odd was left so by a writer that was killed.
        Raises  NeverHeard, BadSample, SampleChanging
        """
        last, size = None, READ_BYTES
        for turn in range(TRIES):
            first, again = self.read_twice(size, place)
            if len(first) < RECORDS_AT:
                raise BadSample("node %d: cut off in the table" % number)
            slot = find_slot(first, again, 0, number)
            is_even = first[0] % 2 == 0
            if slot and (is_even or slot == last and turn > QUICK_TRIES):
                return slot
            _, held_bytes, _ = HOLDS.unpack_from(first)
            if size < MESSAGE_AT + held_bytes <= SLOT_MOST_BYTES:
                size = MESSAGE_AT + held_bytes
                continue
            if is_even and first == again and not held_bytes:
                raise NeverHeard("node %d: not heard again yet" % number)
            if is_even and first == again:
                raise BadSample("node %d: damaged in the table" % number)
            last = slot
            time.sleep(PAUSE_S if turn >= QUICK_TRIES else 0)
        raise SampleChanging("node %d: sample kept changing" % number)

    def __iter__(self):
        now = time.monotonic()
        self.refresh(now)
        self.refused, nodes, begin, first, again = {}, {}, 0, b"", b""
        for units, number in sorted(zip(self.index.tolist(),
                                        range(MASTER, len(self.index)))):
            if units:
                try:
                    place = units * UNIT_BYTES
                    if place + READ_BYTES > begin + len(first):
                        first, again = self.read_twice(CHUNK_BYTES, place)
                        begin = place
                    slot = find_slot(first, again, place - begin, number)
                    if not slot or slot[0] % 2:
                        slot = self.read_slot(number, place)
                    nodes[number] = Node(number, renew(slot), now,
                                         self.clock_s)
                except BeostatError as error:
                    self.refused[number] = error
        return iter([nodes[number] for number in sorted(nodes)])

    def node(self, number):
        """Return one Node.

        Raises  NoSuchNode, NeverHeard, BadSample, OtherVersion,
                SampleChanging
        """
        now = time.monotonic()
        try:
            if now >= self.refresh_due:
                self.refresh(now)
            place = self.find(number)
        except NoSuchNode:
            self.refresh(now)           # it may have come just now
            place = self.find(number)
        slot = renew(self.read_slot(number, place))
        return Node(number, slot, time.monotonic(), self.clock_s)

    __getitem__ = node

    def __contains__(self, number):
        self.refresh(time.monotonic())
        try:
            self.find(number)
        except NoSuchNode:
            return False
        return True

    def __len__(self):
        self.refresh(time.monotonic())
        return len(self.index) - self.index.tolist().count(0)

    def never(self):
        """Return the numbers of nodes that are expected and were never
        heard."""
        self.refresh(time.monotonic())
        heard = self.index.tolist()[1:]
        return [number for number in range(self.header["expected"])
                if number >= len(heard) or not heard[number]]


# ---- the original's functions ------------------------------------------
# They use the table that open() finds, opened when first needed, and raise
# a BeostatError where C returned -1.


@functools.lru_cache(None)
def cluster():
    """Return the Cluster that the functions below read."""
    return open()


def named(name, fields):
    """Return the namedtuple class of one of the original's structures."""
    return record(name, ((fields, "", "", "as the original's"),))


def find_cpu(node, cpu):
    """Return a node's OneCpu.

    Raises  NoSuchNode
    """
    for one in cluster().node(node).cpus:
        if one.id == cpu:
            return one
    raise NoSuchNode("node %d: has no CPU %d on line" % (node, cpu))


def get_MHz(node):
    """Return the clock of the node's first CPU in MHz, None unknown."""
    return cluster().node(node).processor.mhz


def get_cpuinfo_x86(node):
    """Return the CpuInfo of the node's first CPU: MHz, kB, None unknown."""
    cpu = cluster().node(node).processor
    return named("CpuInfo", "vendor_id model_name cpu_MHz cache_size "
                 "bogomips")(cpu.vendor, cpu.model, cpu.mhz, cpu.cache_kb,
                             cpu.bogomips)


def get_cpu_percent(node, cpu):
    """Return a CPU's use in the last period, 0.0 to 1.0."""
    return find_cpu(node, cpu).busy_fraction


def get_stat_cpu(node, cpu):
    """Return the StatCpu of a CPU: ticks since boot, they wrap at 2**32."""
    one = find_cpu(node, cpu)
    return named("StatCpu", "user system nice idle")(
        one.user_ticks, one.system_ticks, one.nice_ticks, one.idle_ticks)


def get_loadavg(node):
    """Return the LoadAvg; load is the means of 1, 5 and 15 minutes."""
    load = cluster().node(node).load
    return named("LoadAvg", "load num_active_procs total_procs last_pid")(
        load[:3], *load[3:])


def get_meminfo(node):
    """Return the MemInfo, all in bytes; used is all that is not free."""
    memory = cluster().node(node).memory
    usage = named("MemUsage", "used free")
    return named("MemInfo", "mem swap shared buffers cached")(
        usage(less(memory.total_bytes, memory.free_bytes),
              memory.free_bytes),
        usage(less(memory.swap_total_bytes, memory.swap_free_bytes),
              memory.swap_free_bytes),
        memory.shared_bytes, memory.buffers_bytes, memory.cached_bytes)


def less(total, part):
    """Return total less part, None when one is unknown."""
    return None if None in (total, part) else total - part


def get_net_dev(node):
    """Return a NetDev for each interface: counts since boot."""
    stat = named("NetStat", "bytes packets errs drop fifo compressed")
    dev = named("NetDev", "name recv frame multicast trans colls carrier")
    return [dev(
        one.name,
        stat(one.rx_bytes, one.rx_packets, one.rx_errors, one.rx_dropped,
             one.rx_fifo, one.rx_compressed),
        one.rx_frame, one.rx_multicast,
        stat(one.tx_bytes, one.tx_packets, one.tx_errors, one.tx_dropped,
             one.tx_fifo, one.tx_compressed),
        one.tx_collisions, one.tx_carrier)
        for one in cluster().node(node).interfaces]


def get_net_rate(node):
    """Return bytes a second, received and sent, all interfaces but lo."""
    network = cluster().node(node).network
    return None if None in network else sum(network)


def get_statfs_p(node):
    """Return the Statfs of /; blocks are of f_bsize bytes."""
    return named("Statfs", "f_bsize f_blocks f_bfree f_bavail f_files "
                 "f_ffree f_namelen")(*cluster().node(node).disk)


def get_disk_usage(node):
    """Return the DiskUsage of /: its size and what is used, in bytes, None
    unknown."""
    disk = cluster().node(node).disk
    size = disk.block_bytes or 0
    used = less(disk.blocks, disk.free_blocks)
    return named("DiskUsage", "max curr")(*[
        None if blocks is None else blocks * size
        for blocks in (disk.blocks, used)])


def get_time(node):
    """Return the NodeTime of the sample: s since the epoch, its clock."""
    return named("NodeTime", "time")(int(cluster().node(node).time_s))


def get_name(node):
    """Return the node's host name."""
    return cluster().node(node).host.hostname


def get_cpu_count(node):
    """Return how many CPUs the node has on line."""
    return cluster().node(node).agent.cpus


def count_idle_cpus(threshold):
    """Return how many CPUs of the nodes that are up are used less."""
    return sum(count_idle_cpus_on_node(node, threshold)
               for node in get_avail_nodes())


def count_idle_cpus_on_node(node, threshold):
    """Return how many CPUs of a node are used less than threshold."""
    return sum(one.busy_fraction < threshold
               for one in cluster().node(node).cpus)


def is_node_available(node, uid=None, gids=()):
    """Return whether the node is up; no user is refused a node here."""
    try:
        return cluster().node(node).state == "up"
    except BeostatError:
        return False


def get_avail_nodes_by_id(uid, gids):
    """Return the same as get_avail_nodes(): no user is refused a node."""
    return get_avail_nodes()


def get_avail_nodes():
    """Return the numbers of the nodes that are up, without the master."""
    return [node.number for node in cluster()
            if node.state == "up" and node.number != MASTER]


def get_last_multicast():
    """Return when recvstats last sent a request, s since the epoch."""
    return cluster().status.request_time_s


def set_last_multicast(time_s):
    """Raise BeostatError: recvstats keeps it, and readers do not write."""
    raise BeostatError("set_last_multicast: only recvstats writes the table")
