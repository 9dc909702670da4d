#!/usr/bin/python3
"""Count the instructions that a packet takes, case by case, in a booted kernel.

usage: bench.py --list | [--rounds N] [--without PATTERN] PROGRAM KERNEL [CASE]...
                | --memory [--without PATTERN] PROGRAM KERNEL

PROGRAM is tests/bench.c, built; KERNEL is 'unpatched', 'off' or 'on', and
decides which cases there are.  A CASE is the name of one, or of a group: 'udp',
'udp6', 'forward', 'short'.  By default all but those whose name has PATTERN, a regular
expression, in it.

Each round makes every case anew, in a network namespace of its own: a host with
one Ethernet device, a gateway that only exists as a permanent neighbour entry,
one route.  First the frame is looked at: it has to carry the addresses that the
case is about.  Prints one JSON object a line.  With --memory instead sizes of slab objects.
"""

import argparse
import collections
import contextlib
import functools
import json
import os
import re
import shlex
import socket
import sys
import time
from ipaddress import ip_address

import bench_alternatives
from bench_alternatives import GATEWAY, OTHER, PLAIN
from lab import ETH_P_ALL, GW, HOST, IP, MBOX, VMAC, Failure, inside, run, wait_until, write

ROUTER = 'bench'
DESTINATION = '203.0.113.1'
DESTINATIONS = {'udp': DESTINATION, 'forward': DESTINATION, 'udp6': '2001:db8:1::1'}
# Of bench.c
PORT = 2304
# Enough to tell what each of them takes
FLOWS = 4096
# pktgen is run so many times; the timer's interrupts come between some of the runs.
RUNS = 10
# Packets of each run, batches of 64 datagrams
PACKETS, BATCHES = 500, 51
# Where a packet costs more in some hosts than in others, by chance, a search in
# FIRST_TRIES hosts comes before the rounds, and a round is made in one host after
# another until one costs no more than SAME over the best there was.
FIRST_TRIES = 16
MOST_TRIES = 24
SAME = 0.5

# where: 'udp' or 'udp6', local packets, or 'forward'.  kernels: which have the case,
# u unpatched, f option off, n on.  setup: lines, see run().  reference: the case
# that it is compared with.  dst, src: what the frame has to carry.  entries:
# neighbour entries that are in use, IPv6 ones of 'udp6', else IPv4 ones.  source:
# the socket is bound to it.
# each: values that stand for {each} in setup, one in each host; the best host is
# the figure, because two entries may share a bucket of the neighbour table's hash,
# which has another seed on each boot.
Case = collections.namedtuple(
    'Case', 'name where kernels text setup reference dst src entries source each short '
    'alternative', defaults=(GW, HOST, 1, None, ('',), False, False))

NEXTHOP = 'ip nexthop add id 1 via 192.0.2.1 dev {dev}'
ROUTE = 'ip route add 203.0.113.0/24 nhid 1'
IPV6 = 'ipv6'
GATEWAYS6 = ('2001:db8::9', '2001:db8::1a', '2001:db8::2b', '2001:db8::3c')
V6_ENTRY = 'ip -6 neigh add {each} lladdr {mbox} nud permanent dev {dev}'
VLAN = ('device eth0.7 link add link eth0 name eth0.7 type vlan id 7',)
MACVLAN = ('device mv0 link add link eth0 name mv0 address {vmac} type macvlan mode bridge',)


def over(neigh, entry=GATEWAY, before=()):
    """The setup of a nexthop object with an override."""
    return (*before, entry, f'{NEXTHOP} neigh {neigh}', ROUTE)


def lladdr(before=()):
    """The setup of a plain route with a link-layer nexthop."""
    return (*before, 'ip route add 203.0.113.0/24 via link {mbox} dev {dev}')


# Nobody's addresses: which of them the owner has is tried.
OWNERS = ('192.0.2.17', '192.0.2.34', '192.0.2.51', '192.0.2.68')
OWNER_ENTRY = 'ip neigh add {each} lladdr {vmac} nud permanent dev {dev}'
REMOTE_OWNER = 'ip route add 198.51.100.0/24 via {each} dev {dev}'


