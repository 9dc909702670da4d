#!/usr/bin/python3
"""Follow a document as a reader would: does every command print what it says?

usage: document.py [--ip DIR] DOCUMENT.rst

Run as root in a guest that can be thrown away: it types the commands of the
document, in their order, into one bash.  DIR comes first in its PATH, by default
build/iproute2/ip.

A literal block with lines that begin with '# ' is a transcript: such a line is a
command, which goes on behind a '\\' at the end of a line; the lines up to the next
command are what is printed.  Other literal blocks are not looked at, and named.

What is printed has to be the same, also by tcpdump in the background, but for
- blank lines, and runs of blanks in a line
- the folding of a line that is too long for the page
- UDP source ports of frames; process id, CPU, flags and time of trace events
A command has to fail when an error is printed, and else to work.

One line a command, below a FAIL what differs: '-' the document, '+' the command.
The last line is 'N ok, N FAIL'; exit status: 0 when none is a FAIL.
"""

import argparse
import collections
import difflib
import os
import pathlib
import pty
import re
import select
import subprocess
import sys
import time
import tty

REPO = pathlib.Path(__file__).resolve().parents[1]
COLUMNS = 80    # of the page
DEADLINE = 10   # seconds that output may be late
LIMIT = 60      # seconds that a command may take
SETTLE = 0.1    # seconds in which nothing may follow what was printed
VARIES = (
    (r'(, length \d+: [\d.]+)\.\d+ > ', r'\1.PORT > '),
    (r'^(\S+)-\d+ \[\d+\] \S{5} \d+\.\d{6}: ', r'\1-PID [CPU] FLAGS TIME: '),
)
# How a line begins that says that a command has failed
REFUSED = 'Error:', 'RTNETLINK answers:'
# Ends a command: record separators, which nobody prints, around its status
DONE = re.compile(rb'\x1e(\d+)\x1e')
SAY_DONE = r"printf '\036%d\036' $?"

# command: as typed; printed: lines; width: columns that the page has for them
Step = collections.namedtuple('Step', 'command printed width')


class Failure(Exception):
    """The document can not be followed any further."""


# --- the document ---

def indentation(line):
    """Blanks at the start of a line."""
    return len(line) - len(line.lstrip())


def literal_blocks(lines):
    """(number of its first line, lines) of each literal block."""
    number = 0
    while number < len(lines):
        opener = lines[number]
        number += 1
        if not opener.rstrip().endswith('::') or opener.lstrip().startswith('.. '):
            continue
        start = number
        while number < len(lines) and (not lines[number].strip() or
                                       indentation(lines[number]) > indentation(opener)):
            number += 1
        while start < number and not lines[start].strip():
            start += 1
        end = number
        while start < end and not lines[end - 1].strip():
            end -= 1
        if start < end:
            yield start + 1, lines[start:end]


def transcript(number, block):
    """The steps of a block, none when it is not a transcript."""
    indent = min(indentation(line) for line in block if line.strip())
    lines = [line[indent:].rstrip() for line in block]
    if not any(line.startswith('# ') for line in lines):
        return []
    if not lines[0].startswith('# '):
        raise Failure(f'line {number}: output without a command: {lines[0]}')
    steps, more = [], False
    for line in lines:
        if more:
            command, printed, width = steps[-1]
            steps[-1] = Step(f'{command}\n{line}', printed, width)
        elif line.startswith('# '):
            steps.append(Step(line.removeprefix('# '), [], COLUMNS - indent))
        elif line:
            steps[-1].printed.append(line)
        more = (more or line.startswith('# ')) and line.endswith('\\')
    if more:
        raise Failure(f'line {number}: the last command has no end')
    return steps


def steps_of(path):
    """All steps of a document; names the blocks that are none."""
    steps = []
    for number, block in literal_blocks(path.read_text(encoding='utf-8').splitlines()):
        found = transcript(number, block)
        steps += found
        if not found:
            print(f'      line {number} is not a transcript: {" ".join(block[0].split())}')
    if not steps:
        raise Failure(f'{path} has no command')
    return steps


# --- comparison ---

def plain(line):
    """A line without what may vary."""
    line = ' '.join(line.split())
    for pattern, name in VARIES:
        line = re.sub(pattern, name, line)
    return line


def unfold(printed, seen, width):
    """Join lines of the page which are one that was seen and is too long for it."""
    long = {plain(line) for line in seen if len(' '.join(line.split())) > width}
    start = 0
    while start < len(printed):
        for end in range(len(printed), start, -1):
            joined = plain(' '.join(printed[start:end]))
            if end == start + 1 or joined in long:
                yield joined
                start = end
                break


