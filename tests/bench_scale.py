#!/usr/bin/python3
"""Count what many routes cost, in a booted kernel.

usage: bench_scale.py PROGRAM [short]

PROGRAM is tests/bench_scale.c, built.  Prints one JSON object for each
kind of nexthop and number of them: instructions for each thing that was done,
and bytes of memory.
"""

import json
import sys
import time

from bench import command
from lab import inside

# Kinds that are compared, up to how many nexthops.
# The kernel's hash of routes without nexthop objects does not look at gateways: ten
# times as many take a hundred times as long to load.
COMPARED = (('gateway', ('lladdr', 'via4', 'both'), 100000),
            ('route-gateway', ('route-lladdr',), 10000))
# Numbers of nexthops, of routes and of lookups, each tenth of which follows a change of
# a nexthop: the kernel notifies of all the routes by it then, and looks for them among
# all that there are.
DISTINCT = tuple((number, number, 20000) for number in (1000, 10000, 100000))
SHARED = ((16, 1000000, 100),)


def main(program, length):
    """The command line."""
    command('ip', 'netns', 'add', 'scale')
    with inside('scale'):
        command('ip', '-batch', '-', given='link add eth0 type dummy\n'
                'link set eth0 arp on up\naddress add 198.18.0.1/15 dev eth0')
        for nexthops, routes, lookups in DISTINCT[:1] if length == 'short' else DISTINCT + SHARED:
            for reference, others, most in COMPARED:
                for kind in (reference, *others) if nexthops <= most else ():
                    text = command(program, kind, str(nexthops), str(routes),
                                   str(lookups), 'eth0')
                    print(json.dumps({
                        'scale': kind, 'reference': reference, 'nexthops': nexthops,
                        'routes': routes, 'lookups': lookups,
                        **{what: int(count) for what, count in
                           (line.split() for line in text.splitlines())}}), flush=True)
                    # What is freed after a grace period
                    time.sleep(5)
    return 0


if __name__ == '__main__':
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__.strip())
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else ''))
