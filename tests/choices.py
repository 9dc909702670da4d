#!/usr/bin/python3
"""Falling back to the gateway, and the counters and traces of what was chosen.

usage: choices.py [NAME=VALUE]...

Run by hand, as root in a guest that can be thrown away, it prints how long a
fallback takes with these values of host's net.ipv4.neigh.eth0.*, by default
with the kernel's, which takes a minute.
"""
#
# A neighbour is taken away by taking its cable out of the bridge, so that no
# carrier tells: neighbour unreachability detection has to find out.

import collections
import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import time

import netlink
from consumers import another_host, connect_node
from lab import (DEADLINE, GW, HOST, IPV4, IPV6, MBOX, PORT, PREFIXES, TRANSPARENT, VMAC,
                 Failure, Row, Wire, add_override, both, expect, family, forget, inside, ip,
                 ip_batch, nl, set_up, without_inet6)

# <linux/udp.h>, <linux/socket.h>; the bit of RTNLGRP_NEXTHOP of <linux/rtnetlink.h>
SOL_UDP, UDP_SEGMENT, MSG_PROBE, RTMGRP_NEXTHOP = 17, 103, 0x10, 1 << 32 - 1

# Neighbour sysctls that make a fallback quick
QUICK = {'base_reachable_time_ms': 200, 'delay_first_probe_time': 0, 'retrans_time_ms': 50,
         'ucast_solicit': 3}
PACE = 0.005    # seconds between datagrams
# A timer of the kernel may be late by an eighth, and all of us if others run.
LATE, BUSY = 9 / 8, 0.25

TRACING = '/sys/kernel/tracing'
OVERRIDES, DROPS = 'neigh_override/neigh_override', 'skb/kfree_skb'
CHOICE = re.compile(r'neigh_override: dev (\S+) saddr (\S+) daddr (\S+) nh (\S+) '
                    r'lladdr (\S+) \((\S+)\) src-lladdr (\S+) \((\S+)\)(| dropped)$')
NO_LLADDR = '00:00:00:00:00:00'
# What the other counters are when nothing special happens
NOTHING_ELSE = 'fallback 0 unknown 0 failed 0 forwarded 0'

Choice = collections.namedtuple('Choice', 'dev saddr daddr nh lladdr why src src_why dropped')


def nobody(fam):
    """An address on the LAN that nobody has."""
    return f'{fam.lan}237'


def no_address(fam):
    """What stands for the neighbour where there is none."""
    return '0.0.0.0' if fam is IPV4 else '::'


def all_of(fam):
    """The prefix of the LAN."""
    return f'{fam.lan}0/{fam.length}'


def headers(fam):
    """Bytes of IP and UDP headers."""
    return {IPV4: 20, IPV6: 40}[fam] + 8


def know(*addresses, state='reachable'):
    """Let host have valid neighbour entries."""
    for address in addresses:
        lladdr = GW if address == family(address).gw else MBOX
        ip(f'neigh replace {address} lladdr {lladdr} nud {state} dev eth0')


# --- packets ---

def asks_for(frame):
    """The address that a frame asks the link-layer address of, if any."""
    what, _, _ = frame
    return what[2] if what and what[1] == 'request' else None


def sent_asking(wire, address, *wanted):
    """Send a datagram; its Frame, with a problem if none of wanted is asked for before it."""
    frame = wire.send(address)
    asked = [what for what in map(asks_for, wire.passed) if what]
    if not frame.problem and {*wanted} - {*asked}:
        frame = frame._replace(problem=f'asked for: {asked}')
    return frame


def sent_until(wire, address, dst):
    """Send datagrams until one goes to dst; return the last Frame."""
    deadline = time.monotonic() + DEADLINE
    while True:
        frame = wire.send(address)
        if frame.problem or frame.dst == dst or time.monotonic() > deadline:
            return frame


def send_as(wire, source, address, name='host'):
    """Send a datagram with a source of others; return its Frame on host's cable."""
    with foreign(source, address, name) as sock:
        return wire.send_on(sock)


def foreign(source, address, name='host'):
    """A connected socket with a source of others."""
    with inside(name):
        sock = socket.socket(family(address).number, socket.SOCK_DGRAM)
    sock.setsockopt(*TRANSPARENT[family(address)], 1)
    sock.bind((source, 0))
    sock.connect((str(address), PORT))
    return sock


