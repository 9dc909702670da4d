#!/usr/bin/python3
"""Random netlink requests around neighbour overrides, and checks of what comes of them.

A finding is printed with the requests, in hex, that lead to it: give them to --replay.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import netlink as nl
from lab import allocated, unreferenced

RTM_NEWLINK, RTM_DELLINK, RTM_NEWROUTE, RTM_DELROUTE, NHA_FDB = 16, 17, 24, 25, 11
RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_CACHEINFO = 6, 7, 9, 12
RTA_TABLE, RTA_NH_ID = 15, 30
RTN_BLACKHOLE = 6
COMPLAINTS = b'WARNING:', b'BUG:', b'KASAN:', b'refcount_t:'
OVERRIDES = nl.NHA_NEIGH_OVERRIDE, nl.RTA_NEIGH_OVERRIDE
SILENT = 'EINVAL: Invalid argument', 'EOPNOTSUPP: Operation not supported'
LATER = 0x2000c059      # flags that change by themselves: dead, linkdown, offload, trap
HEADER = {RTM_NEWLINK: 16, RTM_DELLINK: 16, RTM_NEWROUTE: 12, RTM_DELROUTE: 12,
          nl.RTM_GETROUTE: 12, nl.RTM_NEWNEXTHOP: 8, nl.RTM_DELNEXTHOP: 8, nl.RTM_GETNEXTHOP: 8}
EDITS = (nl.NLM_F_CREATE | nl.NLM_F_EXCL, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, nl.NLM_F_CREATE,
         nl.NLM_F_REPLACE, nl.NLM_F_CREATE | 0x800, 0)          # NLM_F_APPEND
DEBUG, NETDEVSIM, LIBC = Path('/sys/kernel/debug'), Path('/sys/bus/netdevsim'), ctypes.CDLL(None)
PATIENCE = 90
KCOV_WORDS, COPY, ROUND, RTM_F_CLONED, RTM_F_FIB_MATCH = 1 << 17, 0x7ffffff0, 1000, 0x200, 0x2000

# Devices have the same numbers in every round.
INDEXES = range(1, 16)
DEVICES = '''link add veth2 index 2 address 02:00:00:00:00:02 type veth peer name veth3 index 3
link add dummy4 index 4 arp on type dummy
link add link veth2 name vlan5 index 5 type vlan id 5
link add vrf6 index 6 type vrf table 6
link add dummy7 index 7 arp on master vrf6 type dummy
link add br8 index 8 type bridge
link add dummy9 index 9 master br8 type dummy
link add link veth2 name ipvlan10 index 10 type ipvlan mode l2
link add ipip11 index 11 type ipip local 192.0.2.2 remote 192.0.2.1
link add gretap12 index 12 type gretap local 192.0.2.2 remote 192.0.2.1
link add link dummy4 name macsec13 index 13 type macsec
link add dummy14 index 14 mtu 1200 arp off type dummy
address add 192.0.2.2/24 dev veth2
address add 10.4.0.1/24 dev dummy4
address add 2001:db8::2/64 dev veth2 nodad
address add 2001:db8:4::2/64 dev dummy4 nodad
'''
V4 = [socket.inet_aton(text) for text in (
    '192.0.2.1', '192.0.2.9', '192.0.2.2', '10.4.0.9', '203.0.113.7', '224.0.0.1', '0.0.0.0')]
V6 = [socket.inet_pton(socket.AF_INET6, text) for text in (
    '2001:db8::9', 'fe80::9', '2001:db8::2', '::1', 'ff02::1', '::', '::ffff:192.0.2.9',
    '2001:db8:1::')]
MACS = [bytes.fromhex(text) for text in (
    '020000000009', '02000000000a', '00005e000107', '020000000002', 'ffffffffffff', '01005e000001',
    '000000000000', '', '02', '0200000009', '0200000000000009', 'c0000209', 32 * '02', 33 * '02')]
PREFIXES = [(socket.inet_aton(text), length) for text, length in (
    ('203.0.113.0', 24), ('203.0.113.7', 32), ('0.0.0.0', 0), ('10.4.0.0', 16), ('224.0.0.0', 4))]
PREFIXES6 = [(socket.inet_pton(socket.AF_INET6, text), length) for text, length in (
    ('2001:db8:1::', 48), ('2001:db8:1::7', 128), ('::', 0), ('2001:db8:4:1::', 64),
    ('ff05::', 16))]
NAMES = [b'last-hop\0', b'last-hop\0-', b'last\0', b'fifteen-letters\0', b'sixteen-letters-\0',
         b'last-hop', b'\0', b'']
LINK, INET6 = struct.pack('=H', socket.AF_PACKET), struct.pack('=H', socket.AF_INET6)


def u32(value):
    """A number as an attribute has it."""
    return struct.pack('=I', value)


def split(data):
    """Attributes in their order, as far as they are well-formed; a leg of a route is like one."""
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
    return {what & nl.NLA_TYPE_MASK: value for what, value in split(data)}.get(kind, b'')


def lookup(address, flags):
    """A request for the route to an address."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    head = nl.RTMSG.pack(family, 8 * len(address), *[0] * 6, flags)
    return nl.RTM_GETROUTE, 0, head + nl.attribute(nl.RTA_DST, address)


