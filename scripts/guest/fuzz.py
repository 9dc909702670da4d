#!/usr/bin/python3
"""Random netlink requests around neighbour overrides, and checks of what comes of them.

usage: fuzz.py [--base NAME] [--seconds N] [--seed S] [--replay HEX...]

A round has a network namespace of its own.  A finding is printed with the requests, in hex,
that lead to it from an empty round: give them to --replay.
"""

import argparse
import collections
import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import random
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import netlink as nl

RTM_NEWLINK, RTM_DELLINK, RTM_NEWROUTE, RTM_DELROUTE, RTM_F_FIB_MATCH = 16, 17, 24, 25, 0x2000
RTA_PRIORITY, RTA_METRICS, RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_NH_ID = 6, 8, 9, 12, 15, 30
NHA_GROUP_TYPE, NHA_FDB, NHA_RES_GROUP, BUCKETS, UNBALANCED_TIME = 3, 11, 12, 1, 4
LATER = 0x2000c059      # flags that change by themselves: dead, linkdown, offload, trap
HEADER = {RTM_NEWLINK: 16, RTM_DELLINK: 16, RTM_NEWROUTE: 12, RTM_DELROUTE: 12,
          nl.RTM_GETROUTE: 12, nl.RTM_NEWNEXTHOP: 8, nl.RTM_DELNEXTHOP: 8, nl.RTM_GETNEXTHOP: 8}
EDITS = (nl.NLM_F_CREATE | nl.NLM_F_EXCL, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, nl.NLM_F_CREATE,
         nl.NLM_F_REPLACE, nl.NLM_F_CREATE | 0x800, 0)          # NLM_F_APPEND
DEBUG, NETDEVSIM, LIBC = Path('/sys/kernel/debug'), Path('/sys/bus/netdevsim'), ctypes.CDLL(None)
KCOV_WORDS, COPY, ROUND = 1 << 17, 0x7ffffff0, 400

# Devices have the same numbers in every round.
DEVICES = '''link set lo up
link add veth2 index 2 address 02:00:00:00:00:02 type veth peer name veth3 index 3
link add dummy4 index 4 arp on type dummy
link add link veth2 name vlan5 index 5 type vlan id 5
link add vrf6 index 6 type vrf table 6
link add dummy7 index 7 arp on master vrf6 type dummy
link add br8 index 8 type bridge
link add dummy9 index 9 master br8 type dummy
link add link veth2 name ipvlan10 index 10 type ipvlan mode l2
link add link veth3 name ipvlan11 index 11 type ipvlan mode l3
link add ipip12 index 12 type ipip local 192.0.2.2 remote 192.0.2.1
link add gretap13 index 13 type gretap local 192.0.2.2 remote 192.0.2.1
link add dummy14 index 14 type dummy
link add link dummy14 name macsec15 index 15 type macsec
link add dummy16 index 16 mtu 1200 arp off type dummy
address add 192.0.2.2/24 dev veth2
address add 2001:db8::2/64 dev veth2 nodad
address add 10.4.0.1/24 dev dummy4
address add 10.7.0.1/24 dev dummy7
address add 10.8.0.1/24 dev br8
'''
INDEXES = range(2, 18)
V4 = [socket.inet_aton(text) for text in (
    '192.0.2.1', '192.0.2.9', '192.0.2.2', '192.0.2.255', '10.4.0.9', '10.7.0.9', '10.8.0.9',
    '203.0.113.7', '127.0.0.1', '224.0.0.1', '255.255.255.255', '0.0.0.0')]
V6 = [socket.inet_pton(socket.AF_INET6, text) for text in (
    '2001:db8::9', 'fe80::9', '2001:db8::2', '::1', 'ff02::1', '::', '::ffff:192.0.2.9')]
MACS = [bytes.fromhex(text) for text in (
    '020000000009', '02000000000a', '00005e000107', '020000000002', 'ffffffffffff', '01005e000001',
    '000000000000', '', '02', '0200000009', '0200000000000009', 'c0000209', 32 * '02', 33 * '02')]
PREFIXES = [(socket.inet_aton(text), length) for text, length in (
    ('203.0.113.0', 24), ('203.0.113.7', 32), ('0.0.0.0', 0), ('10.4.0.0', 16), ('224.0.0.0', 4))]
LINK, INET, INET6 = (struct.pack('=H', family)
                     for family in (socket.AF_PACKET, socket.AF_INET, socket.AF_INET6))


