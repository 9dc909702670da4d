#!/usr/bin/python3
"""What the patched 'ip', build/iproute2/ip/ip, does with neighbour overrides.

usage: iproute2.py [--without | --off]

Run as root in a guest that can be thrown away: it makes devices and routes.  Follows ip.rst
and, on a kernel with overrides of IPv6 routes, ip-7.3.rst; then iproute2's own tests.
--without: on a kernel without the series, --off: on one with it, but without
CONFIG_IP_NEIGH_OVERRIDE: see how it refuses overrides.
The last line is 'N ok, N FAIL'; exit status: 0 when none is a FAIL.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

from document import IP_DIRECTORY, Failure, follow_all, sum_up

TESTS = pathlib.Path(__file__).resolve().parent
IS_OFF = 'CONFIG_IP_NEIGH_OVERRIDE is not enabled in this kernel'
# How a kernel refuses overrides of nexthops, and link-layer nexthops of routes
REFUSALS = {'--without': ('Unknown attribute type', 'Unsupported address family in RTA_VIA'),
            '--off': (IS_OFF, IS_OFF)}
LINK = 'via link 02:00:00:00:00:09 dev eth0'
OVERRIDES = ('via 192.0.2.9', 'via inet6 2001:db8::9 fallback', 'lladdr 02:00:00:00:00:09',
             'src-lladdr 00:00:5e:00:01:07', 'preserve strict', 'preserve counters')


def ip(line):
    """Run a line of ip; return what it complains about, without 'Error: '."""
    done = subprocess.run([IP_DIRECTORY / 'ip', *line.split()], text=True, capture_output=True,
                          check=False)
    return done.stderr.strip().removeprefix('Error: ').removesuffix('.')


def refused(override, link):
    """Refuse overrides with these texts; yield whether one is not refused so."""
    for line in ('link add eth0 type dummy', 'link set eth0 up',
                 'address add 192.0.2.2/24 dev eth0',
                 'nexthop add id 90 via 192.0.2.1 dev eth0'):
        if ip(line):
            raise Failure(f'ip {line}: {ip(line)}')
    lines = [(f'nexthop {verb} via 192.0.2.1 dev eth0 neigh {words}', override)
             for words in OVERRIDES for verb in ('add id 1', 'replace id 90')]
    lines += [(f'route {words}', link) for words in (
        f'add 203.0.113.0/24 {LINK}', f'replace default {LINK}',
        f'add 203.0.113.0/24 nexthop via 192.0.2.1 dev eth0 nexthop {LINK}')]
    for line, text in lines:
        said = ip(line)
        print(f'ok    refused: {line}' if said == text else f'FAIL  {line}: {said!r}')
        yield said != text


def own_testsuite(expected):
    """Run iproute2's own tests; yield whether the results are others."""
    top = IP_DIRECTORY.parent
    with tempfile.TemporaryDirectory() as path:
        for name in 'testsuite', 'config.mk':
            subprocess.run(['cp', '-r', top / name, path], check=True)
        suite = pathlib.Path(path, 'testsuite')
        # What its makefile wants: sudo, and a program that writes input for other tests.
        for name, text in ('bin/sudo', 'exec "$@"'), ('tools/generate_nlmsg', ''):
            file = suite / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f'#!/bin/sh\n{text}\n', encoding='ascii')
            file.chmod(0o755)
        this = suite / 'iproute2/iproute2-this'
        this.unlink(missing_ok=True)
        this.symlink_to(top)
        done = subprocess.run(
            ['make', '-C', suite, '-o', 'generate_nlmsg', 'PREFIX=unshare -n', *expected],
            text=True, capture_output=True, check=False,
            env={**os.environ, 'PATH': f'{suite}/bin:{os.environ["PATH"]}'})
        errors = ''.join(file.read_text() for file in sorted(suite.glob('results/**/*.err')))
    results = dict(re.findall(r'^Running (\S+) .*(PASS|FAILED|SKIPPED)', done.stdout, re.M))
    okay = (done.returncode, results) == (0, expected)
    print('ok    its own tests' if okay else f'FAIL  {done.stdout}{done.stderr}{errors}')
    yield not okay


def checks(option):
    if option:
        yield from refused(*REFUSALS[option])
    else:
        # It is refused later for its device, where the kernel knows it.
        old = ip('-6 route add 2001:db8:9::/48 via link 02:00:00:00:00:09 dev lo') == \
            'IPv6 does not support RTA_VIA attribute'
        yield from follow_all(IP_DIRECTORY, TESTS / 'ip.rst', *[TESTS / 'ip-7.3.rst'] * (not old))
    yield from own_testsuite({'ip/nexthop/neigh_override.t': 'SKIPPED' if option else 'PASS',
                              'ip/route/add_default_route.t': 'PASS'})


def main(words):
    if len(words) > 1 or words and words[0] not in REFUSALS:
        sys.exit(__doc__.strip())
    try:
        return sum_up(checks(words[0] if words else ''))
    except (Failure, OSError, subprocess.SubprocessError) as error:
        print(f'iproute2.py: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
