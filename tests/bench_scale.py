#!/usr/bin/python3
"""Count what many routes cost, in a booted kernel.

Loads, dumps, looks up and deletes nexthop objects and routes.  Prints one JSON object for
each kind of nexthop and number of them: instructions for each thing that was done, and bytes
of memory.  Requests go to the kernel by the hundred; only the time until they are answered is
counted.
"""

import itertools
import json
import os
import re
import socket
import struct
import sys
import time

import netlink as nl
from fuzz import LINK, RTA_NH_ID, RTM_DELROUTE, RTM_NEWROUTE, u32
from lab import inside, run

# Kinds that are compared, up to how many nexthops.  The first are nexthop objects that
# differ in this, and routes to single addresses that share them evenly; 'both' has the same
# gateway everywhere and differs in the link-layer address.  The others are routes without
# nexthop objects: the kernel's hash of them does not look at gateways, ten times as many take
# a hundred times as long to load.
COMPARED = (('gateway', ('lladdr', 'via4', 'both'), 100000),
            ('route-gateway', ('route-lladdr',), 10000))
# Numbers of nexthops, of routes and of lookups, each tenth of which follows a change of
# a nexthop: the kernel notifies of all the routes by it then, and looks for them among
# all that there are.
DISTINCT = tuple((number, number, 20000) for number in (1000, 10000, 100000))
SHARED = ((16, 1000000, 100),)
LOOKUPS_PER_CHANGE, BATCH = 10, 100
GATEWAYS, DESTINATIONS = 0xc6120002, 0x0a000000     # from 198.18.0.2 (RFC 2544) and 10.0.0.0 on
DONE = nl.NLMSGHDR.size + 4     # bytes of what ends a dump
CREATE, REPLACE = nl.NLM_F_CREATE | nl.NLM_F_EXCL, nl.NLM_F_CREATE | nl.NLM_F_REPLACE


def message(kind, flags, body):
    return nl.NLMSGHDR.pack(nl.NLMSGHDR.size + len(body), kind, nl.NLM_F_REQUEST | flags,
                            0, 0) + body


def override(*words):
    return nl.attribute(nl.NHA_NEIGH_OVERRIDE | nl.NLA_F_NESTED, nl.attribute(*words))


