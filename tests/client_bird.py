"""BIRD and neighbour overrides."""

import contextlib
import itertools
import pathlib
import re
import tempfile
import time

from client_lab import (LATER, OVER, PREFIX, QUIET, Daemon, Row, add_route, difference, host,
                        output, place, place_by_table, recursive_rows, said, snapshot,
                        wait_until, without_compat)
from lab import Failure

COPIES = 200        # a routing table
HIDDEN = 250        # protocol of a route that is not copied
BIRD = '''
log "{files}.log" {{ info, warning, error, bug, fatal, auth, remote }};
router id {address};
protocol device {{ }}
'''
BIRD_LEARN = BIRD + '''
protocol kernel {{ learn; scan time 1; ipv4 {{ import all; export none; }}; }}
'''
BIRD_COPY = '''
ipv4 table copies;
protocol kernel {{ kernel table {table}; ipv4 {{ table copies; export all; import none; }}; }}
protocol pipe {{ table master4; peer table copies; export where krt_source != {hidden};
    import none; }}
'''
BIRD_STATIC = BIRD + '''
protocol kernel {{ metric {metric}; scan time 1; {learn}
    ipv4 {{ import all; export where source = RTS_STATIC; }}; }}
protocol static {{ ipv4; {routes} }}
'''
BIRD_BGP = '''
protocol bgp {{
    local {address} as {own};
    neighbor {peer} as {other};
    {hops}; connect delay time 1; connect retry time 1; error wait time 1, 1;
    ipv4 {{ {channel} }};
}}
'''


class Bird:
    """BIRD, while it runs."""

    def __init__(self, daemon, files, name):
        self.daemon, self.files, self.name = daemon, files, name

    def ask(self, *words):
        """Run birdc."""
        return output('birdc', '-s', f'{self.files}.ctl', *words, name=self.name)

    def hops(self, prefix):
        """The next hops that it has for a prefix."""
        with contextlib.suppress(Failure):
            found = re.findall(r'^\t((?:via|dev) .*)', self.ask('show', 'route', str(prefix)), re.M)
            return ', '.join(hop.replace(' weight 1', '') for hop in found)
        return ''

    def learnt(self, prefix=PREFIX['plain']):
        """Wait for a route."""
        return wait_until(lambda: self.hops(prefix), f'a learnt route to {prefix}')

    def forgotten(self, prefix):
        wait_until(lambda: not self.hops(prefix), f'no route to {prefix}')

    def complaints(self):
        """What it logs that is wrong."""
        return re.findall(r'<(?:WARN|ERR|BUG|FATAL)> (.*)',
                          pathlib.Path(f'{self.files}.log').read_text(encoding='utf-8'))


@contextlib.contextmanager
def bird(config, name='host', **values):
    with tempfile.TemporaryDirectory(dir='/run') as directory:
        files = f'{directory}/bird'
        pathlib.Path(f'{files}.conf').write_text(config.format(files=files, **values),
                                                 encoding='ascii')
        with Daemon('bird', '-f', '-c', f'{files}.conf', '-s', f'{files}.ctl', '-P',
                    f'{files}.pid', name=name) as daemon:
            router = Bird(daemon, files, name)
            daemon.ready(lambda: router.ask('show', 'status'))
            yield router


BIRD_LEARNED = {
    'via link': 'dev eth0', 'legs': 'dev eth0', 'mixed': 'dev eth0, via 192.0.2.1 on eth0',
    'object': 'via 192.0.2.1 on eth0', 'no gateway': 'dev eth0',
    'group': 'dev eth0, via 192.0.2.1 on eth0', 'plain': 'via 192.0.2.1 on eth0',
    'plain legs': 'dev eth0, via 192.0.2.1 on eth0', 'plain object': 'via 192.0.2.1 on eth0'}


def bird_learn(_):
    """bird: learn"""
    before = snapshot()
    with bird(BIRD_LEARN, address='192.0.2.2') as router:
        router.learnt()
        for label, expected in BIRD_LEARNED.items():
            yield Row(f'birdc show route: {label}', expected, router.hops(PREFIX[label]))
        for route, expected in zip(LATER, ('dev eth0', 'via 192.0.2.1 on eth0')):
            add_route(route)
            yield Row(f'birdc show route: {route.label}', expected, router.learnt(route.prefix))
            host(f'route delete {route.prefix}')
            router.forgotten(route.prefix)
        yield Row('bird', 'runs, idle', router.daemon.state())
        yield Row('bird complains', '', '; '.join(router.complaints()))
        yield Row('kernel, meanwhile', 'all kept', difference(before, snapshot()))
        yield Row('bird ends', 'status 0', router.daemon.stop())
    yield Row('kernel, afterwards', 'all kept', difference(before, snapshot()))


def bird_restart(_):
    """bird: killed and started again"""
    before = snapshot()
    for _ in range(2):
        with bird(BIRD_LEARN, address='192.0.2.2') as router:
            router.learnt()
            router.daemon.process.kill()
            router.daemon.process.wait()
    yield Row('kernel', 'all kept', difference(before, snapshot()))


