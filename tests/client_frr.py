"""FRR and neighbour overrides."""

import contextlib
import json
import os
import pathlib
import re
import tempfile
import time

from client_lab import (LATER, OVER, PREFIX, QUIET, WORDS, Daemon, Route, Row, add_route,
                        difference, host, installed, ip, output, place, place_by_table,
                        recursive_rows, said, snapshot, version, wait_until, without_compat)
from lab import MBOX, refusal

IMPORTED = 100      # a routing table
FRR = '/usr/lib/frr'


class Frr:
    """Daemons of FRR in a namespace."""

    def __init__(self, stack, name):
        self.stack, self.name = stack, name
        self.directory = tempfile.mkdtemp(dir='/run')
        os.chmod(self.directory, 0o755)
        os.mkdir(f'{self.directory}/vty')
        output('chown', '-R', 'frr:frr', self.directory, name=None)

    def start(self, daemon, config, *words):
        """Start one; return it."""
        if daemon == 'zebra' and installed(f'{FRR}/mgmtd'):
            self.start('mgmtd', '')
        path = f'{self.directory}/{daemon}'
        pathlib.Path(f'{path}.conf').write_text(
            f'log stdout informational\n{config}', encoding='ascii')
        process = self.stack.enter_context(Daemon(
            f'{FRR}/{daemon}', *([] if daemon == 'mgmtd' else ['-f', f'{path}.conf']),
            '-i', f'{path}.pid', '-z', f'{self.directory}/zserv.api',
            '--vty_socket', f'{self.directory}/vty', *words,
            name=self.name))
        process.ready(lambda: self.vtysh(daemon, 'show version'))
        return process

    def vtysh(self, daemon, *lines):
        """Run commands."""
        return output('vtysh', '--vty_socket', f'{self.directory}/vty', '-d', daemon,
                      *(word for line in lines for word in ('-c', line)), name=self.name)

    def ask(self, daemon, line):
        """The answer to a command, parsed."""
        return json.loads(self.vtysh(daemon, f'{line} json') or '{}')


@contextlib.contextmanager
def frr(name='host'):
    """A place for FRR."""
    with contextlib.ExitStack() as stack:
        yield Frr(stack, name)


def zebra_route(router, prefix):
    """The next hops that zebra has for a prefix."""
    hops = []
    for route in router.ask('zebra', f'show ip route {prefix}').get(str(prefix), ()):
        for hop in route.get('nexthops', ()):
            if hop.get('duplicate'):
                continue
            if hop.get('unreachable'):
                hops.append('unreachable')
            else:
                text = 'dev' if hop.get('directlyConnected') else f'via {hop.get("ip")}'
                hops.append(f'{text} {hop.get("interfaceName")}')
    return ', '.join(hops)


# With a leg that has a gateway before one that has none, zebra takes both for the former.
FRR_LEARNED = {
    'via link': 'dev eth0', 'legs': 'dev eth0', 'mixed': 'via 192.0.2.1 eth0',
    'object': 'via 192.0.2.1 eth0', 'no gateway': 'dev eth0',
    'group': 'via 192.0.2.1 eth0, dev eth0', 'plain': 'via 192.0.2.1 eth0',
    'plain legs': 'via 192.0.2.1 eth0', 'plain object': 'via 192.0.2.1 eth0'}


def knows_objects():
    """Whether zebra keeps to the nexthop object that a kernel route has: later versions read
    the next hops that the kernel shows besides."""
    return version(f'{FRR}/zebra', '--version') < (10, 0)


def zebra_ids():
    """The ids of nexthop objects that are zebra's."""
    return {f'nexthop {entry["id"]}' for entry in json.loads(ip('-json nexthop show'))
            if entry.get('protocol') == 'zebra'}


def frr_learn(_):
    """frr: kernel routes"""
    before = snapshot()
    with frr() as router:
        zebra = router.start('zebra', '')
        wait_until(lambda: zebra_route(router, PREFIX['plain']), 'a learnt route')
        for label, expected in FRR_LEARNED.items():
            if label == 'group' and not knows_objects():
                expected = FRR_LEARNED['mixed']
            yield Row(f'show ip route: {label}', expected, zebra_route(router, PREFIX[label]))
        for route, expected in zip(LATER, ('dev eth0', 'via 192.0.2.1 eth0')):
            add_route(route)
            wait_until(lambda prefix=route.prefix: zebra_route(router, prefix), route.label)
            yield Row(f'show ip route: {route.label}', expected,
                      zebra_route(router, route.prefix))
            host(f'route delete {route.prefix}')
            wait_until(lambda prefix=route.prefix: not zebra_route(router, prefix), 'deletion')
        yield Row('zebra', 'runs, idle', zebra.state())
        yield Row('kernel, meanwhile', 'all kept', difference(before, snapshot(), zebra_ids()))
        yield Row('zebra ends', 'status 0', zebra.stop())
        yield Row('it complains', '', '; '.join(
            line for line in re.findall(r'ZEBRA: (.*)', zebra.text())
            if re.search('nexthop|route|RTA|NHA|netlink', line) and 'Sweeping' not in line))
    yield Row('kernel, afterwards', 'all kept', difference(before, snapshot()))


def frr_restart(_):
    """frr: killed and started again"""
    before = snapshot()
    for _ in range(2):
        with frr() as router:
            router.start('zebra', '').process.kill()
    yield Row('kernel', 'all kept', difference(before, snapshot(), zebra_ids()))