# What requests are made of: attribute, odds, values.
NUMBERS = [u32(number) for number in range(1, 18)]
OIFS = [u32(index) for index in (*[2] * 20, *[4, 8] * 4, *INDEXES, 99)]
OVERRIDE = ((nl.LLADDR, .3, MACS[:2] * 6 + MACS), (nl.VIA4, .25, V4[:2] * 6 + V4),
            (nl.VIA6, .15, V6[:2] * 3 + V6), (nl.SRC_LLADDR, .3, MACS[:2] * 6 + MACS),
            (nl.SELECTOR, .2, NAMES[:1] * 6 + NAMES),
            (nl.FLAGS, .3, [u32(flags) for flags in (1, 2, 6, 8, 9) * 4 + (*range(18),)]))
NEXTHOP = ((nl.NHA_ID, 1, NUMBERS[:11]), (nl.NHA_OIF, .97, OIFS), (NHA_FDB, .02, [b'']),
           (nl.NHA_GATEWAY, .6, V4[:2] * 6 + V4 + V6[:1]), (nl.NHA_BLACKHOLE, .02, [b'']))
NEXTHOP6 = (*NEXTHOP[:3], (nl.NHA_GATEWAY, .6, V6[:2] * 6 + V6))
GROUP = ((nl.NHA_ID, 1, NUMBERS[11:]),
         (nl.NHA_GROUP, 1, [one + bytes(4) for one in NUMBERS[:11]]
          + [NUMBERS[0] + bytes(4) + one + b'\1\0\0\0' for one in NUMBERS[1:11]]))
ROUTE = ((RTA_PRIORITY, .1, NUMBERS[:2]), (RTA_TABLE, .1, [u32(6), u32(255)]),
         (nl.RTA_NEIGH_OVERRIDE | nl.NLA_F_NESTED, .03, [nl.attribute(nl.LLADDR, MACS[0])]))
VIA = ((nl.RTA_VIA, .75, [LINK + mac for mac in MACS[:2] * 6 + MACS] + [INET6 + V6[0]]),
       (nl.RTA_GATEWAY, .15, V4))
EVENTS = [(kind, 0, struct.pack('=BxHiII', 0, 0, index, up, 1))
          for kind, up in ((RTM_DELLINK, 0), (RTM_NEWLINK, 0), (RTM_NEWLINK, 1), (RTM_NEWLINK, 1))
          for index in INDEXES]


