#!/usr/bin/python3
"""Traffic of every kind by overrides on all CPUs, while everything that they hang on changes.

usage: stress.py [--seconds N] [--seed N] [--faults]

Runs in a guest of scripts/boot, on the LAN of lab.py.  Each worker is a process of its own in
a host's namespace: senders count packets, changers what the kernel took of their changes.  In
the end all namespaces go, and no override may be left.  Exit status 1: something is left.
With --faults, one of a hundred allocations from CACHES fails, whoever makes it.
"""

import argparse
import collections
import contextlib
import itertools
import mmap
import os
import random
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import lab
from lab import ALLOCINFO, GW, HOST, LIBC, MBOX, PORT, PREFIXES, PREFIXES6, VMAC

UDP_SEGMENT = 103
# preserve: who it is, is in host's neighbour table, or behind a group
FOREIGN, FOREIGN6 = '192.0.2.150', '2001:db8::150'
REMOTE, REMOTE6 = '198.18.99.9', '2001:db8:99::9'
NEIGHS = ('lladdr {mbox}', 'lladdr {mbox} src-lladdr {vmac}', 'src-lladdr {vmac}',
          'via 192.0.2.9', 'via 192.0.2.9 fallback', 'via 192.0.2.77 fallback counters',
          'via 192.0.2.78', 'via inet6 2001:db8::9', 'via inet6 2001:db8::77 src-lladdr {vmac}',
          'preserve', 'preserve strict', 'via 192.0.2.9 preserve counters',
          'lladdr {mbox} counters', 'counters src-lladdr {vmac}', 'lladdr {mbox} preserve',
          'selector last-hop', 'selector last-hop counters',
          'via 192.0.2.9 selector last-hop fallback', 'src-lladdr {vmac} selector last-hop')
NEIGHS = tuple(words.format(mbox=MBOX, vmac=VMAC) for words in NEIGHS)
NEIGHS6 = tuple(words for words in NEIGHS if '192' not in words)
OBJECTS, OBJECTS6, GROUP, RESILIENT, GROUP6 = range(1, 9), range(9, 17), 100, 101, 102
# What host has of each: the option of 'ip', its gateway, nexthop objects, a group, a route by
# that, destinations
Family = collections.namedtuple('Family', 'option gateway numbers group remote prefixes')
FAMILIES = (Family('', '192.0.2.1', OBJECTS, GROUP, REMOTE, PREFIXES),
            Family('-6', '2001:db8::1', OBJECTS6, GROUP6, REMOTE6, PREFIXES6))
TRACING = '/sys/kernel/tracing'
DEBUG = '/sys/kernel/debug'
FAULTS = 10**9      # at most
PATIENCE = 120      # seconds
# User-mode Linux panics when it has none for its own page tables.
CACHES = 'kmalloc-*', 'skbuff_*', 'ip*_dst_cache', 'ip_fib_*', 'fib6_node', 'nf_*'


def enter(name):
    """Be in a network namespace from now on."""
    with open(f'/run/netns/{name}', 'rb') as there:
        LIBC.setns(there.fileno(), 0)


