#!/usr/bin/env python3
"""beostat - show the statistics of the cluster's nodes

usage: beostat.py [view] [selection] [NODES ...]

A line per node; NODES are numbers, ranges, host names: 0-31,40 n[7,9] .3
login master all up down; default all that were heard.  Other views:
  -c, --cpuinfo -m, --meminfo -l, --loadavg -n, --net-dev -s, --stat
  -f, --statfs -a, --all    texts of /proc, statfs of /; one, some or all
  -C, --cpu-percent -R, --net-rate    CPU use, 0 to 1; network bytes a second
  -J, --jobs                processes, as each node's procstatd tells
  --dots --daemon           a cell per node; recvstats' own state
  --json --prometheus [--per-cpu] --ganglia [--cluster NAME]    for programs
  --html --serve [ADDRESS:]PORT --http    a page; it and metrics to browsers
                            and Prometheus; HTTP's header before a document
  --events                  from now on a line for what becomes of nodes
  -b, --brief --names       no headings; the folded list, of host names
  -w, --watch [SECONDS]     show it again and again; default every 2 seconds
  --up --down --top N       nodes that are up, or are not; the first N
  --sort KEY --reverse      by a column, -KEY turned round: node state age
         cpus cpu load running tasks mem swap disk in out name; jobs: cpu rss
  --table PATH -h --help -v --version    default /dev/shm/beostat
Exit status: 0 all are up, 1 some are not, 2 usage, 3 no data.
examples:
  beostat.py -w --sort load               the most loaded first, live
  pdsh -w $(beostat.py --names --up) uptime    run it where it can run
"""

import collections
import functools
import gc
import itertools
import operator
import os
import re
import select
import signal
import stat
import sys
import time
import types

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
try:
    import libbeostat
except ImportError:
    sys.exit("beostat: libbeostat.py is not beside %s: copy it there"
             % os.path.realpath(__file__))


# ---- constants ---------------------------------------------------------

f"needs Python 3.6 or newer"    # an older one shows this line, and ends
VERSION = "1.1"
if libbeostat.VERSION != VERSION:
    sys.exit("beostat: %s is of version %s, beostat of %s: copy both from one "
             "release" % (os.path.realpath(libbeostat.__file__),
                          libbeostat.VERSION, VERSION))

Picture = collections.namedtuple(
    "Picture",
    "path time_s status nodes known silent never refused missing jobs")
Picture.__doc__ = """What is shown at one instant.

path, time_s   the table, and when it was read, since the epoch
status         recvstats' Status
nodes          the nodes selected, in order
known          all that were read, selected or not
silent         {down, left: the numbers of such nodes}, before any cut
never          numbers of nodes expected and never heard
refused        {number: text} of nodes that sent what cannot be
missing        lines about nodes named without a sample or an answer
jobs           [(node number, a row of measure_jobs())], where fetched
"""
View = collections.namedtuple("View", "options format read sort_keys")
View.__doc__ = """A way to show a Picture.

options    that choose it
format     its function: of a Picture and the options, (line, colour) of each
read       the function that completes a Picture for it: sorts, fetches
sort_keys  that --sort may name
"""


# ---- values ------------------------------------------------------------
# Of a node, for the views: pure functions.

CLIPPED = (1, "interfaces"), (2, "CPUs")     # by agent.flags
TEXT_TIME = "%a %b %d %H:%M:%S %Y"
COLOURS = {"dim": "2", "bold": "1", "red": "31", "green": "32",
           "yellow": "33"}
NOT_RUNNING = ("%s: recvstats is not running: start it with recvstats.py, or "
               "name its table with --table")
GONE = "%s: recvstats (pid %d) is gone: start it again with recvstats.py"
UNHEARD = ("no agent was heard on port %d: start sendstats.py on the nodes; "
           "to try one here: sendstats.py --once -d -p %d 0 127.0.0.1")
ALL_DROPPED = ("all %d datagrams on port %d were dropped: see README, and "
               "journalctl -t recvstats")
UP, DOWN = (libbeostat.CHOSEN[word] for word in ("up", "down"))   # states
SUMS = 14                       # that measure() gives

of = operator.attrgetter        # of("load.one")(node): the way to a value
# [(MemTotal, total_bytes) ...]: its row's meaning is the kernel's names.
MEMORY = [(name, field) for fields, _, _, meaning in libbeostat.MEMORY
          for name, field in zip(meaning.split(";")[0].split(),
                               fields.split())]


def safe(text):
    """Return text without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else
                   char.encode("unicode_escape").decode() for char in text)


def escape_xml(text):
    """Return text as it stands in quotes in XML and HTML."""
    text = safe(text)
    for char, name in ("&", "amp"), ("<", "lt"), (">", "gt"), ('"', "quot"):
        text = text.replace(char, "&%s;" % name)
    return text


def paint(text, colour, colours):
    """Return text in a colour, where colours are wanted."""
    if colour and colours:
        return "\033[%sm%s\033[0m" % (COLOURS[colour], text)
    return text


def share(part, whole):
    """Return part of whole in percent, None when that is unknown."""
    return 100.0 * part / whole if whole and part is not None else None


def total(values):
    """Return the sum of the values that are known, None without one."""
    if all(value is None for value in values):
        return None
    return sum(filter(None, values))


def known_cpus(node):
    """Return how many CPUs are on line, None when that is unknown."""
    return node.agent.cpus or None


def format_age(age_s):
    """Return seconds, minutes, hours or days in at most 4 characters."""
    if age_s < 9.95:
        return "%.1f" % age_s
    for unit, unit_s in ("d", 86400), ("h", 3600), ("m", 60):
        if age_s >= 2 * unit_s:
            return "%d%s" % (age_s // unit_s, unit)
    return "%.0f" % age_s


def format_percent(value):
    """Return a percentage in at most 4 characters."""
    if value is None:
        return "-"
    return "%.1f" % value if value < 99.95 else "%.0f" % value


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


def format_counts(picture):
    """Return how many nodes there are, and in which states."""
    states = [node.state for node in picture.nodes]
    counts = ["%d %s" % (states.count(state), state)
              for state in ("up", "down", "left") if state in states]
    if picture.never:
        counts.append("%d never heard" % len(picture.never))
    return "%d node%s: %s" % (len(states), "" if len(states) == 1 else "s",
                              ", ".join(counts) or "none heard")


# A column: key for --sort, heading, width (negative: flush left), whether
# its highest value sorts first, how soon it gives way in a narrow window (0
# never).
COLUMNS = (
    ("node", "node", 5, False, 0),
    ("state", "state", -5, False, 0),
    ("age", "age", 4, False, 5),
    ("cpus", "cpus", 4, True, 6),
    ("cpu", "cpu%", 4, True, 0),
    ("load", "load", 6, True, 1),
    ("running", "run", 4, True, 8),
    ("tasks", "tasks", 5, True, 7),
    ("mem", "mem%", 4, True, 2),
    ("swap", "swap%", 5, True, 9),
    ("disk", "disk%", 5, True, 10),
    ("in", "in/s", 5, True, 3),
    ("out", "out/s", 5, True, 4),
    ("name", "name", -1, False, 0),
)
SORT_KEYS = tuple(key for key, *_ in COLUMNS)
CPU_COLUMN, MEMORY_COLUMN = SORT_KEYS.index("cpu"), SORT_KEYS.index("mem")

# What measure() takes of a node, in the order of the message.  Names would
# cost the view of 1,000 nodes 10 ms: it is positions from here to a row.
PICK = libbeostat.picker((
    "host.hostname", "cpu.busy_fraction", "load.one", "load.active",
    "load.total", "memory.total_bytes", "memory.free_bytes",
    "memory.available_bytes", "memory.buffers_bytes", "memory.cached_bytes",
    "memory.swap_total_bytes", "memory.swap_free_bytes", "disk.block_bytes",
    "disk.blocks", "disk.free_blocks", "disk.available_blocks",
    "network.rx_bytes_per_s", "network.tx_bytes_per_s", "agent.flags",
    "agent.cpus"))


def measure(node):
    """Return (values of COLUMNS, flags, what of a node can be added up).

    The latter are CPUs, their weight and how much of it is busy, load,
    running and all tasks, used and all memory, swap and disk in bytes, and
    bytes a second in and out.  Of a share both are known or none.
    """
    (name, busy, load, active, tasks, memory, free, available, buffers,
     cached, swap, swap_free, block, blocks, free_blocks, available_blocks,
     rx, tx, flags, cpus) = PICK(node)
    weight = busy_cpus = used = used_swap = disk = all_disk = None
    if busy is not None:
        weight = cpus or 1
        busy_cpus = busy * weight
    if available is None and free is not None and cached is not None:
        # Kernels before 3.14: free memory, buffers and caches stand in.
        available = total((free, buffers, cached))
    if memory is not None and available is not None:
        used = max(memory - available, 0)
    if swap is not None and swap_free is not None:
        used_swap = max(swap - swap_free, 0)
    if None not in (block, blocks, free_blocks, available_blocks):
        disk = (blocks - free_blocks) * block
        all_disk = disk + available_blocks * block
    sums = (cpus or None, weight, busy_cpus, load, active, tasks, used,
            memory if used is not None else None, used_swap,
            swap if used_swap is not None else None, disk, all_disk, rx, tx)
    return derive(node.number, node.state, node.age_s,
                  libbeostat.unpack_text(name), sums), flags, sums


def derive(number, state, age_s, name, sums):
    """Return values in the order of COLUMNS, of a node or of a sum."""
    (cpus, weight, busy, load, active, tasks, memory, all_memory, swap,
     all_swap, disk, all_disk, rx, tx) = sums
    return (number, state, age_s, cpus, share(busy, weight), load, active,
            tasks, share(memory, all_memory), share(swap, all_swap),
            share(disk, all_disk), rx, tx, name)


def format_values(values):
    """Return the texts of what derive() gave, - where it is unknown."""
    (number, state, age_s, cpus, cpu, load, running, tasks, memory, swap,
     disk, rx, tx, name) = values
    return (number, state, "-" if age_s is None else format_age(age_s),
            "-" if cpus is None else cpus, format_percent(cpu),
            "-" if load is None else "%.2f" % load,
            "-" if running is None else running,
            "-" if tasks is None else tasks, format_percent(memory),
            format_percent(swap), format_percent(disk), format_bytes(rx),
            format_bytes(tx), "-" if name is None else safe(name))


def measure_all(all_sums):
    """Return the same of what measure() gave of nodes that are up: sums, and
    means of shares."""
    return derive("total", "%d up" % len(all_sums), None, None,
                  [total(column) for column in zip(*all_sums)]
                  or [None] * SUMS)


def sort_nodes(nodes, key, reverse):
    """Return nodes by a column, -KEY turned round; unknown values behind
    the known, and nodes that are not up behind all."""
    if not key:
        return nodes[::-1] if reverse else nodes
    nth = SORT_KEYS.index(key.lstrip("-"))
    values = {node: measure(node)[0][nth] for node in nodes}
    known = sorted([node for node in nodes if values[node] is not None],
                   key=values.get, reverse=(
                       COLUMNS[nth][3] != key.startswith("-")) != reverse)
    return sorted(known + [node for node in nodes if values[node] is None],
                  key=lambda node: node.state != "up")


# ---- read --------------------------------------------------------------

NUMBERS_ONLY = "[0-9,. -]+"     # of which none is a host's name
FEW_NODES = 1000                # read one by one; beyond, all there are
PICK_HOST = libbeostat.picker(["host.hostname"])


def name_error(number, error):
    """Return the text of an error, which names its node."""
    text = str(error)
    return text if text.startswith("node %d:" % number) else (
        "node %d: %s" % (number, text))


def fold_errors(errors):
    """Return a line for each kind of error.

    errors  {node number: text, which begins with the node}
    """
    kinds = {}
    for number, text in errors.items():
        kinds.setdefault(text.partition(": ")[2], []).append(number)
    return [errors[numbers[0]] if len(numbers) == 1 else "nodes %s: %s" % (
        libbeostat.fold_nodes(numbers), kind)
            for kind, numbers in kinds.items()]


def read_named(cluster, operands):
    """Return (nodes, lines about those without a sample).

    operands  lists of numbers, host names, and the words for many
    Raises    BadNodeList
    """
    nodes, errors, text = [], {}, ",".join(operands)
    everyone = [] if re.fullmatch(NUMBERS_ONLY, text) else list(cluster)
    numbers, unknown = find_numbers(text, everyone)
    if len(numbers) > FEW_NODES:
        nodes, lines = read_many(cluster, numbers)
        return nodes, unknown + lines
    for number in numbers:
        try:
            nodes.append(cluster.node(number))
        except libbeostat.BeostatError as error:
            errors[number] = name_error(number, error)
    return nodes, unknown + fold_errors(errors)


def find_numbers(text, nodes):
    """Return (numbers of a list, a line about the names that no node has).

    Raises  BadNodeList when it is not one
    """
    try:
        return libbeostat.parse_nodes(text, nodes), []
    except libbeostat.BadNodeList:
        known, unknown = [], []
    hosts = {node.host.hostname for node in nodes}.union(libbeostat.CHOSEN)
    for name in libbeostat.expand_nodes(text):
        try:
            if name not in hosts:
                libbeostat.parse_nodes(name)    # it may be a number's
            known.append(name)
        except libbeostat.BadNodeList:
            unknown.append(name)
    numbers = libbeostat.parse_nodes(",".join(known), nodes) if known else []
    return numbers, ["%s: no node's name" % libbeostat.fold_nodes(unknown)]


def read_many(cluster, numbers):
    """Return what read_named() does, of numbers so many that all nodes are
    read."""
    nodes = {node.number: node for node in cluster}
    never, errors = set(cluster.never()), cluster.refused
    return [nodes[number] for number in numbers if number in nodes], (
        fold_errors({number: name_error(number, errors.get(
            number, "never heard" if number in never else "not in the table"))
                     for number in numbers if number not in nodes}))


def filter_nodes(nodes, text):
    """Return the nodes that a list names, or whose host name has the text."""
    try:
        numbers = set(libbeostat.parse_nodes(text, nodes))
    except libbeostat.BadNodeList:
        return [node for node in nodes if text in node.host.hostname]
    return [node for node in nodes if node.number in numbers]


def read_picture(cluster, args):
    """Return the Picture of the nodes selected, as its view wants it."""
    missing, never, refused = [], [], {}
    if args.nodes:
        nodes, missing = read_named(cluster, args.nodes)
    else:
        nodes = list(cluster)
        refused = {number: name_error(number, error)
                   for number, error in cluster.refused.items()}
        never = cluster.never()
    known = nodes
    if args.states:
        nodes = [node for node in nodes if node.state in args.states]
    if args.filter:
        nodes, never = filter_nodes(nodes, args.filter), []
    silent = {state: [node.number for node in nodes if node.state == state]
              for state in ("down", "left")}
    return args.view.read(Picture(
        cluster.path, time.time(), cluster.status, nodes, known, silent,
        never, refused, missing, []), args)


def choose_prefix(picture):
    """Return what stands before a node's number in a list: n, as in n7; and
    a dot where that is the name of another node's host."""
    for node in picture.known:
        name, = PICK_HOST(node)
        if name[1:2].isdigit():
            host = libbeostat.unpack_text(name)
            if re.fullmatch("n[0-9]+", host) and int(host[1:]) != node.number:
                return "."
    return "n"


