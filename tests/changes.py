"""Changes under traffic: of routes, nexthops and device types."""

import collections
import contextlib
import errno
import itertools
import os
import select
import socket
import threading
import time

from lab import (DEADLINE, GW, HOST, MBOX, VMAC, Row, both, expect, family, flow, inside, ip,
                 ip_batch, run_in)
from traffic import LOOP, NEAR, NEW, Cable, counters_of_host, discarded, outcome, sightings, to_sink

REFUSED = os.strerror(errno.EINVAL)
BURST = 32          # datagrams: less than a socket has room for


# --- routes and nexthops ---

@contextlib.contextmanager
def repeated(change):
    """Make a change over and over meanwhile."""
    stop = threading.Event()

    def run():
        while not stop.is_set():
            change()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def send_burst(wire, sock, first, snmp):
    """Send datagrams; return how many nobody knows the fate of."""
    before = discarded(snmp)
    wanted = {b'%d' % number for number in range(first, first + BURST)}
    for payload in sorted(wanted):
        sock.send(payload)
    missing = discarded(snmp) - before
    while len(wanted) > missing and select.select([wire.server], [], [], DEADLINE)[0]:
        wanted.discard(wire.server.recv(2048))
    return len(wanted) - missing


def under_traffic(wire, address, states, change):
    """Send all the time while changes are made; the row of what was seen.

    A packet is discarded when its route is freed between the lookup and the
    output.  That happens to plain routes, too; it is counted.
    """
    seen, legal, lost, sent = collections.Counter(), {*states.values()}, 0, 0
    wire.captured('host')
    with counters_of_host(address) as snmp, flow(address) as sock, repeated(change):
        before, started = discarded(snmp), time.monotonic()
        while (time.monotonic() < started + LOOP or
               not seen.keys() >= legal and time.monotonic() < started + 10 * DEADLINE):
            lost += abs(send_burst(wire, sock, sent, snmp))
            sent += BURST
            seen.update(step for to, step in sightings(wire.captures['host'])
                        if to == str(address))
        dropped = discarded(snmp) - before
    problem = None
    if seen.total() != sent - dropped or dropped > sent / 10:
        problem = f'{sent} datagrams, {dropped} discarded, {seen.total()} frames'
    return Row('', f'{len(legal)} states, 0 frames mixed, 0 lost',
               f'{len(legal & seen.keys())} states, '
               f'{sum(seen[step] for step in seen.keys() - legal)} frames mixed, {lost} lost',
               problem)


@both
def replaced_object(wire, prefix):
    """replaced: object"""
    fam = family(prefix)
    nexthop = f'id {fam.first + 264} via {fam.gw} dev eth0'
    states = {f'neigh lladdr {GW} src-lladdr {NEAR}': (GW, NEAR),
              f'neigh lladdr {MBOX} src-lladdr {NEW}': (MBOX, NEW),
              f'neigh via {fam.mbox}': (MBOX, HOST),
              f'neigh src-lladdr {VMAC}': (GW, VMAC),
              '': (GW, HOST)}
    words = itertools.cycle(states)

    def change():
        ip(f'nexthop replace {nexthop} {next(words)}')
    change()
    ip(f'route add {prefix} nhid {fam.first + 264}')
    yield under_traffic(wire, prefix[1], states, change)
    ip(f'nexthop replace {nexthop} neigh lladdr {MBOX} src-lladdr {NEAR}')
    yield expect(wire.send(prefix[1]), MBOX, NEAR, ', at the end')


@both
def replaced_route(wire, prefix):
    """replaced: route"""
    fam = family(prefix)
    ip(f'{fam.option} nexthop add id {fam.first + 265} dev eth0 neigh lladdr {MBOX} '
       f'src-lladdr {VMAC}')
    states = {f'via link {MBOX} dev eth0': (MBOX, HOST),
              f'nhid {fam.first + 265}': (MBOX, VMAC),
              f'via {fam.gw} dev eth0': (GW, HOST)}
    words = itertools.cycle(states)

    def change():
        ip(f'route replace {prefix} {next(words)}')
    change()
    yield under_traffic(wire, prefix[1], states, change)
    ip(f'route replace {prefix} via link {MBOX} dev eth0')
    yield expect(wire.send(prefix[1]), MBOX, HOST, ', at the end')