class Kernel:
    """What it is asked, and how long it takes."""

    def __init__(self, kind):
        self.kind, self.device = kind, socket.if_nametoindex('eth0')
        self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.took = 0

    def hop(self, which):
        """Attributes that tell nexthops apart."""
        gateway, lladdr = struct.pack('!I', GATEWAYS + which), struct.pack('!HI', 0x200, which)
        return {'gateway': nl.attribute(nl.NHA_GATEWAY, gateway),
                'lladdr': override(nl.LLADDR, lladdr),
                'via4': override(nl.VIA4, gateway),
                'both': nl.attribute(nl.NHA_GATEWAY, struct.pack('!I', GATEWAYS)) +
                        override(nl.LLADDR, lladdr),
                'route-gateway': nl.attribute(nl.RTA_GATEWAY, gateway),
                'route-lladdr': nl.attribute(nl.RTA_VIA, LINK + lladdr)}[self.kind]

    def nexthop(self, number, which, flags=CREATE):
        return message(nl.RTM_NEWNEXTHOP, flags, nl.NHMSG.pack(socket.AF_INET, 0, 0, 0, 0) +
                       nl.attribute(nl.NHA_ID, u32(number + 1)) +
                       nl.attribute(nl.NHA_OIF, u32(self.device)) + self.hop(which))

    def route(self, number, which, flags=CREATE):
        """Make or replace a route to one address."""
        way = nl.attribute(RTA_NH_ID, u32(which + 1))
        if self.kind.startswith('route-'):
            way = nl.attribute(nl.RTA_OIF, u32(self.device)) + self.hop(which)
        return message(RTM_NEWROUTE, flags, nl.RTMSG.pack(
            socket.AF_INET, 32, 0, 0, 254, 3, 0, 1, 0) + self.destination(number) + way)

    @staticmethod
    def destination(number):
        return nl.attribute(nl.RTA_DST, struct.pack('!I', DESTINATIONS + number))

    def ask(self, requests, count=0):
        """Send requests at once, wait for the last answer; there have to be so many others."""
        begin = time.monotonic_ns()
        self.sock.send(requests)
        answers = [self.sock.recv(1 << 16)]
        while count and nl.NLMSGHDR.unpack_from(answers[-1][-DONE:])[:2] != (DONE, nl.NLMSG_DONE):
            answers.append(self.sock.recv(1 << 16))
        self.took += time.monotonic_ns() - begin
        kind = nl.NLMSGHDR.unpack_from(answers[0])[1]
        if kind == nl.NLMSG_ERROR:
            code = -struct.unpack_from('=i', answers[0], nl.NLMSGHDR.size)[0]
            if code:
                sys.exit(f'bench_scale.py: {self.kind}: {os.strerror(code)}')
        elif count and sum(map(len, answers)) < count * nl.NLMSGHDR.size:
            sys.exit(f'bench_scale.py: {self.kind}: the dump is too short')

    def ask_all(self, requests):
        """Send requests, some at a time, the last of them with an acknowledgement."""
        requests = iter(requests)
        while batch := [*itertools.islice(requests, BATCH)]:
            last = bytearray(batch.pop())
            struct.pack_into('=H', last, 6, nl.NLMSGHDR.unpack_from(last)[2] | nl.NLM_F_ACK)
            self.ask(b''.join([*batch, last]))

    def look_up_under_churn(self, nexthops, routes, lookups):
        """As nexthops come and go: each change gives two of them each other's way."""
        place, change = 0, self.route if self.kind.startswith('route-') else self.nexthop
        for number in range(lookups):
            place = (place + 2654435761) % routes
            self.ask(message(nl.RTM_GETROUTE, 0, nl.RTMSG.pack(socket.AF_INET, 32, *[0] * 7)
                             + self.destination(place)))
            if number % LOOKUPS_PER_CHANGE == 0:
                changed = number // LOOKUPS_PER_CHANGE % nexthops
                self.ask_all([change(changed, (changed + 1) % nexthops, REPLACE)])

    def measure(self, nexthops, routes, lookups):
        """What each thing takes."""
        found, objects = {}, not self.kind.startswith('route-')

        def phase(name, act, *arguments):
            self.took = 0
            act(*arguments)
            found[name] = self.took

        def dump(kind, header, count):
            self.ask(message(kind, nl.NLM_F_DUMP, header), count)
        before = memory()
        if objects:
            phase('load-nexthops', self.ask_all,
                  (self.nexthop(number, number) for number in range(nexthops)))
        between = memory()
        phase('load-routes', self.ask_all,
              (self.route(number, number % nexthops) for number in range(routes)))
        found |= {'memory-nexthops': between - before, 'memory-routes': memory() - between}
        if objects:
            phase('dump-nexthops', dump, nl.RTM_GETNEXTHOP, bytes(8), nexthops)
        phase('dump-routes', dump, nl.RTM_GETROUTE,
              nl.RTMSG.pack(socket.AF_INET, *[0] * 8), routes)
        phase('lookup-churn', self.look_up_under_churn, nexthops, routes, lookups)
        phase('delete-routes', self.ask_all, (
            message(RTM_DELROUTE, 0, nl.RTMSG.pack(socket.AF_INET, 32, 0, 0, 254, 3, 0, 1, 0) +
                    self.destination(number)) for number in range(routes)))
        if objects:
            phase('delete-nexthops', self.ask_all, (
                message(nl.RTM_DELNEXTHOP, 0, bytes(8) + nl.attribute(nl.NHA_ID, u32(number + 1)))
                for number in range(nexthops)))
        return found


def memory():
    """Bytes of the kernel's objects."""
    with open('/proc/meminfo', encoding='ascii') as file:
        return 1024 * sum(map(int, re.findall(r'^(?:Slab|Percpu): +(\d+)', file.read(), re.M)))


def main():
    run('ip', 'netns', 'add', 'scale')
    with inside('scale'):
        run('ip', '-batch', '-', given='link add eth0 type dummy\n'
                'link set eth0 arp on up\naddress add 198.18.0.1/15 dev eth0')
        for nexthops, routes, lookups in DISTINCT + SHARED:
            for reference, others, most in COMPARED:
                for kind in (reference, *others) if nexthops <= most else ():
                    print(json.dumps({
                        'scale': kind, 'reference': reference, 'nexthops': nexthops,
                        'routes': routes, 'lookups': lookups,
                        **Kernel(kind).measure(nexthops, routes, lookups)}), flush=True)
                    # What is freed after a grace period
                    time.sleep(5)
    return 0


if __name__ == '__main__':
    sys.exit(main())