def frr_ids(_):
    """frr: ids of nexthop objects"""
    add_route(Route('', LATER[0].prefix, 'via 192.0.2.1 dev eth0'), IMPORTED)
    with frr() as router:
        router.start('zebra', f'ip import-table {IMPORTED}\n')
        wait_until(zebra_ids, 'a nexthop object of zebra')
        groups = router.vtysh('zebra', 'show nexthop-group rib')
        yield Row('show nexthop-group rib', 'ID: 1 (kernel)',
                  (re.findall(r'ID: 1 \(\S+\)', groups) or [groups[:60]])[0])
        taken = min(int(label.split()[1]) for label in zebra_ids())
        for what, number, expected in (('one of zebra', taken, 'RTNETLINK answers: File exists'),
                                       ('200000001', 200000001, 'not refused')):
            seen = refusal('host', f'nexthop add id {number} dev eth0 neigh lladdr {MBOX}')
            yield Row(f'nexthop add id: {what}', expected, seen)
        time.sleep(QUIET)
        yield Row('nexthop 200000001', f'id 200000001 dev eth0 neigh lladdr {MBOX}',
                  snapshot().get('nexthop 200000001'))


def frr_import(wire):
    """frr: ip import-table"""
    for route in LATER:
        add_route(route, IMPORTED)
    with frr() as router:
        router.start('zebra', f'ip import-table {IMPORTED}\n')
        wait_until(lambda: said(f'route show {LATER[1].prefix}'), 'an imported route')
        for route, expected in zip(LATER, (f'asks for {LATER[0].prefix[1]}',
                                           'mbox' if knows_objects() else 'gw')):
            label = route.label.partition(' ')[2]
            yield Row(f'packet by the route: {label}', 'mbox',
                      place_by_table(wire, route.prefix[2], IMPORTED))
            yield Row(f'packet by the import: {label}', expected, place(wire, route.prefix[1]))


def frr_compat(_):
    """frr: nexthop_compat_mode=0"""
    before = snapshot()
    with without_compat(), frr() as router:
        zebra = router.start('zebra', '')
        wait_until(lambda: zebra_route(router, PREFIX['plain']), 'a learnt route')
        for label in 'via link', 'object', 'no gateway', 'group', 'plain object':
            expected = FRR_LEARNED[label]
            if 'nhid' in WORDS[label] and not knows_objects():
                expected = 'unreachable'
            yield Row(f'show ip route: {label}', expected, zebra_route(router, PREFIX[label]))
        yield Row('zebra', 'runs, idle', zebra.state())
        yield Row('zebra ends', 'status 0', zebra.stop())
    yield Row('kernel', 'all kept', difference(before, snapshot()))


BGPD = '''
router bgp {own}
 bgp router-id {address}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {peer} remote-as {other}
 neighbor {peer} ebgp-multihop 2
 neighbor {peer} timers connect 1
 address-family ipv4 unicast
  {family}
'''


def bgpd(router, other, config='', family=''):
    """Start bgpd; other is the number of the neighbour on the LAN."""
    number = 11 - other
    router.start('bgpd', BGPD.format(
        own=65000 + number, address=f'192.0.2.{number}', peer=f'192.0.2.{other}',
        other=65000 + other, family=family) + config,
        *(['-n', '-Z'] if router.name == 'mbox' else []))


def announced(setting, *expected):
    """The next hops that a BGP neighbour is told."""
    family = '\n  '.join(['redistribute kernel',
                          *([f'neighbor 192.0.2.9 {setting}'] if setting else [])])
    with frr() as router, frr('mbox') as neighbour:
        bgpd(neighbour, 2)
        router.start('zebra', '')
        bgpd(router, 9, family=family)

        def told():
            return neighbour.ask('bgpd', 'show bgp ipv4 unicast').get('routes', {})
        wait_until(lambda: str(PREFIX['plain']) in told(), 'an announcement')
        for label, address in zip(('via link', 'object', 'plain'), expected):
            yield Row(f'neighbour is told: {label} {setting}'.rstrip(), address,
                      told()[str(PREFIX[label])][0]['nexthops'][0]['ip'])


def frr_announce(_):
    """frr: redistribute kernel"""
    yield from announced('', '192.0.2.2', '192.0.2.1', '192.0.2.1')
    yield from announced('next-hop-self force', '192.0.2.2', '192.0.2.2', '192.0.2.2')


def frr_recursive(wire):
    """frr: BGP next hops behind a route"""
    family = '\n  '.join([*(f'network {prefix}' for _, prefix in OVER),
                          'neighbor 192.0.2.2 route-map behind out'])
    maps = ''.join(f'ip prefix-list to{number} permit {prefix}\n'
                   f'route-map behind permit {number}\n match ip address prefix-list to{number}\n'
                   f' set ip next-hop {PREFIX[label][1]}\n'
                   for number, (label, prefix) in enumerate(OVER, 10))
    with frr() as router, frr('mbox') as neighbour:
        bgpd(neighbour, 2, maps, family)
        router.start('zebra', '')
        bgpd(router, 9)
        by_gateway = 'via 192.0.2.1 dev eth0 proto bgp metric 20', 'gw'
        yield from recursive_rows(wire, (
            ('via {} dev eth0 proto bgp metric 20 onlink', 'asks for {}'), by_gateway, by_gateway))


CASES = (frr_learn, frr_restart, frr_ids, frr_import, frr_compat, frr_announce, frr_recursive)