# --- devices that change their type ---

def enslave(device, master):
    """Make it the only port of a team or a bond, and the active one."""
    ip(f'link set {device} down')
    ip(f'link set {device} master {master}')
    if master != 'team0':
        return
    with inside('host'):
        port = socket.if_nametoindex(device)
    run_in('host', f'teamnl {master} setoption activeport {port}')


@contextlib.contextmanager
def master_of_ports(master, words, fam):
    """A team or a bond with a Cable as its port, and a GRE device that can be one.

    A GRE device without remote has link-layer addresses: those of the remotes.
    """
    with Cable(fam=fam) as cable:
        ip('address flush dev life0')
        ip(f'link add {master} address {NEAR} type {words}')
        ip('link add gre1 type gre local 192.0.2.2')
        if master == 'team0':
            run_in('host', f'teamnl {master} setoption mode activebackup')
            # Without carrier the nexthops would go.
            ip(f'link set {master} carrier on')
        enslave('life0', master)
        cable.configure(master)
        try:
            yield cable
        finally:
            ip(f'link del {master}')
            ip('link del gre1')


ETHERNET = f'{NEAR} > {MBOX}', f'{VMAC} > {GW}', f'{VMAC} > {MBOX}'


def expect_outcomes(note, socks, captures, *expected):
    """A row for each socket."""
    for (name, sock), wanted in zip(socks.items(), expected):
        yield Row(f'{name}, {note}', wanted, outcome(sock, *captures), None)


def change_type(wire, prefix, master, words, as_gre):
    """Rows of a master that is an Ethernet device first, and then one for GRE."""
    with master_of_ports(master, words, family(prefix)) as cable, contextlib.ExitStack() as stack:
        captures = cable.capture, wire.captures['host']
        socks = {}
        first = family(prefix).first + 253
        nexthop = f'via {cable.gateway} dev {master} neigh'
        ip_batch('host', f'nexthop add id {first} {nexthop} src-lladdr {VMAC}',
                 f'nexthop add id {first + 1} {nexthop} via {cable.aside} src-lladdr {VMAC}')
        for address, note, route in (
                (prefix[0], ': via link', f'via link {MBOX} dev {master}'),
                (prefix[1], ': src-lladdr', f'nhid {first}'),
                (prefix[2], ': via + src', f'nhid {first + 1}')):
            ip(f'route add {address} {route}')
            socks[note] = stack.enter_context(to_sink(address))
        yield from expect_outcomes('Ethernet', socks, captures, *ETHERNET)

        ip('link set life0 nomaster')
        enslave('gre1', master)
        yield from expect_outcomes('GRE', socks, captures, *[as_gre] * len(socks))
        ip(f'route add {prefix[3]} via link 192.0.2.9 dev {master}')
        tunnel = {': 4 bytes': stack.enter_context(to_sink(prefix[3]))}
        yield from expect_outcomes('GRE', tunnel, captures, 'GRE to 192.0.2.9')

        ip('link set gre1 nomaster')
        enslave('life0', master)
        if as_gre == REFUSED:
            yield from expect_outcomes('again', socks, captures, *ETHERNET)
        yield from expect_outcomes('Ethernet', tunnel, captures, REFUSED)


@both
def team(wire, prefix):
    """team"""
    yield from change_type(wire, prefix, 'team0', 'team', REFUSED)


@both
def bond(wire, prefix):
    """bond"""
    # It is down for a moment: the routes go.  Then it stays up.
    yield from change_type(wire, prefix, 'bond0', 'bond mode active-backup', f'{HOST} > {GW}')


CASES = (replaced_object, replaced_route, team, bond)