def u32(value):
    """A number as an attribute has it."""
    return struct.pack('=I', value)


def split(data):
    """Attributes in their order, as far as they are well-formed.

    A leg of RTA_MULTIPATH looks like one: the type is its flags and weight, and the index of its
    device precedes its own attributes.
    """
    pairs = []
    while len(data) >= nl.NLATTR.size:
        length, kind = nl.NLATTR.unpack_from(data)
        if not nl.NLATTR.size <= length <= len(data):
            break
        pairs.append([kind, data[nl.NLATTR.size:length]])
        data = data[(length + 3) & ~3:]
    return pairs


def join(pairs):
    """The opposite of split()."""
    return b''.join(nl.attribute(kind, data) for kind, data in pairs)


def find(data, kind):
    """The last attribute of a type, or nothing."""
    return dict(split(data)).get(kind) or dict(split(data)).get(kind | nl.NLA_F_NESTED, b'')


def message(kind, flags, head, pairs):
    """A request."""
    body = head + (pairs if isinstance(pairs, bytes) else join(pairs))
    flags |= nl.NLM_F_REQUEST | nl.NLM_F_ACK
    return nl.NLMSGHDR.pack(nl.NLMSGHDR.size + len(body), kind, flags, 0, 0) + body


def take_apart(request):
    """Type, flags, header and attributes as bytes."""
    _, kind, flags, _, _ = nl.NLMSGHDR.unpack_from(request)
    end = nl.NLMSGHDR.size + HEADER[kind]
    return kind, flags, request[nl.NLMSGHDR.size:end], request[end:]


def device(kind, index, up, *pairs, flags=0):
    """A request for a change of a device."""
    return message(kind, flags, struct.pack('=BxHiII', 0, 0, index, up, 1), pairs)


def lookup(address, flags):
    """A request for the route to an address."""
    head = nl.RTMSG.pack(socket.AF_INET, 32, *[0] * 6, flags)
    return message(nl.RTM_GETROUTE, 0, head, [[nl.RTA_DST, address]])


