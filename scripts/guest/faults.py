#!/usr/bin/python3
"""Netlink requests with neighbour overrides, while every allocation fails in turn.

usage: faults.py [--base NAME]

An answer is success or ENOMEM, or ENOBUFS where IPv4 routing says so: for the entry of a route,
for a dump, and when the answer itself is lost.  What is there afterwards is what was there before
or what the request asks for.  Allocations per CPU cannot be made to fail.
"""

import argparse
import contextlib
import errno
import os
import socket
import struct
import sys

import fuzz
from fuzz import Answer, Finding, join, message, u32
from netlink import (FLAGS, LLADDR, NHA_GATEWAY, NHA_GROUP, NHA_ID, NHA_NEIGH_OVERRIDE, NHA_OIF,
                     NHA_OP_FLAGS, NLA_F_NESTED, NLM_F_DUMP, RTA_DST, RTA_OIF, RTA_VIA,
                     RTM_DELNEXTHOP, RTM_GETNEXTHOP, RTM_GETROUTE, RTM_NEWNEXTHOP, SRC_LLADDR,
                     VIA4, VIA6)

FAIL_NTH = '/proc/thread-self/fail-nth'
SETTINGS = {'failslab/ignore-gfp-wait': 'N', 'failslab/verbose': '0',
            'fail_page_alloc/ignore-gfp-wait': 'N', 'fail_page_alloc/verbose': '0'}
CREATE, REPLACE = fuzz.EDITS[:2]
MAC, OTHER = fuzz.MACS[:2]
NET = socket.inet_aton('203.0.113.0')


def nexthop(number, *nest, flags=CREATE, gateway=True, more=()):
    """A nexthop object, with an override if there is a nest."""
    pairs = [[NHA_ID, u32(number)], [NHA_OIF, u32(2)], *more]
    pairs += [[NHA_GATEWAY, fuzz.V4[0]]] if gateway else []
    pairs += [[NHA_NEIGH_OVERRIDE | NLA_F_NESTED, join(nest)]] if nest else []
    return message(RTM_NEWNEXTHOP, flags, struct.pack('=4BI', socket.AF_INET, 0, 0, 0, 0), pairs)


def group(number, *members, flags=CREATE, resilient=False):
    """A group of nexthop objects."""
    pairs = [[NHA_ID, u32(number)], [NHA_GROUP, b''.join(u32(one) + bytes(4) for one in members)]]
    if resilient:
        pairs += [[fuzz.NHA_GROUP_TYPE, struct.pack('=H', 1)],
                  [fuzz.NHA_RES_GROUP | NLA_F_NESTED, join([[fuzz.BUCKETS, struct.pack('=H', 8)]])]]
    return message(RTM_NEWNEXTHOP, flags, bytes(8), pairs)


def route(*pairs, flags=CREATE, kind=fuzz.RTM_NEWROUTE, scope=0, which=1):
    """A route, or the request to delete it."""
    head = struct.pack('=8BI', socket.AF_INET, 24, 0, 0, 254, 4, scope, which, 0)
    flags = flags if kind == fuzz.RTM_NEWROUTE else 0
    return message(kind, flags, head, [[RTA_DST, NET], *pairs])


def link(mac=MAC, device=2):
    """The attributes of a route to a link-layer address."""
    return [RTA_OIF, u32(device)], via(mac)


def via(mac):
    """RTA_VIA with a link-layer address."""
    return [RTA_VIA, struct.pack('=H', socket.AF_PACKET) + mac]


def legs(*macs):
    """Legs that go to link-layer addresses."""
    return [fuzz.RTA_MULTIPATH, fuzz.join_legs((struct.pack('=BBI', 0, 0, 2), join([via(mac)]))
                                               for mac in macs)]


def by_id(kind, number, *pairs, flags=0):
    """A request about a nexthop object."""
    return message(kind, flags, bytes(8), [[NHA_ID, u32(number)], *pairs])


def lookup(flags):
    """A request for the route to an address."""
    head = struct.pack('=8BI', socket.AF_INET, 32, *[0] * 6, flags)
    return message(RTM_GETROUTE, 0, head, [[RTA_DST, fuzz.V4[7]]])