def frames_to(wire, address):
    """The frames with UDP to an address that passed since last time."""
    return [data for what, data, _ in wire.captured('host')
            if what and what[:2] == ('UDP', str(address))]


class Stream:
    """Numbered datagrams at a steady pace, and what becomes of them."""

    def __init__(self, wire, address):
        self.wire, self.address = wire, str(address)
        self.sock = wire.flow(address)
        self.sent = []          # when
        self.went = []          # destinations of the frames, one after another
        self.missing = {}       # payload: number

    def __enter__(self):
        self.wire.captured('host')
        return self

    def __exit__(self, *_):
        self.sock.close()

    def receive(self, until):
        """Take what arrives on server until then."""
        while True:
            left = max(0, until - time.monotonic())
            if select.select([self.wire.server], [], [], left)[0]:
                self.missing.pop(self.wire.server.recv(2048), None)
            elif not left:
                return

    def send(self):
        """Send one when it is due; return where the frames since last time went."""
        self.receive(self.sent[-1] + PACE if self.sent else 0)
        payload = b'%d' % len(self.sent)
        self.missing[payload] = len(self.sent)
        self.sent.append(time.monotonic())
        self.sock.send(payload)
        went = [data[0:6].hex(':') for data in frames_to(self.wire, self.address)]
        self.went += went
        return went

    def send_until(self, dst, seconds):
        """Send until a frame goes to dst; return the number of its datagram."""
        deadline = time.monotonic() + seconds
        while dst not in self.send():
            if time.monotonic() > deadline:
                raise Failure(f'no frame to {dst} within {seconds:.2f} s')
        return len(self.sent) - 1

    def send_more(self, seconds):
        """Go on for a while; then wait until the last has arrived."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.send()
        while len(self.sent) - 1 in self.missing.values():
            if time.monotonic() > deadline + DEADLINE:
                raise Failure('the last datagram did not reach server')
            self.receive(time.monotonic() + PACE)


# --- a neighbour that is away ---

def neigh_sysctl(name, value=None, fam=IPV4):
    """The number that a neighbour sysctl of eth0 of host was; set it."""
    with inside('host'), open(f'/proc/sys/net/ipv{fam.option[1]}/neigh/eth0/{name}', 'r+',
                              encoding='ascii') as file:
        before = int(file.read())
        if value is not None:
            file.seek(0)
            file.write(str(value))
    return before


@contextlib.contextmanager
def neigh_sysctls(values, fam=IPV4):
    """Set neighbour sysctls for a while."""
    before = {name: neigh_sysctl(name, value, fam) for name, value in values.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            neigh_sysctl(name, value, fam)


def detection_time(fam):
    """Seconds from the last sign of life to NUD_FAILED: at least, at most."""
    number, interval, reachable, delay = (
        neigh_sysctl(name, fam=fam) for name in ('ucast_solicit', 'retrans_time_ms',
                                                 'base_reachable_time_ms',
                                                 'delay_first_probe_time'))
    probes = number * interval / 1000
    # What it is multiplied by is random.
    return probes, 1.5 * reachable / 1000 + delay + probes


# *_seconds: (at least, it took, at most); undetected: datagrams sent to mbox in vain
Outage = collections.namedtuple(
    'Outage', 'detect_seconds return_seconds undetected lost_undetected lost_otherwise')


def outage(stream):
    """Send through mbox, take it away and give it back."""
    fam = family(stream.address)
    least, most = detection_time(fam)
    retrans = neigh_sysctl('retrans_time_ms', fam=fam) / 1000
    stream.send_until(MBOX, DEADLINE)
    stream.send_more(retrans)
    first, taking = len(stream.sent), time.monotonic()
    try:
        ip_batch('lan', 'link set mbox nomaster')
        taken = time.monotonic()
        detected = stream.send_until(GW, most * LATE + DEADLINE)
        # Until it has been looked for in vain and is looked for again
        stream.send_more(retrans * (neigh_sysctl('mcast_solicit', fam=fam) + 1))
    finally:
        ip_batch('lan', 'link set mbox master br0')
    given = time.monotonic()
    returned = stream.send_until(MBOX, retrans * LATE + DEADLINE)
    stream.send_more(retrans)
    lost = stream.missing.values()
    lost_undetected = sum(first <= number < detected for number in lost)
    # It went at some time between taking and taken.
    took = stream.sent[detected] - taken
    if stream.sent[detected] - taking < least:
        took = stream.sent[detected] - taking
    return Outage((least, took, most), (0, stream.sent[returned] - given, retrans),
                  detected - first, lost_undetected, len(lost) - lost_undetected)


def within(note, what, seconds):
    """The row of a time."""
    least, took, most = seconds
    seen = f'{what} after {took:.2f} s, {most:.2f} s by the sysctls'
    if least <= took <= most * LATE + PACE + BUSY:
        return Row(note, seen, seen, None)
    return Row(note, f'{what} after {least:.2f} to {most:.2f} s', seen, None)


# --- what the kernel says ---

def stats(number):
    """The counters of a nexthop as words."""
    return nl(f'nexthop show id {number} stats').partition(' stats ')[2]


def stat(number, word):
    """One of them."""
    words = stats(number).split()
    return int(words[words.index(word) + 1])


def write(path, value):
    """Write a file of the kernel's."""
    with open(path, 'w', encoding='ascii') as file:
        file.write(f'{value}')