def bird_copy(wire):
    """bird: routes copied to another table"""
    tagged = LATER[0]._replace(words=f'{LATER[0].words} proto {HIDDEN}')
    add_route(tagged)
    with bird(BIRD_LEARN + BIRD_COPY, address='192.0.2.2', table=COPIES, hidden=HIDDEN) as router:
        copied = wait_until(lambda: said(f'route show table {COPIES} {PREFIX["plain"]}'),
                            'a copied route')
        yield Row('copy: plain', f'{PREFIX["plain"]} via 192.0.2.1 dev eth0 proto bird metric 32',
                  copied)
        for label, words, wrong in (
                ('via link', 'dev eth0 proto bird scope link metric 32', None),
                ('object', 'via 192.0.2.1 dev eth0 proto bird metric 32', 'gw')):
            prefix = PREFIX[label]
            yield Row(f'copy: {label}', f'{prefix} {words}',
                      said(f'route show table {COPIES} {prefix}'))
            yield Row(f'packet by the route: {label}', 'mbox', place(wire, prefix[1]))
            yield Row(f'packet by the copy: {label}', wrong or f'asks for {prefix[1]}',
                      place_by_table(wire, prefix[1], COPIES))
        yield Row('birdc show route: hidden by krt_source', 'dev eth0',
                  router.hops(tagged.prefix))
        yield Row('copy: hidden by krt_source', '',
                  said(f'route show table {COPIES} {tagged.prefix}'))


def own_routes(wire, metric, learn):
    """Routes of BIRD's own to the same prefixes."""
    labels = 'via link', 'object', 'plain'
    routes = ' '.join(f'route {PREFIX[label]} via 192.0.2.222;' for label in labels)
    what, before = f'metric {metric}; {learn}'.strip(), snapshot()
    with bird(BIRD_STATIC, address='192.0.2.2', metric=metric, learn=learn,
              routes=routes) as router:
        wait_until(lambda: router.ask('show', 'route').count('192.0.2.222') == 3, 'own routes')
        time.sleep(QUIET)
        for label, expected in zip(labels, ('mbox', 'mbox', 'gw')):
            yield Row(f'{what} packet: {label}', expected, place(wire, PREFIX[label][1]))
        router.daemon.stop()
    yield Row(f'{what} kernel, afterwards', 'all kept', difference(before, snapshot()))


def bird_metric(wire):
    """bird: own routes to the same prefixes"""
    for metric, learn in itertools.product((32, 0), ('', 'learn;')):
        yield from own_routes(wire, metric, learn)


def bird_compat(_):
    """bird: nexthop_compat_mode=0"""
    before = snapshot()
    with without_compat(), bird(BIRD_LEARN, address='192.0.2.2') as router:
        router.learnt()
        yield Row('birdc show route: via link', 'dev eth0', router.hops(PREFIX['via link']))
        for label in 'object', 'plain object':
            yield Row(f'birdc show route: {label}', '', router.hops(PREFIX[label]))
            complaint = f'KRT: Received route {PREFIX[label]} with unknown ifindex 4294967295'
            yield Row(f'bird complains: {label}', complaint, complaint if complaint in
                      router.complaints() else '; '.join(router.complaints()))
        yield Row('bird', 'runs, idle', router.daemon.state())
    yield Row('kernel', 'all kept', difference(before, snapshot()))


def announced(setting, *expected):
    """The next hops that a BGP neighbour is told."""
    with bird(BIRD + BIRD_BGP, 'mbox', address='192.0.2.9', peer='192.0.2.2', own=65009,
              other=65002, hops='direct', channel='import all; export none;') as neighbour, \
         bird(BIRD_LEARN + BIRD_BGP, address='192.0.2.2', peer='192.0.2.9', own=65002,
              other=65009, hops='direct', channel=f'import none; export all; {setting}'):
        for label, address in zip(('via link', 'object', 'plain'), expected):
            # They come in messages of their own.
            neighbour.learnt(PREFIX[label])
            found = re.search(r'next_hop: (\S+)',
                              neighbour.ask('show', 'route', str(PREFIX[label]), 'all'))
            yield Row(f'neighbour is told: {label} {setting}'.rstrip(' ;'), address,
                      found and found[1])


def bird_announce(_):
    """bird: BGP"""
    yield from announced('', '192.0.2.2', '192.0.2.1', '192.0.2.1')
    yield from announced('next hop self;', '192.0.2.2', '192.0.2.2', '192.0.2.2')


def bird_recursive(wire):
    """bird: BGP next hops behind a route"""
    static = 'protocol static {{ ipv4; ' + ' '.join(
        f'route {prefix} blackhole;' for _, prefix in OVER) + ' }}'
    cases = ' '.join(f'if net = {prefix} then bgp_next_hop = {PREFIX[label][1]};'
                     for label, prefix in OVER)
    channel = f'import none; export filter {{ {cases} accept; }};'
    with bird(BIRD + static + BIRD_BGP, 'mbox', address='192.0.2.9', peer='192.0.2.2', own=65009,
              other=65002, hops='multihop', channel=channel), \
         bird(BIRD_LEARN.replace('export none', 'export where source = RTS_BGP') + BIRD_BGP,
              address='192.0.2.2', peer='192.0.2.9', own=65002, other=65009, hops='multihop',
              channel='import all; export none; gateway recursive;') as router:
        by_gateway = 'via 192.0.2.1 dev eth0 proto bird metric 32', 'gw'
        # The packet goes by the default route.
        yield from recursive_rows(wire, (('', 'gw'), by_gateway, by_gateway))
        yield Row('next hop behind via link: birdc', f'via {PREFIX["via link"][1]} on eth0',
                  router.hops(OVER[0][1]))
        yield Row('daemon complains', 'Netlink: Network is unreachable',
                  '; '.join(sorted({*router.complaints()})))


CASES = (bird_learn, bird_restart, bird_copy, bird_metric, bird_compat, bird_announce,
         bird_recursive)