def flags_are(value):
    """The flags of an override."""
    return [FLAGS, u32(value)]


TO_MAC, TO_V4, TO_V6 = [LLADDR, MAC], [VIA4, fuzz.V4[1]], [VIA6, fuzz.V6[0]]
FROM, ON_OBJECT = [SRC_LLADDR, OTHER], [fuzz.RTA_NH_ID, u32(1)]
ENCAP = [[fuzz.NHA_ENCAP_TYPE, struct.pack('=H', 2)],
         [fuzz.NHA_ENCAP | NLA_F_NESTED, join([[2, fuzz.V4[0]]])]]
STATS = [NHA_OP_FLAGS, u32(1)]
TWO = [nexthop(1, TO_MAC), nexthop(2, TO_V4, FROM, flags_are(fuzz.COUNTERS))]
USED = [*TWO, group(3, 1, 2), group(4, 1), route(ON_OBJECT)]
FULL = [*USED, route(*link(), flags=fuzz.EDITS[4]), route(legs(MAC, OTHER), flags=fuzz.EDITS[4])]
# what is there, what is asked for
REQUESTS = [([], nexthop(1, *nest)) for nest in (
    (), (TO_MAC,), (TO_V4,), (TO_V6,), (FROM,), (TO_MAC, FROM), (TO_V6, FROM),
    (flags_are(6),), (TO_V4, flags_are(9)), (TO_V6, flags_are(15)),
    # refused, the last two late
    (TO_V4, FROM, flags_are(10)), ([LLADDR, fuzz.MACS[3]],),
    (TO_V4, [SRC_LLADDR, fuzz.MACS[5]], flags_are(8)))]
REQUESTS += [
    ([], nexthop(1, TO_MAC, gateway=False)), ([], nexthop(1, TO_V4, more=ENCAP)),
    (USED, nexthop(1, TO_V6, flags_are(9), flags=REPLACE)), (USED, nexthop(1, flags=REPLACE)),
    (USED, nexthop(1, TO_V4, FROM, flags_are(10), flags=REPLACE)),
    (TWO, group(3, 1, 2)), (USED, group(3, 2, flags=REPLACE)),
    (TWO, group(3, 1, 2, resilient=True)),
    ([*TWO, group(3, 1, 2, resilient=True)], group(3, 2, flags=REPLACE, resilient=True)),
    ([], route(*link())), ([route(*link())], route(*link(OTHER), flags=REPLACE)),
    ([], route(legs(MAC, OTHER))), ([], route(legs(MAC, bytes(6)))),
    ([], route(*link(), scope=254, which=2)),
    (TWO, route(ON_OBJECT)), (USED, route(*link(), flags=REPLACE)),
    (FULL, route(*link(), kind=fuzz.RTM_DELROUTE)),
    (FULL, route(legs(MAC, OTHER), kind=fuzz.RTM_DELROUTE)),
    (USED, route(ON_OBJECT, kind=fuzz.RTM_DELROUTE)),
    (USED, by_id(RTM_DELNEXTHOP, 1)), (USED, by_id(RTM_DELNEXTHOP, 3)),
    (TWO, by_id(RTM_GETNEXTHOP, 2)), (TWO, by_id(RTM_GETNEXTHOP, 2, STATS)),
    (FULL, message(RTM_GETNEXTHOP, NLM_F_DUMP, bytes(8), [STATS])),
    (FULL, message(RTM_GETROUTE, NLM_F_DUMP, struct.pack('=8BI', 2, *[0] * 8), [])),
    (FULL, lookup(fuzz.RTM_F_FIB_MATCH)), (USED, lookup(0))]


def timeless(request, answer):
    """What an answer tells, without the age of a cached route."""
    if fuzz.take_apart(request)[0] != RTM_GETROUTE:
        return answer.bodies
    return [[pair for pair in fuzz.split(body[12:]) if pair[0] != fuzz.RTA_CACHEINFO]
            for body in answer.bodies]


