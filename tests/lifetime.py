"""Devices, namespaces, routes and nexthops that have overrides, and go away.

Every case keeps sockets, packets or a sender at work meanwhile.  A reference
that is left behind shows as a device or a namespace that does not go away.
"""
#
# leaks looks at what every other case has left: it stays the last case, and
# this the last of the modules.

import collections
import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import time

import netlink
from lab import (DEADLINE, GW, HOST, IPV4, IPV6, MBOX, VMAC, Failure, Row, both, family, flow,
                 inside, ip, ip_batch, netlink_here, nl, without_inet6, write)
from traffic import (KINDS, LOOP, NEAR, NEW, PATIENCE, SINK, Cable, Flood, arrivals, await_request,
                     counters_of_host, discarded, expect_steps, outcome, sightings, sink,
                     to_its_end, to_sink)

KMEMLEAK = '/sys/kernel/debug/kmemleak'
RTM_DELLINK, RTM_NEWROUTE, RTMGRP_LINK = 17, 24, 1
RTA_NH_ID = 30
UNREACHABLE = os.strerror(errno.EHOSTUNREACH)


# --- devices and namespaces ---

@contextlib.contextmanager
def goes_away(device):
    """Wait for a device of lan to be gone, after what is done meanwhile."""
    with inside('lan'):
        index = socket.if_nametoindex(device)
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        events.bind((0, RTMGRP_LINK))
    with events:
        yield
        events.settimeout(PATIENCE)
        try:
            while True:
                data = events.recv(1 << 16)
                kind = netlink.NLMSGHDR.unpack_from(data)[1]
                if (kind, *struct.unpack_from('=i', data, 20)) == (RTM_DELLINK, index):
                    return
        except TimeoutError as error:
            raise Failure(f'{device} is still there after {PATIENCE} s') from error


def namespace_gone(name, device, users=()):
    """Delete a namespace, whose veth has its other end in lan, and end its users.

    They are ended one after another, so the first one who lets go of the
    namespace finds it without a name but alive.
    """
    with goes_away(device):
        ip_batch(None, f'netns del {name}')
        for user in users:
            user()
    # Its devices are unregistered.  The next to go has to wait until all of it
    # is gone: they are cleaned up one by one.
    ip_batch(None, 'netns add canary')
    ip_batch('lan', 'link add cage type veth peer name life0 netns canary')
    with goes_away('cage'):
        ip_batch(None, 'netns del canary')


@both
def removed(wire, prefix):
    """removed"""
    fam = family(prefix)
    for note, number, words, step in without_inet6(fam, KINDS):
        with Cable(fam=fam) as cable, sink():
            cable.route(prefix, number, words)
            with Flood([to_sink(prefix[1])], [cable.capture, wire.captures['host']]) as flood:
                flood.more()
                to_its_end('host', 'link del life0')
                flood.more()
            yield from expect_steps(flood, prefix[1], note, (', before', step),
                                    (', after', (GW, HOST)))
            if number and f'id {fam.first + number} ' in nl('nexthop show'):
                raise Failure(f'nexthop {fam.first + number} is still there')


@both
def moved(_, prefix):
    """moved"""
    fam = family(prefix)
    ip_batch(None, 'netns add elsewhere')
    ip(f'route add unreachable {prefix} metric 9999')
    for note, number, words, step in KINDS[0], KINDS[5]:
        with Cable(fam=fam) as cable:
            cable.route(prefix, number, words)
            with Flood([to_sink(prefix[1])], [cable.capture]) as flood:
                flood.more()
                to_its_end('host', 'link set life0 netns elsewhere')
                cable.configure('elsewhere')
                flood.more()
            yield from expect_steps(flood, prefix[1], note, (', before', step))
            yield Row(f'{note}, after', UNREACHABLE, str(flood.errors[str(prefix[1])]), None)
            cable.name = 'elsewhere'
            cable.route(prefix, 256, f'lladdr {GW} src-lladdr {NEW}')
            with flow(prefix[1], 'elsewhere', port=SINK) as sock:
                yield Row(f'{note}, elsewhere', f'{NEW} > {GW}', outcome(sock, cable.capture), None)
    ip(f'route del unreachable {prefix} metric 9999')
    with Cable('elsewhere') as cable:
        namespace_gone('elsewhere', cable.far)