@contextlib.contextmanager
def traced(*events):
    """Trace events meanwhile; yields what returns the lines since the last time."""
    if not os.path.exists(f'{TRACING}/instances'):
        subprocess.run(['mount', '-t', 'tracefs', 'none', TRACING], check=True)
    directory = f'{TRACING}/instances/choices'
    os.mkdir(directory)

    def lines():
        with open(f'{directory}/trace', 'r+', encoding='ascii') as file:
            found = [line.rstrip('\n') for line in file if line[:1] != '#']
        write(f'{directory}/trace', '')
        return found
    try:
        for event in events:
            write(f'{directory}/events/{event}/enable', 1)
        yield lines
    finally:
        os.rmdir(directory)


def choices(lines, address):
    """The choices for packets to an address, as traced."""
    found = [Choice(*(text.removeprefix('::ffff:') for text in match.groups()))
             for match in map(CHOICE.search, lines) if match]
    return [choice for choice in found if choice.daddr == str(address)]


# --- fallback ---

@both
def fallback(wire, prefix):
    """fallback"""
    fam = family(prefix)
    # note, number, neigh, who is asked for, source
    kinds = [(': via', 370, f'via {fam.mbox}', fam.mbox, HOST),
             (': via inet6', 371, f'via inet6 {IPV6.mbox}', IPV6.mbox, HOST),
             (': via + src', 372, f'via {fam.mbox} src-lladdr {VMAC}', fam.mbox, VMAC)]
    for address, (note, number, neigh, preferred, src) in zip(prefix, without_inet6(fam, kinds)):
        add_override(address, number, f'{neigh} fallback')
        forget(preferred)
        yield expect(sent_asking(wire, address, preferred), GW, src, f'{note}, first')
        yield expect(sent_until(wire, address, MBOX), MBOX, src, f'{note}, soon')


@both
def fallback_unknown(wire, prefix):
    """fallback"""
    fam = family(prefix)
    kinds = (': nobody', 373, nobody(fam)), (': nobody, inet6', 374, nobody(IPV6))
    for note, number, address in without_inet6(fam, kinds):
        forget(address)
        add_override(prefix[1], number, f'via {address} fallback')
        yield expect(sent_asking(wire, prefix[1], address), GW, HOST, note)
        ip(f'route del {prefix[1]}')
    # The packet waits for gw, and is gw's when both have answered.
    forget(all_of(fam))
    add_override(prefix[2], 375, f'via {fam.mbox} fallback')
    yield expect(sent_asking(wire, prefix[2], fam.mbox, fam.gw), GW, HOST, ': both unknown')
    number = fam.first + 376
    nl(f'{fam.option} nexthop add id {number} dev eth0 neigh via {nobody(fam)} fallback')
    ip(f'route add {prefix[3]} nhid {number}')
    ip(f'neigh replace {prefix[3]} lladdr {MBOX} dev eth0')
    yield expect(wire.send(prefix[3]), MBOX, HOST, ': no gateway')
    ip(f'neigh del {prefix[3]} dev eth0')


