#!/usr/bin/env python3
"""beostat - show the statistics of the cluster's nodes

    beostat.py [view] [selection] [NODES ...]

Reads the table of recvstats by way of libbeostat, which must lie beside
this file.  NODES are numbers, ranges, lists and host names: 3 0-31,40
n[0-3,8] .7 master -1 login.

Exit status: 0 every node asked for is up, 1 some are not, 2 usage, 3 no
data: no table, or recvstats is gone.
"""

import argparse
import collections
import os
import signal
import sys
import time

import libbeostat

# ---- constants ---------------------------------------------------------

VERSION = "1.0"
WIDTH = 80                      # of a window that does not tell its own
ANSI = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33"}

Picture = collections.namedtuple(
    "Picture", "path time_s status nodes never refused missing")
Picture.__doc__ = """What is shown at one instant.

path, time_s   the table, and when it was read, since the epoch
status         recvstats' Status
nodes          the nodes selected, sorted
never          numbers of nodes expected and never heard
refused        {number: error} of nodes that sent what cannot be
missing        errors of nodes asked for that have no sample
"""

# ---- format ------------------------------------------------------------


def safe(text):
    """Return text without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable()
                   else char.encode("unicode_escape", "backslashreplace")
                   .decode() for char in text)


def paint(text, colour, colours):
    """Return text in a colour of ANSI, or plain."""
    return "\033[%sm%s\033[0m" % (ANSI[colour], text) if colours else text


def share(part, whole):
    """Return part of whole in percent, None when that is unknown."""
    return 100.0 * part / whole if whole and part is not None else None


def used_memory(memory):
    """Return the bytes in use that no cache would give back, as free(1).

    Kernels before 3.14 do not say what is available: free memory, buffers
    and caches stand in.
    """
    available = memory.available_bytes
    if available is None:
        caches = (memory.free_bytes, memory.buffers_bytes,
                  memory.cached_bytes)
        if memory.total_bytes is None or None in caches:
            return None
        available = sum(caches)
    return max(memory.total_bytes - available, 0)


def used_swap(memory):
    """Return the bytes of swap in use, None unknown."""
    if None in (memory.swap_total_bytes, memory.swap_free_bytes):
        return None
    return memory.swap_total_bytes - memory.swap_free_bytes


def used_disk(disk):
    """Return (used, usable) blocks of / as df(1) counts them."""
    if None in disk[1:4]:
        return None, None
    used = disk.blocks - disk.free_blocks
    return used, used + disk.available_blocks


def measure(node):
    """Return a node's values, in the order of COLUMNS."""
    load, memory = node.load, node.memory
    busy = node.cpu.busy_fraction
    return (node.number, node.state, node.age_s, node.agent.cpus,
            None if busy is None else 100 * busy, load.one,
            load.active, load.total,
            share(used_memory(memory), memory.total_bytes),
            share(used_swap(memory), memory.swap_total_bytes),
            share(*used_disk(node.disk)), *node.network,
            node.host.hostname)


