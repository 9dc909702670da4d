#!/usr/bin/python3
"""Follow a document as a reader would: does every command print what it says?

usage: document.py [--ip DIR] DOCUMENT.rst...

Run as root in a guest that can be thrown away: it types the commands of the
documents, in their order, into one bash.  DIR comes first in its PATH, by default
build/iproute2/ip.

A literal block that begins with '# ' is a transcript: such a line is a command, which
goes on behind a '\\' at the end of a line; the lines up to the next command are what is
printed.

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

IP_DIRECTORY = pathlib.Path(__file__).resolve().parents[1] / 'build/iproute2/ip'
COLUMNS = 78    # of a transcript on the page
DEADLINE = 10   # seconds that output may be late
LIMIT = 60      # seconds that a command may take
SETTLE = 0.1    # seconds in which nothing may follow what was printed
BLOCK = re.compile(r'^(?!\.\. )\S.*::\n\n+((?: +.*\n|\n)+)', re.M)
VARIES = (
    (r'(, length \d+: [\d.]+)\.\d+ > ', r'\1.PORT > '),
    (r'^(\S+)-\d+ \[\d+\] \S{5} \d+\.\d{6}: ', r'\1-PID [CPU] FLAGS TIME: '),
)
# How a line begins that says that a command has failed
REFUSED = 'Error:', 'RTNETLINK answers:'
# Ends a command: record separators, which nobody prints, around its status
DONE = re.compile(rb'\x1e(\d+)\x1e')
SAY_DONE = r"printf '\036%d\036' $?"

# command: as typed; printed: lines
Step = collections.namedtuple('Step', 'command printed')


class Failure(Exception):
    """The document can not be followed any further."""


# --- the document ---

def steps_of(path):
    steps, more = [], False
    for block in BLOCK.findall(path.read_text(encoding='utf-8')):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if not lines[0].startswith('# '):
            continue
        for line in lines:
            if more:
                steps[-1] = steps[-1]._replace(command=f'{steps[-1].command}\n{line}')
            elif line.startswith('# '):
                steps.append(Step(line.removeprefix('# '), []))
            else:
                steps[-1].printed.append(line)
            more = (more or line.startswith('# ')) and line.endswith('\\')
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


def unfold(printed, seen):
    """Join lines of the page which are one that was seen and is too long for it."""
    long = {plain(line) for line in seen if len(' '.join(line.split())) > COLUMNS}
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
    page = list(unfold(step.printed, seen))
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


def follow_all(ip_directory, *paths):
    """Run all steps; print a line for each and yield whether it failed."""
    if not os.access(ip_directory / 'ip', os.X_OK):
        raise Failure(f'there is no {ip_directory}/ip: run scripts/iproute2 first')
    steps = [step for path in paths for step in steps_of(path)]
    shell, stuck = Shell(ip_directory), False
    for step in steps:
        try:
            problems = ['  not run'] if stuck else follow(shell, step, step is steps[-1])
        except (Failure, OSError) as error:
            problems = [*(f'+ {line}' for line in shell.lines()), f'  {error}']
            stuck = True
        command = ' '.join(step.command.replace('\\\n', '').split())
        print('\n      '.join([f'{"FAIL" if problems else "ok  "}  {command}', *problems]),
              flush=True)
        yield bool(problems)


def sum_up(failed):
    """Print the last line; return the exit status."""
    failed = list(failed)
    print(f'{failed.count(False)} ok, {sum(failed)} FAIL')
    return 1 if any(failed) else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--ip', type=pathlib.Path, metavar='DIR', default=IP_DIRECTORY)
    parser.add_argument('documents', type=pathlib.Path, nargs='+', metavar='DOCUMENT.rst')
    options = parser.parse_args()
    try:
        return sum_up(follow_all(options.ip.resolve(), *options.documents))
    except (Failure, OSError) as error:
        print(f'document.py: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