class Faults:
    """All requests, each as often as it allocates."""

    def __init__(self, place):
        self.place, self.faults, self.findings = place, 0, 0
        self.file = os.open(FAIL_NTH, os.O_RDWR)
        self.base = place.state()[1]

    def set_up(self, requests):
        """Have only these objects and routes."""
        for body in self.place.dump(RTM_NEWNEXTHOP):
            self.place.link.ask(by_id(RTM_DELNEXTHOP, fuzz.nexthop_id(body)))
        for body in self.place.dump(fuzz.RTM_NEWROUTE):
            if body not in self.base:
                head, pairs = fuzz.settable(fuzz.RTM_NEWROUTE, body)
                self.place.link.ask(message(fuzz.RTM_DELROUTE, 0, head, pairs))
        for request in requests:
            answer = self.place.link.ask(request)
            if answer.code:
                raise Finding(f'set up: {request.hex()}: {answer.code} {answer.text}')

    def ask(self, request, number):
        """Send a request whose allocation of this number fails: the answer, if one did fail."""
        answer, dump = None, struct.unpack_from('=H', request, 6)[0] & NLM_F_DUMP == NLM_F_DUMP
        os.pwrite(self.file, str(number).encode(), 0)
        try:
            self.place.link.send(request)
            if dump:
                answer = self.place.link.answer()
        except OSError as error:
            answer = Answer(error.errno, 'from the socket', [])
        failed = number and os.pread(self.file, 16, 0).strip() == b'0'
        os.pwrite(self.file, b'0', 0)
        return answer or self.late_answer(), failed

    def late_answer(self):
        """An answer that may be lost."""
        try:
            return self.place.link.answer()
        except OSError as error:
            return Answer(error.errno, 'lost', [])

    def check(self, setup, request):
        """Let one allocation after another fail, until none is left."""
        self.set_up(setup)
        wanted, _ = self.ask(request, 0)
        after = self.place.state()
        number = 0
        while True:
            number += 1
            self.set_up(setup)
            before = self.place.state()
            answer, failed = self.ask(request, number)
            self.late_answer()
            state = self.place.state()
            allowed = {wanted.code} | ({errno.ENOMEM, errno.ENOBUFS} if failed else set())
            if answer.code not in allowed:
                raise Finding(f'fault {number}: {answer.code} {answer.text}, not {wanted.code}')
            if answer.code == 0 and (
                    state != after or timeless(request, answer) != timeless(request, wanted)):
                raise Finding(f'fault {number}: success, but with another result')
            # The request of a lost answer has been done.
            if state != before and (state != after or answer.code and answer.text != 'lost'):
                raise Finding(f'fault {number}: {answer.code} {answer.text}, but half is done')
            self.place.check_log()
            if not failed:
                return
            self.faults += 1

    def run(self):
        """All requests."""
        for number, (setup, request) in enumerate(REQUESTS, 1):
            before = self.faults
            try:
                self.check(setup, request)
            except Finding as finding:
                self.findings += 1
                print(f'FINDING {finding}\n  set up: ' + ' '.join(one.hex() for one in setup)
                      + f'\n  request: {request.hex()}')
            print(f'request {number} of {len(REQUESTS)}: {self.faults - before} faults', flush=True)
        self.set_up([])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument('--base', default='7.3')
    options = parser.parse_args()
    fuzz.prepare()
    if not os.path.exists(FAIL_NTH) or not os.path.exists(f'{fuzz.DEBUG}/failslab'):
        print('faults: this kernel has no fault injection: build it with --with fault')
        return 1
    for name, value in SETTINGS.items():
        fuzz.write(f'{fuzz.DEBUG}/{name}', value)
    with contextlib.closing(fuzz.Round(simulate=False)) as place:
        faults = Faults(place)
        faults.run()
    for leak in fuzz.leaks():
        faults.findings += 1
        print('FINDING leak: ' + leak)
    print(f'faults: {options.base}: {len(REQUESTS)} requests, {faults.faults} faults, '
          f'{faults.findings} findings')
    return bool(faults.findings)


if __name__ == '__main__':
    sys.exit(main())