def format_age(age_s):
    """Return seconds, minutes, hours or days in at most 4 characters."""
    for unit, unit_s in ("d", 86400), ("h", 3600), ("m", 60):
        if age_s >= 2 * unit_s:
            return "%d%s" % (age_s // unit_s, unit)
    return "%.1f" % age_s if age_s < 9.95 else "%.0f" % age_s


def format_percent(percent):
    """Return a percentage in at most 4 characters."""
    if percent is None:
        return "-"
    return "%.1f" % percent if percent < 99.95 else "%.0f" % percent


def format_bytes(count):
    """Return a count in at most 5 characters, k, M, G for powers of 1000."""
    if count is None:
        return "-"
    if count < 1000:
        return "%d" % count
    for unit in "kMGTPE":
        count /= 1000.0
        if count < 999.5:
            break
    return ("%.1f%s" if count < 99.95 else "%.0f%s") % (count, unit)


def format_with(form):
    """Return the function that formats a value, or - for None."""
    return lambda value: "-" if value is None else form % value


# A column: its key for --sort, heading, width (negative: flush left), how
# it is formatted, whether its highest value sorts first.
COLUMNS = (
    ("node", "node", 5, format_with("%d"), False),
    ("state", "state", -5, str, False),
    ("age", "age", 4, format_age, False),
    ("cpus", "cpus", 4, format_with("%d"), True),
    ("cpu", "cpu%", 4, format_percent, True),
    ("load", "load", 6, format_with("%.2f"), True),
    ("running", "run", 4, format_with("%d"), True),
    ("procs", "procs", 5, format_with("%d"), True),
    ("mem", "mem%", 4, format_percent, True),
    ("swap", "swap%", 5, format_percent, True),
    ("disk", "disk%", 5, format_percent, True),
    ("in", "in/s", 5, format_bytes, True),
    ("out", "out/s", 5, format_bytes, True),
    ("name", "name", -1, safe, False),
)


def total(values):
    """Return the sum of the values that are known, None without one."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def measure_all(nodes):
    """Return the sums and means of nodes, in the order of COLUMNS."""
    up = [node for node in nodes if node.state == "up"]
    memory = [node.memory for node in up]
    disk = [(size, used, usable) for size, (used, usable) in (
        (node.disk.block_bytes, used_disk(node.disk)) for node in up)
        if None not in (size, used, usable)]
    busy = [(node.agent.cpus, node.cpu.busy_fraction) for node in up
            if node.cpu.busy_fraction is not None]
    return (
        "total", len(up), None, total(node.agent.cpus for node in up),
        share(total(cpus * fraction for cpus, fraction in busy),
              total(cpus for cpus, _ in busy)),
        total(node.load.one for node in up),
        total(node.load.active for node in up),
        total(node.load.total for node in up),
        share(total(map(used_memory, memory)),
              total(each.total_bytes for each in memory)),
        share(total(map(used_swap, memory)),
              total(each.swap_total_bytes for each in memory)),
        share(total(size * used for size, used, _ in disk),
              total(size * usable for size, _, usable in disk)),
        total(node.network.rx_bytes_per_s for node in up),
        total(node.network.tx_bytes_per_s for node in up), "")


def format_summary(picture):
    """Return the lines that name the nodes that are not up."""
    lists = [(state, [node.number for node in picture.nodes
                      if node.state == state]) for state in ("down", "left")]
    lists.append(("never heard", picture.never))
    lines = ["%s: %s" % (state, libbeostat.fold_nodes(numbers))
             for state, numbers in lists if numbers]
    lines += ["refused: node %d: %s" % pair
              for pair in sorted(picture.refused.items())]
    return lines


def format_table(picture, args):
    """Return the status view: a line per node, totals, who is not up."""
    row = " ".join("%%%ds" % width for _, _, width, _, _ in COLUMNS)
    formats = [form for _, _, _, form, _ in COLUMNS]
    lines = [paint(row % tuple(heading for _, heading, *_ in COLUMNS),
                   "bold", args.colours)]
    for node in picture.nodes:
        line = row % tuple([form(value) for form, value
                            in zip(formats, measure(node))])
        lines.append(line if node.state == "up"
                     else paint(line, "dim", args.colours))
    values = measure_all(picture.nodes)
    cells = [form(value) if value is not None else ""
             for form, value in zip(formats[3:], values[3:])]
    lines.append(paint(row % ("total", "%d up" % values[1], "", *cells),
                       "bold", args.colours).rstrip())
    return "\n".join(lines + format_summary(picture)) + "\n"


def node_document(node):
    """Return what --json says of one node."""
    document = collections.OrderedDict(
        (field, getattr(node, field)) for field in (
            "number", "state", "age_s", "heard_time_s", "time_s",
            "start_time_s", "period_s", "sequence", "address", "port",
            "received", "lost", "restarts"))
    for part in libbeostat.PARTS:
        document[part] = getattr(node, part)._asdict()
    for part in "cpus", "interfaces":
        document[part] = [each._asdict() for each in getattr(node, part)]
    return document


def format_json(picture, args):
    """Return one JSON document of all there is; null is unknown."""
    import json                         # costs more than the status view
    return json.dumps(collections.OrderedDict((
        ("path", picture.path), ("time_s", picture.time_s),
        ("recvstats", picture.status._asdict()),
        ("nodes", [node_document(node) for node in picture.nodes]),
        ("never", picture.never),
        ("refused", {"%d" % number: str(error) for number, error
                     in picture.refused.items()}),
    )), indent=None if args.watch else 1) + "\n"


# ---- files and sockets -------------------------------------------------


def read_named(cluster, operands):
    """Return (nodes, errors) of the nodes that a user named.

    operands  lists of numbers, and host names
    Raises    BadNodeList
    """
    nodes, errors, everyone = [], [], None
    for operand in operands:
        try:
            numbers = libbeostat.parse_nodes(operand)
        except libbeostat.BadNodeList:
            everyone = everyone or list(cluster)
            numbers = [node.number for node in everyone
                       if node.host.hostname == operand]
            if not numbers:
                raise
        for number in numbers:
            try:
                nodes.append(cluster.node(number))
            except libbeostat.BeostatError as error:
                errors.append(error)
    return nodes, errors


def read_picture(cluster, args):
    """Return the Picture of the nodes selected."""
    missing, never, refused = [], [], {}
    if args.nodes:
        nodes, missing = read_named(cluster, args.nodes)
    else:
        nodes = list(cluster)
        refused, never = cluster.refused, cluster.never()
    return Picture(cluster.path, time.time(), cluster.status, nodes, never,
                   refused, missing)


def write(text):
    """Write text to standard output, whatever its encoding."""
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding or "utf-8",
                                        "backslashreplace"))
    sys.stdout.buffer.flush()


# ---- command line ------------------------------------------------------

EPILOG = """\
examples:
  beostat.py                      every node
  beostat.py 0-31,40 master       some nodes and the master
  beostat.py --json 7             all that is known of node 7
"""


def parse_args(argv):
    """Return the options; argparse exits 2 on a usage error."""
    parser = argparse.ArgumentParser(
        prog="beostat", epilog=EPILOG,
        usage="beostat.py [view] [selection] [NODES ...]",
        description="Show the statistics of the cluster's nodes.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=79))
    option = parser.add_argument
    option("nodes", nargs="*", metavar="NODES",
           help="numbers, ranges, lists, host names (default every node)")
    option("--json", dest="view", action="store_const", const=format_json,
           default=format_table, help="one JSON document")
    option("--table", metavar="PATH", default=None,
           help="recvstats' table (default $BEOSTAT_TABLE, else %s)"
           % libbeostat.TABLE)
    option("-v", "--version", action="version", version="beostat " + VERSION)
    args = parser.parse_args(argv)
    args.watch = None
    args.colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return args


def complain(text):
    """Write a line to standard error."""
    print("beostat: %s" % text, file=sys.stderr)


def main(argv=None):
    """Return the exit status."""
    for number in signal.SIGPIPE, signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
    args = parse_args(argv)
    try:
        with libbeostat.open(args.table) as cluster:
            picture = read_picture(cluster, args)
    except libbeostat.BadNodeList as error:
        complain(error)
        return 2
    except libbeostat.BeostatError as error:
        complain(error if not isinstance(error, libbeostat.NoTable) else
                 "%s: recvstats is not running: start it with recvstats.py"
                 % error)
        return 3
    write(args.view(picture, args))
    for error in picture.missing:
        complain(error)
    if not picture.status.running:
        complain("%s: recvstats (pid %d) is gone: start it again with "
                 "recvstats.py" % (picture.path, picture.status.pid))
        return 3
    up = all(node.state == "up" for node in picture.nodes)
    return 0 if up and not picture.missing and not picture.refused else 1


if __name__ == "__main__":
    sys.exit(main())