@both
def fallback_outage(wire, prefix):
    """outage"""
    fam = family(prefix)
    add_override(prefix, 377, f'via {fam.mbox} fallback counters')
    forget(fam.mbox)
    know(fam.gw)
    with neigh_sysctls(QUICK, fam), traced(OVERRIDES) as lines, \
            Stream(wire, prefix[1]) as stream:
        result = outage(stream)
        traces = choices(lines(), prefix[1])
    yield within(': detected', 'by gw', result.detect_seconds)
    yield within(': over', 'by mbox', result.return_seconds)
    yield Row(': lost', f'{result.undetected} until detected, 0 later',
              f'{result.lost_undetected} until detected, {result.lost_otherwise} later', None)
    number, sent, fallbacks = fam.first + 377, len(stream.sent), stream.went.count(GW)
    yield Row(': counted', f'packets {sent} fallback {fallbacks}',
              f'packets {stat(number, "packets")} fallback {stat(number, "fallback")}', None)
    wanted = [('fallback' if dst == GW else 'via', dst) for dst in stream.went]
    agreed = sum(pair == (choice.why, choice.lladdr) for pair, choice in zip(wanted, traces))
    yield Row(': traced', f'{sent} choices, {sent} as the frames',
              f'{len(traces)} choices, {agreed} as the frames', None)


def confirming(address, flags, payload=b'alive'):
    """Say on a datagram that the neighbour is alive."""
    with Wire.flow(address) as sock:
        sock.send(payload, flags)


def talking(address):
    """Say so as TCP does, when data has been acknowledged."""
    with inside('server'):
        listener = socket.create_server(('', PORT), family=family(address).number)
    with inside('host'):
        client = socket.socket(family(address).number)
    with listener, client:
        for sock in listener, client:
            sock.settimeout(DEADLINE)
        client.connect((str(address), PORT))
        server, _ = listener.accept()
        with server:
            server.settimeout(DEADLINE)
            for _ in range(2):
                client.send(b'question')
                server.recv(64)
                server.send(b'answer')
                client.recv(64)


ALIVE = {
    ': MSG_CONFIRM': lambda address: confirming(address, socket.MSG_CONFIRM),
    ': MSG_PROBE': lambda address: confirming(address, socket.MSG_CONFIRM | MSG_PROBE, b''),
    ': TCP': talking,
    # The contrast
    ': UDP': lambda address: confirming(address, 0),
}


def confirmed(fam):
    """The neighbours of host that have been confirmed just now."""
    names = {fam.gw: 'gw', fam.mbox: 'mbox', nobody(fam): 'nobody'}
    # Entries start with an age of twice that.
    age = neigh_sysctl('base_reachable_time_ms', fam=fam) / 1000
    entries = json.loads(ip('-json -statistics neigh show dev eth0'))
    return [names[entry['dst']] for entry in entries
            if entry['dst'] in names and entry['confirmed'] < age]


@both
def fallback_confirms(_, prefix):
    """alive"""
    fam = family(prefix)
    for address, number, preferred, used in ((prefix[1], 378, nobody(fam), 'gw'),
                                             (prefix[2], 379, fam.mbox, 'mbox')):
        add_override(address, number, f'via {preferred} fallback')
        for note, act in ALIVE.items():
            forget(all_of(fam))
            know(fam.gw, fam.mbox, state='stale')
            act(address)
            expected = [] if note == ': UDP' else [used]
            yield Row(f'{note}, by {used}', f'confirmed: {expected}',
                      f'confirmed: {confirmed(fam)}', None)


# --- counters ---

def send_counted(wire, sock, number, size):
    """Send datagrams at once, await them; return what they are on the wire, as counted."""
    wire.captured('host')
    payloads = {b'%0*d' % (size, place) for place in range(number)}
    for payload in payloads:
        sock.send(payload)
    deadline = time.monotonic() + DEADLINE
    while payloads:
        if not select.select([wire.server], [], [], max(0, deadline - time.monotonic()))[0]:
            raise Failure(f'{len(payloads)} of {number} datagrams did not reach server')
        payloads.discard(wire.server.recv(1 << 16))
    frames = frames_to(wire, sock.getpeername()[0])
    return f'packets {len(frames)} bytes {sum(len(data) - 14 for data in frames)}'


