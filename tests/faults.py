#!/usr/bin/python3
"""Netlink requests with neighbour overrides, while every allocation fails in turn.

An answer is success or ENOMEM, or ENOBUFS where IPv4 routing says so, or it is lost.  What is
there afterwards is what was there before or what was asked for.
"""

import argparse
import os
import socket
import sys

import netlink as nl
from fuzz import (DEBUG, EDITS, HEADER, LINK, MACS, RTA_CACHEINFO, RTA_MULTIPATH, RTA_NH_ID,
                  RTM_DELROUTE, RTM_F_FIB_MATCH, RTM_NEWROUTE, V4, V6, Fuzzer, join, lookup,
                  split, u32)

CREATE, REPLACE, _, _, APPEND, _ = EDITS
MAC, OTHER = MACS[:2]


def by_id(kind, number, *pairs, flags=0, family=0):
    """A request about a nexthop object."""
    return kind, flags, bytes([family, *[0] * 7]) + join([[nl.NHA_ID, u32(number)], *pairs])


def nexthop(number, *nest, flags=CREATE, more=((nl.NHA_GATEWAY, V4[0]),), family=socket.AF_INET):
    """A nexthop object, with an override if there is a nest."""
    pairs = [[nl.NHA_OIF, u32(2)], *more]
    pairs += [[nl.NHA_NEIGH_OVERRIDE | nl.NLA_F_NESTED, join(nest)]] if nest else []
    return by_id(nl.RTM_NEWNEXTHOP, number, *pairs, flags=flags, family=family)


def nexthop6(number, *nest, flags=CREATE):
    return nexthop(number, *nest, flags=flags, more=((nl.NHA_GATEWAY, V6[0]),),
                   family=socket.AF_INET6)


def group(number, *members, flags=CREATE):
    members = b''.join(u32(one) + bytes(4) for one in members)
    return by_id(nl.RTM_NEWNEXTHOP, number, [nl.NHA_GROUP, members], flags=flags)


def route(*pairs, flags=CREATE, kind=RTM_NEWROUTE):
    """A route, or the request to delete it."""
    head = nl.RTMSG.pack(socket.AF_INET, 24, 0, 0, 254, 4, 0, 1, 0)
    flags = flags if kind == RTM_NEWROUTE else 0
    return kind, flags, head + join([[nl.RTA_DST, socket.inet_aton('203.0.113.0')], *pairs])


def route6(*pairs, flags=CREATE, kind=RTM_NEWROUTE):
    kind, flags, body = route(*pairs, flags=flags, kind=kind)
    head = nl.RTMSG.pack(socket.AF_INET6, 48, 0, 0, 254, 4, 0, 1, 0)
    return kind, flags, head + join([[nl.RTA_DST, V6[7]], *split(body[len(head):])[1:]])


TO_MAC, TO_V4, TO_V6 = [nl.LLADDR, MAC], [nl.VIA4, V4[1]], [nl.VIA6, V6[0]]
OIF, TO_LINK, TO_OTHER = [nl.RTA_OIF, u32(2)], *([nl.RTA_VIA, LINK + mac] for mac in MACS[:2])
LEGS = [RTA_MULTIPATH, join([0, u32(2) + nl.attribute(nl.RTA_VIA, LINK + mac)]
                            for mac in (MAC, OTHER))]
FROM, ON_OBJECT, STATS = [nl.SRC_LLADDR, OTHER], [RTA_NH_ID, u32(1)], [nl.NHA_OP_FLAGS, u32(1)]
LAST_HOP, UNKNOWN = [nl.SELECTOR, b'last-hop\0'], [nl.SELECTOR, b'unknown\0']
FLAGS = [[nl.FLAGS, u32(value)] for value in range(16)]
# NHA_ENCAP_TYPE, NHA_ENCAP
ENCAP = [nl.NHA_GATEWAY, V4[0]], [7, b'\2\0'], [8 | nl.NLA_F_NESTED, nl.attribute(2, V4[0])]
TWO = [nexthop(1, TO_MAC), nexthop(2, TO_V4, FROM, FLAGS[8])]
USED = [*TWO, group(3, 1, 2), group(4, 1), route(ON_OBJECT)]
FULL = [*USED, route(OIF, TO_LINK, flags=APPEND), route(LEGS, flags=APPEND)]
USED6 = [nexthop6(1, TO_MAC), nexthop6(2, TO_V6, FROM, FLAGS[8]), group(3, 1, 2),
         route6(ON_OBJECT)]
