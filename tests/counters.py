"""The counters of a nexthop that counts."""

import select
import time

from lab import (DEADLINE, GW, IPV4, IPV6, MBOX, VMAC, Failure, Row, add_override, both, family,
                 flow, ip, nl)
from traffic import SOL_UDP, UDP_SEGMENT, frames_to


def stats(number):
    """The counters of a nexthop as words."""
    return nl(f'nexthop show id {number} stats').partition(' stats ')[2]


def stat(number, word):
    """One of them."""
    words = stats(number).split()
    return int(words[words.index(word) + 1])


def headers(fam):
    """Bytes of IP and UDP headers."""
    return {IPV4: 20, IPV6: 40}[fam] + 8


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
    number = fam.first + 380
    add_override(prefix, 380, f'lladdr {MBOX} counters')
    with flow(prefix[1]) as sock:
        on_wire = send_counted(wire, sock, 20, 100)
        expected = f'packets 20 bytes {20 * (headers(fam) + 100)}'
        yield Row('', f'{expected} fallback 0 unknown 0 failed 0 forwarded 0', stats(number),
                  None if on_wire == expected else f'on the wire: {on_wire}')
        # The UDP header is in the first of the fragments; IPv6 has one for fragments.
        yield Row(': fragments', f'packets 3 bytes {3 * {IPV4: 20, IPV6: 48}[fam] + 8 + 3000}',
                  added(number, lambda: sock.send(bytes(3000))), None)
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 100)
        yield Row(': GSO', f'packets 1 bytes {headers(fam) + 1000}',
                  added(number, lambda: sock.send(bytes(1000))), None)


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


CASES = (counters, counters_group)