def fold(nodes, picture):
    """Return a folded list of node numbers, or names."""
    return libbeostat.fold_nodes(nodes, choose_prefix(picture))


def name_apart(nodes, unheard=(), unfit=""):
    """Return {node number: a name that no other has}: its host name, or n7,
    with _ behind it while that is the name of a host.

    unheard  numbers of nodes without a host name
    unfit    pattern of host names that will not do
    """
    hosts = {number: "" for number in unheard}
    hosts.update((node.number, safe(libbeostat.unpack_text(*PICK_HOST(node))))
                 for node in nodes)
    counts = collections.Counter(hosts.values())
    names = {}
    for number, host in hosts.items():
        if counts[host] > 1 or re.fullmatch(unfit, host):
            host = "n%d" % number
            while host in counts:
                host += "_"
        names[number] = host
    return names


def find_fault(picture):
    """Return the line that says why there is no news of any node, "" when
    there is."""
    status = picture.status
    if not status.running:
        return GONE % (picture.path, status.pid)
    if status.used_entries:
        return ""
    if status.received:
        return ALL_DROPPED % (status.received, status.port)
    return UNHEARD % (status.port, status.port)


def read_sorted(picture, args):
    """Return the Picture with its nodes sorted, and cut by --top."""
    return picture._replace(nodes=sort_nodes(
        picture.nodes, args.sort, args.reverse)[:args.top])


# ---- view: table -------------------------------------------------------

BAR_CELLS, NAME_CELLS = 10, 10
BARS = CPU_COLUMN, MEMORY_COLUMN        # whose bar stands before them
BUSY_LOAD, OVER_LOAD = 0.7, 1.3         # per CPU: yellow and red from here
BLOCKS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"
PLAIN_BLOCKS = " #"
DROPPED = [name for name, _, _, meaning in libbeostat.COUNTERS
           if meaning.endswith("; dropped")] + ["kernel_drops"]


def format_bar(value, blocks):
    """Return a bar of BAR_CELLS for a percentage."""
    steps = len(blocks) - 1
    filled = int(min(value, 100) / 100 * BAR_CELLS * steps)
    whole, part = divmod(filled, steps)
    return (blocks[-1] * whole + blocks[part]).ljust(BAR_CELLS)[:BAR_CELLS]


def format_lists(picture):
    """Return the lines that name the nodes that are not up."""
    lists = {**picture.silent, "never heard": picture.never}
    prefix = choose_prefix(picture) if any(lists.values()) else ""
    lines = ["%s: %s" % (state, libbeostat.fold_nodes(numbers, prefix))
             for state, numbers in lists.items() if numbers]
    return lines + ["refused: %s" % text for _, text
                    in sorted(picture.refused.items())]


def format_clipped(clipped, picture):
    """Return the lines that name the nodes whose message was too small.

    clipped  [(node number, flags)]
    """
    return ["%s did not all fit: %s" % (what, fold([
        number for number, flags in clipped if flags & flag], picture))
            for flag, what in CLIPPED if any(
                flags & flag for _, flags in clipped)]


def format_dropped(recent):
    """Return the line that says which datagrams were dropped, if any were.

    recent  {counter: what was added to it in the last minute}
    """
    counts = ["%s %d" % (name, recent[name]) for name in DROPPED
              if recent[name]]
    return ["%d datagrams dropped in the last minute: %s (see README, and "
            "journalctl -t recvstats)" % (
                sum(recent[name] for name in DROPPED), ", ".join(counts))
            ] if counts else []


def choose_columns(args):
    """Return [(nth in COLUMNS, or behind them a bar, heading, width)].

    In a window that is watched, columns give way until the rest fits;
    where there is room to spare, bars are put in.
    """
    kept = list(range(len(COLUMNS)))
    widths = [abs(column[2]) + 1 for column in COLUMNS[:-1]] + [NAME_CELLS]
    spare = args.width - sum(widths) if args.live else 0
    for nth in sorted(kept, key=lambda nth: -COLUMNS[nth][4]):
        if spare < 0 and COLUMNS[nth][4]:
            kept.remove(nth)
            spare += widths[nth]
    columns = [(nth,) + COLUMNS[nth][1:3] for nth in kept]
    if spare >= 2 * (BAR_CELLS + 1):
        for bar, nth in reversed(list(enumerate(BARS, len(COLUMNS)))):
            columns.insert(nth, (bar, "", BAR_CELLS))
    return columns


def row_formatter(columns, args):
    """Return the function that makes a row of values, of COLUMNS, and their
    texts."""
    template = " ".join(["%%%ds" % width for _, _, width in columns])
    pick = operator.itemgetter(*[nth for nth, *_ in columns])
    blocks = BLOCKS if args.wide else PLAIN_BLOCKS

    def format_row(values, texts):
        if args.live:
            texts = *texts, *[format_bar(values[nth] or 0, blocks)
                              for nth in BARS]
        return template % pick(texts)
    return format_row


def cutter(columns, args):
    """Return the function that cuts a row's name where a terminal ends."""
    names_at = sum(abs(width) + 1 for _, _, width in columns[:-1])
    if not args.terminal or args.width <= names_at:
        return str
    width, end = args.width, "\u2026" if args.wide else ">"
    return lambda row: row if len(row) <= width else row[:width - 1] + end


def row_colour(node, args):
    """Return the colour of a node's row: watched, by its load per CPU."""
    if node.state != "up":
        return "dim"
    if not args.live:
        return ""
    load = (node.load.one or 0) / (known_cpus(node) or 1)
    return ("red" if load > OVER_LOAD else "yellow" if load > BUSY_LOAD
            else "green")


def format_table(picture, args):
    """Yield the status view: a line per node, totals, who is not up."""
    columns = choose_columns(args)
    format_row, cut = row_formatter(columns, args), cutter(columns, args)
    headings = [heading for _, heading, *_ in COLUMNS]
    if not args.brief:
        yield format_row([0] * len(COLUMNS), headings), "bold"
    up, clipped = [], []
    for node in picture.nodes:
        values, flags, sums = measure(node)
        if node.state == "up":
            up.append(sums)
        if flags:
            clipped.append((node.number, flags))
        yield (cut(format_row(values, format_values(values))),
               row_colour(node, args))
    if args.brief:
        return
    if args.states == UP:
        picture = picture._replace(never=[])
    values = measure_all(up)
    totals = ["" if value is None else text
              for value, text in zip(values, format_values(values))]
    yield format_row(values, totals).rstrip(), "bold"
    for line in (format_lists(picture) + format_clipped(clipped, picture)
                 + format_dropped(picture.status.recent)):
        yield line, ""


# ---- view: folded ------------------------------------------------------

HOST = "[A-Za-z0-9][A-Za-z0-9._-]*"     # that pdsh can be given


def name_nodes(nodes, numbers, args):
    """Return what to fold: node numbers, or host names with --names.

    numbers  of nodes that have not been heard; these, and nodes whose host
             name no shell should see, stay numbers
    """
    return [node.host.hostname if args.names
            and re.fullmatch(HOST, node.host.hostname) else node.number
            for node in nodes] + numbers


def format_folded(picture, args):
    """Return the folded list of the nodes, for pdsh -w."""
    never = []
    if args.states == DOWN:             # who says nonsense is not up either
        never = picture.never + sorted(picture.refused)
    folded = fold(name_nodes(picture.nodes, never, args), picture)
    return [(folded, "")] if folded else []


# ---- view: dots --------------------------------------------------------

SHADES = ".:-=+*#%@"
CELLS = {"down": "D", "left": "L", "never": "N", "refused": "!"}