def added(number, act):
    """What the counters of a nexthop grow by, when something is done."""
    before = stat(number, 'packets'), stat(number, 'bytes')
    act()
    return (f'packets {stat(number, "packets") - before[0]} '
            f'bytes {stat(number, "bytes") - before[1]}')


@both
def counters(wire, prefix):
    """counters"""
    fam = family(prefix)
    kinds = ((': lladdr', 380, f'lladdr {MBOX}'), (': via', 381, f'via {fam.mbox}'),
             (': via inet6', 382, f'via inet6 {IPV6.mbox}'),
             (': src-lladdr', 383, f'src-lladdr {VMAC}'))
    forget(all_of(IPV4), all_of(IPV6))
    for address, (note, number, neigh) in zip(prefix, without_inet6(fam, kinds)):
        add_override(address, number, f'{neigh} counters')
        with wire.flow(address) as sock:
            on_wire = send_counted(wire, sock, 20, 100)
        expected = f'packets 20 bytes {20 * (headers(fam) + 100)}'
        yield Row(note, f'{expected} {NOTHING_ELSE}', stats(fam.first + number),
                  None if on_wire == expected else f'on the wire: {on_wire}')
    number = fam.first + 380
    with wire.flow(prefix[0]) as sock:
        # The UDP header is in the first of the fragments; IPv6 has one for fragments.
        yield Row(': fragments', f'packets 3 bytes {3 * {IPV4: 20, IPV6: 48}[fam] + 8 + 3000}',
                  added(number, lambda: sock.send(bytes(3000))), None)
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 100)
        yield Row(': GSO', f'packets 1 bytes {headers(fam) + 1000}',
                  added(number, lambda: sock.send(bytes(1000))), None)
    nl(f'nexthop replace id {number} via {fam.gw} dev eth0 neigh src-lladdr {VMAC} counters')
    with wire.flow(prefix[0]) as sock:
        send_counted(wire, sock, 1, 50)
    yield Row(': replaced', f'packets 1 bytes {headers(fam) + 50} {NOTHING_ELSE}', stats(number),
              None)


@contextlib.contextmanager
def notifications():
    """A socket that gets what host says about nexthops."""
    with inside('host'):
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    with events:
        events.bind((0, RTMGRP_NEXTHOP))
        events.settimeout(DEADLINE)
        yield events


def notification(events):
    """The nexthop that the next notification is about, as it is shown."""
    body = events.recv(1 << 16)[netlink.NLMSGHDR.size:]
    with inside('host'):
        return netlink.show(body[netlink.NHMSG.size:], netlink.NEXTHOP)


@both
def counters_shown(wire, prefix):
    """counters"""
    fam = family(prefix)
    first = fam.first + 384
    words = f'via {fam.gw} dev eth0 neigh lladdr {MBOX}'
    with notifications() as events:
        nl(f'nexthop add id {first + 1} {words} counters')
        notified = [notification(events)]
        ip(f'route add {prefix[2]} nhid {first + 1}')
        with wire.flow(prefix[2]) as sock:
            send_counted(wire, sock, 1, 50)
            nl(f'nexthop replace id {first + 1} {words} counters')
            notified.append(notification(events))
            send_counted(wire, sock, 1, 50)
    add_override(prefix[1], 384, f'lladdr {MBOX}')
    wire.send(prefix[1])
    counts = f'counters stats packets 1 bytes {headers(fam) + 50} {NOTHING_ELSE}'
    dump = {line.split()[1]: line for line in nl('nexthop show stats').splitlines()}
    for note, expected, line in (
            (': no flag, stats', 'nothing', nl(f'nexthop show id {first} stats')),
            (': no flag, dump', 'nothing', dump[f'{first}']),
            (': show', 'counters', nl(f'nexthop show id {first + 1}')),
            (': show stats', counts, nl(f'nexthop show id {first + 1} stats')),
            (': dump', counts, dump[f'{first + 1}']),
            (': route get', 'counters', nl(f'route get {prefix[2]}')),
            (': made, notified', 'counters', notified[0]),
            (': replaced, notified', 'counters', notified[1])):
        _, shown, rest = line.partition(f' neigh lladdr {MBOX}')
        yield Row(note, expected, rest.strip() or 'nothing' if shown else line, None)
    # Nothing but an address: RTA_VIA says it all.
    nl(f'{fam.option} nexthop add id {first + 16} dev eth0 neigh lladdr {MBOX} counters')
    ip(f'route add {prefix[3]} nhid {first + 16}')
    yield Row(': no gateway', f'{prefix[3]} via link {MBOX} dev eth0', nl(f'route get {prefix[3]}'),
              None)