@contextlib.contextmanager
def sender_inside(name, prefix):
    """A process in a namespace that sends until it is ended; yields what ends it."""
    pid = os.fork()
    if not pid:
        try:
            with inside(name):
                sock = socket.socket(family(prefix).number, socket.SOCK_DGRAM)
            os.nice(10)     # Else nobody keeps up with it.
            for address in itertools.cycle(map(str, prefix)):
                with contextlib.suppress(OSError):
                    sock.sendto(b'from inside', (address, SINK))
        finally:
            os._exit(1)     # pylint: disable=protected-access

    def end():
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    try:
        yield end
    finally:
        # It has been ended already, if all went well.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            end()


@both
def namespace(_, prefix):
    """namespace"""
    fam = family(prefix)
    unknown, first = {IPV4: '198.51.100.72', IPV6: '2001:db8:fd::72'}[fam], fam.first + 260
    ip_batch(None, 'netns add doomed')
    ip_batch('doomed', 'link add feed address 02:00:00:00:03:04 type veth '
                       'peer name feed netns host', 'link set feed up')
    ip_batch('host', 'link set feed up', f'route add {prefix} via link 02:00:00:00:03:04 dev feed')
    with inside('doomed'):
        write('/proc/sys/net/ipv4/ip_forward', 1)
        write('/proc/sys/net/ipv6/conf/all/forwarding', 1)
    with Cable('doomed', fam=fam) as cable:
        for address, (_, number, words, _) in zip(prefix, (KINDS[0], KINDS[5])):
            cable.route(address, number, words)
        with inside('doomed'):
            # Nobody answers for the second one: the packets wait.
            for number, neigh in ((first, f'lladdr {GW} src-lladdr {NEW}'),
                                  (first + 1, f'via {unknown}')):
                netlink_here(None, f'{fam.option} nexthop add id {number} dev life0 neigh {neigh}')
        ip_batch('doomed', *(f'nexthop add id {number + 2} group {number}'
                             for number in (first, first + 1)),
                 f'route add {prefix[2]} nhid {first + 2}',
                 f'route add {prefix[3]} nhid {first + 3}')
        socks = [to_sink(address) for address in prefix]
        socks[3].send(b'waits')
        await_request(cable.capture, unknown)
        with (sender_inside('doomed', prefix) as end_sender,
              Flood(socks, [cable.capture]) as flood):
            flood.more()
            namespace_gone('doomed', cable.far, [flood.more, end_sender])
            del flood.captures[:]
            flood.more()
        late = sum(1 for _ in arrivals(cable.capture))
    yield from expect_steps(flood, prefix[0], ': via link', ('', (MBOX, NEAR)))
    yield from expect_steps(flood, prefix[1], ': via + src', ('', (MBOX, VMAC)))
    yield from expect_steps(flood, prefix[2], ': group', ('', (GW, NEW)))
    late += len(flood.seen[str(prefix[3])])
    yield Row(': gone', 'no frame', f'{late} frames' if late else 'no frame', None)


# --- memory ---