class Random(random.Random):
    """Makes requests and changes them."""

    def some(self, table):
        """Attributes of a table."""
        return join([kind, self.choice(pool)] for kind, odds, pool in table if self.random() < odds)

    def override(self):
        return nl.attribute(nl.NHA_NEIGH_OVERRIDE | nl.NLA_F_NESTED, self.some(OVERRIDE))

    def nexthop(self):
        """A nexthop object, or a group of them."""
        family, table = self.choice(((socket.AF_INET, NEXTHOP), (socket.AF_INET, NEXTHOP),
                                     (socket.AF_INET6, NEXTHOP6)))
        data = self.some(table)
        if self.random() < .85:
            data += self.override()
        if self.random() < .15:
            family, data = 0, self.some(GROUP)
        head = nl.NHMSG.pack(family, 0, self.choice((0, 4)), 0, self.choice((0, 0, 0, 4)))
        return nl.RTM_NEWNEXTHOP, self.choice(EDITS[1:2] * 4 + EDITS), head + data

    def route(self):
        """A route, or the request to delete one."""
        family, prefixes, via = self.choice((
            (socket.AF_INET, PREFIXES, VIA), (socket.AF_INET, PREFIXES, VIA),
            (socket.AF_INET6, PREFIXES6, VIA[:1])))
        prefix, length = self.choice(prefixes)
        plain = nl.attribute(nl.RTA_OIF, self.choice(OIFS)) + self.some(via)
        legs = join([self.choice((0, 4, 0x100)), self.choice(OIFS) + self.some(VIA)]
                    for _ in range(self.randrange(1, 4)))
        data = nl.attribute(nl.RTA_DST, prefix) + self.some(ROUTE) + self.choice((
            plain, plain, nl.attribute(RTA_MULTIPATH, legs),
            nl.attribute(RTA_NH_ID, self.choice(NUMBERS))))
        which, scope = self.choice((1,) * 12 + (2, 3, 4, 5, 6, 7)), self.choice((0, 0, 0, 200, 253))
        flags = self.choice((0, 4))
        head = nl.RTMSG.pack(family, length, 0, 0, 254, 4, scope, which, flags)
        kind = self.choice([RTM_NEWROUTE] * 5 + [RTM_DELROUTE])
        return kind, self.choice(EDITS[1:2] * 4 + EDITS) if kind == RTM_NEWROUTE else 0, head + data

    def other(self):
        """A delete, a get, a dump, or something that happens to a device."""
        number = bytes(8) + nl.attribute(nl.NHA_ID, self.choice(NUMBERS))
        return self.choice([(nl.RTM_DELNEXTHOP, 0, number)] * 3 + [
            (nl.RTM_GETNEXTHOP, 0, number),
            (nl.RTM_GETNEXTHOP, nl.NLM_F_DUMP, bytes(8)),
            lookup(self.choice(V4 + V6), self.choice((0, RTM_F_FIB_MATCH))), self.choice(EVENTS)])

    def request(self, corpus):
        """The next request: made, or changed, or both."""
        make, = self.choices((self.nexthop, self.route, self.other), (48, 36, 14))
        kind, flags, body = self.choice(corpus) if corpus and self.random() < .35 else make()
        head, data = body[:HEADER[kind]], body[HEADER[kind]:]
        while self.random() < .4:
            data = self.change(data)
        if self.random() < .08:
            flags, head = self.choice(EDITS + (nl.NLM_F_DUMP,)), self.change(head)
        return kind, flags, head + data[:4000]

    def change(self, data):
        """Attributes with one changed, inside or as a whole; of other data a byte."""
        pairs = split(data)
        if not pairs or self.random() < .1:
            at = self.randrange(len(data) + 1)
            byte = bytes([self.choice((0, 1, 2, 4, 10, 32, 255, self.randrange(256)))])
            return self.choice((data[:at] + byte + data[at + 1:], data[:at], data + 4 * byte))
        at, address = self.randrange(len(pairs)), self.choice(V4 + V6 + MACS)
        kind, value = pairs[at]
        fresh = self.choice((*split(self.override()), [kind, address], [nl.RTA_VIA, LINK + address],
                             [self.randrange(40), self.choice(NUMBERS)]))
        pairs[at:at + 1] = self.choice([[[kind, self.change(value)]]] * 5 + [
            [], [fresh], [[kind, value], fresh], [[kind, value]] * 2,
            [[kind ^ nl.NLA_F_NESTED, value]], [[self.randrange(34), value]]])
        return join(pairs)