def cases_of(where):
    """The cases without the alternatives, for local packets or forwarding."""
    def name(word):
        return f'{where}.{word}'

    def case(word, kernels, text, setup, *rest, short=False, **more):
        reference, *rest = rest or ('gateway',)
        return Case(name(word), where, kernels, text, setup, name(reference), *rest,
                    short=short and where == 'udp', **more)

    unresolved = 'ip neigh add 192.0.2.9 nud failed dev {dev}'
    yield case('gateway', 'ufn', 'plain route via a gateway', PLAIN, short=True)
    yield case('gateway-nhid', 'ufn', 'the same by a nexthop object',
               (GATEWAY, NEXTHOP, ROUTE), 'gateway-nhid', short=True)
    yield case('onlink', 'ufn', 'plain on-link route',
               (f'ip neigh add {DESTINATION} lladdr {{gw}} nud permanent dev {{dev}}',
                'ip route add 203.0.113.0/24 dev {dev}'), 'onlink')
    yield case('gateway6', 'ufn', 'via an IPv6 gateway',
               (IPV6, V6_ENTRY, 'ip route add 203.0.113.0/24 via inet6 {each} dev {dev}'),
               'gateway6', MBOX, HOST, 0, None, GATEWAYS6)
    yield case('vlan', 'ufn', 'plain, VLAN', (*VLAN, *PLAIN), 'vlan')
    yield case('macvlan', 'ufn', 'plain, macvlan', (*MACVLAN, *PLAIN), 'macvlan',
               GW, VMAC)
    yield case('ecmp', 'ufn', 'plain ECMP group of two',
               (GATEWAY, 'ip nexthop add id 2 via 192.0.2.1 dev {dev}',
                'ip nexthop add id 3 via 192.0.2.3 dev {dev}', 'ip nexthop add id 1 group 2/3',
                ROUTE, 'leg 192.0.2.1'), 'ecmp')
    if where == 'udp':
        yield case('foreign', 'ufn', 'plain, packets with a foreign source address', PLAIN,
                   'foreign', source='198.51.100.7', short=True)

    # In a table of its own: the trie that packets go through stays the same.
    yield case('other', 'n', 'an override on another route',
               (*PLAIN, 'ip nexthop add id 9 via 192.0.2.1 dev {dev} neigh lladdr {mbox}',
                'ip route add 203.0.113.0/24 table 9 nhid 9'), short=True)
    yield case('via4', 'n', 'via4', over('via 192.0.2.9', OTHER), 'gateway-nhid', MBOX,
               short=True)
    yield case('via6', 'n', 'via6', over('via inet6 {each}', V6_ENTRY, (IPV6,)),
               'gateway-nhid', MBOX, HOST, 0, None, GATEWAYS6, short=True)
    yield case('lladdr', 'n', 'lladdr (via link)', lladdr(), 'gateway', MBOX, HOST, 0,
               short=True)
    yield case('lladdr-nhid', 'n', 'lladdr (nexthop object)', over('lladdr {mbox}', ''),
               'gateway-nhid', MBOX, HOST, 0)
    yield case('lladdr-src', 'n', 'lladdr + src-lladdr',
               over('lladdr {mbox} src-lladdr {vmac}', ''), 'gateway-nhid', MBOX, VMAC, 0,
               short=True)
    yield case('gateway-src', 'n', 'gateway + src-lladdr', over('src-lladdr {vmac}'),
               'gateway-nhid', GW, VMAC, short=True)
    yield case('via4-src', 'n', 'via4 + src-lladdr',
               over('via 192.0.2.9 src-lladdr {vmac}', OTHER), 'gateway-nhid', MBOX, VMAC)
    yield case('vlan-lladdr', 'n', 'lladdr, VLAN', lladdr(VLAN), 'vlan', MBOX, HOST, 0)
    yield case('macvlan-lladdr', 'n', 'lladdr, macvlan', lladdr(MACVLAN), 'macvlan', MBOX,
               VMAC, 0)
    yield case('ecmp-lladdr', 'n', 'ECMP group of two with lladdr',
               ('ip nexthop add id 2 via 192.0.2.1 dev {dev} neigh lladdr {mbox}',
                'ip nexthop add id 3 via 192.0.2.3 dev {dev} neigh lladdr {gw}',
                'ip nexthop add id 1 group 2/3', ROUTE, 'leg 192.0.2.1'), 'ecmp', MBOX, HOST, 0)
    yield case('fallback-idle', 'n', 'via4 + fallback, not active',
               over('via 192.0.2.9 fallback', OTHER), 'gateway-nhid', MBOX, short=True)
    yield case('fallback', 'n', 'via4 + fallback, active',
               (*over('via {each} fallback'), f'{unresolved.replace("192.0.2.9", "{each}")}'),
               'gateway-nhid', GW, HOST, 2, None, OWNERS, short=True)
    yield case('via4-counters', 'n', 'via4 + counters', over('via 192.0.2.9 counters', OTHER),
               'via4', MBOX)
    yield case('lladdr-counters', 'n', 'lladdr + counters', over('lladdr {mbox} counters', ''),
               'lladdr-nhid', MBOX, HOST, 0)
    yield case('gateway-src-counters', 'n', 'gateway + src-lladdr + counters',
               over('src-lladdr {vmac} counters'), 'gateway-src', GW, VMAC)
    if where == 'udp':
        yield case('preserve-local', 'n', 'preserve, own packets', over('preserve'),
                   'gateway-nhid')
        yield case('preserve-onlink', 'n', 'preserve, owner on-link',
                   over('preserve', GATEWAY, (OWNER_ENTRY,)), 'foreign', GW, VMAC, 2,
                   '{each}', OWNERS, short=True)
        yield case('preserve-offlink', 'n', 'preserve, owner behind a gateway',
                   over('preserve', GATEWAY, (OWNER_ENTRY, REMOTE_OWNER)), 'foreign', GW, VMAC,
                   2, '198.51.100.7', OWNERS)