class Random(random.Random):
    """Makes requests and changes them."""

    def pick(self, pool):
        """One of a pool, often of its first two."""
        return self.choice(pool[:self.choice((2, len(pool)))])

    def some(self, *pairs):
        """Those that their odds let through."""
        return [pair for odds, pair in pairs if self.random() < odds]

    def override(self, kind=nl.NHA_NEIGH_OVERRIDE):
        """A nest that often makes sense."""
        flags = self.choice((1, 2, 6, 8, 9, 3, self.randrange(18)))
        pairs = self.some(
            (.35, [nl.LLADDR, self.pick(MACS)]), (.3, [nl.VIA4, self.pick(V4)]),
            (.2, [nl.VIA6, self.pick(V6)]), (.3, [nl.SRC_LLADDR, self.pick(MACS)]),
            (.4, [nl.FLAGS, u32(flags)]), (.03, [nl.STATS, nl.attribute(1, bytes(8))]))
        return [kind | nl.NLA_F_NESTED, join(pairs)]

    def device(self):
        """The index of a device, often of one that can do everything."""
        return u32(self.choice((2, 2, 2, 4, 8, 1, self.choice(INDEXES), 99)))

    def nexthop(self):
        """A nexthop object, also a group, resilient or not."""
        family, gateway = self.choice([(socket.AF_INET, self.pick(V4))] * 12
                                      + [(socket.AF_INET6, V6[0]), (0, V4[0])])
        pairs = [[nl.NHA_ID, u32(self.randrange(1, 12))]] + self.some(
            (.97, [nl.NHA_OIF, self.device()]), (.6, [nl.NHA_GATEWAY, gateway]),
            (.85, self.override()), (.02, [nl.NHA_BLACKHOLE, b'']), (.02, [NHA_FDB, b'']))
        if self.random() < .2:
            family, members = 0, [self.randrange(1, 12) for _ in range(self.randrange(1, 4))]
            buckets = nl.attribute(BUCKETS, struct.pack('=H', self.randrange(1, 32)))
            pairs = [[nl.NHA_ID, u32(self.randrange(12, 18))],
                     [nl.NHA_GROUP, b''.join(struct.pack('=IHH', one, one & 3, 0)
                                             for one in members)]]
            pairs += self.choice(([], [[NHA_GROUP_TYPE, struct.pack('=H', 1)],
                                       [NHA_RES_GROUP | nl.NLA_F_NESTED, buckets]]))
        head = nl.NHMSG.pack(family, 0, self.choice((0, 4)), 0, self.choice((0, 0, 0, 4)))
        return message(nl.RTM_NEWNEXTHOP, self.choice(EDITS), head, pairs)

    def via(self):
        """A next hop of a plain route: attributes, or none."""
        link = [nl.RTA_VIA, LINK + self.pick(MACS)]
        return self.choice([[link]] * 4 + [
            [], [[nl.RTA_GATEWAY, self.choice(V4)]], [[nl.RTA_VIA, INET6 + V6[0]]],
            [link, [nl.RTA_GATEWAY, V4[0]]], [[nl.RTA_VIA, INET + V4[0]], link]])

    def route(self, kind=RTM_NEWROUTE):
        """A route, or the request to delete one."""
        prefix, length = self.choice(PREFIXES)
        plain = [[nl.RTA_OIF, self.device()]] + self.via()
        legs = [[self.choice((0, 4, 0x100)), self.device() + join(self.via())]
                for _ in range(self.randrange(1, 4))]
        pairs = [[nl.RTA_DST, prefix]] + self.choice((
            plain, plain, [[RTA_MULTIPATH, join(legs)]],
            [[RTA_NH_ID, u32(self.randrange(1, 18))]])) + self.some(
            (.1, [RTA_PRIORITY, u32(self.randrange(3))]), (.1, [RTA_TABLE, self.device()]),
            (.05, [RTA_METRICS, nl.attribute(2, u32(1400))]),
            (.05, self.override(nl.RTA_NEIGH_OVERRIDE)))
        head = nl.RTMSG.pack(
            socket.AF_INET, length, 0, self.choice((0, 0, 0, 4)), 254, 4,
            self.choice((0, 0, 0, 0, 200, 253, 254)),
            self.choice((1,) * 12 + (2, 3, 4, 5, 6, 7)), self.choice((0, 0, 0, 4)))
        return message(kind, self.choice(EDITS) if kind == RTM_NEWROUTE else 0, head, pairs)

    def other(self):
        """A delete, a get, a dump, or something that happens to a device."""
        number, stats = [nl.NHA_ID, u32(self.randrange(1, 18))], [nl.NHA_OP_FLAGS, u32(1)]
        index, new = self.choice(INDEXES), [18 | nl.NLA_F_NESTED, nl.attribute(1, b'dummy')]
        return self.choice([
            message(nl.RTM_DELNEXTHOP, 0, bytes(8), [number]), self.route(RTM_DELROUTE)] * 3 + [
            message(nl.RTM_GETNEXTHOP, 0, bytes(8), [number, stats]),
            message(nl.RTM_GETNEXTHOP, nl.NLM_F_DUMP, bytes(8), [stats]),
            lookup(self.choice(V4), self.choice((0, 0x100, RTM_F_FIB_MATCH))),
            self.choice((device(RTM_NEWLINK, index, 0), device(RTM_NEWLINK, index, 1),
                         device(RTM_NEWLINK, 2, 1), device(RTM_NEWLINK, 8, 1),
                         device(RTM_NEWLINK, index, 1, [1, MACS[index & 1]]),
                         device(RTM_DELLINK, self.choice((4, 4, index)), 0),
                         device(RTM_NEWLINK, 4, 1, [3, b'dummy4\0'], new, flags=EDITS[0])))])

    def request(self, corpus):
        """The next request: made, or changed, or both."""
        make, = self.choices((self.nexthop, self.route, self.other), (48, 30, 20))
        request = self.choice(corpus) if corpus and self.random() < .45 else None
        if request is None and self.random() < .8:
            return make()
        kind, flags, head, data = take_apart(request or make())
        for _ in range(self.choice((1, 1, 2, 4))):
            data = self.change(data)
        if self.random() < .2:
            flags = self.choice(EDITS + (nl.NLM_F_DUMP,))
            head = self.change(head)
        return message(kind, flags, head, data[:4000])

    def change(self, data):
        """Attributes with one changed, inside or as a whole; of other data a byte."""
        pairs = split(data)
        if not pairs or self.random() < .1:
            at = self.randrange(len(data) + 1)
            byte = bytes([self.choice((0, 1, 2, 4, 10, 32, 255, self.randrange(256)))])
            return self.choice((data[:at] + byte + data[at + 1:], data[:at], data + 4 * byte))
        at = self.randrange(len(pairs))
        kind, value = pairs[at]
        address = self.choice(V4 + V6 + MACS)
        fresh = self.choice((self.override(), [kind, address], [nl.RTA_VIA, LINK + address],
                             [self.randrange(40), u32(self.randrange(4))]))
        pairs[at:at + 1] = self.choice([[[kind, self.change(value)]]] * 5 + [
            [], [fresh], [[kind, value], fresh], [[kind, value]] * 2, [[kind, address]],
            [[kind ^ nl.NLA_F_NESTED, value]], [[self.randrange(34), value]]])
        return join(pairs)