def in_child(work):
    """The process that does it; its status is 1 when something went wrong."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        except Worker.tolerated:
            pass
        except Exception as error:      # pylint: disable=broad-except
            print(f'stress: {error!r}', flush=True)
        finally:
            os._exit(status)            # pylint: disable=protected-access
    return pid


class Worker:
    """A process with a counter that its parent can read."""

    counters = mmap.mmap(-1, 4096)
    number = pid = 0
    tolerated = ()

    def __init__(self, kind, name, work):
        self.kind, self.name, self.work = kind, name, work
        self.offset = 8 * Worker.number
        Worker.number += 1

    def start(self, seed, end):
        """Work in a process of its own until the end."""
        self.pid = in_child(lambda: self.run(seed, end))

    def run(self, seed, end):
        random.seed(seed + self.offset)
        while time.monotonic() < end:
            with contextlib.suppress(*self.tolerated):
                enter(self.name)
                for count in self.work():
                    self.count(count)
                    if time.monotonic() > end:
                        return

    def count(self, more):
        struct.pack_into('=Q', self.counters, self.offset, self.done() + more)

    def done(self):
        return struct.unpack_from('=Q', self.counters, self.offset)[0]


# --- packets ---

def any_address(family=socket.AF_INET):
    prefixes = PREFIXES if family == socket.AF_INET else PREFIXES6
    return str(random.choice(prefixes)[random.randrange(1, 3)])


def udp(source=None, family=socket.AF_INET):
    """A socket; with a source, one that may not be this host's."""
    sock = socket.socket(lab.family(source).number if source else family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if source:
        sock.setsockopt(*lab.TRANSPARENT[lab.family(source)], 1)
        sock.bind((source, 0))
    return sock


def send_some(socks, address):
    """Datagrams of all sizes: plain ones, fragments, some that are cut up by GSO."""
    for sock in socks:
        size = random.choice((1, 100, 1400, 4000, 20000))
        sock.setsockopt(socket.SOL_UDP, UDP_SEGMENT, random.choice((0, 0, 500)))
        with contextlib.suppress(OSError):
            sock.sendto(bytes(size), (address(sock.family), PORT))
            yield 1


def local():
    """Packets of host, by its own address and in the name of another."""
    while True:
        socks = [udp(), udp(family=socket.AF_INET6), udp(FOREIGN), udp(REMOTE), udp(FOREIGN6),
                 udp(REMOTE6)]
        for sock in socks[:2]:
            with contextlib.suppress(OSError):
                sock.connect((any_address(sock.family), PORT))
        for _ in range(50):
            yield sum(send_some(socks, any_address))
        for sock in socks:
            sock.close()


def returned():
    """Packets of server, which gw forwards by conntrack, a flowtable and overrides."""
    socks = [udp(), udp(str(PREFIXES[0][1])), udp(str(PREFIXES6[0][1]))]
    hosts = {socket.AF_INET: ('192.0.2.2', '192.0.2.9', FOREIGN),
             socket.AF_INET6: ('2001:db8::2', '2001:db8::9', FOREIGN6)}
    while True:
        yield sum(send_some(socks, lambda family: random.choice(hosts[family])))


def waiting():
    """Packets that wait for neighbours which never come, or late."""
    socks = [udp(), udp(FOREIGN), udp(FOREIGN6)]
    lan = {socket.AF_INET: '192.0.2.', socket.AF_INET6: '2001:db8::'}
    while True:
        yield sum(send_some(socks, lambda family: f'{lan[family]}{random.randrange(60, 90)}'))
        time.sleep(0.001)


def tapped():
    """Whoever listens has clones of all packets."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(lab.ETH_P_ALL)) as sock:
        sock.settimeout(0.2)
        while True:
            with contextlib.suppress(OSError):
                sock.recv(64)
                yield 1
            yield 0


# --- changes ---

def batch(*lines, option=''):
    """Lines of 'ip' where we are, each by itself; how many were taken."""
    # With --faults, an answer can be lost.
    done = subprocess.run(f'{lab.IP} {option} -force -batch -'.split(), text=True, check=False,
                          input='\n'.join(lines), capture_output=True, timeout=PATIENCE)
    return len(lines) - done.stderr.count('Command failed')


def nexthop(number, device, gateway):
    """A line that replaces a nexthop object with an override."""
    via = random.choice((f'via {gateway} ', f'via {gateway} ', ''))
    neigh = random.choice(NEIGHS6 if ':' in gateway else NEIGHS)
    return f'nexthop replace id {number} {via}dev {device} neigh {neigh}'


def objects():
    """Nexthop objects and groups of them."""
    def line(gateway, numbers):
        number = random.choice(numbers)
        return random.choice((f'nexthop del id {number}',
                              f'nexthop replace id {number} dev eth0 neigh selector unknown',
                              *[nexthop(number, 'eth0', gateway)] * 18))
    while True:
        for fam in FAMILIES:
            yield batch(*(line(fam.gateway, fam.numbers) for _ in range(10)), option=fam.option)
            members = '/'.join(map(str, random.sample(fam.numbers, random.choice((1, 2, 4)))))
            yield batch(f'nexthop replace id {fam.group} group {members}',
                        f'route replace {fam.remote} nhid {fam.group}',
                        *[f'nexthop replace id {RESILIENT} group {members} type resilient '
                          'buckets 8'] * (fam.group == GROUP))


def routes():
    """Routes by objects and groups, to a link-layer address, with legs, without override."""
    def line():
        prefix = random.choice((*PREFIXES, *PREFIXES6))
        if random.random() < 0.1:
            return f'route del {prefix}'
        nexthops = [f'via link {MBOX} dev eth0', f'nhid {random.choice(OBJECTS6)}',
                    f'nhid {GROUP6}']
        if prefix.version == 6:
            nexthops += ['via 2001:db8::1', f'via link {GW} dev eth0']
        else:
            nexthops += [
                f'nhid {random.choice(OBJECTS)}', f'nhid {GROUP}', f'nhid {RESILIENT}',
                'via 192.0.2.1',
                f'nexthop via link {MBOX} dev eth0 nexthop via link {GW} dev eth0 weight 2']
        return f'route replace {prefix} {random.choice(nexthops)}'
    while True:
        yield batch(*(line() for _ in range(16)))


def gw_routes():
    """What gw forwards goes by overrides, too, and back."""
    while True:
        yield batch(nexthop(3, 'eth1', '2001:db8:ff::2'),
                    f'nexthop replace id 4 dev eth0 neigh {random.choice(NEIGHS6)}', option='-6')
        yield batch(nexthop(1, 'eth1', '198.51.100.2'),
                    f'nexthop replace id 2 dev eth0 neigh {random.choice(NEIGHS)}',
                    *(f'route replace {random.choice(PREFIXES)} nhid {random.choice((1, 3))}'
                      for _ in range(8)), 'route replace 192.0.2.128/25 nhid 2',
                    *(f'route replace {random.choice(PREFIXES6)} nhid 3' for _ in range(8)),
                    'route replace 2001:db8::/112 nhid 4')
        time.sleep(0.01)


def flowtables():
    """gw's conntrack and flowtable come and go."""
    rules = '''table inet flows {
        flowtable fast { hook ingress priority 0; devices = { eth0, eth1 }; };
        chain forward { type filter hook forward priority 0; meta l4proto udp flow add @fast; }
        chain nat { type nat hook postrouting priority 100;
                    ip saddr 192.0.2.9 masquerade; } }'''
    while True:
        for text, pause in ((rules, 1), ('flush ruleset', 0.1)):
            yield not subprocess.run(['nft', text], check=False, capture_output=True,
                                     timeout=PATIENCE).returncode
            time.sleep(pause)


def neighbours():
    """Entries appear, change and go."""
    states = ('reachable', 'stale', 'delay', 'probe', 'permanent', 'failed', 'noarp')
    names = ('192.0.2.1', '192.0.2.9', '192.0.2.77', '192.0.2.78', FOREIGN, '2001:db8::9',
             '2001:db8::77', '192.0.2.60', '192.0.2.61', '2001:db8::1', '2001:db8::60', FOREIGN6)
    while True:
        yield batch(*(f'neigh replace {random.choice(names)} lladdr {random.choice((GW, MBOX))} '
                      f'nud {random.choice(states)} dev eth0' for _ in range(8)),
                    f'neigh del {random.choice(names)} dev eth0')
        if random.random() < 0.2:
            yield batch('neigh flush dev eth0 nud all')


def devices():
    """The device of host's overrides: its address, its MTU, down and up, renamed."""
    while True:
        yield batch(f'link set eth0 address {random.choice((HOST, "02:00:00:00:00:12"))}',
                    f'link set eth0 mtu {random.choice((600, 1400, 1500))}')
        if random.random() < 0.2:
            yield batch('link set eth0 down', 'link set eth0 up', 'route add default via 192.0.2.1',
                        'address add 2001:db8::2/64 dev eth0',
                        'route add default via 2001:db8::1')
        time.sleep(0.02)


KINDS = ('type dummy', 'type bridge', 'type vrf table 7', 'type bond', 'type veth peer name d1',
         'link eth0 type vlan id 5', 'link eth0 type macvlan', 'link eth0 type ipvlan mode l2',
         'type vxlan id 5 dstport 4789 dev eth0')


def other_devices():
    """Devices that come, send by overrides, and go."""
    with udp() as sock, udp(family=socket.AF_INET6) as sock6:
        while True:
            done = batch(f'link add d0 {random.choice(KINDS)}',
                         'address add 198.18.0.1/24 dev d0',
                         'address add 2001:db8:18::1/64 dev d0', 'link set d0 up')
            for option, gateway, first, prefix in (
                    ('-6', '2001:db8:18::2', 30, '2001:db8:18:{}::/64'),
                    ('', '198.18.0.2', 20, '198.18.{}.0/24')):
                done += batch(*(nexthop(first + number, 'd0', gateway) for number in range(4)),
                              *(f'route replace {prefix.format(20 + number)} nhid {first + number}'
                                for number in range(4)),
                              f'route replace {prefix.format(24)} via link {MBOX} dev d0',
                              option=option)
            for number in range(20, 25):
                for one, address in ((sock, f'198.18.{number}.9'),
                                     (sock6, f'2001:db8:18:{number}::9')):
                    with contextlib.suppress(OSError):
                        one.sendto(b'datagram', (address, PORT))
            yield done + batch('link del d0')


def live_in_away():
    """Send by overrides in the namespace that is about to end."""
    enter('away')
    batch('address add 192.0.2.99/24 dev eth0', 'address add 2001:db8::99/64 dev eth0 nodad',
          'link set eth0 up')
    for fam in FAMILIES:
        batch(*(nexthop(number, 'eth0', fam.gateway) for number in fam.numbers),
              *(f'route replace {fam.prefixes[number]} nhid {number}' for number in fam.numbers),
              option=fam.option)
        with udp(family=lab.family(fam.gateway).number) as sock:
            for number in fam.numbers:
                with contextlib.suppress(OSError):
                    sock.sendto(b'datagram', (str(fam.prefixes[number][1]), PORT))


def namespaces():
    """Namespaces that end while packets of theirs wait."""
    while True:
        done = batch('netns add away', 'link add away0 type veth peer name eth0 netns away',
                     'link set away0 up')
        pid = in_child(live_in_away)
        os.waitpid(pid, 0)
        yield done + batch('netns del away')


def settings():
    """Sysctls that decide about routes."""
    names = {'ipv4/conf/all/rp_filter': (0, 2), 'ipv4/conf/eth0/arp_announce': (0, 2),
             'ipv4/fib_multipath_hash_policy': (0, 1), 'ipv4/conf/all/send_redirects': (0, 1),
             'ipv4/conf/eth0/ignore_routes_with_linkdown': (0, 1), 'ipv4/route/flush': (1,),
             'ipv4/fib_multipath_use_neigh': (0, 1), 'ipv4/ip_forward': (0, 1),
             'ipv6/fib_multipath_hash_policy': (0, 1), 'ipv6/route/flush': (1,),
             'ipv6/conf/eth0/ignore_routes_with_linkdown': (0, 1),
             'ipv6/conf/all/forwarding': (0, 1), 'ipv6/conf/eth0/use_optimistic': (0, 1)}
    while True:
        name, values = random.choice([*names.items()])
        with contextlib.suppress(OSError):
            with open(f'/proc/sys/net/{name}', 'w', encoding='ascii') as file:
                file.write(f'{random.choice(values)}')
            yield 1
        time.sleep(0.005)


def readers():
    """Whoever looks: dumps with counters, routes of packets, the tracepoint on and off."""
    switch = f'{TRACING}/events/neigh_override/enable'
    while True:
        done = batch('nexthop show', option='-statistics')
        with contextlib.suppress(OSError):
            with open(switch, 'w', encoding='ascii') as file:
                file.write(random.choice('01'))
        yield done + batch('route show', 'route show root 2001:db8::/32',
                           f'route get {any_address()}',
                           f'route get {any_address(socket.AF_INET6)}',
                           f'route get {any_address()} from {FOREIGN} iif eth0')


# where, what; senders more than once
SENDERS = (('host', local), ('host', local), ('host', waiting), ('server', returned),
           ('server', returned))
LISTENERS = (('host', tapped),)
CHANGERS = (('host', objects), ('host', routes), ('gw', gw_routes), ('gw', flowtables),
            ('host', neighbours), ('host', devices), ('host', other_devices),
            ('lan', namespaces), ('host', settings), ('host', readers))


# --- the end ---

def what_is_left():
    """Delete the namespaces; the reasons for a complaint."""
    batch(*(f'netns del {name}' for name in ('host', 'gw', 'mbox', 'server', 'lan', 'away')))
    with contextlib.suppress(lab.Failure):
        lab.wait_until(lambda: not lab.allocated(), 'memory', 60)
    return [f'left: {line}' for line in lab.allocated()]


def inject_faults(interval):
    """One of so many allocations from CACHES, or of more than one page, fails; 0: none."""
    for name in 'failslab', 'fail_page_alloc':
        for file, value in (('interval', interval), ('probability', 50 if interval else 0)):
            written = 0
            while not written:
                with contextlib.suppress(OSError):
                    written = Path(f'{DEBUG}/{name}/{file}').write_text(f'{value}', 'ascii')


def faults_injected():
    return sum(FAULTS - int(Path(f'{DEBUG}/{name}/times').read_text('ascii'))
               for name in ('failslab', 'fail_page_alloc'))


def prepare_faults():
    """Which ones may fail, without a line in the log for each."""
    for name in 'failslab', 'fail_page_alloc':
        for file, value in ('ignore-gfp-wait', 'N'), ('verbose', '0'), ('times', str(FAULTS)):
            Path(f'{DEBUG}/{name}/{file}').write_text(value, 'ascii')
    Path(f'{DEBUG}/failslab/cache-filter').write_text('Y', 'ascii')
    for cache in itertools.chain(*map(Path('/sys/kernel/slab').glob, CACHES)):
        (cache / 'failslab').write_text('1', 'ascii')
    Worker.tolerated = OSError, MemoryError, subprocess.TimeoutExpired


def prepare():
    """The LAN, what preserve needs, and somebody who listens."""
    if not os.path.exists(ALLOCINFO):
        sys.exit(f'stress: this kernel has no {ALLOCINFO}: see configs/debug.config')
    lab.set_up()
    lab.ip_batch('host', *(f'neigh replace {address} lladdr 02:00:00:00:00:50 dev eth0'
                           for address in (FOREIGN, FOREIGN6)))
    with lab.inside('host'):
        ready = sum(batch(*(nexthop(number, 'eth0', fam.gateway) for number in fam.numbers),
                          option=fam.option) for fam in FAMILIES)
    if ready != len(OBJECTS) + len(OBJECTS6):
        raise lab.Failure('a nexthop object was refused')


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS)
    parser.add_argument('--seconds', type=int, default=60)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--faults', action='store_true')
    options = parser.parse_args()
    prepare()
    begun = time.monotonic()
    workers = [Worker(kind, name, work)
               for kind, jobs in (('packets', SENDERS), ('clones', LISTENERS),
                                  ('changes', CHANGERS)) for name, work in jobs]
    with contextlib.suppress(OSError):
        Path(f'{DEBUG}/kcsan').write_text('on', 'ascii')
    if options.faults:
        prepare_faults()
    for worker in workers:
        worker.start(options.seed, begun + options.seconds)
    if options.faults:
        inject_faults(50)

    def summary():
        done = {kind: sum(worker.done() for worker in workers if worker.kind == kind)
                for kind in ('packets', 'changes')}
        return (f'{done["packets"]} packets, {done["changes"]} changes, '
                f'{int(time.monotonic() - begun)} s, {os.cpu_count()} CPUs')
    while time.monotonic() < begun + options.seconds:
        time.sleep(10)
        print(f'  {summary()}', flush=True)
    said = summary()
    if options.faults:
        inject_faults(0)
        said += f', {faults_injected()} faults'
    problems = [f'{worker.work.__name__} did not come to its end' for worker in workers
                if os.waitpid(worker.pid, 0)[1]]
    problems += [f'{worker.work.__name__} did nothing' for worker in workers if not worker.done()]
    print('  ' + ', '.join(f'{worker.work.__name__} {worker.done()}' for worker in workers),
          flush=True)
    problems += what_is_left()
    for problem in problems:
        print(f'FAIL {problem}')
    print(f'{said}, {"nothing is left" if not problems else f"{len(problems)} problems"}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