FULL6 = [*USED6, route6(OIF, TO_LINK, flags=APPEND), route6(OIF, TO_OTHER, flags=APPEND)]
# What is there, what is asked for; of the first the last four are refused, the last two late.
REQUESTS = [([], nexthop(1, *nest)) for nest in (
    (), (TO_MAC,), (TO_V4,), (TO_V6,), (FROM,), (TO_MAC, FROM), (TO_V6, FROM), (FLAGS[6],),
    (TO_V4, FLAGS[9]), (TO_V6, FLAGS[15]), (LAST_HOP,), (TO_V6, FROM, LAST_HOP, FLAGS[9]),
    (UNKNOWN,), (TO_V4, FROM, FLAGS[10]), ([nl.LLADDR, MACS[3]],),
    (TO_V4, [nl.SRC_LLADDR, MACS[5]], FLAGS[8]))]
REQUESTS += [
    ([], nexthop(1, TO_MAC, more=())), ([], nexthop(1, TO_V4, more=ENCAP)),
    (USED, nexthop(1, TO_V6, FLAGS[9], flags=REPLACE)), (USED, nexthop(1, flags=REPLACE)),
    (USED, nexthop(1, TO_V4, FROM, FLAGS[10], flags=REPLACE)),
    (USED, nexthop(1, LAST_HOP, flags=REPLACE)),
    ([nexthop(1, LAST_HOP)], nexthop(1, LAST_HOP, FLAGS[8], flags=REPLACE)),
    ([nexthop(1, LAST_HOP)], by_id(nl.RTM_DELNEXTHOP, 1)), ([], nexthop6(1, LAST_HOP)),
    (TWO, group(3, 1, 2)), (USED, group(3, 2, flags=REPLACE)),
    ([], route(OIF, TO_LINK)), ([route(OIF, TO_LINK)], route(OIF, TO_OTHER, flags=REPLACE)),
    ([], route(LEGS)), ([], route([RTA_MULTIPATH, LEGS[1].replace(OTHER, bytes(6))])),
    (TWO, route(ON_OBJECT)), (USED, route(OIF, TO_LINK, flags=REPLACE)),
    (FULL, route(OIF, TO_LINK, kind=RTM_DELROUTE)), (FULL, route(LEGS, kind=RTM_DELROUTE)),
    (USED, route(ON_OBJECT, kind=RTM_DELROUTE)), (FULL, lookup(V4[4], RTM_F_FIB_MATCH)),
    (USED, by_id(nl.RTM_DELNEXTHOP, 1)), (USED, by_id(nl.RTM_DELNEXTHOP, 3)),
    (TWO, by_id(nl.RTM_GETNEXTHOP, 2)), (TWO, by_id(nl.RTM_GETNEXTHOP, 2, STATS)),
    (FULL, (nl.RTM_GETNEXTHOP, nl.NLM_F_DUMP, bytes(8) + join([STATS]))), (USED, lookup(V4[4], 0)),
    (FULL, (nl.RTM_GETROUTE, nl.NLM_F_DUMP, nl.RTMSG.pack(socket.AF_INET, *[0] * 8))),
    *(([], nexthop6(1, *nest)) for nest in ((TO_MAC,), (TO_V6, FLAGS[9]), (TO_V4,))),
    (USED6, nexthop6(1, TO_V6, FROM, FLAGS[9], flags=REPLACE)),
    (USED6, by_id(nl.RTM_DELNEXTHOP, 1)), (USED6[:2], route6(ON_OBJECT)),
    (USED6[:2], route(ON_OBJECT)), (USED6, route6(ON_OBJECT, kind=RTM_DELROUTE)),
    ([], route6(OIF, TO_LINK)), ([route6(OIF, TO_LINK)], route6(OIF, TO_OTHER, flags=REPLACE)),
    ([route6(OIF, TO_LINK)], route6(OIF, TO_OTHER, flags=APPEND)),
    ([], route6(OIF, [nl.RTA_VIA, LINK + MACS[3]])),
    (FULL6, route6(OIF, TO_OTHER, kind=RTM_DELROUTE)), (FULL6, lookup(V6[7], RTM_F_FIB_MATCH)),
    (USED6, lookup(V6[7], 0)),
    (FULL6, (nl.RTM_GETROUTE, nl.NLM_F_DUMP, nl.RTMSG.pack(socket.AF_INET6, *[0] * 8)))]


