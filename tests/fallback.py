#!/usr/bin/python3
"""Falling back to the gateway while a preferred neighbour is away.

usage: fallback.py [NAME=VALUE]...

Run by hand, as root in a guest that can be thrown away, it prints how long a
fallback takes with these values of host's net.ipv4.neigh.eth0.*, by default
with the kernel's, which takes a minute.
"""
#
# A neighbour is taken away by taking its cable out of the bridge, so that no
# carrier tells: neighbour unreachability detection has to find out.

import collections
import select
import sys
import time

from lab import (DEADLINE, GW, IPV4, MBOX, PREFIXES, Failure, Row, Wire, add_override, both, family,
                 flow, forget, inside, ip_batch, know, set_up, stat, sysctls)
from traffic import frames_to
from tracing import OVERRIDES, choices, traced

# Neighbour sysctls that make a fallback quick
QUICK = {'base_reachable_time_ms': 200, 'delay_first_probe_time': 0, 'retrans_time_ms': 50,
         'ucast_solicit': 3}
PACE = 0.005    # seconds between datagrams
# A timer of the kernel may be late by an eighth, and all of us if others run.
LATE, BUSY = 9 / 8, 0.25


class Stream:
    """Numbered datagrams at a steady pace, and what becomes of them."""

    def __init__(self, wire, address):
        self.wire, self.address = wire, str(address)
        self.sock = flow(address)
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

def neigh_sysctl(name, fam=IPV4):
    """A neighbour sysctl of eth0 of host."""
    with inside('host'), open(f'/proc/sys/net/ipv{fam.option[1]}/neigh/eth0/{name}',
                              encoding='ascii') as file:
        return int(file.read())


def neigh_sysctls(values, fam=IPV4):
    """Set neighbour sysctls for a while."""
    return sysctls('host', {f'net/ipv{fam.option[1]}/neigh/eth0/{name}': value
                            for name, value in values.items()})


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


# --- the cases ---

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


CASES = (fallback_outage,)


def main(words):
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