def comparable(kind, body):
    """What is dumped, without flags that change by themselves, and the age of an IPv6 route."""
    size, pairs = HEADER[kind], split(body[HEADER[kind]:])
    if kind == RTM_NEWROUTE and body[0] == socket.AF_INET6:
        pairs = [pair for pair in pairs if pair[0] != RTA_CACHEINFO]
    for pair in pairs:
        if (kind, pair[0]) == (RTM_NEWROUTE, RTA_MULTIPATH):
            pair[1] = join([flags & ~LATER, leg] for flags, leg in split(pair[1]))
    flags = struct.unpack_from('=I', body, size - 4)[0] & ~LATER
    return body[:size - 4] + u32(flags) + join(pairs)


def of_kernel(body):
    """Whether a route is the kernel's own, or what it has learned about a destination."""
    if body[0] == socket.AF_INET6:
        return body[5] in (2, 9) or bool(struct.unpack_from('=I', body, 8)[0] & RTM_F_CLONED)
    return bool(find(body[12:], RTA_CACHEINFO))


def settable(kind, body):
    """A dumped object as a request to make it again, a nexthop as COPY, or to delete it."""
    head, data = body[:HEADER[kind]], body[HEADER[kind]:]
    if kind == nl.RTM_DELNEXTHOP:
        return bytes(8) + nl.attribute(nl.NHA_ID, find(data, nl.NHA_ID))
    if kind == nl.RTM_NEWNEXTHOP:
        # The scope cannot be set, nor what tells how a dump was asked for.
        return head[:1] + b'\0' + head[2:] + nl.attribute(nl.NHA_ID, u32(COPY)) + join(
            pair for pair in split(data) if pair[0] not in (nl.NHA_ID, nl.NHA_OP_FLAGS))
    own = (nl.RTA_DST, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE, RTA_NH_ID)
    if kind == RTM_DELROUTE and head[7] == RTN_BLACKHOLE and find(data, RTA_NH_ID):
        # That is its nexthop; it was made with another type.
        head = head[:7] + b'\0' + head[8:]
    return head + join(pair for pair in split(data)
                       if not find(data, RTA_NH_ID) or pair[0] in own)


def link_vias(data):
    """The link-layer address of each leg: of several RTA_VIA the last, but of a leg the first."""
    legs = [join(split(leg[4:])[::-1]) for _, leg in split(find(data, RTA_MULTIPATH))]
    vias = [find(leg, nl.RTA_VIA) for leg in legs or [data]]
    return [via if via.startswith(LINK) else b'' for via in vias]


def override_of(nest):
    """What the attributes of an override say: no flags are as good as none, a name has an end."""
    told = {nl.FLAGS: u32(0), **nl.attributes(nest)}
    return {**told, nl.SELECTOR: told.get(nl.SELECTOR, b'').partition(b'\0')[0]}


def kcov():
    """Where the kernel writes how many places this thread has reached, and which."""
    if not (DEBUG / 'kcov').exists():
        return [0]
    file = os.open(DEBUG / 'kcov', os.O_RDWR)
    fcntl.ioctl(file, 0x80086301, KCOV_WORDS)           # KCOV_INIT_TRACE
    # The module mmap believes that the file is empty.  Readable and writable, shared
    LIBC.mmap.restype = ctypes.c_void_p
    address = LIBC.mmap(None, ctypes.c_size_t(KCOV_WORDS * 8), 3, 1, file, ctypes.c_size_t(0))
    fcntl.ioctl(file, 0x6364, 0)                        # KCOV_ENABLE, KCOV_TRACE_PC
    return (ctypes.c_uint64 * KCOV_WORDS).from_address(address)