@both
def counters_group(wire, prefix):
    """counters"""
    fam = family(prefix)
    first = fam.first + 386
    nl(f'nexthop add id {first} via {fam.gw} dev eth0 neigh src-lladdr {VMAC} counters')
    nl(f'{fam.option} nexthop add id {first + 1} dev eth0 neigh lladdr {MBOX} counters')
    ip(f'nexthop add id {first + 2} group {first}/{first + 1}')
    ip(f'route add {prefix} nhid {first + 2}')
    frames = [wire.send(prefix[1]) for _ in range(16)]
    for note, number, dst in (': member 1', first, GW), (': member 2', first + 1, MBOX):
        sent = sum(frame.dst == dst for frame in frames)
        yield Row(note, f'packets {sent}', f'packets {stat(number, "packets")}',
                  None if sent else f'all went the other way: {frames[0]}')


# --- sources of others ---

@contextlib.contextmanager
def ignored_sources():
    """Let the bridge not learn from host: it does not have the owners on its cable."""
    ip_batch('lan', 'link set host type bridge_slave learning off')
    try:
        yield
    finally:
        ip_batch('lan', 'link set host type bridge_slave learning on')


def send_in_vain(wire, source, address):
    """Send what is going to be dropped; return what passed nevertheless."""
    wire.captured('host')
    with foreign(source, address) as sock, contextlib.suppress(PermissionError):
        sock.send(b'in vain')
    return frames_to(wire, address)


@both
def counters_owner(wire, prefix):
    """counters"""
    fam = family(prefix)
    size = headers(fam) + len('in vain')
    know(fam.gw, fam.mbox)
    for note, number, flags, failed in ((': preserve', 389, 'preserve', 0),
                                        (': preserve strict', 390, 'preserve strict', 2)):
        add_override(prefix[1], number, f'{flags} counters')
        with ignored_sources():
            seen = [len(send_in_vain(wire, source, prefix[1]))
                    for source in (fam.host, fam.mbox, nobody(fam), nobody(fam))]
        ip(f'route del {prefix[1]}')
        expected = f'fallback 0 unknown 2 failed {failed} forwarded 0'
        yield Row(note, f'packets 4 bytes {4 * size} {expected}', stats(fam.first + number),
                  None if sum(seen) == 4 - failed else f'on the wire: {seen}')


@contextlib.contextmanager
def by_mark(owner, gateway, mark):
    """Packets with a mark, which the reverse path check looks at, find another gateway."""
    path = '/proc/sys/net/ipv4/conf/eth0/src_valid_mark'
    ip(f'route add {owner} via {gateway} table {mark}')
    ip(f'rule add fwmark {mark} to {owner} lookup {mark}')
    with inside('host'):
        write(path, 1)
    try:
        yield
    finally:
        with inside('host'):
            write(path, 0)
        ip(f'rule delete fwmark {mark} to {owner} lookup {mark}')


def preserve_mark(wire, prefix):
    """mark"""
    know('192.0.2.1', '192.0.2.9')
    add_override(prefix[1], 396, 'preserve')
    with foreign('198.51.100.88', prefix[1]) as sock, ignored_sources():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 396)
        yield expect(wire.send_on(sock), GW, HOST, ': preserve, no rule')
        with by_mark('198.51.100.88', '192.0.2.9', 396):
            yield expect(wire.send_on(sock), GW, MBOX, ': preserve')
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
            yield expect(wire.send_on(sock), GW, HOST, ': preserve, no mark')


