#!/usr/bin/python3
"""What existing routing software does with neighbour overrides.

usage: clients.py [--root DIR] [CASE]...

CASE is a client (ip bird frr networkd networkmanager) or one of its cases
(bird.learn); without any, everything.  With --root the clients are those of
another Debian, unpacked in DIR.  A client that is not installed is skipped.

Run as root in a guest that can be thrown away: it makes network namespaces and
starts daemons in one of them.  A row is ok when the client of this version
does what is expected of it, be that good or bad: Documentation/clients.md.
The last line is 'N ok, N FAIL[, N skipped]'; exit status: 0 when none is a FAIL.
"""

import collections
import itertools
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

import client_bird
import client_frr
import client_managers
from client_frr import FRR
from client_lab import OPTIONS, Row, client_command, installed, lan, one_line, run
from client_managers import NETWORKD
from document import Shell, follow, steps_of
from lab import IP, Failure, inside, sum_up


def ip_transcript(_):
    """ip: client_ip.rst"""
    steps = steps_of(pathlib.Path(__file__).with_name('client_ip.rst'))
    with tempfile.TemporaryDirectory(dir='/run') as path:
        for name, words in ('ip', client_command('ip')), ('new', [IP]):
            file = pathlib.Path(path, name)
            file.write_text('#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n'
                            f'exec {shlex.join(words)} "$@"\n', encoding='ascii')
            file.chmod(0o755)
        with inside('host'):
            shell = Shell(path)
        for step in steps:
            yield Row(' '.join(step.command.split()), 'as written',
                      '; '.join(follow(shell, step, step is steps[-1])) or 'as written')


# name, programs, Debian packages, how it says its version, cases
Client = collections.namedtuple('Client', 'name programs package version cases')
CLIENTS = (
    Client('ip', ('ip',), 'iproute2', ('ip', '-V'), (ip_transcript,)),
    Client('bird', ('bird', 'birdc'), 'bird2', ('bird', '--version'), client_bird.CASES),
    Client('frr', (f'{FRR}/zebra', f'{FRR}/bgpd', 'vtysh'), 'frr', (f'{FRR}/zebra', '--version'),
           client_frr.CASES),
    Client('networkd', (NETWORKD, 'networkctl', 'dbus-daemon'), 'systemd dbus',
           (NETWORKD, '--version'), client_managers.NETWORKD_CASES),
    Client('networkmanager', ('NetworkManager', 'nmcli', 'dbus-daemon'), 'network-manager dbus',
           ('NetworkManager', '--version'), client_managers.NM_CASES),
)


def case_name(client, case):
    """How a case is named on the command line."""
    return f'{client.name}.{case.__name__.partition("_")[2]}'


def chosen(words):
    """(client, case) of all that is named, or of everything."""
    cases = [(client, case) for client in CLIENTS for case in client.cases]
    unknown = {*words} - {name for client, case in cases
                          for name in (client.name, case_name(client, case))}
    if unknown:
        known = ' '.join(case_name(*case) for case in cases)
        raise Failure(f'no such case: {min(unknown)} (known: {known})')
    return [(client, case) for client, case in cases
            if not words or {client.name, case_name(client, case)} & {*words}]


def print_row(case, what, expected, seen, result):
    print('  '.join((f'{case:21}', f'{what:48}', f'{expected or "-":50}', f'{seen or "-":50}',
                     result)), flush=True)
    return result


def run_case(case):
    """The rows of a case; what goes wrong makes a row as well."""
    try:
        with lan() as wire:
            yield from case(wire)
    except Exception as error:      # pylint: disable=broad-except
        yield Row('it goes on', 'yes',
                  one_line(str(error) if isinstance(error, Failure) else repr(error)))


def print_cases(cases):
    """The rows of cases; return their results."""
    for client, part in itertools.groupby(cases, lambda case: case[0]):
        missing = [program for program in client.programs if not installed(program)]
        if missing:
            yield print_row(client.name, f'no {" ".join(missing)} (Debian: {client.package})',
                            '', '', 'skipped')
            continue
        _, printed, complaint = run(*client.version, name=None)
        print(f'\n{client.name}: {(printed + complaint).partition(chr(10))[0]}')
        for _, case in part:
            for row in run_case(case):
                result = 'ok' if row.expected == row.seen else 'FAIL'
                yield print_row(case_name(client, case), *row, result)


def enter_root(path):
    """Give what the clients need to another Debian."""
    OPTIONS['root'] = os.path.realpath(path)
    for name in 'proc', 'sys', 'dev', 'run', 'tmp':
        subprocess.run(['mount', '--rbind', f'/{name}', f'{OPTIONS["root"]}/{name}'], check=True)


def main(words):
    """Print the table; return the exit status."""
    try:
        if words[:1] == ['--root']:
            if not words[1:]:
                raise Failure('--root wants a directory')
            enter_root(words[1])
            words = words[2:]
        cases = chosen(words)
    except (Failure, OSError, subprocess.SubprocessError) as error:
        print(f'clients.py: {error}', file=sys.stderr)
        return 1
    print_row('case', 'what', 'expected', 'seen', '')
    return sum_up(list(print_cases(cases)))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