class Faults(Fuzzer):
    """All requests, each as often as it allocates."""

    def __init__(self, base):
        super().__init__(base, 0)
        self.enter()
        self.file, self.kept = os.open('/proc/thread-self/fail-nth', os.O_RDWR), self.state()
        for name in ('failslab', 'fail_page_alloc'):
            (DEBUG / name / 'ignore-gfp-wait').write_text('N', 'ascii')
            (DEBUG / name / 'verbose').write_text('0', 'ascii')

    def set_up(self, requests):
        """Have only these objects and routes; return the state."""
        for kind in (RTM_NEWROUTE, nl.RTM_NEWNEXTHOP):
            for body in set(self.dump(kind)) - set(self.kept):
                self.edit(kind + 1, 0, body, 'ENOENT')
        for request in requests:
            assert not self.ask(*request)[0], f'not set up: {request}'
        return self.state()

    def ask_failing(self, request, number):
        """Send a request whose allocation of this number fails: error, if one failed, answer."""
        os.pwrite(self.file, str(number).encode(), 0)
        try:
            error, bodies = self.ask(*request)
        except (OSError, MemoryError) as problem:
            error, bodies = f'lost: {problem}', []
        failed = os.pread(self.file, 16, 0).strip() == b'0'
        os.pwrite(self.file, b'0', 0)
        return error, failed, [[pair for pair in split(body[HEADER[request[0]]:])
                                if pair[0] != RTA_CACHEINFO] for body in bodies]   # an age

    def check(self, setup, request):
        """Let one allocation after another fail, until none is left: how many did."""
        self.set_up(setup)
        wanted, _, told = self.ask_failing(request, 0)
        after = self.state()
        number = 0
        while True:
            number += 1
            before = self.set_up(setup)
            error, failed, bodies = self.ask_failing(request, number)
            state, what = self.state(), f'fault {number}: {error or "success"}'
            # IPv6 looks up no route when it has no memory for one.
            refused = failed and error.startswith(('ENOMEM', 'ENOBUFS', 'ENETUNREACH', 'lost'))
            assert refused or error == wanted, f'{what}, not {wanted}'
            # The request of a lost answer may have been done.
            done = state == after and (not error or error.startswith('lost'))
            assert done or error and state == before, f'{what}, but something else is done'
            assert error or bodies == told, f'{what}, but with another answer'
            if not failed:
                return number - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--base', default='7.3')
    faults, total = Faults(parser.parse_args().base), 0
    for number, (setup, request) in enumerate(REQUESTS, 1):
        try:
            total += faults.check(setup, request)
        except AssertionError as finding:
            faults.findings += 1
            print(f'FINDING {finding}\n  set up: {setup}\n  request: {request}')
        print(f'request {number} of {len(REQUESTS)}: {total} faults', flush=True)
    faults.leaks()
    print(f'faults: {faults.base}: {len(REQUESTS)} requests, {total} faults, '
          f'{faults.findings} findings')
    return bool(faults.findings)


if __name__ == '__main__':
    sys.exit(main())