@both
def preserve_link(wire, prefix):
    """owner by route"""
    fam = family(prefix)
    owner, number = f'{fam.beyond}89', fam.first + 398
    know(fam.gw, fam.mbox, IPV6.mbox)
    add_override(prefix[1], 397, 'preserve')
    nl(f'{fam.option} nexthop add id {number} dev eth0')
    kinds = ((': via link', f'via link {MBOX} dev eth0', None),
             (': lladdr', f'nhid {number}', f'lladdr {MBOX} src-lladdr {VMAC}'),
             (': via', f'nhid {number}', f'via {fam.mbox}'),
             (': via inet6', f'nhid {number}', f'via inet6 {IPV6.mbox}'))
    for note, route, neigh in without_inet6(fam, kinds):
        if neigh:
            nl(f'nexthop replace id {number} via {fam.gw} dev eth0 neigh {neigh}')
        ip(f'route replace {owner} {route}')
        with ignored_sources():
            yield expect(send_as(wire, owner, prefix[1]), GW, MBOX, note)
    ip(f'route delete {owner}')


@both
def preserve_forwarded(wire, prefix):
    """forward"""
    fam = family(prefix)
    know(fam.gw, fam.mbox)
    add_override(prefix[1], 399, 'preserve strict counters')
    with another_host(wire), traced(OVERRIDES) as lines:
        connect_node('eth0', fam=fam)
        ip_batch('node', f'route add {prefix[1]} via {fam.host}')
        # IPv6 has no such filter.
        kinds = [(who, source, rp_filter) for who, source, rp_filter in (
            ('mbox', fam.mbox, 0), ('mbox', fam.mbox, 2), ('nobody', nobody(fam), 0))
                 if fam is IPV4 or not rp_filter]
        for who, source, rp_filter in kinds:
            with inside('host'):
                write('/proc/sys/net/ipv4/conf/eth0/rp_filter', rp_filter)
            frame = send_as(wire, source, prefix[1], 'node')
            note = f' as {who}' + f', rp_filter {rp_filter}' * (fam is IPV4)
            yield expect_choice(note, lines(), frame, (source, prefix[1]),
                                f'{by_gw(fam)}, {HOST} (forwarded)')
    with inside('host'):
        write('/proc/sys/net/ipv4/conf/eth0/rp_filter', 0)
    size = sum(headers(fam) + len(f'datagram {wire.sent - number}') for number in range(len(kinds)))
    yield Row(': counted', f'packets {len(kinds)} bytes {size} fallback 0 unknown 0 failed 0 '
                           f'forwarded {len(kinds)}', stats(fam.first + 399), None)


def expect_choice(note, lines, frame, addresses, text):
    """The row of a choice: as traced, and as the frame."""
    source, destination = map(str, addresses)
    found = choices(lines, destination)
    if len(found) != 1:
        return Row(note, text, f'{len(found)} choices', None)
    choice, = found
    problem = frame and frame.problem
    if (choice.dev, choice.saddr) != ('eth0', source):
        problem = f'not from {source}: {choice}'
    elif frame and (choice.lladdr, choice.src) != (frame.dst, frame.src):
        problem = f'the frame: {frame}'
    return Row(note, text, f'{choice.nh} {choice.lladdr} ({choice.why}), '
                           f'{choice.src} ({choice.src_why}){choice.dropped}', problem)


def by_gw(fam, why='own'):
    """What a trace says of a packet that goes to the gateway."""
    return f'{fam.gw} {GW} ({why})'


BY_HOST = f'{HOST} (own)'


def kinds_traced(fam):
    """Note, override, source; neighbour, its address (reason) and source (reason) as traced."""
    nowhere, by_mbox = f'{no_address(fam)} {MBOX} (lladdr)', f'{fam.mbox} {MBOX} (via)'
    far = f'{fam.beyond}77'
    return without_inet6(fam, (
        (': via', f'via {fam.mbox}', fam.host, f'{by_mbox}, {BY_HOST}'),
        (': via inet6', f'via inet6 {IPV6.mbox}', fam.host,
         f'{IPV6.mbox} {MBOX} (via), {BY_HOST}'),
        (': lladdr', f'lladdr {MBOX}', fam.host, f'{nowhere}, {BY_HOST}'),
        (': src-lladdr', f'src-lladdr {VMAC}', fam.host, f'{by_gw(fam)}, {VMAC} (lladdr)'),
        (': lladdr + src', f'lladdr {MBOX} src-lladdr {VMAC}', fam.host,
         f'{nowhere}, {VMAC} (lladdr)'),
        (': fallback', f'via {nobody(fam)} fallback', fam.host,
         f'{by_gw(fam, "fallback")}, {BY_HOST}'),
        (': preserve, host', 'preserve', fam.host, f'{by_gw(fam)}, {HOST} (local)'),
        (': preserve, on-link', 'preserve', fam.mbox, f'{by_gw(fam)}, {MBOX} (on-link)'),
        (': preserve, gateway', f'lladdr {MBOX} preserve', far, f'{nowhere}, {GW} (gateway)'),
        (': preserve, to itself', 'preserve', far, f'{by_gw(fam)}, {BY_HOST}'),
        (': preserve, unknown', 'preserve', nobody(fam), f'{by_gw(fam)}, {HOST} (unknown)')))