def add_route_here(prefix, number):
    """A route by a nexthop object, where we are; fast."""
    unicast, main, static = 1, 254, 4
    body = netlink.RTMSG.pack(family(prefix).number, prefix.prefixlen, 0, 0, main, static, 0,
                              unicast, 0)
    for kind, data in (netlink.RTA_DST, prefix[0].packed), (RTA_NH_ID, struct.pack('=I', number)):
        body += netlink.attribute(kind, data)
    netlink.request(RTM_NEWROUTE, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def slab_objects():
    """The objects that the kernel has, of any kind, when all is freed that is to be."""
    # A device that goes away waits for the RCU callbacks; a nexthop's frees
    # the route, the route's the override.
    for _ in range(4):
        ip('link add barrier type dummy')
        ip('link del barrier')
    with open('/proc/slabinfo', encoding='ascii') as file:
        return sum(int(line.split()[1]) for line in file if line[:4] not in ('slab', '# na'))


def kernel_has(symbol):
    """Tell if something is built into the kernel."""
    with open('/proc/kallsyms', encoding='ascii') as file:
        return any(line.split()[2] == symbol for line in file)


def outlive(prefix, number):
    """An override that a socket's route has kept when its nexthop was deleted."""
    fam = family(prefix)
    nexthop = fam.first + 266
    netlink_here(None, f'nexthop add id {nexthop} via {fam.gw} dev eth0 neigh lladdr {MBOX} '
                       f'src-lladdr 02:00:00:00:04:{number & 15:02x} counters')
    add_route_here(prefix, nexthop)
    with socket.socket(fam.number, socket.SOCK_DGRAM) as sock:
        sock.connect((str(prefix[1]), SINK))
        sock.send(b'by override')
        netlink_here(None, f'nexthop del id {nexthop}')
        # Else the socket keeps it to its end.
        if number % 2:
            sock.send(b'afterwards')


@both
def outlived(wire, prefix):
    """outlived"""
    wire.captured('host')
    keeps_freed = kernel_has('kasan_report')
    # The kernel's caches grow at first; what leaks does so every time.
    for _ in range(1 if keeps_freed else 8):
        seen, number, before = collections.Counter(), 0, slab_objects()
        end = time.monotonic() + LOOP / 2
        with counters_of_host(prefix) as snmp, sink(), inside('host'):
            dropped = -discarded(snmp)
            while time.monotonic() < end:
                outlive(prefix, number)
                number += 1
                seen.update(dst for _, (dst, _) in sightings(wire.captures['host']))
            # The last ones may be under way.
            cable = wire.captures['host']
            dropped += discarded(snmp)
            while (seen.total() < number + number // 2 - dropped and
                   select.select([cable], [], [], DEADLINE)[0]):
                seen.update(dst for _, (dst, _) in sightings(cable))
        grown = slab_objects() - before
        if grown < number / 2:
            break
    # IPv6 sockets, those with plain routes too, find out after a grace period.
    afterwards = seen[GW] if family(prefix) is IPV4 else seen.total() - number + dropped
    yield Row('', f'{number - dropped} by override, {number // 2} afterwards',
              f'{seen.total() - afterwards} by override, {afterwards} afterwards',
              f'{dropped} discarded' if dropped > number / 10 else None)
    if keeps_freed:
        yield Row(': memory', None, 'not checked: KASAN keeps what was freed', None)
    else:
        yield Row(': memory', 'no more than before',
                  'no more than before' if grown < number / 2 else f'{grown} objects more', None)


def leaks(_, __):
    """leaks"""
    if not os.path.ismount('/sys/kernel/debug'):
        subprocess.run(['mount', '-t', 'debugfs', 'none', '/sys/kernel/debug'], check=True)
    if not os.path.exists(KMEMLEAK):
        yield Row('', None, 'not checked: the kernel has no kmemleak', None)
        return
    # Nothing younger is reported, and nothing that was not found the time before.
    time.sleep(5.5)
    for _ in range(2):
        write(KMEMLEAK, 'scan')
    with open(KMEMLEAK, encoding='ascii') as file:
        objects = file.read().split('unreferenced object ')[1:]
    ours = [text for text in objects if 'neigh_override' in text]
    yield Row('', '0 overrides', f'{len(ours)} overrides', ours[0] if ours else None)


CASES = (removed, moved, namespace, outlived, leaks)