# Packets of the other direction would go to this neighbour.
FLOWTABLE = ('ip neigh add 198.51.100.2 lladdr 02:00:00:00:01:01 nud permanent dev in0',
             ('nft', 'table ip flows { '
                     'flowtable fast { hook ingress priority 0; devices = { eth0, in0 }; }; '
                     'chain c { type filter hook forward priority 0; flow add @fast; }; }'))


def flow_cases():
    """Forwarded packets of a flow in a flowtable."""
    def case(word, text, setup, *frame, kernels='n'):
        return Case(f'forward.flow{word}', 'forward', kernels, text, (*FLOWTABLE, *setup),
                    'forward.flow', *frame)

    yield case('', 'plain, in a flowtable', (GATEWAY, NEXTHOP, ROUTE), GW, HOST, 2,
               kernels='ufn')
    for word, text, neigh, entry, *frame in (
            ('via4', 'via4', 'via 192.0.2.9', OTHER, MBOX, HOST, 2),
            ('lladdr', 'lladdr', 'lladdr {mbox}', '', MBOX, HOST),
            ('lladdr-src', 'lladdr + src-lladdr', 'lladdr {mbox} src-lladdr {vmac}', '', MBOX,
             VMAC),
            ('gateway-src', 'gateway + src-lladdr', 'src-lladdr {vmac}', GATEWAY, GW, VMAC, 2)):
        yield case(f'-{word}', f'{text}, in a flowtable', over(neigh, entry), *frame)


GATEWAY6 = 'ip -6 neigh add {each} lladdr {gw} nud permanent dev {dev}'
PLAIN6 = (GATEWAY6, 'ip -6 route add 2001:db8:1::/48 via {each} dev {dev}')
ROUTE6 = 'ip -6 route add 2001:db8:1::/48 nhid 1'


