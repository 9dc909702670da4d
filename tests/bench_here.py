#!/usr/bin/python3
"""Packets a second by the routes of bench.py, on the machine and the kernel that it runs on.

usage: bench_here.py [--port DEVICE] [--packets N] [--rounds N] PROGRAM [CASE]...

PROGRAM is tests/bench.c, built; CASE is as for bench.py.  The packets leave a network namespace
by one end of a veth pair, or by DEVICE, which comes back afterwards.  Where perf is installed
and the CPU has counters, cycles and cache misses of a packet are beside.
"""

import argparse
import collections
import functools
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench
from lab import HOST, Failure, run

HOME = str(os.getppid())
EVENTS = 'cycles', 'cache-misses'
# Of bench.c
BATCH = 64


class Sender(bench.Host):
    """A network namespace with a port of this machine, or with an end of a cable."""

    def __init__(self, where, port):
        super().__init__(where)
        self.port = port

    def add_device(self):
        if not self.port:
            run('ip', 'link', 'add', 'eth0', 'address', HOST, 'type', 'veth', 'peer', 'name',
                'sink')
            run('ip', 'link', 'set', 'sink', 'up')
            return
        address = Path(f'/sys/class/net/{self.port}/address').read_text('ascii')
        run('nsenter', '-n', '-t', HOME, 'ip', 'link', 'set', self.port, 'netns', bench.ROUTER)
        self.open.callback(run, 'ip', 'link', 'set', self.port, 'netns', HOME)
        self.open.callback(run, 'ip', 'link', 'set', 'eth0', 'address', address.strip(), 'name',
                           self.port)
        self.open.callback(run, 'ip', 'link', 'set', 'eth0', 'down')
        run('ip', 'link', 'set', self.port, 'address', HOST, 'name', 'eth0')

    def remove(self):
        run('ip', 'netns', 'del', bench.ROUTER)


def counted(words):
    """Run it under perf, if that can count; the events, and the seconds that it took."""
    perf = shutil.which('perf')
    before = ['perf', 'stat', '-x,', '-e', ','.join(EVENTS), '--'] if perf else []
    started = time.monotonic()
    done = subprocess.run([*before, *words], text=True, capture_output=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise Failure(done.stderr.strip())
    return [int(number[1]) if number else None for number in (
        re.search(rf'^(\d+),[^\n]*,?{event}', done.stderr, re.M) for event in EVENTS)], seconds


def measure(case, options):
    """Packets a second; of each event, how many a packet has."""
    with Sender(case.where, options.port) as host:
        host.prepare(case, case.each[0])
        seen = host.frame(case, functools.partial(bench.send_one, host, case, options))
        if seen != (case.dst, case.src):
            raise Failure(f'the frame goes from {seen[1]} to {seen[0]}')
        before = bench.transmitted()
        events, seconds = counted(bench.udp(host, case, options, options.packets // BATCH + 1))
        sent = bench.transmitted() - before
    return [sent / seconds, *(number and number / sent for number in events)]


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS)
    parser.add_argument('--port', default='')
    parser.add_argument('--packets', type=int, default=1000000)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('program')
    parser.add_argument('cases', nargs='*')
    options = parser.parse_args()
    options.kernel, options.without, options.cases = 'on', '^forward', options.cases or ['short']
    cases, results = bench.selected(options), collections.defaultdict(list)
    for number in range(options.rounds):
        for case in cases:
            print(f'round {number + 1}: {case.name}', flush=True)
            results[case.name].append(measure(case, options))
    print(f'\n{"case":24}{"packets/s":>12}{"cycles":>10}{"cache misses":>14}   of a packet')
    for name, rounds in results.items():
        rate, *events = [None if None in column else statistics.median(column)
                         for column in zip(*rounds)]
        print(f'{name:24}{rate:12.0f}' + ''.join(
            f'{"-" if number is None else f"{number:.2f}":>{width}}'
            for number, width in zip(events, (10, 14))))
    cpuinfo = Path('/proc/cpuinfo').read_text('ascii')
    if 'hypervisor' in cpuinfo or 'User Mode Linux' in cpuinfo:
        print('This is a virtual machine: nothing that others could rely on.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