class Fuzzer:   # pylint: disable=too-many-instance-attributes
    """Asks the kernel, and checks what comes of it."""

    def __init__(self, base, seed):
        # New namespaces have no tunnels.
        Path('/proc/sys/net/core/fb_tunnels_only_for_init_net').write_text('2', 'ascii')
        self.base, self.seed, self.started, self.said = base, seed, time.monotonic(), 0
        self.area, self.seen, self.corpus, self.news, self.history = kcov(), set(), [], None, []
        self.sent = self.accepted = self.findings = 0
        self.alive = self.started
        self.log = os.fdopen(os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK), 'rb', 0)

    def enter(self):
        """Go to a new network namespace with devices."""
        assert not LIBC.unshare(0x40000000), 'no new namespace'     # CLONE_NEWNET
        subprocess.run(['ip', '-batch', '-'], input=DEVICES, text=True, check=True)
        self.log.seek(0, os.SEEK_END)
        self.history = []
        self.news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
        self.news.bind((0, 1 | 1 << 6 | 1 << 10 | 1 << 31))     # links, routes, nexthop objects
        for event in EVENTS[-len(INDEXES):]:
            self.ask(*event)

    def ask(self, kind, flags, body):
        """Send a request: the error, or nothing, and what has come back."""
        self.alive = time.monotonic()
        try:
            return '', nl.request(kind, flags, body)
        except nl.KernelError as error:
            return str(error), []

    def watch(self):
        """A request that does not end is a finding: a device that waits to be released, say."""
        while time.monotonic() < self.alive + PATIENCE:
            time.sleep(1)
        print(f'FINDING no answer for {PATIENCE} s\n  seed {self.seed}\n  --replay', *self.history,
              flush=True)
        os._exit(1)     # pylint: disable=protected-access

    def hear(self):
        """What was told to everybody since the last time: type and body."""
        heard = []
        with contextlib.suppress(BlockingIOError):
            while data := self.news.recv(1 << 18):
                length, kind, *_ = nl.NLMSGHDR.unpack_from(data)
                heard.append((kind, data[nl.NLMSGHDR.size:length]))
        return heard

    def edit(self, kind, flags, body, *allowed):
        """Make what is dumped again, or delete it."""
        error, _ = self.ask(kind, flags, settable(kind, body))
        assert error.partition(':')[0] in ('', *allowed), f'request {kind}: {error}: {body.hex()}'
        return error

    def dump(self, kind):
        """All nexthop objects or routes."""
        families = (socket.AF_INET, socket.AF_INET6) if kind == RTM_NEWROUTE else (0,)
        bodies = []
        for family in families:
            error, answers = self.ask(kind + 2, nl.NLM_F_DUMP,
                                      bytes([family]) + bytes(HEADER[kind] - 1))
            assert not error, f'a dump failed: {error}'
            bodies += answers
        return [comparable(kind, body) for body in bodies
                if kind == nl.RTM_NEWNEXTHOP or not of_kernel(body)]

    def state(self):
        return sorted(self.dump(nl.RTM_NEWNEXTHOP)) + sorted(self.dump(RTM_NEWROUTE))

    def get(self, number):
        _, bodies = self.ask(nl.RTM_GETNEXTHOP, 0, bytes(8) + nl.attribute(nl.NHA_ID, number))
        return comparable(nl.RTM_NEWNEXTHOP, bodies[0]) if bodies else b''

    def step(self, request):
        """Ask for something and check what came of it."""
        # What happens to a device from here on is heard.
        self.hear()
        before = self.state() if sum(request[2]) % 10 == 0 else None
        known, self.area[0] = len(self.seen), 0
        self.history.append((struct.pack('=HH', *request[:2]) + request[2]).hex())
        error, _ = self.ask(*request)
        self.seen.update(self.area[1:self.area[0] + 1])
        self.sent += 1
        self.accepted += not error
        if request not in EVENTS and (len(self.seen) > known if self.seen else not error):
            self.corpus.append(request)
        while line := self.log.read(8192):
            assert not any(word in line for word in COMPLAINTS), f'kernel log: {line}'
        heard, kind = self.hear(), request[0]
        told = [comparable(kind, body) for what, body in heard if what == kind]
        try:
            if error:
                self.check_refused(request, error, before)
            elif kind == nl.RTM_NEWNEXTHOP and request[2]:     # without one, nothing is done
                assert told, 'no notification'
                self.check_nexthop(request, told[-1])
            elif kind == RTM_NEWROUTE and told and not of_kernel(told[-1]):
                # Not replaced by the same
                self.check_route(request, told[-1])
        except AssertionError:
            # A device that has lost its carrier loses its nexthops a moment later.
            if not any(what in (RTM_NEWLINK, RTM_DELLINK) for what, _ in heard + self.hear()):
                raise

    def check_refused(self, request, error, before):
        """Nothing has changed, and the kernel says why."""
        assert error[0] == 'E', f'no error number: {error}'
        kind, flags, body = request
        head, pairs = body[:HEADER[kind]], split(body[HEADER[kind]:])
        # IPv6 deletes the other legs when there is none like one of them.
        by_legs = kind == RTM_DELROUTE and head[0] == socket.AF_INET6 and find(
            join(pairs), RTA_MULTIPATH)
        # Twice: a dump of IPv6 begins again when an address or a timer changes the tree.
        same = not before or by_legs or self.state() == before
        after = before if same else self.state()
        assert after == before, (f'refused with {error}, but changed: '
                                 f'{[body.hex() for body in {*before} ^ {*after}]}')
        plain = [pair for pair in pairs if pair[0] & nl.NLA_TYPE_MASK not in OVERRIDES
                 and (pair[0] != nl.RTA_VIA or not pair[1].startswith(LINK))]
        if (error in SILENT and kind in (nl.RTM_NEWNEXTHOP, RTM_NEWROUTE) and plain != pairs
                and head + join(pairs) == body):
            # What is refused without override as well is not our business.
            assert self.ask(kind, flags, head + join(plain))[0] == error, f'{error}, without a word'

    def check_nexthop(self, request, told):
        """Notification, get and dump agree with each other and the request; a copy is equal."""
        number = find(told[8:], nl.NHA_ID)
        assert told in self.state(), f'notified but not dumped: {told.hex()}'
        assert told == self.get(number), f'get and dump differ: {told.hex()}'
        asked, got = (find(body[8:], nl.NHA_NEIGH_OVERRIDE) for body in (request[2], told))
        assert override_of(asked) == override_of(got), f'asked for {asked.hex()}, got {got.hex()}'
        if told[0] == socket.AF_INET6 and told[4] & 4 and not find(told[8:], nl.NHA_GATEWAY):
            return      # set with the gateway ::, which leaves a flag that wants a gateway
        # Its device has lost its carrier, or a route by what it has replaced led to its gateway.
        if self.edit(nl.RTM_NEWNEXTHOP, EDITS[0], told, 'ENETDOWN', 'EHOSTUNREACH'):
            return
        copy = self.get(u32(COPY))
        assert copy.replace(u32(COPY), number) == told, f'another copy: {told.hex()} {copy.hex()}'
        self.edit(nl.RTM_DELNEXTHOP, 0, copy)

    def check_route(self, request, told):
        """Notification, lookup and dump agree; deleted as dumped and made again it is the same."""
        before, asked, got = self.state(), link_vias(request[2][12:]), link_vias(told[12:])
        assert told in before, f'notified but not dumped: {told.hex()}'
        assert find(told[12:], RTA_NH_ID) or asked == got, f'asked for {asked}, got {got}'
        # Lookups take the tables main and local for each other, and tell the type of the address.
        _, found = self.ask(*lookup(find(told[12:], nl.RTA_DST), RTM_F_FIB_MATCH))
        routes = [[pair for pair in split(comparable(RTM_NEWROUTE, body)[12:])
                   if pair[0] != RTA_TABLE] for body in found + self.dump(RTM_NEWROUTE)]
        assert not found or found[0][7] in (3, 5) or routes[0] in routes[1:] or of_kernel(
            found[0]), f'found {found}'
        # IPv6 merges routes with gateways, and takes one without for any.
        if told[0] == socket.AF_INET6 and not find(told[12:], RTA_NH_ID) and not any(got):
            return
        self.edit(RTM_DELROUTE, 0, told)
        after = self.state()
        gone = [body for body in set(before) if before.count(body) > after.count(body)]
        assert len(gone) == 1 == len(before) - len(after), f'deleted {told.hex()}, gone {gone}'
        # Its gateway was reached by the route that it has replaced, or two routes differ only in
        # flags that are not dumped.
        failed = self.edit(RTM_NEWROUTE, EDITS[4], gone[0], 'ENETDOWN', 'ENETUNREACH',
                           'EHOSTUNREACH', 'EEXIST')
        assert failed or self.state() == before, f'made again it differs: {told.hex()}'

    def traffic(self):
        """Let the routes be used."""
        for family, addresses in (socket.AF_INET, V4), (socket.AF_INET6, V6):
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                for address in addresses:
                    with contextlib.suppress(OSError):
                        sock.sendto(b'', (socket.inet_ntop(family, address), 9))

    def empty(self):
        """Everything can be deleted as it is dumped."""
        for kind in (RTM_NEWROUTE, nl.RTM_NEWNEXTHOP):
            for body in self.dump(kind):
                # Deleting a nexthop object deletes groups without another member.
                self.edit(kind + 1, 0, body, 'ENOENT', 'ESRCH')
            assert not self.dump(kind), 'something cannot be deleted'

    def round(self, requests, number=1):
        """One round: every second one is emptied, the others end with their namespace."""
        self.enter()
        (NETDEVSIM / 'new_device').write_text('10 1', 'ascii')      # refuses overrides
        self.ask(*EVENTS[-1])
        try:
            for request in requests:
                self.step(request)
                if time.monotonic() >= self.said + 10:
                    self.said = time.monotonic()
                    print(self.summary(), flush=True)
            self.traffic()
            if number % 2:
                self.empty()
        except AssertionError as finding:
            self.findings += 1
            print(f'FINDING {finding}\n  seed {self.seed} round {number}\n  --replay',
                  *self.history, flush=True)
        (NETDEVSIM / 'del_device').write_text('10', 'ascii')

    def summary(self):
        return (f'fuzz: {self.base}: {self.sent} messages, {self.accepted} accepted, '
                f'{len(self.corpus)} inputs in the corpus, {len(self.seen) or "no"} PCs, '
                f'{self.findings} findings, {time.monotonic() - self.started:.0f} s, '
                f'seed {self.seed}')

    def leaks(self):
        """What is left in memory when nothing should be is a finding."""
        self.enter()
        self.alive += 600   # kmemleak takes its time
        time.sleep(8)       # namespaces go, and objects come of the age that is reported
        # Those of the idle task are from before the kernel was up.
        found = allocated() + [text for text in unreferenced() if 'comm "swapper/0"' not in text]
        self.findings += len(found)
        for leak in found:
            print(f'FINDING leak: {leak}')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--base', default='7.3')
    parser.add_argument('--seconds', type=int, default=300)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--replay', nargs='+', type=bytes.fromhex, metavar='HEX')
    options = parser.parse_args()
    fuzzer, number = Fuzzer(options.base, options.seed), 0
    threading.Thread(target=fuzzer.watch, daemon=True).start()
    if options.replay:
        fuzzer.round((*struct.unpack_from('=HH', one), one[4:]) for one in options.replay)
    while not options.replay and time.monotonic() < fuzzer.started + options.seconds:
        chance = Random(f'{options.seed}:{number}')
        fuzzer.round(map(chance.request, [fuzzer.corpus] * ROUND), number)
        number += 1
    fuzzer.leaks()
    print(fuzzer.summary())
    return bool(fuzzer.findings)


if __name__ == '__main__':
    sys.exit(main())