def format_dots(picture, args):
    """Return a cell per node: how busy it is, or that it is not up."""
    cells = {node.number: ("red" if node.state == "down" else "dim",
                           CELLS[node.state]) if node.state != "up" else
             ("", SHADES[int(min(node.cpu.busy_fraction or 0, 1)
                             * (len(SHADES) - 1) + 0.5)])
             for node in picture.nodes}
    cells.update((number, ("red", CELLS["refused"]))
                 for number in picture.refused)
    cells.update((number, ("dim", CELLS["never"]))
                 for number in picture.never)
    label = max([len(str(number)) for number in cells] or [1])
    across = max((args.width - label - 1) // 10 * 10, 1)
    rows = sorted({number // across * across for number in cells})
    lines = []
    for first in rows:
        numbers = range(max(first, 0), first + across)
        if first < 0:
            numbers = [libbeostat.MASTER]
        line = [cells.get(number, ("", " ")) for number in numbers]
        lines.append(("%*d %s" % (label, numbers[0], "".join(
            paint(cell, colour, args.colours) for colour, cell in line)
            .rstrip()), ""))
    return lines + [("%s idle to busy, D down, L left, N never heard, "
                     "! refused" % SHADES, "")]


# ---- view: daemon ------------------------------------------------------


def describe_daemon(picture):
    """Return (name, value) pairs of recvstats' own state."""
    status = picture.status
    return [
        ("recvstats", "running, pid %d" % status.pid if status.running
         else "gone (was pid %d)" % status.pid),
        ("uptime", format_age(status.uptime_s)),
        ("port", status.port),
        ("messages/s", status.messages_per_s),
        ("last request", time.strftime(TEXT_TIME, time.localtime(
            status.request_time_s)) if status.request_time_s else "none"),
        ("table", "%s, %s bytes used" % (safe(picture.path),
                                         format_bytes(status.used_bytes))),
        ("expected", "%d nodes" % status.expected)] + [
            (field, getattr(status, field))
            for field, *_ in libbeostat.COUNTERS]


def describe_losses(nodes):
    """Return (name, value) pairs: messages lost, by which nodes."""
    rows = [("lost", nodes)] + [("lost by node %d" % node.number, [node])
                                for node in nodes if node.lost]
    pairs = []
    for name, some in rows:
        lost = sum(node.lost for node in some)
        sent = lost + sum(node.received for node in some)
        pairs.append((name, "%d of %d (%.4f %%)" % (
            lost, sent, share(lost, sent) or 0)))
    return pairs


def describe_agents(picture):
    """Return (name, value) pairs of what agents sign, cost, and think the
    time is."""
    pairs, nodes = [], picture.nodes
    unverified = [node.number for node in nodes
                  if node.signature == "unverified"]
    if unverified:
        pairs.append(("unverified", fold(unverified, picture)
                      + " sign, and recvstats has no --key-file"))
    costs = sorted((node.agent.cost_us, node.number) for node in nodes
                   if node.agent.cost_us is not None)
    if costs:
        pairs.append(("agent's cost", "median %d us a sample, worst %d us "
                      "(node %d)" % (costs[len(costs) // 2][0], *costs[-1])))
    skews = [(abs(node.time_s - node.heard_time_s), node.number)
             for node in nodes]
    if skews:
        pairs.append(("clock skew", "at most %.1f s (node %d)" % max(skews)))
    return pairs


def format_daemon(picture, args):
    """Return recvstats' own state, losses, and how the agents are."""
    return [("%-16s %s" % pair, "") for pair in (
        describe_daemon(picture) + describe_losses(picture.nodes)
        + describe_agents(picture)
        + [("refused", text) for text in picture.refused.values()])]


# ---- view: texts -------------------------------------------------------
# Of each file of /proc, what the message carries: formats and fields.

CPUINFO = (
    ("processors\t: %d", known_cpus),
    ("vendor_id\t: %s", of("processor.vendor")),
    ("model name\t: %s", of("processor.model")),
    ("cpu MHz\t\t: %.3f", of("processor.mhz")),
    ("cache size\t: %d KB", of("processor.cache_kb")),
    ("sockets\t\t: %d", of("processor.sockets")),
    ("cpu cores\t: %d", of("processor.cores")),
    ("bogomips\t: %.2f", of("processor.bogomips")))
KERNEL = (
    ("intr %d", of("kernel.interrupts")),
    ("ctxt %d", of("kernel.context_switches")),
    ("btime %d", of("kernel.boot_time_s")),
    ("processes %d", of("kernel.forks")),
    ("procs_running %d", of("kernel.running")),
    ("procs_blocked %d", of("kernel.blocked")))
STATFS = (
    ("f_bsize: %d", of("disk.block_bytes")),
    ("f_blocks: %d", of("disk.blocks")),
    ("f_bfree: %d", of("disk.free_blocks")),
    ("f_bavail: %d", of("disk.available_blocks")),
    ("f_files: %d", of("disk.files")), ("f_ffree: %d", of("disk.free_files")),
    ("f_namelen: %d", of("disk.name_max")))
NET_DEV = (
    "Inter-|   Receive                                                |"
    "  Transmit",
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes"
    "    packets errs drop fifo colls carrier compressed",
    "%6s: %7d %7d %4d %4d %4d %5d %10d %9d "
    "%8d %7d %4d %4d %4d %5d %7d %10d")


def text_of(rows):
    """Return the function that gives a node's lines, of (format, function
    of a node) where the value is known."""
    def text(node):
        return [form % (safe(value) if isinstance(value, str) else value)
                for form, get in rows for value in [get(node)]
                if value not in (None, "")]
    return text


def text_meminfo(node):
    """Return the lines of /proc/meminfo."""
    values = [(name, getattr(node.memory, field)) for name, field in MEMORY]
    return ["%-15s %8d kB" % (name + ":", value // 1024)
            for name, value in values if value is not None]


def text_loadavg(node):
    """Return the line of /proc/loadavg."""
    return [] if None in node.load else [
        "%.2f %.2f %.2f %d/%d %d" % node.load]


def text_net_dev(node):
    """Return the lines of /proc/net/dev."""
    *head, row = NET_DEV
    return head + [row % (safe(each.name), *each[1:17])
                   for each in node.interfaces]


def text_stat(node):
    """Return the lines of /proc/stat; a CPU has four columns of ticks."""
    sums = ["%d" % ticks for ticks in node.cpu[:10] if ticks is not None]
    lines = ["cpu  " + " ".join(sums)] if sums else []
    lines += ["cpu%d %d %d %d %d" % (cpu.id, *cpu[2:]) for cpu in node.cpus]
    return lines + text_of(KERNEL)(node)


def text_cpu_percent(node):
    """Return each CPU's use in the last period, 0 to 1."""
    return ["cpu%d %.4f" % cpu[:2] for cpu in node.cpus]


def brief_cpu_percent(node):
    """Return the uses of a node's CPUs and its number, as scripts read it."""
    return [" ".join(["%.4f" % cpu[1] for cpu in node.cpus]
                     + ["%d" % node.number])]


def brief_net_dev(node):
    """Return a line for each interface, its node and name first."""
    return [" ".join(["%d" % node.number, safe(each.name)]
                     + ["%d" % count for count in each[1:17]])
            for each in node.interfaces]


def text_net_rate(node):
    """Return the network rate, received and sent."""
    return [] if None in node.network else [
        "Network rate %d bytes/second" % sum(node.network)]


# short and long option, title, its text, whether --all shows it
TEXTS = (
    ("-c", "--cpuinfo", "/proc/cpuinfo", text_of(CPUINFO), True),
    ("-m", "--meminfo", "/proc/meminfo", text_meminfo, True),
    ("-l", "--loadavg", "/proc/loadavg", text_loadavg, True),
    ("-n", "--net-dev", "/proc/net/dev", text_net_dev, True),
    ("-s", "--stat", "/proc/stat", text_stat, True),
    ("-f", "--statfs", "statfs of /", text_of(STATFS), True),
    ("-C", "--cpu-percent", "CPU use, 0 to 1", text_cpu_percent, False),
    ("-R", "--net-rate", "network rate", text_net_rate, False),
)
# of -b, of a node; the others make one line, of its number and their words
BRIEF = {text_cpu_percent: brief_cpu_percent, text_net_dev: brief_net_dev}


def format_brief(node, texts):
    """Return the lines of a node with --brief."""
    words = [[word for line in text(node) for word in line.split()]
             for text in texts if text not in BRIEF]
    lines = [" ".join(["%d" % node.number] + sum(words, []))] if words else []
    return lines + [line for text in texts if text in BRIEF
                    for line in BRIEF[text](node)]


def format_texts(picture, args):
    """Return texts of /proc, node by node, or with --brief a line each."""
    lines, texts = [], [text for _, text in args.texts]
    for node in picture.nodes:
        if args.brief:
            if (node.number != libbeostat.MASTER or args.nodes
                    or text_cpu_percent not in texts):
                lines += format_brief(node, texts)
            continue
        lines.append("=============== Node: %s (index %d) ==============="
                     % (safe(node.host.hostname), node.number))
        if node.state != "up":
            lines.append("*** %s, last heard %.1f s ago ***"
                         % (node.state, node.age_s))
        lines += ["*** %s did not all fit in the message ***" % what
                  for flag, what in CLIPPED if (node.agent.flags or 0) & flag]
        when = time.strftime(TEXT_TIME, time.localtime(node.time_s))
        for title, text in args.texts:
            lines += ["", " *** %s *** %s" % (title, when)] + text(node)
        lines.append("")
    return [(line, "") for line in lines]


# ---- view: jobs --------------------------------------------------------
# The processes of the nodes, as each one's procstatd tells.

JOBS_S, JOBS_LIMIT_S = 0.5, 3.0     # between two answers; for both
NODES_AT_ONCE = 200             # a connection each
ANSWER_BYTES, ANSWER_JOBS = 1 << 22, 1 << 16    # no answer has more
USERS = 1000                    # whose names are kept
JOB_KEYS = ("cpu", "rss")
JOB_ROW = "%5s %7s %-8s %s %4s %6s %5s %s"
JOB_LINE = r"(N) N (N) (\S{1,8}) (N) (N) N (N) (.{0,16384})".replace(
    "N", "[0-9]{1,19}")         # a number fits 64 bits


def parse_jobs(answer):
    """Return {pid: (uid, state, threads, resident kB, ticks, command)}.

    answer  procstatd's: a count, then a line per process
    Raises  ValueError
    """
    count, *lines = answer.decode("utf-8", "replace").strip().split("\n")
    found = [re.fullmatch(JOB_LINE, line) for line in lines[:ANSWER_JOBS]]
    if count != "%d" % len(found) or None in found:
        raise ValueError("answer is not a list of processes")
    return {int(pid): (int(uid), state, int(threads), int(rss), int(ticks),
                       command)
            for pid, uid, state, threads, rss, ticks, command
            in [job.groups() for job in found]}


def measure_jobs(first, second, hz):
    """Return [(pid, user, state, threads, resident kB, percent of one CPU,
    command)] of two answers; a process that is new has no CPU use.

    first, second  (when it came, its jobs)
    """
    (before_s, before), (now_s, now) = first, second
    return [(pid, read_user_name(uid), state, threads, rss, 100 * max(
        ticks - before.get(pid, now[pid])[4], 0) / hz / (now_s - before_s),
             command)
            for pid, (uid, state, threads, rss, ticks, command)
            in now.items()]


def format_jobs(picture, args):
    """Return a line for each process of the nodes."""
    key = args.sort or "cpu"
    nth = {"rss": 4, "cpu": 5}[key.lstrip("-")]
    jobs = sorted(picture.jobs, reverse=key.startswith("-") == args.reverse,
                  key=lambda pair: pair[1][nth])
    lines = [(JOB_ROW % (
        number, pid, safe(user)[:8], safe(state), threads,
        format_bytes(rss * 1024), "%.1f" % cpu, safe(command)), "")
        for number, (pid, user, state, threads, rss, cpu, command)
        in jobs[:args.top]]
    head = [(JOB_ROW % ("node", "pid", "user", "s", "thr", "rss", "cpu%",
                        "command"), "bold")]
    return lines if args.brief else head + lines


@functools.lru_cache(USERS)
def read_user_name(uid):
    """Return the name of a user here, or the number."""
    try:
        import pwd                      # for one view alone
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError, ImportError):
        return "%d" % uid


def receive_answer(sock, limit):
    """Return the bytes of one answer, up to its empty line.

    limit   when it must be there, monotonic
    Raises  OSError, ValueError
    """
    data = bytearray()
    while not data.endswith(b"\n\n"):
        sock.settimeout(max(limit - time.monotonic(), 1e-3))
        more = sock.recv(1 << 16)
        data += more
        if not more:
            raise ValueError("closed the connection")
        if len(data) > ANSWER_BYTES:
            raise ValueError("answer of over %d bytes" % ANSWER_BYTES)
    return data


def fetch_jobs(node):
    """Return what measure_jobs() gives of a node.

    Raises  ValueError
    """
    import socket                       # for one view alone
    limit, answers = time.monotonic() + JOBS_LIMIT_S, []
    try:
        with socket.socket() as sock:
            sock.settimeout(JOBS_LIMIT_S)
            sock.connect((node.address, node.agent.procstatd_port))
            for pause_s in 0, JOBS_S:
                time.sleep(pause_s)
                sock.sendall(b"jobs\n", socket.MSG_NOSIGNAL)
                jobs = parse_jobs(receive_answer(sock, limit))
                answers.append((time.monotonic(), jobs))
    except socket.timeout:
        raise ValueError("%s: no answer in %g s" % (node.address,
                                                    JOBS_LIMIT_S))
    except (OSError, ValueError) as error:
        raise ValueError("%s: %s" % (node.address, getattr(
            error, "strerror", error)))
    return measure_jobs(*answers, node.processor.ticks_per_s or 100)


def fetch_each(nodes, jobs, errors):
    """Fetch the jobs of nodes until none is left.

    nodes   an iterator, which other threads take nodes from as well
    jobs    {node number: its Jobs}, errors: {node number: error}; filled
    """
    for node in nodes:
        try:
            if node.state != "up":
                raise ValueError(node.state)
            if not node.agent.procstatd_port:
                raise ValueError("runs no procstatd (sendstats.py "
                                 "--procstatd)")
            jobs[node.number] = fetch_jobs(node)
        except (ValueError, OSError, ImportError) as error:
            errors[node.number] = error


def read_jobs(picture, args):
    """Return the Picture with the jobs of its nodes, fetched at once."""
    import resource                     # for one view alone
    import threading
    shared = _, jobs, errors = iter(picture.nodes), {}, {}
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    started = []
    try:
        for _ in picture.nodes[1:min(NODES_AT_ONCE, files // 2)]:
            thread = threading.Thread(target=fetch_each, args=shared)
            thread.start()
            started.append(thread)
    except RuntimeError:
        pass                            # no room for more
    fetch_each(*shared)
    for thread in started:
        thread.join()
    return picture._replace(
        jobs=[(node.number, job) for node in picture.nodes
              for job in jobs.get(node.number, ())],
        missing=picture.missing + [
            "node %d: %s" % (node.number, errors[node.number])
            for node in picture.nodes if node.number in errors])


# ---- view: json --------------------------------------------------------

HEADS = ("number", "state", "age_s") + libbeostat.HEADS
WORDS = "state", "address", "signature"     # of HEADS: as plain as they are


def object_template(fields):
    """Return the template of a JSON object."""
    return "{%s}" % ", ".join([
        '"%s": %s' % (field, '"%s"' if field in WORDS else "%s")
        for field in fields])


def list_formatter(rows, struct_, field, convert):
    """Return the function that gives the JSON of records, as they were sent,
    without its brackets; one field of each is converted."""
    fields = " ".join(fields for fields, *_ in rows).split()
    form, nth = object_template(fields), fields.index(field)

    def format_list(data):
        records = list(struct_.iter_unpack(data))
        values = [*itertools.chain.from_iterable(records)]
        each = slice(nth, None, len(fields))
        values[each] = map(convert, values[each])
        return ", ".join([form] * len(records)) % tuple(values)
    return format_list


def node_formatter(encode):
    """Return the function that gives a node's JSON object.

    One template does it, from the values as they were sent: records by
    name would take twice the time.
    encode  gives the JSON of a text
    """
    parts = {part: libbeostat.layout(rows)[1]
             for part, rows in libbeostat.PARTS.items()}
    form = "%s, %s, %s" % (
        object_template(HEADS)[:-1], ", ".join([
            '"%s": %s' % (part, object_template(fields))
            for part, fields in parts.items()]),
        '"cpus": [%s], "interfaces": [%s]}')

    def encode_text(data):
        return encode(libbeostat.unpack_text(data))
    pick_heads, convert = of(*HEADS), libbeostat.converter([
        "%s.%s" % (part, field) for part in parts for field in parts[part]],
        encode_text)
    format_cpus = list_formatter(
        libbeostat.ONE_CPU_SHOWN, libbeostat.CPU_STRUCT, "busy_fraction",
        lambda busy: busy / libbeostat.FULL)
    format_interfaces = list_formatter(
        libbeostat.INTERFACE, libbeostat.INTERFACE_STRUCT, "name",
        encode_text)

    def format_node(node):
        values = convert(node)
        values[-2] = values[-2] or None         # CPUs, 0 unknown
        if None in values:
            values = ["null" if value is None else value for value in values]
        cpus, interfaces = node.records()
        return form % (*pick_heads(node), *values, format_cpus(cpus),
                       format_interfaces(interfaces))
    return format_node


def texts_of_json(picture):
    """Yield the parts of one JSON document of all there is; null is unknown.
    """
    # costs a quarter of the status view
    from json.encoder import JSONEncoder, encode_basestring_ascii
    encode = JSONEncoder(check_circular=False).encode
    format_node = node_formatter(encode_basestring_ascii)
    yield '{"path": %s, "time_s": %s, "recvstats": %s, "nodes": [' % (
        encode(picture.path), encode(picture.time_s),
        encode(picture.status._asdict()))
    *most, last = picture.nodes or [None]
    for node in most:
        yield format_node(node) + ", "
    yield format_node(last) if last else ""
    yield '], "never": %s, "refused": %s}' % (encode(picture.never), encode(
        {"%d" % number: text for number, text
         in sorted(picture.refused.items())}))


def format_json(picture, args):
    """Return the lines of a JSON document: one for each node, but where each
    document must be a line."""
    texts = texts_of_json(picture)
    return ((text, "") for text in (
        texts if args.watch is None else ["".join(texts)]))


# ---- view: prometheus --------------------------------------------------
# node_exporter's names and labels where it has them; ours are beostat_...
# Values are taken as they were sent: records would take twice the time.

TEXTS_KEPT = 1000               # that many nodes have in common
MODES = [field[:-len("_ticks")] for field in libbeostat.CPU[0][0].split()]
# Dashboards want file systems whose type is not empty.
ROOT = ',device="root",fstype="unknown",mountpoint="/"'

# A metric: name (a counter's ends in _total), help, labels behind a node's.
IS_UP = ("beostat_node_up",
          "1 of a node that is up; stays so while recvstats is gone.", ""),
STATE = ("beostat_node_state", "1 of the state that the node is in.", ""),
HEARD = (
    ("beostat_node_age_seconds", "Time since the last sample arrived.", ""),
    ("beostat_node_received_messages_total", "Messages received.", ""),
    ("beostat_node_lost_messages_total", "Messages that never came.", ""),
    ("beostat_node_agent_restarts_total", "Starts but the first.", ""))
INFO = ("beostat_node_info", "What the node is, and where.", ""),
UNAME = ("node_uname_info", "What uname(2) tells.", ',sysname="Linux"'),
CLIPPED_LISTS = ("beostat_node_clipped", "1 of a list cut short.", ""),
# and the field that it is, in the order of the message
MEASURED = (
    ("node_boot_time_seconds", "Boot time, since the epoch.", "",
     "kernel.boot_time_s"),
    ("node_context_switches_total", "Context switches since boot.", "",
     "kernel.context_switches"),
    ("node_intr_total", "Interrupts since boot.", "", "kernel.interrupts"),
    ("node_forks_total", "Processes made since boot.", "", "kernel.forks"),
    ("node_procs_running", "Tasks running.", "", "kernel.running"),
    ("node_procs_blocked", "Tasks waiting for input or output.", "",
     "kernel.blocked"),
    ("beostat_node_cpu_busy_ratio", "Use of all CPUs over the last period.",
     "", "cpu.busy_fraction"),
    ("node_load1", "1m load average.", "", "load.one"),
    ("node_load5", "5m load average.", "", "load.five"),
    ("node_load15", "15m load average.", "", "load.fifteen"),
    ("node_processes_threads", "Tasks: threads of all processes.", "",
     "load.total"),
    *[("node_memory_%s_bytes" % name, "%s of /proc/meminfo." % name, "",
       "memory." + field) for name, field in MEMORY],
    ("node_filesystem_files", "Inodes of /.", ROOT, "disk.files"),
    ("node_filesystem_files_free", "Free inodes of /.", ROOT,
     "disk.free_files"))
DERIVED = (
    ("node_filesystem_size_bytes", "Size of /.", ROOT),
    ("node_filesystem_free_bytes", "Free in /.", ROOT),
    ("node_filesystem_avail_bytes", "Free in / to users.", ROOT),
    ("beostat_node_agent_cost_seconds", "CPU time of a sample.", ""),
    ("beostat_node_cpus", "CPUs on line.", ""),
    ("node_time_seconds", "Time of the sample by the node's clock.", ""))
CPU_TIMES = [("node_cpu_seconds_total", "CPU time since boot.",
              ',mode="%s"' % mode) for mode in MODES[:8]] + [
    ("node_cpu_guest_seconds_total", "CPU time of guests, in user and nice "
     "as well.", ',mode="%s"' % mode) for mode in ("user", "nice")]
DEVICE = [("node_network_%s_%s_total" % (way, name),    # as in INTERFACE
           "%s of /proc/net/dev." % name, "")
          for way, names in (
              ("receive", "bytes packets errs drop fifo frame compressed "
               "multicast"),
              ("transmit", "bytes packets errs drop fifo colls carrier "
               "compressed")) for name in names.split()]

PICK_TEXTS = libbeostat.picker((
    "host.hostname", "host.release", "host.machine", "processor.vendor",
    "processor.model"))
GET_MEASURED = libbeostat.converter([field for *_, field in MEASURED],
                                    libbeostat.unpack_text)
PICK_DERIVED = libbeostat.picker((
    "disk.block_bytes", "disk.blocks", "disk.free_blocks",
    "disk.available_blocks", "agent.cost_us", "agent.cpus"))
PICK_FLAGS = libbeostat.picker(("agent.flags",))
PICK_CPU = libbeostat.picker([
    "processor.ticks_per_s", *["cpu.%s_ticks" % mode for mode in MODES],
    "agent.cpus"])


def format_label(label, text):
    """Return a label as a metric has it."""
    return '%s="%s"' % (label, safe(text).replace("\\", r"\\").replace(
        '"', r'\"'))


@functools.lru_cache(TEXTS_KEPT)
def text_label(label, data):
    """Return a text of a message as a label behind others."""
    return "," + format_label(label, libbeostat.unpack_text(data))


def label_nodes(picture):
    """Return {number: labels} of all nodes, which no two have in common."""
    names = name_apart(picture.nodes, [*picture.never, *picture.refused])
    return {number: '%s,node="%d"' % (format_label("instance", name), number)
            for number, name in names.items()}


# Functions that give [(labels, values)] of a node, for some metrics.


def values_heard(node):
    """Return what the table tells of the node's messages."""
    return [("", (node.age_s, node.received, node.lost, node.restarts))]


def values_info(node):
    """Return what the node is, as labels."""
    *_, vendor, model = PICK_TEXTS(node)
    return [(text_label("vendor", vendor) + text_label("model", model)
             + ',address="%s"' % node.address, (1,))]


def values_uname(node):
    """Return what uname(2) told, as labels."""
    hostname, release, machine, *_ = PICK_TEXTS(node)
    return [(text_label("release", release) + text_label("machine", machine)
             + text_label("nodename", hostname), (1,))]


def values_measured(node):
    """Return the fields of MEASURED."""
    return [("", GET_MEASURED(node))]


def values_derived(node):
    """Return the values of DERIVED."""
    block_bytes, *blocks, cost_us, cpus = PICK_DERIVED(node)
    return [("", (*[None if None in (block_bytes, count) else
                    count * block_bytes for count in blocks],
                  None if cost_us is None else cost_us / 1e6,
                  cpus or None, node.time_s))]


def values_mean_cpu(node):
    """Return the seconds of all CPUs by their number, so that means and
    shares are right."""
    hz, *ticks, cpus = PICK_CPU(node)
    whole = (hz or 0) * cpus
    return [(',cpu="mean"', tuple([
        None if count is None else round(count / whole, 4)
        for count in ticks]))] if whole else []


def values_each_cpu(node):
    """Return the seconds of each CPU: user, nice, system, idle; of two of
    one id, which no kernel has, one."""
    hz = node.processor.ticks_per_s
    return {',cpu="%d"' % cpu.id:
            tuple([ticks / hz for ticks in cpu[2:]]) + (None,) * 6
            for cpu in node.cpus if hz}.items()


def values_clipped(node):
    """Return the lists that did not all fit."""
    flags, = PICK_FLAGS(node)
    return [(',list="%s"' % what, (1,)) for flag, what in CLIPPED
            if (flags or 0) & flag]


def values_device(node):
    """Return the counts of each interface; of two of one name, which no
    kernel has, one."""
    _, interfaces = node.records()
    return {text_label("device", values[0]): values[1:-2] for values in
            libbeostat.INTERFACE_STRUCT.iter_unpack(interfaces)}.items()


ALWAYS = (HEARD, values_heard), (INFO, values_info)
WHILE_UP = (
    (MEASURED, values_measured), (DERIVED, values_derived),
    (UNAME, values_uname), (CLIPPED_LISTS, values_clipped),
    (DEVICE, values_device))


def format_metrics(rows, samples):
    """Yield metrics, a line for each value that is known.

    rows     the metrics, samples: [(labels, a value for each)]
    """
    labels, values = zip(*samples) if samples else ((), ())
    headed = ""
    for (name, meaning, more, *_), column in zip(rows, zip(*values)):
        pairs = zip(labels, column)
        if None in column:
            pairs = [pair for pair in pairs if pair[1] is not None]
        lines = "\n".join(map((name + "{%s" + more + "} %s").__mod__, pairs))
        if lines and name != headed:
            headed = name
            yield "# HELP %s %s" % (name, meaning), ""
            yield "# TYPE %s %s" % (name, "counter" if name.endswith(
                "_total") else "gauge"), ""
        if lines:
            yield lines, ""


def format_states(picture, labels):
    """Yield the metrics that say of each node what it is."""
    states = [(labels[node.number], node.state) for node in picture.nodes]
    for state, numbers in (("never", picture.never),
                           ("refused", picture.refused)):
        states += [(labels[number], state) for number in numbers]
    yield from format_metrics(IS_UP, [
        (label, (int(state == "up"),)) for label, state in states])
    yield from format_metrics(STATE, [
        ('%s,state="%s"' % pair, (1,)) for pair in states])


def format_recvstats(status):
    """Yield the metrics of recvstats itself."""
    name = "beostat_recvstats_up"
    yield "# HELP %s 1 while recvstats is at work." % name, ""
    yield "# TYPE %s gauge" % name, ""
    yield "%s %d" % (name, status.running), ""
    yield from format_metrics([
        ("beostat_recvstats_datagrams_total", "What became of datagrams.",
         "")], [('result="%s"' % field, (getattr(status, field),))
                for field, *_ in libbeostat.COUNTERS[1:]])


def format_prometheus(picture, args):
    """Yield all there is in Prometheus' text format.

    A node that is not up has no measurements, and none has while nobody
    listens: a last value would live on for ever.
    """
    labels = label_nodes(picture)
    up = [node for node in picture.nodes
          if node.state == "up" and picture.status.running]
    cpu = CPU_TIMES, values_each_cpu if args.per_cpu else values_mean_cpu
    yield from format_states(picture, labels)
    for groups, nodes in (ALWAYS, picture.nodes), ((cpu,) + WHILE_UP, up):
        for rows, get in groups:
            yield from format_metrics(rows, [
                (labels[node.number] + more, values)
                for node in nodes for more, values in get(node)])
    yield from format_recvstats(picture.status)


# ---- view: ganglia -----------------------------------------------------

TMAX_S = 20                     # what gmond says; gmetad waits 4 of them
NO_FOLDER = r"|\.|\.\.|__SummaryInfo__|.*/.*"      # that gmetad could make
KB, GB = 1 / 1024, 1e-9


def scaled(factor, *fields):
    """Return the function that gives the product of some fields of a node,
    times a factor; None when one is unknown."""
    gets = [of(field) for field in fields]

    def value(node):
        product = factor
        for get in gets:
            found = get(node)
            if found is None:
                return None
            product *= found
        return product
    return value


# gmond's name, type, unit, slope, value of a node
GANGLIA = (
    ("load_one", "float", " ", "both", of("load.one")),
    ("load_five", "float", " ", "both", of("load.five")),
    ("load_fifteen", "float", " ", "both", of("load.fifteen")),
    ("proc_run", "uint32", " ", "both", of("load.active")),
    ("proc_total", "uint32", " ", "both", of("load.total")),
    ("cpu_num", "uint16", "CPUs", "zero", known_cpus),
    ("cpu_speed", "uint32", "MHz", "zero", of("processor.mhz")),
    ("cpu_user", "float", "%", "both", scaled(100, "cpu.user_fraction")),
    ("cpu_nice", "float", "%", "both", scaled(100, "cpu.nice_fraction")),
    ("cpu_system", "float", "%", "both", scaled(100, "cpu.system_fraction")),
    ("cpu_wio", "float", "%", "both", scaled(100, "cpu.iowait_fraction")),
    ("cpu_idle", "float", "%", "both", lambda node: libbeostat.less(
        libbeostat.less(100, share(node.cpu.busy_fraction, 1)),
        share(node.cpu.iowait_fraction, 1))),
    ("mem_total", "float", "KB", "zero", scaled(KB, "memory.total_bytes")),
    ("mem_free", "float", "KB", "both", scaled(KB, "memory.free_bytes")),
    ("mem_shared", "float", "KB", "both", scaled(KB, "memory.shared_bytes")),
    ("mem_buffers", "float", "KB", "both", scaled(KB, "memory.buffers_bytes")),
    ("mem_cached", "float", "KB", "both", scaled(KB, "memory.cached_bytes")),
    ("swap_total", "float", "KB", "zero",
     scaled(KB, "memory.swap_total_bytes")),
    ("swap_free", "float", "KB", "both", scaled(KB, "memory.swap_free_bytes")),
    ("bytes_in", "float", "bytes/sec", "both", of("network.rx_bytes_per_s")),
    ("bytes_out", "float", "bytes/sec", "both", of("network.tx_bytes_per_s")),
    ("disk_total", "double", "GB", "zero",
     scaled(GB, "disk.block_bytes", "disk.blocks")),
    ("disk_free", "double", "GB", "both",
     scaled(GB, "disk.block_bytes", "disk.free_blocks")),
    ("part_max_used", "float", "%", "both",
     lambda node: share(*measure(node)[2][10:12])),
    ("boottime", "uint32", "s", "zero", of("kernel.boot_time_s")),
    ("sys_clock", "uint32", "s", "zero", of("time_s")),
    ("machine_type", "string", "", "zero", of("host.machine")),
    ("os_name", "string", "", "zero", lambda node: "Linux"),
    ("os_release", "string", "", "zero", of("host.release")),
)
METRIC = ('<METRIC NAME="%s" VAL="%s" TYPE="%s" UNITS="%s" %s SLOPE="%s" '
          'SOURCE="gmond"/>')


def format_typed(value, kind):
    """Return the text of a metric's value, by its type."""
    if kind == "string":
        return escape_xml(value)
    return ("%d" if kind.startswith("uint") or isinstance(value, int)
            else "%.3f") % value


def format_host(node, name):
    """Return the lines of one HOST."""
    heard = 'TN="%d" TMAX="%d" DMAX="0"' % (node.age_s, TMAX_S)
    lines = ['<HOST NAME="%s" IP="%s" TAGS="" REPORTED="%d" %s '
             'LOCATION="unspecified" GMOND_STARTED="%d">' % (
                 escape_xml(name), node.address, node.heard_time_s, heard,
                 node.start_time_s)]
    for name, kind, unit, slope, get in GANGLIA:
        value = get(node)
        if value is not None:
            lines.append(METRIC % (name, format_typed(value, kind), kind,
                                   unit, heard, slope))
    return lines + ["</HOST>"]


def format_ganglia(picture, args):
    """Return gmond's XML: one cluster, a host per node."""
    lines = ['<?xml version="1.0" encoding="UTF-8" standalone="yes"?>',
             '<GANGLIA_XML VERSION="3.7.2" SOURCE="gmond">',
             '<CLUSTER NAME="%s" LOCALTIME="%d" OWNER="unspecified" '
             'LATLONG="unspecified" URL="unspecified">' % (
                 escape_xml(args.cluster), picture.time_s)]
    names = name_apart(picture.nodes, (), NO_FOLDER)
    for node in picture.nodes:
        lines += format_host(node, names[node.number])
    return [(line, "") for line in lines + ["</CLUSTER>", "</GANGLIA_XML>"]]


# ---- view: html --------------------------------------------------------
# A page that loads nothing and runs nothing.

REFRESH_S, NODES_PER_S = 2, 500     # so many nodes make it slower
ROWS_AT_MOST = 1000             # a browser takes a second for them
SHADE_STEPS = 10
METERS = {"cpu": 100, "mem": 90, "swap": 50, "disk": 90}    # %, high beyond
PAGE_COLUMNS = [(SORT_KEYS.index(key), key) for key in (
    "node", "name", "state", "cpu", "load", "mem", "swap", "disk", "in",
    "out")]
METER = ('%s<meter aria-hidden="true" max="100" high="%d" optimum="0" '
         'value="%.1f"></meter>')
LINKS = (                       # the words that each changes
    ("all", {"state": "", "node": ""}), ("up", {"state": "up", "node": ""}),
    ("not up", {"state": "down", "node": ""}),
    ("rows", {"view": ""}), ("dots", {"view": "dots"}))
SHEET = """
:root{color-scheme:light dark;--page:#fff;--ink:#1f2328;--soft:#69717a;
--line:#eaecef;--fill:91,139,184;--high:#c9892b;--bad:#b93a2d}
@media(prefers-color-scheme:dark){:root{--page:#15181b;--ink:#d3d7dc;
--soft:#8b939c;--line:#272c31;--high:#bd8a40;--bad:#e2776b}}
body{max-width:72rem;margin:0 auto;padding:1.2rem;background:var(--page);
color:var(--ink);font:14px/1.5 system-ui,sans-serif;
font-variant-numeric:tabular-nums}
h1{font-size:1.3rem;font-weight:600;margin:0}
h2{font-size:1rem;font-weight:600;margin:1.5rem 0 0}
p{margin:0;overflow-wrap:anywhere}pre{overflow-x:auto;font-size:12px}
a{color:inherit;text-decoration:none}a:hover{text-decoration:underline}
nav,th,.up .state,.off{color:var(--soft)}nav a{margin-right:1rem}
[aria-current],[aria-sort]{color:var(--ink);font-weight:600}
.bad,.down .state,.refused{color:var(--bad);font-weight:600}
table{border-collapse:collapse;width:100%;margin-top:.6rem}
th{position:sticky;top:0;background:var(--page);font-weight:400}
th,td{padding:.15rem .4rem;text-align:right;white-space:nowrap}
td{border-top:1px solid var(--line)}.total td{font-weight:600}
.name,.state{text-align:left}
td.name{max-width:14rem;overflow:hidden;text-overflow:ellipsis}
meter{appearance:none;width:5rem;height:8px;margin-left:.5rem;
background:none}.off meter{opacity:.4}
meter::-webkit-meter-inner-element{display:block}
meter::-webkit-meter-bar{height:8px;border:0;border-radius:0;
background:var(--line)}
@supports(-moz-appearance:none){meter{border:0;background:var(--line)}}
meter::-webkit-meter-optimum-value{background:rgb(var(--fill))}
meter::-webkit-meter-suboptimum-value{background:var(--high)}
meter::-moz-meter-bar{background:rgb(var(--fill))}
meter:-moz-meter-sub-optimum::-moz-meter-bar{background:var(--high)}
.dots{display:flex;flex-wrap:wrap;gap:1px;margin:.8rem 0}
.dots a{width:10px;height:10px;font:8px/10px sans-serif;text-align:center;
background:rgba(var(--fill),var(--busy,0))}
.dots .down{background:var(--bad);color:var(--page)}
@media(max-width:64rem){.in,.out{display:none}meter{width:3.5rem}}
@media(max-width:44rem){.node,.load,.swap,.disk{display:none}
body{padding:.8rem}meter{width:3rem}td.name{max-width:8rem}}
""" + "".join([".s%d{--busy:%.2f}" % (
    step, .12 + .88 * step / (SHADE_STEPS - 1))
    for step in range(SHADE_STEPS)]) + "\n"
DOTS_MEAN = ("<p>The bluer, the busier; D down, L left, N never heard, "
             "! refused.")
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="%d">
<title>%s: %s</title>
<style>%s</style>
<h1>%s</h1>
%s
<nav>%s</nav>
<table><thead><tr>%s<tbody>
%s
%s
"""


def format_link(text, args, words):
    """Return a link to this page, with some words of its query changed."""
    from urllib.parse import urlencode      # for one view alone
    now = {"view": "dots" if args.dots else "", "sort": args.sort or "",
           "state": {UP: "up", DOWN: "down"}.get(args.states, ""),
           "node": ",".join(args.nodes)}
    query = dict(now, **words)
    return '<a href="?%s"%s>%s</a>' % (
        escape_xml(urlencode({name: word for name, word in query.items()
                              if word})),
        ' aria-current="true"' if query == now else "", escape_xml(text))


def format_heading(nth, key, args):
    """Return the head of a column, which sorts by it, or turns it round."""
    turned = "" if args.sort != key else "-"
    order = ""
    if (args.sort or "").lstrip("-") == key:
        falls = COLUMNS[nth][3] != args.sort.startswith("-")
        order = ' aria-sort="%s"' % ("descending" if falls else "ascending")
    return '<th scope="col" class="%s"%s>%s' % (key, order, format_link(
        COLUMNS[nth][1], args, {"sort": turned + key}))


def format_page_row(values, kind, texts):
    """Return a row of the page.

    values  of COLUMNS, texts: {key: what stands for its value}
    """
    cells, known = [], format_values(values)
    for nth, key in PAGE_COLUMNS:
        value, text = values[nth], texts.get(key, known[nth])
        if key in METERS and value is not None:
            text = METER % (text, METERS[key], value)
        cells.append('<td class="%s">%s' % (key, text))
    return '<tr class="%s">%s' % (kind, "".join(cells))


def format_rows(rows):
    """Return the lines of the page that are rows of its table.

    rows    [(Node, values of COLUMNS)]
    """
    lines = []
    for node, values in rows[:ROWS_AT_MOST]:
        kind, state = "up", "up"
        if node.state != "up":
            kind = node.state + " off"
            state = "%s %s" % (node.state, format_age(node.age_s))
        lines.append(format_page_row(values, kind, {
            "state": state, "name": '<a href="?node=%d">%s</a>' % (
                node.number, escape_xml(values[-1]) or "-")}))
    lines.append("</table>")
    if len(rows) > ROWS_AT_MOST:
        lines.append("<p>The first %d of %d: sort them, or see all as dots."
                     % (ROWS_AT_MOST, len(rows)))
    return lines


def format_dot(node, values):
    """Return the cell of a node, its values as the title."""
    kind = "down" if node.state == "down" else "off"
    texts = format_values(values)
    if node.state == "up":
        kind = "s%d" % ((values[CPU_COLUMN] or 0) / 100 * (SHADE_STEPS - 1)
                        + 0.5)
    title = ", ".join(["n%d %s" % (node.number, values[-1]), node.state] + [
        "%s %s" % (COLUMNS[nth][1], texts[nth])
        for nth, _ in PAGE_COLUMNS[3:]])
    return '<a href="?node=%d" class="%s" title="%s">%s</a>' % (
        node.number, kind, escape_xml(title), CELLS.get(node.state, ""))


def format_page_dots(rows, picture):
    """Return the lines of the page that are cells, of all nodes."""
    cells = [format_dot(*row) for row in rows]
    for state, numbers in (("never", picture.never),
                           ("refused", picture.refused)):
        cells += ['<a class="%s" title="n%d %s">%s</a>' % (
            state, number, state, CELLS[state]) for number in numbers]
    return ["</table>", '<p class="dots">', *cells, "</p>", DOTS_MEAN]


def format_whole(node):
    """Return the lines of all texts of a node."""
    lines = []
    for _, _, title, text, _ in TEXTS:
        lines += ["<h2>%s</h2>" % title, "<pre>%s</pre>" % "\n".join(
            escape_xml(line.expandtabs()) for line in text(node))]
    return lines


def format_facts(picture, clipped):
    """Return the lines of the page that say how the cluster is."""
    fault = find_fault(picture)
    faults = ['<p class="bad" role="alert">%s</p>' % escape_xml(fault)
              ] if fault else []
    return faults + ["<p>%s</p>" % escape_xml(line).replace(",", ",<wbr>")
                   for line in ["%s, %s" % (
                       format_counts(picture), time.strftime(
                           "%H:%M:%S", time.localtime(picture.time_s)))]
                   + format_lists(picture) + format_clipped(clipped, picture)
                   + format_dropped(picture.status.recent)]


def format_html(picture, args):
    """Return the page: facts, links, totals, and rows or cells; of a node
    that is named alone, all there is."""
    rows, up, clipped = [], [], []
    for node in picture.nodes:
        values, flags, sums = measure(node)
        rows.append((node, values))
        if node.state == "up":
            up.append(sums)
        clipped.append((node.number, flags or 0))
    body = format_page_dots(rows, picture) if args.dots else format_rows(rows)
    if args.nodes and len(rows) == 1:
        body += format_whole(picture.nodes[0])
    title = escape_xml(args.cluster)
    return [(PAGE % (
        max(REFRESH_S, len(rows) // NODES_PER_S), title,
        format_counts(picture), SHEET, title,
        "\n".join(format_facts(picture, clipped)),
        "".join([format_link(text, args, words) for text, words in LINKS]),
        "".join([format_heading(nth, key, args)
                 for nth, key in PAGE_COLUMNS]),
        format_page_row(measure_all(up), "total",
                        {"node": "", "name": "total"}),
        "\n".join(body)), "")]


# ---- watch -------------------------------------------------------------

WATCH_S, LEAST_WATCH_S, MOST_WATCH_S = 2.0, 0.1, 1e6
HISTORY = 300                   # instants in the line of CPU use
HEIGHTS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
PLAIN_HEIGHTS = " .:-=+*#"
SCROLL = {b"\033[A": "back", b"k": "back", b"\033[B": "on", b"j": "on",
          b"\033[5~": "page back", b"b": "page back", b"\033[6~": "page on",
          b" ": "page on", b"\033[H": "top", b"g": "top", b"\033[F": "end",
          b"G": "end"}
KEY = rb"(?s)\033\[[0-9;]*.|."
ENTER_KEYS, ERASE_KEYS = (b"\r", b"\n"), (b"\x7f", b"\b")
ESCAPE_KEY, STOP_KEY = b"\033", b"\x1a"
ENTER = b"\033[?1049h\033[?25l\033[?7l"     # other screen, no cursor, no wrap
LEAVE = b"\033[?7h\033[?25h\033[?1049l"
HELP = """\
q               quit
j k, arrows     a line down, up
PgUp PgDn       a page; also b and the space bar
g G, Home End   the first, the last line
s               sort by the next column
/               show only some nodes: a node list or a part of the host
                name, Enter; empty: all
?               this help, and back
"""


def format_head(picture, history, args):
    """Return the lines above a view that is watched."""
    heights = HEIGHTS if args.wide else PLAIN_HEIGHTS
    values = measure_all([measure(node)[2] for node in picture.nodes
                          if node.state == "up"])
    line = "%s  %s%s  %s CPUs  load %s" % (
        time.strftime("%H:%M:%S", time.localtime(picture.time_s)),
        format_counts(picture), "" if picture.status.running else
        "; RECVSTATS IS GONE", format_values(values)[3],
        "-" if values[5] is None else "%.1f" % values[5])
    history.append(min(values[CPU_COLUMN] or 0, 100))
    cells = [heights[int(value / 100 * (len(heights) - 1) + 0.5)]
             for value in history]
    text = "cpu %4s%% " % format_percent(values[CPU_COLUMN])
    return [(line, "bold"),
            (text + "".join(cells[-max(args.width - len(text), 1):]), "")]


def format_foot(hidden, prompt, args):
    """Return the last line: what is typed, else what keys there are."""
    if prompt is not None:
        return "/" + safe(prompt) + "_"
    parts = ["q quits, ? helps"]
    if args.sort:
        parts.append("sorted by " + args.sort)
    if args.filter:
        parts.append("only " + safe(args.filter))
    if hidden > 0:
        parts.append("j k PgUp PgDn scroll: %d lines not shown" % hidden)
    return ", ".join(parts)


def format_frame(lines, head, first, prompt, args):
    """Return the bytes that redraw a window with lines from first on.

    The heading of a table stays on top; what does not fit is counted.
    """
    fixed = head + [line for line in lines[:1] if line[1] == "bold"]
    body = lines[len(fixed) - len(head):]
    room = max(args.height - len(fixed) - 1, 1)
    shown = body[first:first + room]
    foot = [(format_foot(len(body) - len(shown), prompt, args), "dim")]
    text = "\033[H" + "\n".join(
        paint(line if "\033" in line else line[:args.width], colour,
              args.colours) + "\033[K"
        for line, colour in (fixed + shown + foot)[:args.height]) + "\033[J"
    return text.encode(args.encoding, "backslashreplace")


class Screen:
    """A terminal in raw mode with its other screen, given back at exit.

    first      of the lines to show
    prompt     what is typed behind /, None when nothing is
    help       whether the keys are shown
    """

    def __enter__(self):
        self.first, self.prompt, self.help = 0, None, False
        self.input = sys.stdin.fileno()
        self.reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)    # a resize ends the wait for a key
        signal.signal(signal.SIGWINCH, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        self.prepare()
        return self

    def __exit__(self, *_):
        signal.set_wakeup_fd(-1)
        self.give_back()

    def prepare(self):
        """Make the terminal ours; ^Z is a key, lest it stop us before we
        have given it back."""
        import termios
        import tty
        self.before = termios.tcgetattr(self.input)
        tty.setcbreak(self.input)
        modes = termios.tcgetattr(self.input)
        modes[-1][termios.VSUSP] = b"\0"
        termios.tcsetattr(self.input, termios.TCSANOW, modes)
        write(ENTER)

    def give_back(self):
        """Leave the terminal as it was."""
        import termios
        write(LEAVE)
        termios.tcsetattr(self.input, termios.TCSADRAIN, self.before)

    def stop(self):
        """Stop, as ^Z stops all of a shell's job, until it goes on."""
        self.give_back()
        os.kill(0, signal.SIGTSTP)
        self.prepare()

    def read_keys(self, wait_s):
        """Return the keys typed, in order, q when the terminal is gone.

        None were after the wait, or when the window changed its size.
        """
        ready, _, _ = select.select([self.input, self.reader], [], [],
                                    max(wait_s, 0))
        if self.reader in ready:
            os.read(self.reader, 64)
        if self.input not in ready:
            return []
        return re.findall(KEY, os.read(self.input, 64)) or [b"q"]

    def press(self, key, args, count):
        """Do what a key is for; return whether the nodes change.

        count  of the lines that there are
        """
        if key == STOP_KEY:
            self.stop()
        elif self.prompt is not None:
            return self.edit(key, args)
        elif key == b"/":
            self.prompt = ""
        elif key == b"?":
            self.help, self.first = not self.help, 0
        elif key == b"s":
            keys = args.view.sort_keys
            last = keys.index(args.sort.lstrip("-")) if args.sort else -1
            args.sort = keys[(last + 1) % len(keys)]
        elif key in SCROLL:
            page = max(args.height - 4, 1)
            self.first += {"back": -1, "on": 1, "page back": -page, "page on":
                           page, "top": -count, "end": count}[SCROLL[key]]
            self.first = max(min(self.first, count - 1 - page), 0)
        return key == b"s"

    def edit(self, key, args):
        """Change what is typed; return whether the nodes change."""
        if key in ENTER_KEYS:
            args.filter, self.prompt, self.first = self.prompt, None, 0
        elif key == ESCAPE_KEY:
            self.prompt = None
        elif key in ERASE_KEYS:
            self.prompt = self.prompt[:-1]
        elif key.decode("ascii", "replace").isprintable():
            self.prompt += key.decode("ascii", "ignore")
        return key in ENTER_KEYS


def format_watched(picture, args):
    """Return the lines of a view, and below it what is missing."""
    missing, fault = list(picture.missing), find_fault(picture)
    if fault and picture.status.running:        # else its views say so
        missing.append(fault)
    return list(args.view.format(picture, args)) + [
        (safe(line), "red") for line in missing if args.view not in DOCUMENTS]


def watch_screen(cluster, args):
    """Redraw the view in a terminal until q; return the last Picture."""
    history = collections.deque(maxlen=HISTORY)
    with Screen() as screen:
        due = time.monotonic()
        while True:
            args.width, args.height = window()
            if time.monotonic() >= due:
                picture = read_picture(cluster, args)
                head = format_head(picture, history, args)
                due = max(due + args.watch, time.monotonic())
            lines = ([(line, "") for line in HELP.splitlines()]
                     if screen.help else format_watched(picture, args))
            write(format_frame(lines, head, screen.first, screen.prompt,
                               args))
            for key in screen.read_keys(due - time.monotonic()):
                if key == b"q" and screen.prompt is None:
                    return picture
                if screen.press(key, args, len(lines)):
                    due = time.monotonic()


def read_later(cluster, args, pause_s):
    """Return the Picture after a pause, or after as many as it takes to
    read one."""
    while True:
        time.sleep(pause_s)
        try:
            return read_picture(cluster, args)
        except libbeostat.BeostatError as error:
            complain(error)


def watch(cluster, args):
    """Show the view again and again; return the last Picture."""
    if args.live:
        return watch_screen(cluster, args)
    picture = read_picture(cluster, args)
    while True:
        write(format_lines(format_watched(picture, args), args))
        if args.view not in DOCUMENTS:
            write(b"\n" if picture.status.running
                  else b"recvstats is gone\n\n")
        picture = read_later(cluster, args, args.watch)


# ---- events ------------------------------------------------------------
# What becomes of the nodes, from now on: a line for each kind of change.

EVENTS_S = 1.0                  # between two reads
EVENT_TIME = "%Y-%m-%dT%H:%M:%S"


def find_changes(before, now):
    """Return {state: the nodes that came to it}.

    before, now  {number: Node}
    """
    changes = {}
    for number, node in now.items():
        if number not in before or before[number].state != node.state:
            changes.setdefault(node.state, []).append(node)
    return changes


def format_event(picture, event, nodes, args):
    """Return the bytes of an event's line: its time, what, and who."""
    when = time.strftime(EVENT_TIME, time.localtime(picture.time_s))
    folded = fold(name_nodes(nodes, [], args), picture)
    if args.view == JSON:
        from json import dumps
        return dumps({"time": when, "event": event, "nodes": (
            libbeostat.expand_nodes(folded) if folded else [])
                      }).encode() + b"\n"
    return ("%s %s %s" % (when, event, folded)).rstrip().encode() + b"\n"


def watch_events(cluster, args):
    """Write what happens, as it does, for ever."""
    before = read_picture(cluster, args)
    while True:
        now = read_later(cluster, args, args.watch or EVENTS_S)
        if now.status.running != before.status.running:
            event = ("recvstats back" if now.status.running
                     else "recvstats gone")
            write(format_event(now, event, [], args))
        changes = find_changes(*[{node.number: node for node in picture.nodes}
                                 for picture in (before, now)])
        for state, nodes in sorted(changes.items()):
            write(format_event(now, state, nodes, args))
        before = now


# ---- serve -------------------------------------------------------------
# Documents to browsers and Prometheus: a process for each request.

CHILDREN, CHILD_S = 40, 10      # at once; each is ended then
NAMES_AT_MOST = 100000          # in a request's lists of nodes
NAME_CHARACTERS = 64            # of a host's name
PORT_MOST = 65535
COLLECT_S = 30.0                # at the latest, children are waited for
REQUEST_BYTES = 1 << 16
SPAN = r"\D*([0-9]{1,18})-([0-9]{1,18})\s*"
REQUEST_END = rb"\r?\n\r?\n"
PLAIN = "text/plain; charset=utf-8"
WRONG_HOST = b"Host is not this machine: use its address or its name\n"
PATHS = {"/": "--html", "/metrics": "--prometheus", "/json": "--json"}
QUERY = {("view", "dots"): "--dots", ("state", "up"): "--up",
         ("state", "down"): "--down"}


def parse_address(text):
    """Return (address, port) of [ADDRESS:]PORT, by default of the loopback.

    Raises  ArgumentTypeError
    """
    import argparse                     # for one option alone
    found = re.fullmatch(r"(?:([0-9.]+):)?([0-9]{1,5})", text)
    if not found or int(found.group(2)) > PORT_MOST:
        raise argparse.ArgumentTypeError("%s is not [ADDRESS:]PORT" % text)
    return found.group(1) or "127.0.0.1", int(found.group(2))


def check_documents(args, views, refuse):
    """Refuse what changes nothing."""
    if args.per_cpu and not (args.serve or PROMETHEUS in views):
        refuse("--per-cpu goes with --prometheus, or --serve")
    if args.cluster and not (args.serve or any(
            view.format in (format_ganglia, format_html) for view in views)):
        refuse("--cluster goes with --ganglia, --html, or --serve")
    args.cluster = args.cluster or "beostat"
    if args.http and (views.isdisjoint(DOCUMENTS) or args.events
                      or args.watch is not None):
        refuse("--http goes before one document")


def check_serve(args, refuse):
    """Refuse options that a request has, not the server."""
    if [name for name, value in vars(args).items()
            if value != DEFAULTS[name]
            and name not in ("serve", "per_cpu", "cluster", "table")]:
        refuse("--serve goes with --per-cpu, --cluster and --table alone")


def count_names(text):
    """Return how many names a list of nodes is, before it is expanded; one
    that no host can have counts for as many as its length is of."""
    total = 0
    for item in re.findall(libbeostat.ITEMS, text):
        count, width = 1, 0
        for part in re.split(r"[][]", item):
            spans = [re.fullmatch(SPAN, span) for span in part.split(",")]
            count *= sum([max(int(span.group(2)) - int(span.group(1)) + 1, 1)
                          if span else 1 for span in spans])
            width += len(part) // len(spans)
        total += count * (1 + width // NAME_CHARACTERS)
    return total


def parse_query(path, query):
    """Return the words of a command line that a request stands for.

    Raises  ValueError
    """
    from urllib.parse import parse_qsl
    words, nodes = [PATHS[path]], ["--"]
    for name, word in parse_qsl(query):
        if name == "node":
            nodes.append(word)
        elif name == "sort":
            words.append("--sort=" + word)
        elif (name, word) in QUERY:
            words.append(QUERY[name, word])
        else:
            raise ValueError("%s=%s: not a word of this page" % (name, word))
    if count_names(",".join(nodes[1:])) > NAMES_AT_MOST:
        raise ValueError("names too many nodes")
    return words + nodes


def is_here(hosts, names):
    """Return whether a request's Host is this machine: an address, or one of
    its names.  A page from elsewhere may have its own name lead here."""
    import ipaddress
    name = re.sub(":[0-9]*$", "", "".join(hosts[:1])).strip("[]").lower()
    try:
        return len(hosts) == 1 and (name in names or bool(
            ipaddress.ip_address(name)))
    except ValueError:
        return False


def reply(target, args):
    """Return (HTTP status, media type, bytes) in answer to a request.

    target  path and query, args: of the server
    """
    gc.disable()                        # there will be no garbage in time
    path, _, query = target.partition("?")
    if path not in PATHS:
        return 404, PLAIN, ("no such page: %s\n" % " ".join(PATHS)).encode()
    try:
        page = parse_args(parse_query(path, query), error=refuse_query)
        vars(page).update(cluster=args.cluster, per_cpu=args.per_cpu)
        with libbeostat.open(args.table) as cluster:
            picture = read_picture(cluster, page)
        if picture.missing:
            return 404, PLAIN, format_lines([
                (line, "") for line in picture.missing], page)
        return 200, DOCUMENTS[page.view], format_lines(
            page.view.format(picture, page), page)
    except (ValueError, libbeostat.BadNodeList) as error:
        status, text = 400, "%s" % error
    except libbeostat.NoTable as error:
        status, text = 503, NOT_RUNNING % error
    except libbeostat.BeostatError as error:
        status, text = 503, "%s" % error
    return status, PLAIN, ("%s\n" % safe(text)).encode("utf-8", "replace")


def refuse_query(text):
    """Refuse words of a query, as a command line would be."""
    raise ValueError(text)


@functools.lru_cache(None)
def format_source(text):
    """Return how a Content-Security-Policy names a style sheet."""
    import base64
    import hashlib
    return "'sha256-%s'" % base64.b64encode(
        hashlib.sha256(text.encode()).digest()).decode()


def format_headers(kind, size):
    """Return the header of a reply, [(name, value)]."""
    return [("Content-Type", kind), ("Content-Length", "%d" % size),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", "default-src 'none'; style-src "
             + format_source(SHEET))]


def has_client(args):
    """Return whether a client of an inetd gets the document."""
    return (args.http or args.view.format is format_ganglia) and stat.S_ISSOCK(
        os.fstat(1).st_mode)


def make_reply(data, args):
    """Return a document as a whole reply to the request on a socket, if an
    inetd has started us: unread, it would make the kernel drop our end."""
    request = b"" if has_client(args) else b"\n\n"
    while (len(request) < REQUEST_BYTES
           and not re.search(REQUEST_END, request)):
        try:
            request += os.read(1, REQUEST_BYTES) or b"\n\n"
        except OSError:                 # it has hung up
            break
    headers = format_headers(DOCUMENTS[args.view], len(data))
    return "\r\n".join(["HTTP/1.0 200 OK"] + [
        "%s: %s" % pair for pair in headers] + ["", ""]).encode() + data


def make_handler(args):
    """Return the class that answers a request, in a process of its own."""
    import http.server
    import socket
    names = {"localhost", socket.gethostname().lower(),
             socket.getfqdn().lower()}

    class Handler(http.server.BaseHTTPRequestHandler):
        server_version, sys_version = "beostat/" + VERSION, ""

        def setup(self):
            signal.alarm(CHILD_S)
            self.server.socket.close()      # lest it outlive the server
            try:                        # where memory is short, end it first
                with open("/proc/self/oom_score_adj", "w") as file:
                    file.write("1000")
            except OSError:
                pass
            super().setup()

        def answer(self, status, kind, body, *more):
            self.send_response(status)
            for pair in [*format_headers(kind, len(body)), *more]:
                self.send_header(*pair)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            if is_here(self.headers.get_all("Host", []), names):
                self.answer(*reply(self.path, args))
            else:
                self.answer(400, PLAIN, WRONG_HOST)

        def do_POST(self):
            self.answer(405, PLAIN, b"GET or HEAD\n", ("Allow", "GET, HEAD"))

        def log_message(self, *_):
            pass

        do_HEAD = do_GET
        do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST
    return Handler


def serve(args):
    """Answer requests for ever.

    Raises  BeostatError when that cannot begin
    """
    import socketserver

    class Server(socketserver.ForkingMixIn, socketserver.TCPServer):
        allow_reuse_address = True
        max_children, request_queue_size = CHILDREN, CHILDREN

        def handle_error(self, *_):
            error = sys.exc_info()[1]
            if not isinstance(error, OSError):      # a client that hung up
                complain("%r" % error)
    try:
        server = Server(args.serve, make_handler(args))
    except OSError as error:
        raise libbeostat.BeostatError(
            "--serve %s:%d: %s: choose another address or port" % (
                args.serve + (error.strerror,)))
    format_source(SHEET)                # once, not in each child
    complain("serving http://%s:%d/" % server.server_address)
    server.serve_forever(COLLECT_S)


# ---- command line ------------------------------------------------------

WINDOW = 80, 24                 # columns and lines, where none are told

# Documents are for programs: no colours, no screen.
JSON = View(("--json",), format_json, read_sorted, SORT_KEYS)
DAEMON = View(("--daemon",), format_daemon, read_sorted, SORT_KEYS)
PROMETHEUS = View(("--prometheus",), format_prometheus, read_sorted,
                  SORT_KEYS)
HTML = View(("--html",), format_html, read_sorted, SORT_KEYS)
DOTS = View(("--dots",), format_dots, read_sorted, SORT_KEYS)
DOCUMENTS = {                   # with the type that --http tells
    JSON: "application/json",
    PROMETHEUS: "text/plain; version=0.0.4; charset=utf-8",
    View(("--ganglia",), format_ganglia, read_sorted, SORT_KEYS): "text/xml",
    HTML: "text/html; charset=utf-8"}
VIEWS = (*DOCUMENTS, DOTS, DAEMON,
         View(("-J", "--jobs"), format_jobs, read_jobs, JOB_KEYS))
# Those that other options choose.
TABLE = View((), format_table, read_sorted, SORT_KEYS)
FOLDED = View((), format_folded, read_sorted, SORT_KEYS)
CHOSEN_TEXTS = View((), format_texts, read_sorted, SORT_KEYS)
DEFAULTS = dict(
    nodes=[], texts=[], views=[], all=False, serve=None, http=False,
    events=False, brief=False, watch=None, sort=None, reverse=False, top=None,
    states=None, names=False, per_cpu=False, cluster=None, table=None,
    filter="")


def make_parser():
    """Return the parser of the options; its help is the text above."""
    import argparse                     # a sixth of the view of 1,000 nodes
    parser = argparse.ArgumentParser(
        prog="beostat", usage="beostat.py [view] [selection] [NODES ...]",
        # A width, lest it load shutil for it.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=79))
    parser.format_help = lambda: __doc__ or parser.format_usage()
    option = parser.add_argument
    option("nodes", nargs="*")
    for short, long, title, text, _ in TEXTS:
        option(short, long, dest="texts", action="append_const",
               const=(title, text))
    option("-a", "--all", action="store_true")
    for view in VIEWS:
        option(*view.options, dest="views", action="append_const",
               const=view)
    option("--serve", type=parse_address)
    option("--http", action="store_true")
    option("--events", action="store_true")
    option("-b", "--brief", action="store_true")
    option("-w", "--watch", nargs="?", const="")
    option("--sort")
    option("--reverse", action="store_true")
    option("--top", type=int)
    option("--up", dest="states", action="store_const", const=UP)
    option("--down", dest="states", action="store_const", const=DOWN)
    option("--names", action="store_true")
    option("--per-cpu", action="store_true")
    option("--cluster")
    option("--table")
    parser.set_defaults(**DEFAULTS)
    option("-v", "--version", action="version", version="beostat " + VERSION)
    return parser


def split_words(argv):
    """Return the words of a command line as argparse wants them.

    Lest -KEY of --sort, or the master in a list of nodes, be an option.
    """
    words = ["master" + word[2:] if re.match("-1(,|$)", word)
             and before not in ("--top", "--sort") else word
             for before, word in zip([""] + argv, argv)]
    while "--sort" in words[:-1]:
        nth = words.index("--sort")
        words[nth:nth + 2] = ["--sort=" + words[nth + 1]]
    return words


def parse_args(argv, program="beostat", error=None):
    """Return the options, completed; argparse exits 2 on a usage error.

    program  called as beostatus, it watches, and -c says so as well
    error    what to do with a usage error instead
    """
    words, refuse = split_words(argv), error or refuse_words
    if program == "beostatus":
        words = ["--watch=%g" % WATCH_S, *[
            word for word in words if word != "-c"]]
    if any(word.startswith("-") for word in words):
        parser = make_parser()
        parser.error = refuse
        args = parser.parse_args(words)
    else:
        args = types.SimpleNamespace(**dict(DEFAULTS, nodes=words))
    if args.serve:
        check_serve(args, refuse)
    args.watch, args.nodes = choose_watch(args, refuse)
    args.view = choose_view(args, refuse)
    if args.sort and args.sort.lstrip("-") not in args.view.sort_keys:
        refuse("--sort %s: choose from %s" % (
            args.sort, " ".join(args.view.sort_keys)))
    if args.top is not None and args.top < 1:
        refuse("--top %d: at least 1" % args.top)
    read_terminal(args)
    return args


def refuse_words(text):
    """Exit 2 with an error of usage."""
    make_parser().error(text)


def choose_view(args, refuse):
    """Return the View; with --all, its texts are completed.

    refuse  ends the program with an error of usage
    """
    if args.all:
        args.texts = [(title, text) for _, _, title, text, shown in TEXTS
                      if shown or (title, text) in args.texts]
    views = set(args.views)
    args.dots = DOTS in views
    if views == {HTML, DOTS}:
        views = {HTML}
    check_documents(args, views, refuse)
    if args.texts:
        views.add(CHOSEN_TEXTS)
    if args.names and not args.events:
        views.add(FOLDED)
    if len(views) > 1 or args.events and not views <= {JSON}:
        refuse("one view at a time")
    if args.events and (args.sort or args.reverse or args.top or args.brief):
        refuse("--events: no --sort, --reverse, --top or --brief")
    if DAEMON in views and args.nodes:
        refuse("--daemon is about recvstats: no NODES")
    if views:
        return views.pop()
    return FOLDED if args.brief and args.states else TABLE


def choose_watch(args, refuse):
    """Return (seconds between two views or None, NODES)."""
    if args.watch is None:
        return None, args.nodes
    try:
        seconds, nodes = float(args.watch or WATCH_S), args.nodes
    except ValueError:                  # it was the first of NODES
        seconds, nodes = WATCH_S, [args.watch] + args.nodes
    if not LEAST_WATCH_S <= seconds <= MOST_WATCH_S:
        refuse("--watch: %g to %g seconds" % (LEAST_WATCH_S, MOST_WATCH_S))
    return seconds, nodes


def read_terminal(args):
    """Set what the terminal is like: terminal, colours, live, width, height,
    encoding (UTF-8 for programs), wide (whether it shows all of Unicode)."""
    args.terminal = (sys.stdout.isatty() and args.view not in DOCUMENTS
                     and os.environ.get("TERM") not in (None, "", "dumb"))
    args.colours = args.terminal and "NO_COLOR" not in os.environ
    args.live = (args.watch is not None and args.terminal
                 and sys.stdin is not None and sys.stdin.isatty())
    args.width, args.height = window()
    args.encoding = ("utf-8" if args.view in DOCUMENTS
                     else sys.stdout.encoding or "utf-8")
    args.wide = "utf" in args.encoding.lower()


def window():
    """Return (columns, lines) of the terminal, else of $COLUMNS, $LINES."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        size = [int(text) if text.isdigit() else 0 for text in (
            os.environ.get(name, "") for name in ("COLUMNS", "LINES"))]
    return [told or default for told, default in zip(size, WINDOW)]


def format_lines(lines, args):
    """Return the bytes of a view's lines."""
    data = bytearray()                  # which grows where it is
    for line, colour in lines:
        data += paint(line, colour, args.colours).encode(
            args.encoding, "backslashreplace")
        data += b"\n"
    return data


def write(data):
    """Write bytes to standard output, at once.

    A pipe that its other user has set not to block is waited for.
    Raises  BeostatError
    """
    rest, output = memoryview(data), sys.stdout.fileno()
    try:
        while rest:
            try:
                rest = rest[os.write(output, rest):]
            except BlockingIOError:
                select.select([], [output], [])
    except OSError as error:
        raise libbeostat.BeostatError("cannot write: %s" % error.strerror)


def complain(text):
    """Write a line to standard error, if anybody takes it."""
    try:
        print("beostat: %s" % text, file=sys.stderr, flush=True)
    except OSError:
        pass


def run(args):
    """Show the view; return the last Picture.

    Raises  BeostatError
    """
    if args.serve:
        serve(args)
    with libbeostat.open(args.table) as cluster:
        if args.events:
            return watch_events(cluster, args)
        if args.watch is not None:
            return watch(cluster, args)
        gc.disable()                    # there will be no garbage in time
        picture = read_picture(cluster, args)
        data = format_lines(args.view.format(picture, args), args)
        if has_client(args):            # that may never read
            signal.alarm(CHILD_S)
        write(make_reply(data, args) if args.http else data)
        return picture


def is_inetd():
    """Return whether all standard files are one client of inetd, which takes
    a document and nothing behind it."""
    try:
        return (stat.S_ISSOCK(os.fstat(0).st_mode)
                and os.path.sameopenfile(0, 2))
    except OSError:
        return False


def main(argv=None):
    """Return the exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # With 2>&- print would use stdout.
    if sys.stderr is None or is_inetd():
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        complain("cannot write: standard output is closed")
        return 3
    program, _, _ = os.path.basename(sys.argv[0]).partition(".")
    args = parse_args(sys.argv[1:] if argv is None else argv, program)
    try:
        return report(run(args), args)
    except KeyboardInterrupt:
        return 1
    except libbeostat.BadNodeList as error:
        complain(error)
        return 2
    except libbeostat.NoTable as error:
        complain(NOT_RUNNING % error)
        return 3
    except (libbeostat.BeostatError, OSError, ImportError) as error:
        complain(error)
        return 3


def report(picture, args):
    """Say what is missing from a view; return the exit status.

    A document that says itself that recvstats is gone is complete.
    """
    for error in picture.missing:
        complain(error)
    if args.view in DOCUMENTS:
        return 1 if picture.missing else 0
    fault = find_fault(picture)
    if fault:
        complain(fault)
        return 3
    up = all(node.state == "up" for node in picture.nodes)
    return 0 if up and not picture.missing and not picture.refused else 1


if __name__ == "__main__":
    os._exit(main())        # all is written; to free it takes a quarter more