def cases6():
    """Local IPv6 packets, for a kernel whose IPv6 routes take overrides."""
    def case(word, kernels, text, setup, reference, *frame, each=GATEWAYS6, **more):
        return Case(f'udp6.{word}', 'udp6', kernels, text, (IPV6, *setup), f'udp6.{reference}',
                    *frame, each=each, **more)

    def over6(neigh, *before, gateway='2001:db8::1'):
        return (*before, f'ip nexthop add id 1 via {gateway} dev {{dev}} neigh {neigh}', ROUTE6)

    yield case('gateway', 'ufn', 'plain route via a gateway', PLAIN6, 'gateway', short=True)
    yield case('gateway-nhid', 'ufn', 'the same by a nexthop object',
               (GATEWAY6, 'ip nexthop add id 1 via {each} dev {dev}', ROUTE6), 'gateway-nhid',
               short=True)
    yield case('foreign', 'ufn', 'plain, packets with a foreign source address', PLAIN6,
               'foreign', source='2001:db8:2::7')
    yield case('other', 'n', 'an override on another route',
               (*PLAIN6, 'ip nexthop add id 9 via {each} dev {dev} neigh lladdr {mbox}',
                'ip -6 route add 2001:db8:1::/48 table 9 nhid 9'), 'gateway', short=True)
    yield case('via6', 'n', 'via6', over6('via inet6 {each}', V6_ENTRY), 'gateway-nhid', MBOX,
               short=True)
    yield case('lladdr', 'n', 'lladdr (via link)',
               ('ip -6 route add 2001:db8:1::/48 via link {mbox} dev {dev}',), 'gateway',
               MBOX, HOST, 0, each=('',), short=True)
    yield case('lladdr-nhid', 'n', 'lladdr (nexthop object)', over6('lladdr {mbox}'),
               'gateway-nhid', MBOX, HOST, 0, each=('',))
    yield case('lladdr-src', 'n', 'lladdr + src-lladdr',
               over6('lladdr {mbox} src-lladdr {vmac}'), 'gateway-nhid', MBOX, VMAC, 0,
               each=('',))
    yield case('gateway-src', 'n', 'gateway + src-lladdr',
               over6('src-lladdr {vmac}', GATEWAY6, gateway='{each}'), 'gateway-nhid', GW, VMAC,
               short=True)
    yield case('preserve-onlink', 'n', 'preserve, owner on-link',
               over6('preserve', GATEWAY6.replace('{each}', '2001:db8::1'),
                     OWNER_ENTRY.replace('ip', 'ip -6')), 'foreign', GW, VMAC, 2, '{each}')


# Of connections, without a rule in the way of what is measured
TRACK = ('nft', 'table inet t { chain c { type filter hook input priority 0; ct state new; }; }')


def last_hop_cases():
    """Answers to tracked flows; forwarded packets of flows whose last hop is noted."""
    def case(name, kernels, text, setup, dst=GW, **more):
        where = name.partition('.')[0]
        return Case(name, where, kernels, text, setup, f'{where}.tracked', dst, **more)

    for word, kernels, text, neigh, dst in (
            ('tracked', 'ufn', 'plain, answers to tracked flows', '', GW),
            ('last-hop', 'n', 'selector last-hop', ' neigh selector last-hop', MBOX)):
        yield case(f'udp.{word}', kernels, text,
                   (TRACK, GATEWAY, NEXTHOP + neigh, ROUTE, 'ask 192.0.2.2'), dst,
                   source='192.0.2.2')
        yield case(f'udp6.{word}', kernels, text,
                   (IPV6, TRACK, GATEWAY6, 'ip nexthop add id 1 via {each} dev {dev}' + neigh,
                    ROUTE6, 'ask 2001:db8::2'), dst, source='2001:db8::2', each=GATEWAYS6)
    plain = (TRACK, *PLAIN)
    yield case('forward.tracked', 'ufn', 'plain, tracked', plain)
    yield case('forward.last-hop', 'n', 'tracked, with selector last-hop on another route',
               (*plain, 'ip nexthop add id 9 via 192.0.2.1 dev {dev} neigh selector last-hop'))


CASES = [case for where in ('udp', 'forward') for case in cases_of(where)]
CASES += [*flow_cases(), *cases6(), *last_hop_cases()]
CASES += bench_alternatives.cases(Case)


def entries(table):
    """How many neighbour entries there are, in all namespaces."""
    with open(f'/proc/1/net/stat/{table}', encoding='ascii') as file:
        return int(file.read().splitlines()[1].split()[0], 16)


