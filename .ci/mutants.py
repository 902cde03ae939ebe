#!/usr/bin/env python3
"""mutants - change the tools by chance, and see whether the tests notice

    python3 .ci/mutants.py [--seed N] [--count N] [--jobs N] [--list]

Every mutant is one change at one place, drawn with a printed seed from all
places of the four files: a comparison turned, and/or swapped, a statement
dropped, a number changed, each kind as often as the others.  test_all.py
runs on a copy, in namespaces of its own (root is needed), to the first
failure; the test that failed must then fail alone as well.  A line for each
mutant says what noticed it; the last one says how many were noticed.

Exit status: 0 at least 95 % were noticed, 1 fewer, or the tests fail as is.
"""

import argparse
import ast
import collections
import concurrent.futures
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOLS = "sendstats.py", "recvstats.py", "libbeostat.py", "beostat.py"
WANTED = .95
TURNS = "not test_slow", "test_slow"    # most are noticed by the quick ones
LIMIT_S = 200                           # a suite that hangs has noticed
ALONE = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork",
         "--mount-proc", "--kill-child", "sh", "-c",
         'ip link set lo up; ip link add eth0 type veth; '
         'mount -t tmpfs none /dev/shm; "$@"; exit $?', "sh"]
TURNED = {ast.Lt: ("<", ">="), ast.LtE: ("<=", ">"), ast.Gt: (">", "<="),
          ast.GtE: (">=", "<"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
          ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
          ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")}
SWAPPED = {ast.And: ("and", "or"), ast.Or: ("or", "and")}
DROPPED = (ast.Assign, ast.AugAssign, ast.Delete, ast.Raise, ast.Return,
           ast.Continue, ast.Break, ast.Expr)

# file, line, kind; start and end of the text that another replaces
Mutant = collections.namedtuple("Mutant", "file line kind start end text")


def places(file, source):
    """Yield the Mutants of a file's text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))

    def at(line, column):
        return starts[line - 1] + column

    def span(node):
        return at(node.lineno, node.col_offset), at(node.end_lineno,
                                                    node.end_col_offset)

    def between(kind, left, right, old, new):
        start, end = span(left)[1], span(right)[0]
        found = re.search(r"(?<!\w)%s(?!\w)" % re.escape(old).replace(
            r"\ ", r"\s+"), data[start:end].decode())
        return Mutant(file, left.end_lineno, kind, start + found.start(),
                      start + found.end(), new)

    data = source.encode()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, right, kind in zip(sides, sides[1:], node.ops):
                yield between("turned", left, right, *TURNED[type(kind)])
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:]):
                yield between("swapped", left, right,
                              *SWAPPED[type(node.op)])
        elif isinstance(node, ast.Constant) and type(node.value) in (
                int, float):
            more = node.value + (1 if abs(node.value) < 10 else node.value)
            yield Mutant(file, node.lineno, "number", *span(node), repr(more))
        elif isinstance(node, DROPPED) and not (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)):
            yield Mutant(file, node.lineno, "dropped", *span(node), "pass")


def draw(seed, count):
    """Return mutants drawn by chance, each kind as often as the others."""
    kinds = collections.defaultdict(list)
    for file in TOOLS:
        with open(os.path.join(HERE, file)) as source:
            for mutant in places(file, source.read()):
                kinds[mutant.kind].append(mutant)
    chance = random.Random(seed)
    drawn = []
    for number, kind in enumerate(sorted(kinds)):
        share = (count + number) // len(kinds)
        drawn += chance.sample(kinds[kind], share)
    return sorted(drawn)


def describe(mutant):
    """Return a mutant's place and change in a line."""
    with open(os.path.join(HERE, mutant.file), "rb") as source:
        data = source.read()
    old = " ".join(data[mutant.start:mutant.end].decode().split())
    line = data.splitlines()[mutant.line - 1].decode().strip()
    if mutant.kind == "dropped":
        return "%s:%d: dropped: %s" % (mutant.file, mutant.line, old[:60])
    return "%s:%d: %s -> %s: %s" % (mutant.file, mutant.line, old,
                                    mutant.text, line[:60])


def test(folder, *words):
    """Return what the tests of a folder print, or "" when they pass."""
    try:
        done = subprocess.run(
            [*ALONE, sys.executable, "-m", "pytest", "-x", "-q", "--tb=no",
             "-p", "no:cacheprovider", *words], cwd=folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=LIMIT_S, text=True)
    except subprocess.TimeoutExpired:
        return "no end within %d s" % LIMIT_S
    return done.stdout if done.returncode else ""


def failed(output):
    """Return the names of the tests that a run's output says failed."""
    return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.M)


def verdict(mutant):
    """Return the test that notices a mutant, None when none does.

    A failure that does not come again alone is chance, and the rest of the
    tests, without that one, decide.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = os.path.join(folder, "tree")
        shutil.copytree(HERE, tree, ignore=shutil.ignore_patterns(
            ".git", "__pycache__"))
        if mutant:
            path = os.path.join(tree, mutant.file)
            with open(path, "rb") as source:
                data = source.read()
            with open(path, "wb") as target:
                target.write(data[:mutant.start] + mutant.text.encode()
                             + data[mutant.end:])
        without, turns = [], list(TURNS)
        while turns:
            output = test(tree, "test_all.py", "-k", turns[0], *without)
            names = failed(output)
            if not output:
                del turns[0]
            elif not names:
                return output.strip().rpartition("\n")[2]
            elif test(tree, names[0]):
                return names[0].partition("::")[2] or names[0]
            else:
                without += ["--deselect", names[0]]


def parse_args():
    """Return the options."""
    parser = argparse.ArgumentParser(description="Change the tools by "
                                     "chance and run their tests.")
    option = parser.add_argument
    option("--seed", type=int, default=int(time.time()))
    option("--count", type=int, default=100)
    option("--jobs", type=int, default=os.cpu_count())
    option("--list", action="store_true", help="only say what is changed")
    return parser.parse_args()


def main():
    """Return the exit status."""
    args = parse_args()
    print("seed %d" % args.seed, flush=True)
    mutants = draw(args.seed, args.count)
    if args.list:
        print("\n".join(map(describe, mutants)))
        return 0
    as_is = verdict(None)
    if as_is:
        print("the tools as they are fail: %s" % as_is)
        return 1
    noticed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for mutant, name in zip(mutants, pool.map(verdict, mutants)):
            print("%s\n    %s" % (describe(mutant), name or "SURVIVED"),
                  flush=True)
            noticed += bool(name)
    print("seed %d: %d of %d noticed" % (args.seed, noticed, len(mutants)))
    return int(noticed < WANTED * len(mutants))


if __name__ == "__main__":
    sys.exit(main())