class Coverage:
    """The code that was reached, and the requests that were the first there."""

    def __init__(self):
        self.seen, self.corpus, self.area = set(), [], [0]
        if not (DEBUG / 'kcov').exists():
            print('no KCOV in this kernel: not guided')
            return
        file = os.open(DEBUG / 'kcov', os.O_RDWR)
        fcntl.ioctl(file, 0x80086301, KCOV_WORDS)               # KCOV_INIT_TRACE
        # The module mmap believes that the file is empty.  Readable and writable, shared
        LIBC.mmap.restype = ctypes.c_void_p
        address = LIBC.mmap(None, ctypes.c_size_t(KCOV_WORDS * 8), 3, 1, file, ctypes.c_size_t(0))
        self.area = (ctypes.c_uint64 * KCOV_WORDS).from_address(address)
        fcntl.ioctl(file, 0x6364, 0)                            # KCOV_ENABLE, KCOV_TRACE_PC

    def watch(self, ask, request):
        """An answer; the request is remembered if it is the first at a place, or just accepted."""
        before, self.area[0] = len(self.seen), 0
        answer = ask(request)
        self.seen.update(self.area[1:self.area[0] + 1])
        fresh = len(self.seen) > before if self.seen else answer.code == 0
        if fresh and take_apart(request)[0] not in (RTM_NEWLINK, RTM_DELLINK):
            self.corpus.append(request)
        return answer


class Finding(Exception):
    """The kernel did what it should not."""


def expect(condition, text, *bodies):
    """Raise a finding unless the condition is true."""
    if not condition:
        raise Finding(' '.join([text, *[body.hex() for body in bodies]]))


def comparable(kind, body):
    """What is dumped, without what changes by itself: flags, times, padding."""
    size, pairs = HEADER[kind], split(body[HEADER[kind]:])
    for pair in pairs:
        if (kind, pair[0]) == (RTM_NEWROUTE, RTA_MULTIPATH):
            pair[1] = join([flags & ~LATER, leg] for flags, leg in split(pair[1]))
        elif (kind, pair[0] & nl.NLA_TYPE_MASK) == (nl.RTM_NEWNEXTHOP, NHA_RES_GROUP):
            pair[1] = join(one for one in split(pair[1]) if one[0] not in (0, UNBALANCED_TIME))
    flags = struct.unpack_from('=I', body, size - 4)[0] & ~LATER
    return body[:size - 4] + u32(flags) + join(pairs)


def settable(kind, body):
    """Header and attributes to make what is dumped again, nexthops as COPY, or to delete it."""
    size, found = HEADER[kind], nl.attributes(body[HEADER[kind]:])
    pairs, only = split(body[size:]), ()
    if kind == nl.RTM_DELNEXTHOP:
        return bytes(size), [[nl.NHA_ID, found[nl.NHA_ID]]]
    if kind == nl.RTM_NEWNEXTHOP:
        body = body[:1] + b'\0' + body[2:]      # the scope is not set
        pairs = [[nl.NHA_ID, u32(COPY)]] + [pair for pair in pairs if pair[0] not in (
            nl.NHA_ID, nl.NHA_OP_FLAGS)]
    elif RTA_NH_ID in found:
        only = (nl.RTA_DST, RTA_PRIORITY, RTA_TABLE, RTA_METRICS, RTA_NH_ID)
    return body[:size], [pair for pair in pairs if not only or pair[0] in only]


def link_vias(data):
    """The link-layer address of each leg: of several RTA_VIA the last, but of a leg the first."""
    vias = [dict(split(leg[4:])[::-1]).get(nl.RTA_VIA, b'')
            for _, leg in split(find(data, RTA_MULTIPATH))] or [find(data, nl.RTA_VIA)]
    return [via if via.startswith(LINK) else b'' for via in vias]


Answer = collections.namedtuple('Answer', 'code text bodies')