class Host:
    """A network namespace with one Ethernet device that swallows what it is given."""

    def __init__(self, where):
        self.where = where
        self.open = contextlib.ExitStack()
        self.words = {'gw': GW, 'host': HOST, 'mbox': MBOX, 'vmac': VMAC, 'dev': 'eth0'}

    def __enter__(self):
        run('ip', 'netns', 'add', ROUTER)
        self.open.callback(self.remove)
        self.open.enter_context(inside(ROUTER))
        for name in 'all', 'default':
            write(f'/proc/sys/net/ipv6/conf/{name}/disable_ipv6', 1)
        if self.where == 'forward':
            write('/proc/sys/net/ipv4/ip_forward', 1)
            write('/proc/sys/net/ipv4/conf/all/send_redirects', 0)
        self.add_device()
        lines = ['link set eth0 arp on up', 'address add 192.0.2.2/24 dev eth0']
        if self.where == 'forward':
            lines += ['link add in0 address 02:00:00:00:01:02 type veth '
                      'peer name gen0 address 02:00:00:00:01:01',
                      'link set in0 up', 'link set gen0 up',
                      'address add 198.51.100.1/24 dev in0']
        run('ip', '-batch', '-', given='\n'.join(lines))
        return self

    def add_device(self):
        run('ip', 'link', 'add', 'eth0', 'address', HOST, 'type', 'dummy')

    def __exit__(self, *what):
        self.open.close()

    def remove(self):
        """Take everything down, and wait until it is gone."""
        run('ip', 'netns', 'del', ROUTER)
        wait_until(lambda: not entries('arp_cache') + entries('ndisc_cache'),
                   'no neighbour entries', 60)
        # The static key is switched off a second after the last override went.
        time.sleep(2.5)

    def run(self, line):
        """A line of setup."""
        if callable(line):
            self.open.enter_context(line(self))
            return
        if not isinstance(line, str):
            run(*line)
            return
        verb, _, rest = line.format(**self.words).partition(' ')
        if verb == 'device':
            name, _, rest = rest.partition(' ')
            run('ip', *rest.split())
            run('ip', '-batch', '-', given='\n'.join((
                f'link set {name} up', 'address del 192.0.2.2/24 dev eth0',
                f'address add 192.0.2.2/24 dev {name}')))
            self.words['dev'] = name
        elif verb == IPV6:
            write('/proc/sys/net/ipv6/conf/eth0/accept_dad', 0)
            write('/proc/sys/net/ipv6/conf/eth0/addr_gen_mode', 1)
            write('/proc/sys/net/ipv6/conf/eth0/disable_ipv6', 0)
            run('ip', 'address', 'add', '2001:db8::2/64', 'nodad', 'dev', 'eth0')
        elif verb == 'destination':
            self.words['destination'] = rest
        elif verb == 'leg':
            self.words['destination'] = self.destination_by(rest)
        elif verb == 'ask':
            self.ask(rest, PORT)
        elif verb == 'ip':
            run(IP, *rest.split())
        elif verb:
            run(verb, *shlex.split(rest))

    def ask(self, address, ports, last=None, packets=1):
        """Datagrams of flows come in from MBOX, to an address of this host."""
        ends = ('src', self.words['destination']), ('dst', address)
        lines = ['flag UDPCSUM', *(f'{end}6 {value}' for end, value in ends)] \
            if ':' in address else \
            [f'{end}_{edge} {value}' for end, value in ends for edge in ('min', 'max')]
        generate('eth0', packets, 'xmit_mode netif_receive', 'pkt_size 80', f'dst_mac {HOST}',
                 f'src_mac {MBOX}', f'udp_src_min {ports}', f'udp_src_max {last or ports}',
                 f'udp_dst_min {PORT}', f'udp_dst_max {PORT}', *lines)

    def destination_by(self, gateway):
        """An address whose packets take the leg of a group that has gateway."""
        for number in range(1, 65):
            address = f'203.0.113.{number}'
            lookup = ['ip', 'route', 'get', address]
            if self.where == 'forward':
                lookup += ['from', '198.51.100.2', 'iif', 'in0']
            if f' via {gateway} ' in run(*lookup):
                return address
        raise Failure(f'no packet goes by {gateway}')

    def frame(self, case, send):
        """Send, and return the addresses of the frame that leaves by eth0."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as watcher:
            watcher.bind(('eth0', ETH_P_ALL))
            watcher.settimeout(5)
            send()
            wanted = ip_address(self.words['destination']).packed
            with contextlib.suppress(TimeoutError):
                while True:
                    data = watcher.recv(2048)
                    place = data.find(wanted)
                    if place in (30, 34, 38):
                        return data[0:6].hex(':'), data[6:12].hex(':')
        raise Failure(f'{case.name}: no frame')

    def prepare(self, case, each):
        """Set the case up; check that it does what it says."""
        self.words.update(each=each, destination=DESTINATIONS[case.where])
        for line in case.setup:
            self.run(line)
        run('ip', '-6', 'neigh', 'flush', 'all', 'nud', 'noarp')


def pktgen_write(name, *lines):
    for line in lines:
        with open(f'/proc/net/pktgen/{name}', 'w', encoding='ascii') as file:
            file.write(line + '\n')


def generate(device, packets, *lines):
    """Let pktgen inject packets; return the nanoseconds that it took for one."""
    pktgen_write('kpktgend_0', 'rem_device_all', f'add_device {device}')
    pktgen_write(device, f'count {packets}', 'clone_skb 0', 'delay 0', 'flag NO_TIMESTAMP', *lines)
    pktgen_write('pgctrl', 'start')
    with open(f'/proc/net/pktgen/{device}', encoding='ascii') as file:
        text = file.read()
    result = re.search(r'Result: OK: .* usec, (\d+) \(.*\n *(\d+)pps', text)
    pktgen_write('kpktgend_0', 'rem_device_all')
    if not result or int(result[1]) != packets:
        raise Failure(f'pktgen: {text[text.find("Result"):].strip()}')
    # It tells microseconds, but computes this with nanoseconds.
    return 1e9 / int(result[2])


def forward(destination, packets):
    """Let packets come in that are forwarded; return the same."""
    return generate('gen0', packets, 'pkt_size 60', 'dst_mac 02:00:00:00:01:02',
                    'src_mac 02:00:00:00:01:01', 'src_min 198.51.100.2', 'src_max 198.51.100.2',
                    f'dst_min {destination}', f'dst_max {destination}')


def transmitted():
    """How many packets have left by eth0."""
    with open('/proc/net/dev', encoding='ascii') as file:
        return int(re.search(r'^ *eth0:((?: +\d+){16})$', file.read(), re.M)[1].split()[9])


def udp(host, case, options, batches):
    """The command that sends packets of a case that is set up."""
    source = [case.source.format(**host.words)] if case.source else []
    return [options.program, 'udp', host.words['destination'], str(batches), *source]


def measure(host, case, options):
    """The count of a packet, of a case that is set up."""
    destination = host.words['destination']
    if case.where == 'forward':
        forward(destination, 64)
        return min(forward(destination, PACKETS) for _ in range(RUNS))
    return float(run(*udp(host, case, options, BATCHES)))


def send_one(host, case, options):
    """Send few packets of a case that is set up."""
    destination = host.words['destination']
    if case.where == 'forward':
        forward(destination, 1)
    else:
        run(*udp(host, case, options, 1))


@contextlib.contextmanager
def ballast(number):
    """Packets that wait, so that the host's get other memory than those of the one
    before: it decides over a few instructions."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in pair:
                stack.enter_context(end)
            pair[0].send(b'wait')
        yield