def differences(step, seen):
    """Lines that only the page or only the command has, or have another order."""
    page = list(unfold(step.printed, seen, step.width))
    return [line for line in difflib.ndiff(page, [plain(line) for line in seen])
            if line[0] in '-+']


# --- the shell ---

class Shell:
    """A bash; its output is a terminal, so that tcpdump prints frames at once.

    Its input is not: a shell that it starts reads on where it stopped, and
    none of them prints prompts.
    """

    def __init__(self, ip_directory):
        self.terminal, output = pty.openpty()
        tty.setraw(output)
        self.output = b''
        env = {**os.environ, 'PATH': f'{ip_directory}:{os.environ["PATH"]}', 'LC_ALL': 'C'}
        env.pop('BASH_ENV', None)
        # pylint: disable-next=consider-using-with  # it lives as long as the machine
        self.process = subprocess.Popen(['bash'], stdin=subprocess.PIPE, stdout=output,
                                        stderr=output, env=env)
        os.close(output)

    def read(self, seconds):
        """Take what is printed within some seconds; False when nothing is."""
        if not select.select([self.terminal], [], [], max(0, seconds))[0]:
            return False
        try:
            self.output += os.read(self.terminal, 1 << 16)
        except OSError as error:
            raise Failure('the shell has ended') from error
        return True

    def lines(self):
        """The lines printed since the last take()."""
        return [line for line in self.output.decode(errors='replace').splitlines()
                if line.strip()]

    def take(self):
        """The same, and forget them."""
        lines = self.lines()
        self.output = b''
        return lines

    def is_short(self, problems):
        """Whether all that is wrong is output which may still come."""
        return problems and (not any(line.startswith('+') for line in problems) or
                             not self.output.endswith(b'\n'))

    def type(self, command):
        """Run a command; return its exit status."""
        self.process.stdin.write(f'{command}\n{SAY_DONE}\n'.encode())
        self.process.stdin.flush()
        limit = time.monotonic() + LIMIT
        while not (done := DONE.search(self.output)):
            if not self.read(limit - time.monotonic()):
                raise Failure(f'it does not end within {LIMIT} s')
        self.output = self.output[:done.start()] + self.output[done.end():]
        return int(done[1])

    def captures(self):
        """Number of packet sockets that are bound where the shell is."""
        self.type('cat /proc/net/packet')
        return sum(line.split()[5:6] == ['1'] for line in self.take())


def wait_for_capture(shell, before):
    """What runs in the background listens, as a reader sees before typing on."""
    deadline = time.monotonic() + DEADLINE
    while shell.captures() <= before:
        if time.monotonic() > deadline:
            raise Failure('what was started in the background captures no packets')
        time.sleep(0.05)


def follow(shell, step, last):
    """Run a step; return what is wrong with it, a list of lines."""
    background = step.command.endswith('&')
    before = shell.captures() if background else 0
    status = shell.type(step.command)
    deadline = time.monotonic() + DEADLINE
    while shell.is_short(differences(step, shell.lines())):
        if not shell.read(deadline - time.monotonic()):
            break
    while (step.printed or last) and shell.read(SETTLE):
        pass
    problems = differences(step, shell.take())
    if background:
        wait_for_capture(shell, before)
    fails = any(line.startswith(REFUSED) for line in step.printed)
    if bool(status) != fails:
        problems.append(f'  exit status {status}')
    return problems


def follow_all(shell, steps):
    """(step, what is wrong with it) of each step."""
    stuck = False
    for step in steps:
        if stuck:
            yield step, ['  not run']
            continue
        try:
            problems = follow(shell, step, step is steps[-1])
        except (Failure, OSError) as error:
            problems = [*(f'+ {line}' for line in shell.lines()), f'  {error}']
            stuck = True
        yield step, problems


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--ip', type=pathlib.Path, metavar='DIR',
                        default=REPO / 'build/iproute2/ip')
    parser.add_argument('document', type=pathlib.Path, metavar='DOCUMENT.rst')
    return parser.parse_args()


def main():
    """Print a line for each command; return the exit status."""
    options = arguments()
    program = options.ip.resolve() / 'ip'
    if not os.access(program, os.X_OK):
        print(f'document.py: there is no {program}: run scripts/iproute2 first', file=sys.stderr)
        return 1
    try:
        steps = steps_of(options.document)
    except (Failure, OSError, UnicodeDecodeError) as error:
        print(f'document.py: {error}', file=sys.stderr)
        return 1
    failed = 0
    for step, problems in follow_all(Shell(program.parent), steps):
        command = ' '.join(step.command.replace('\\\n', '').split())
        print(f'{"FAIL" if problems else "ok  "}  {command}')
        for line in problems:
            print(f'      {line}')
        sys.stdout.flush()
        failed += bool(problems)
    print(f'{len(steps) - failed} ok, {failed} FAIL')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