@both
def trace(wire, prefix):
    """trace"""
    fam = family(prefix)
    number = fam.first + 391
    know(fam.gw, fam.mbox, IPV6.mbox)
    nl(f'nexthop add id {number} via {fam.gw} dev eth0 neigh lladdr {MBOX}')
    ip(f'route add {prefix[1]} nhid {number}')
    ip(f'route add {prefix[2]} via link {MBOX} dev eth0')
    with traced(OVERRIDES) as lines, ignored_sources():
        for note, neigh, source, text in kinds_traced(fam):
            nl(f'nexthop replace id {number} via {fam.gw} dev eth0 neigh {neigh}')
            frame = send_as(wire, source, prefix[1])
            yield expect_choice(note, lines(), frame, (source, prefix[1]), text)
        frame = wire.send(prefix[2])
        yield expect_choice(': via link', lines(), frame, (fam.host, prefix[2]),
                            f'{no_address(fam)} {MBOX} (lladdr), {BY_HOST}')


@both
def trace_no_frame(wire, prefix):
    """trace"""
    fam = family(prefix)
    forget(fam.mbox)
    add_override(prefix[1], 392, f'via {fam.mbox}')
    add_override(prefix[2], 393, 'preserve strict')
    with traced(OVERRIDES) as lines:
        wire.send(prefix[1])
        yield expect_choice(': not resolved yet', lines(), None, (fam.host, prefix[1]),
                            f'{fam.mbox} {NO_LLADDR} (via), {BY_HOST}')
        passed = send_in_vain(wire, nobody(fam), prefix[2])
        row = expect_choice(': preserve strict', lines(), None, (nobody(fam), prefix[2]),
                            f'{no_address(fam)} {NO_LLADDR} (own), {HOST} (unknown) dropped')
        yield row._replace(problem=row.problem or passed and 'there is a frame' or None)


@both
def drop_reason(wire, prefix):
    """drops"""
    fam = family(prefix)
    add_override(prefix[1], 394, 'preserve')
    add_override(prefix[2], 395, 'preserve strict')
    with traced(DROPS) as lines:
        for note, address, drops in (': preserve', prefix[1], 0), (': strict', prefix[2], 3):
            passed = [send_in_vain(wire, nobody(fam), address) for _ in range(3)]
            reasons = [line.rpartition('reason: ')[2] for line in lines()]
            yield Row(note, f'{drops} for NEIGH_STRICT, {3 - drops} frames',
                      f'{reasons.count("NEIGH_STRICT")} for NEIGH_STRICT, '
                      f'{sum(map(len, passed))} frames', None)


CASES = (fallback, fallback_unknown, fallback_outage, fallback_confirms, counters, counters_shown,
         counters_group, counters_owner, preserve_mark, preserve_link, preserve_forwarded, trace,
         trace_no_frame, drop_reason)


def main(words):
    """The command line."""
    if {'-h', '--help'} & set(words):
        print(__doc__.strip())
        return 0
    set_up()
    wire, prefix = Wire(), PREFIXES[0]
    add_override(prefix, 370, 'via 192.0.2.9 fallback')
    with neigh_sysctls(dict(word.split('=') for word in words)):
        print('net.ipv4.neigh.eth0:', *(f'{name}={neigh_sysctl(name)}' for name in QUICK))
        with Stream(wire, prefix[1]) as stream:
            result = outage(stream)
    for what, (least, took, most) in (('detected', result.detect_seconds),
                                      ('back', result.return_seconds)):
        print(f'{what} after {took:.2f} s, by the sysctls after {least:.2f} to {most:.2f} s')
    print(f'lost: {result.lost_undetected} of {len(stream.sent)} datagrams until detected, '
          f'{result.lost_otherwise} later')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