def try_case(case, each, options, number):
    """The count of a packet, in a host of its own."""
    with ballast(number), Host(case.where) as host:
        host.prepare(case, each)
        seen = host.frame(case, functools.partial(send_one, host, case, options))
        if seen != (case.dst, case.src):
            raise Failure(f'{case.name}: the frame goes from {seen[1]} to {seen[0]}, '
                          f'not from {case.src} to {case.dst}')
        # Those of multicast are not listed.
        found = (len(run('ip', '-6', 'neigh').splitlines()) if case.where == 'udp6'
                 else entries('arp_cache'))
        if found != case.entries:
            raise Failure(f'{case.name}: {found} neighbour entries, not {case.entries}')
        before = transmitted()
        result = measure(host, case, options)
        sent = transmitted() - before
        least = RUNS * PACKETS if case.where == 'forward' else 64 * BATCHES
        if sent < least:
            raise Failure(f'{case.name}: {sent} packets left, not {least}')
    return result


def by_chance(case):
    """Does a packet cost more in some hosts than in others?"""
    return case.where == 'forward' or len(case.each) > 1


def run_case(case, options, best):
    """One round: what was measured in each host; best: of the rounds before, or None."""
    results = []
    tries = 1
    if by_chance(case):
        tries = FIRST_TRIES if best is None else MOST_TRIES
    for number in range(tries):
        each = case.each[number % len(case.each)]
        results.append(try_case(case, each, options, number // len(case.each)))
        if best is not None and results[-1] <= best + SAME:
            break
    return results


def selected(options):
    """The cases that were asked for and that the kernel has."""
    letter = {'unpatched': 'u', 'off': 'f', 'on': 'n'}[options.kernel]
    known = {word for case in CASES for word in (case.name, case.where)} | {'short'}
    unknown = set(options.cases) - known
    if unknown:
        sys.exit(f'bench.py: no such case: {", ".join(sorted(unknown))}')
    return [case for case in CASES
            if letter in case.kernels and
            not (options.without and re.search(options.without, case.name)) and
            (not options.cases or {case.name, case.where} & set(options.cases) or
             case.short and 'short' in options.cases)]


def slabs():
    """Objects in use and their size, of each cache."""
    with open('/proc/slabinfo', encoding='ascii') as file:
        lines = [line.split() for line in file.read().splitlines()[2:]]
    return {line[0]: (int(line[1]), int(line[3])) for line in lines}


def flow_bytes(neigh, accounting):
    """What a flow takes that this host answers."""
    with Host('udp') as host:
        write('/proc/sys/net/netfilter/nf_conntrack_acct', accounting)
        host.words['destination'] = DESTINATION
        for line in (TRACK, GATEWAY, NEXTHOP + neigh, ROUTE):
            host.run(line)
        before = slabs()
        host.ask('192.0.2.2', 10000, 10000 + FLOWS - 1, FLOWS)
        return sum(size * round((used - before[name][0]) / FLOWS)
                   for name, (used, size) in slabs().items() if name in before)


def print_memory(options):
    """Of a route, and of flows without and with an extension of their own."""
    with open('/sys/kernel/slab/rtable/slab_size', encoding='ascii') as file:
        print(options.kernel, 'rtable-slab', file.read().strip())
    for accounting, name in enumerate(('flow', 'flow-acct')):
        print(options.kernel, name, flow_bytes('', accounting))
        if options.kernel == 'on' and 'last-hop' not in options.without:
            print(options.kernel, f'{name}.last-hop',
                  flow_bytes(' neigh selector last-hop', accounting))


def main():
    if sys.argv[1:] == ['--list']:
        print('\n'.join(case.name for case in CASES if 'n' in case.kernels))
        return 0
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--memory', action='store_true')
    parser.add_argument('--without', default='')
    parser.add_argument('program')
    parser.add_argument('kernel', choices=('unpatched', 'off', 'on'))
    parser.add_argument('cases', nargs='*')
    options = parser.parse_args()
    if options.memory:
        return print_memory(options)

    counted, real = map(int, run(options.program, 'counter').split())
    print(json.dumps({'counted': counted, 'real': real, 'kernel': options.kernel,
                      'release': os.uname().release,
                      'spectre_v2': spectre_v2()}), flush=True)
    cases = selected(options)
    failed = set()
    bests = {}
    for number in range(options.rounds + 1):
        for case in cases:
            if case.name in failed or number == 0 and not by_chance(case):
                continue
            line = {'round': number, 'case': case.name, 'text': case.text,
                    'reference': case.reference, 'alternative': case.alternative}
            try:
                results = run_case(case, options, bests.get(case.name))
                best = min(results)
                bests[case.name] = min(best, bests.get(case.name, best))
                line |= {'count': best, 'tries': results}
            except (Failure, OSError) as error:
                failed.add(case.name)
                line |= {'failed': str(error)}
            print(json.dumps(line), flush=True)
    return 1 if failed else 0


def spectre_v2():
    """What the kernel does about the CPU."""
    with open('/sys/devices/system/cpu/vulnerabilities/spectre_v2', encoding='ascii') as file:
        return file.read().strip()


if __name__ == '__main__':
    sys.exit(main())
