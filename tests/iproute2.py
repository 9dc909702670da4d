#!/usr/bin/python3
"""What the patched 'ip' sets, shows and says about neighbour overrides.

usage: iproute2.py [--without | --off] [IP]     by default build/iproute2/ip/ip

Run as root in a guest that can be thrown away: it makes devices and routes.
--without: on a kernel without the series, --off: on one with it, but without
CONFIG_IP_NEIGH_OVERRIDE: see how it refuses overrides.
The last line is 'N ok, N FAIL'; exit status: 0 when none is a FAIL.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
OFF = sys.argv[1:2] == ['--off']
WITHOUT = OFF or sys.argv[1:2] == ['--without']
IP = (sys.argv[1 + WITHOUT:] or [str(REPO / 'build/iproute2/ip/ip')])[0]
MAC, OTHER, VMAC = '02:00:00:00:00:09', '02:00:00:00:00:0a', '00:00:5e:00:01:07'
DEADLINE = 10   # seconds that 'ip monitor' may take

SETUP = f'''
link add eth0 address 02:00:00:00:00:02 type veth peer name peer0
link add point0 type dummy
link set lo up
link set peer0 up
link set eth0 up
link set point0 up
address add 192.0.2.2/24 dev eth0
address add 2001:db8::2/64 dev eth0 nodad
neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
nexthop add id 90 via 192.0.2.1 dev eth0{'' if WITHOUT else f' neigh lladdr {MAC}'}
'''


class Failure(Exception):
    """A check found something else."""


def run(*words, text=None):
    """Run ip; return (exit status, what it prints, what it complains about)."""
    done = subprocess.run([IP, *words], input=text, text=True, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.strip()


def ip(line):
    """Run a line of ip that has to work; return what it prints."""
    status, output, complaint = run(*line.split())
    if status or complaint:
        raise Failure(f'ip {line}: {complaint or status}')
    return output


def expect(what, expected, seen):
    """The two have to be the same."""
    if seen != expected:
        raise Failure(f'{what}: {seen!r}, expected: {expected!r}')


def shown(line):
    """What ip prints, without the blanks at line ends."""
    return re.sub(r' +$', '', ip(line), flags=re.MULTILINE).removesuffix('\n')


def as_json(line):
    """What ip -json prints, parsed."""
    return json.loads(ip(f'-json {line}'))


@contextlib.contextmanager
def state(*lines):
    """Some nexthops and routes for a while."""
    try:
        for line in lines:
            ip(line)
        yield
    finally:
        for route in as_json('route show root 203.0.113.0/24'):
            run('route', 'delete', route['dst'])
        # A group goes with its last member.
        for nexthop in as_json('nexthop show'):
            if nexthop['id'] != 90:
                run('nexthop', 'delete', 'id', str(nexthop['id']))


# --- nexthops ---

VIA4 = {'via': {'family': 'inet', 'host': '192.0.2.9'}}
VIA6 = {'via': {'family': 'inet6', 'host': '2001:db8::9'}}
# words, what is shown of them, as JSON
DESTINATIONS = (('', '', {}),
                ('via 192.0.2.9', 'via 192.0.2.9', VIA4),
                ('via inet 192.0.2.9', 'via 192.0.2.9', VIA4),
                ('via 2001:db8::9', 'via inet6 2001:db8::9', VIA6),
                ('via inet6 2001:db8::9', 'via inet6 2001:db8::9', VIA6),
                (f'lladdr {MAC}', f'lladdr {MAC}', {'lladdr': MAC}))
SOURCES = (('', {}), (f'src-lladdr {VMAC}', {'src_lladdr': VMAC}),
           ('preserve', {'preserve': True}),
           ('preserve strict', {'preserve': True, 'strict': True}))
SELECTORS = (('selector last-hop', {'selector': 'last-hop'}),
             (f'src-lladdr {VMAC} selector last-hop',
              {'src_lladdr': VMAC, 'selector': 'last-hop'}))
SELECTOR = 'id 1 via 192.0.2.1 dev eth0 neigh selector last-hop'
GATEWAYS = (('via 192.0.2.1', {'gateway': '192.0.2.1'}), ('', {}))
GATEWAY6 = 'via 2001:db8::1', {'gateway': '2001:db8::1'}
LINK6 = f'2001:db8:9::/48 via link {MAC} dev eth0'


@functools.cache
def takes_ipv6():
    """Whether this kernel overrides neighbours of IPv6 routes as well."""
    if run('-6', 'route', 'add', *LINK6.split())[0]:
        return False
    ip(f'-6 route delete {LINK6}')
    return True


@functools.cache
def takes_selectors():
    """Whether this kernel has selectors, and last-hop."""
    if run('nexthop', 'add', *SELECTOR.split())[0]:
        return False
    ip('nexthop delete id 1')
    return True


def sources():
    """What this kernel can choose the source by, and words beside it."""
    return [*SOURCES, *SELECTORS] if takes_selectors() else SOURCES


def combinations():
    """(words, line that is shown, JSON) of all that the grammar allows."""
    gateways = [*GATEWAYS, GATEWAY6] if takes_ipv6() else GATEWAYS
    for gateway, destination, source, fallback, counters in itertools.product(
            gateways, DESTINATIONS, sources(), ('', 'fallback'), ('', 'counters')):
        if fallback and 'via' not in destination[0] or not (destination[0] or source[0]):
            continue
        if gateway == GATEWAY6 and destination[2] == VIA4:
            continue
        flags = [word for word in (fallback, counters) if word]
        words = ' '.join(['id 1', gateway[0], 'dev eth0 neigh', destination[0], source[0], *flags])
        # With neither of them, packets go to hosts.
        scope = 'link' if gateway[0] or destination[0] else 'host'
        line = ' '.join(['id 1', gateway[0], 'dev eth0 neigh', destination[1], source[0], *flags,
                         'scope', scope])
        neigh = {**destination[2], **source[1], **dict.fromkeys(flags, True)}
        yield ' '.join(words.split()), ' '.join(line.split()), {
            'id': 1, 'dev': 'eth0', 'neigh': neigh, 'flags': [], 'scope': scope, **gateway[1]}


def every_override():
    """every override: shown as it was set, as JSON, and taken back"""
    number = 0
    for number, (words, line, parsed) in enumerate(combinations(), 1):
        with state(f'nexthop add {words}'):
            expect(words, line, shown('nexthop show id 1'))
            expect(words, [parsed], as_json('nexthop show id 1'))
            ip('nexthop delete id 1')
            ip(f'nexthop add {line}')
            expect(words, line, shown('nexthop show id 1'))
    count = len(sources())
    expect('combinations', 2 * (4 * count * 2 * 2 + count * 2 + (count - 1) * 2) +
           takes_ipv6() * (2 * count * 2 * 2 + count * 2 + (count - 1) * 2), number)
    return number


def listed():
    """all that is listed can be given back, with -details and -oneline, too"""
    lines = [f'id {number} {words.partition(" ")[2].partition(" ")[2]}'
             for number, (words, _, _) in enumerate(combinations(), 100)]
    with state():
        for options in [], ['-details'], ['-oneline']:
            expect('add', (0, '', ''),
                   run('-batch', '-', text=''.join(f'nexthop add {line}\n' for line in lines)))
            before = ip(' '.join([*options, 'nexthop show']))
            expect('delete', (0, '', ''), run('-batch', '-', text=''.join(
                f'nexthop delete id {line.split()[1]}\n' for line in lines)))
            expect('add', (0, '', ''), run('-batch', '-', text=''.join(
                f'nexthop replace {line}\n' for line in before.splitlines())))
            expect('show', before, ip(' '.join([*options, 'nexthop show'])))
            expect('lines', len(lines) + 1, len(before.splitlines()))
            expect('delete', (0, '', ''), run('-batch', '-', text=''.join(
                f'nexthop delete id {line.split()[1]}\n' for line in lines)))


def word_order():
    """neigh via, then the other words in any order, and the rest around them"""
    neigh = ['preserve', 'strict', 'fallback', 'counters']
    expected = f'id 1 dev eth0 neigh via 192.0.2.9 {" ".join(neigh)} scope link proto static'
    for place in range(len(neigh)):
        words = ' '.join(['via 192.0.2.9', *reversed(neigh[place:] + neigh[:place])])
        for line in (f'id 1 dev eth0 neigh {words} protocol static',
                     f'id 1 neigh {words} dev eth0 proto static',
                     f'proto static neigh {words} id 1 dev eth0'):
            with state(f'nexthop add {line}'):
                expect(line, expected, shown('nexthop show id 1'))


def replaced():
    """replace: the override is changed and removed"""
    with state('nexthop add id 1 via 192.0.2.1 dev eth0'):
        ip(f'nexthop replace id 1 via 192.0.2.1 dev eth0 neigh lladdr {MAC}')
        expect('added', f'id 1 via 192.0.2.1 dev eth0 neigh lladdr {MAC} scope link',
               shown('nexthop show id 1'))
        ip('nexthop replace id 1 via 192.0.2.1 dev eth0')
        expect('removed', 'id 1 via 192.0.2.1 dev eth0 scope link', shown('nexthop show id 1'))


def batch():
    """-batch: several, and what a resilient group of them shows"""
    lines = (f'nexthop add id {number} dev eth0 neigh lladdr 02:00:00:00:03:0{number}'
             for number in (1, 2))
    status, _, complaint = run('-batch', '-', text='\n'.join(
        [*lines, 'nexthop add id 3 group 1/2 type resilient buckets 4',
         'route add 203.0.113.0/24 nhid 3']) + '\n')
    with state():
        expect('-batch', (0, ''), (status, complaint))
        for number in 1, 2:
            expect('show', f'id {number} dev eth0 neigh lladdr 02:00:00:00:03:0{number} '
                   'scope link', shown(f'nexthop show id {number}'))
        expect('buckets', 4, len(ip('nexthop bucket show id 3').splitlines()))
        expect('route', {f'via link 02:00:00:00:03:0{number}' for number in (1, 2)},
               set(re.findall(r'via link \S+', ip('route show 203.0.113.0/24'))))


def usage():
    """help: the words are there"""
    _, _, text = run('nexthop', 'help')
    for part in ('neigh OVERRIDE', 'src-lladdr LLADDR | preserve [ strict ]',
                 'via [ inet | inet6 ] ADDRESS | lladdr LLADDR',
                 '[ selector NAME [ cookie NUMBER ] ] [ fallback ] [ counters ]'):
        if part not in text:
            raise Failure(f'{part} is missing in: {text}')


# --- refusals ---

NEXTHOP = 'nexthop add id 1 dev eth0 neigh'
ROUTE = 'route add 203.0.113.0/24'
# what is given, what ip or the kernel says to it
REFUSALS = (
    (NEXTHOP, 'Error: Neighbour override is empty.'),
    (f'{NEXTHOP} counters', 'Error: Neighbour override is empty.'),
    (f'{NEXTHOP} via 192.0.2.9 lladdr {MAC}', 'Error: Neighbour override has two destinations.'),
    (f'{NEXTHOP} src-lladdr {MAC} preserve', 'Error: Neighbour override has two sources.'),
    (f'{NEXTHOP} lladdr {MAC} strict', 'Error: Strict needs preserve.'),
    (f'{NEXTHOP} lladdr {MAC} fallback', 'Error: Fallback needs a neighbour to prefer.'),
    (f'{NEXTHOP} lladdr {MAC} src-lladdr {MAC}',
     'Error: Source and destination address are the same.'),
    (f'{NEXTHOP} lladdr 02:00', 'Error: Invalid length of link-layer address.'),
    (f'{NEXTHOP} src-lladdr 01:00:5e:00:00:01', 'Error: Source link-layer address is multicast.'),
    (f'{NEXTHOP} via 192.0.2.2', 'Error: Neighbour address is an address of this host.'),
    (f'{NEXTHOP} via 224.0.0.1', 'Error: Neighbour address is not unicast.'),
    (f'{NEXTHOP} via inet default', 'Error: Neighbour address is not unicast.'),
    (f'{NEXTHOP} via 2001:db8::2', 'Error: Neighbour address is an address of this host.'),
    (f'nexthop add id 1 dev lo neigh lladdr {MAC}',
     'Error: Device ignores link-layer addresses.'),
    ('nexthop add id 1 dev point0 neigh via 192.0.2.9',
     'Error: Device does not resolve neighbours.'),
    (f'nexthop add id 1 blackhole neigh lladdr {MAC}',
     'Error: Group, blackhole or fdb nexthop can not have a neighbour override.'),
    *((f'nexthop add id 1 encap {encap} id 7 dst {remote} via 192.0.2.1 dev eth0 '
       'neigh via 192.0.2.9 fallback', 'Error: Encapsulation excludes fallback.')
      for encap, remote in (('ip', '198.51.100.9'), ('ip6', '2001:db8::9'))),
    (f'nexthop add id 1 group 90 neigh lladdr {MAC}',
     'Error: Group, blackhole or fdb nexthop can not have a neighbour override.'),
    (f'nexthop add id 1 neigh lladdr {MAC}', 'Error: Device attribute required'),
    (f'nexthop replace id 90 dev eth0 neigh lladdr {MAC} strict', 'Error: Strict needs preserve.'),
    (f'{ROUTE} via link 02:00 dev eth0', 'Error: Invalid length of link-layer address.'),
    (f'{ROUTE} via link 00:00:00:00:00:00 dev eth0', 'Error: Link-layer address is all zeros.'),
    (f'{ROUTE} via link {MAC} dev lo', 'Error: Device ignores link-layer addresses.'),
    (f'{ROUTE} via link 02:00:00:00:00:02 dev eth0',
     "Error: Link-layer address is the device's own."),
    (f'{ROUTE} via link {MAC} dev eth0 onlink', 'Error: Link-layer nexthop can not be ONLINK.'),
    (f'{ROUTE} via link {MAC}', 'Error: Link-layer nexthop needs a device.'),
    (f'{ROUTE} via link {MAC} dev eth0 scope link', 'Error: Nexthop has invalid scope.'),
    (f'route add local 203.0.113.0/24 via link {MAC} dev eth0',
     'Error: Link-layer nexthop is for unicast only.'),
    ('route add local 203.0.113.1 nhid 90', 'Error: Neighbour override is for unicast only.'),
    ('route add local 203.0.113.1 nhid 1', 'Error: Neighbour override is for unicast only.',
     f'nexthop add id 1 dev eth0 neigh src-lladdr {VMAC}'),
    (f'nexthop add id 1 via 192.0.2.2 dev eth0 neigh lladdr {MAC}',
     'Error: Gateway is an address of this host.'),
    *((f'{ROUTE} scope {scope} nhid 1', 'Error: Scope mismatch with nexthop.',
       f'nexthop add id 1 dev eth0 neigh lladdr {MAC}') for scope in ('link', 'host')),
    # ip itself
    (f'{NEXTHOP} via', 'Command line is not complete.'),
    *((f'{NEXTHOP} {words} via 192.0.2.9', 'Error: argument "via" is wrong: that of the override '
       'follows "neigh" immediately') for words in ('preserve', f'lladdr {MAC}')),
    (f'{NEXTHOP} via inet', 'Command line is not complete.'),
    (f'{NEXTHOP} lladdr', 'Command line is not complete.'),
    (f'{NEXTHOP} src-lladdr', 'Command line is not complete.'),
    (f'{NEXTHOP} selector', 'Command line is not complete.'),
    (f'{NEXTHOP} selector last-hop-last-hop', 'Error: argument "last-hop-last-hop" is wrong: '
     '"selector" takes a name of at most 15 characters'),
    (f'{NEXTHOP} selector last-hop selector last-hop', 'Error: either "selector" is duplicate'),
    (f'{NEXTHOP} selector last-hop cookie', 'Command line is not complete.'),
    (f'{NEXTHOP} selector last-hop cookie x',
     'Error: argument "x" is wrong: "cookie" takes a number'),
    (f'{NEXTHOP} cookie 1 cookie 1', 'Error: either "cookie" is duplicate'),
    (f'{NEXTHOP} via 192.0.2.300', 'Error: any valid address is expected rather than'),
    (f'{NEXTHOP} via any', 'Error: argument "any" is wrong: "neigh via" takes an address'),
    (f'{NEXTHOP} via inet 2001:db8::9', 'Error: inet address is expected rather than'),
    (f'{NEXTHOP} via inet6 192.0.2.9', 'Error: inet6 address is expected rather than'),
    (f'{NEXTHOP} via link {MAC}',
     'Error: argument "link" is wrong: "neigh via" takes inet or inet6'),
    (f'{NEXTHOP} lladdr 02:00:00:00:00:zz', '"zz" is invalid lladdr.'),
    (f'{NEXTHOP} lladdr {":".join(["02"] * 33)}', 'Error: argument "lladdr" is wrong'),
    (f'{NEXTHOP} src-lladdr 02:00:00:00:00:100', '"100" is invalid lladdr.'),
    (f'{NEXTHOP} via 192.0.2.9 via 2001:db8::9', 'Error: either "neigh via" is duplicate'),
    (f'{NEXTHOP} lladdr {MAC} lladdr {MAC}', 'Error: either "lladdr" is duplicate'),
    (f'{NEXTHOP} src-lladdr {MAC} src-lladdr {MAC}', 'Error: either "src-lladdr" is duplicate'),
    *((f'{NEXTHOP} via 192.0.2.9 {word} preserve {word}', f'Error: either "{word}" is duplicate')
      for word in ('strict', 'fallback', 'counters')),
    (f'{NEXTHOP} preserve lladdr {MAC} preserve', 'Error: either "preserve" is duplicate'),
    (f'{NEXTHOP} lladdr {MAC} dev eth0 neigh via 192.0.2.9',
     'Error: either "neigh" is duplicate'),
    *((f'{NEXTHOP} {words}', f'Error: argument "{word}" is wrong: it is no word of "neigh" or of a '
       'nexthop') for words, word in ((f'lladr {MAC}', 'lladr'), ('fall', 'fall'),
                                      (f'lladdr {MAC} unheard-of', 'unheard-of'))),
    (f'{NEXTHOP} lladdr {MAC} scope unheard-of', 'Error: argument "unheard-of" is wrong'),
    (f'{ROUTE} via 192.0.2.1 dev eth0 neigh via 192.0.2.9',
     'Error: argument "neigh" is wrong: it belongs to a nexthop, see "ip nexthop" and "nhid"'),
    (f'{ROUTE} nexthop via 192.0.2.1 dev eth0 neigh lladdr {MAC}',
     'Error: argument "neigh" is wrong: it belongs to a nexthop, see "ip nexthop" and "nhid"'),
    ('route show via link 02:zz', '"zz" is invalid lladdr.'),
    *((f'route {verb} via link {word}', 'Error: argument '
       f'"{word}" is wrong: "via link" takes an address')
      for verb in ('show', 'flush') for word in ('any', 'all', 'default')),
)


def refusal(line, text, *lines):
    """A check that a line, after others, is refused with a text and changes nothing."""
    def test():
        with state(*lines):
            before = ip('nexthop show'), ip('route show table all')
            status, output, complaint = run(*line.split())
            after = ip('nexthop show'), ip('route show table all')
        if not status:
            raise Failure('it was not refused')
        if not complaint.startswith(text):
            raise Failure(f'it says {complaint!r}, expected: {text!r}')
        expect('output', '', output)
        expect('what is there', before, after)
    test.__doc__ = f'refused: {re.sub("(:02){9,}", ":02...", line)}'
    return test


def refused_by_kernel(lines, text):
    """Lines that this kernel refuses, all with the same text; nothing changes."""
    # IPv6 gets routes by itself.
    before = ip('nexthop show'), ip('-4 route show table all')
    for line in lines:
        status, output, complaint = run(*line.split())
        if not status:
            raise Failure(f'ip {line}: it was not refused')
        expect(f'ip {line}', ('', text), (output, complaint))
    expect('what is there', before, (ip('nexthop show'), ip('-4 route show table all')))
    return len(lines)


def selectors():
    """selector: changed, kept when the kernel refuses another, and removed"""
    if not takes_selectors():
        refused_by_kernel([f'nexthop add {SELECTOR}'], 'Error: Unknown attribute type.')
        return 'refused'
    shows = f'{SELECTOR} counters scope link'
    with state(f'nexthop add {SELECTOR}', 'route add 203.0.113.0/24 nhid 1'):
        ip(f'nexthop replace {SELECTOR} counters')
        refused_by_kernel([f'nexthop replace {SELECTOR[:-8]}{name}'
                           for name in ('fifteen-letters', 'last')], 'Error: Unknown selector.')
        refused_by_kernel([f'nexthop replace {SELECTOR} cookie 7'],
                          'Error: No selector that takes a cookie.')
        refused_by_kernel([f'nexthop replace {SELECTOR} preserve'],
                          'Error: Selector excludes preserve.')
        expect('kept', shows, shown('nexthop show id 1'))
        expect('route', f'203.0.113.0/24 nhid 1 {SELECTOR[5:]} counters',
               shown('route show 203.0.113.0/24'))
        ip('nexthop replace id 1 via 192.0.2.1 dev eth0')
        expect('removed', 'id 1 via 192.0.2.1 dev eth0 scope link', shown('nexthop show id 1'))
        ip(f'nexthop replace {SELECTOR}')
        ip('nexthop delete id 1')
        expect('deleted', 1, len(as_json('nexthop show')))
    return 'taken'


# --- a kernel that has no overrides ---

IS_OFF = 'Error: CONFIG_IP_NEIGH_OVERRIDE is not enabled in this kernel.'
NO_OVERRIDE = IS_OFF if OFF else 'Error: Unknown attribute type.'
NO_LINK = IS_OFF if OFF else 'Error: Unsupported address family in RTA_VIA.'


def without_overrides():
    """refused: every override of a nexthop"""
    return refused_by_kernel([f'nexthop {verb} {words}' for words, *_ in combinations()
                              for verb in ('add', 'replace')], NO_OVERRIDE)


def without_replacement():
    """refused: an override for a nexthop that is there"""
    words = f'nexthop replace id 90 via 192.0.2.1 dev eth0 neigh lladdr {MAC}'
    return refused_by_kernel([words, f'{words} counters'], NO_OVERRIDE)


def without_link():
    """refused: link-layer nexthops of routes and legs"""
    return refused_by_kernel([f'{ROUTE} via link {MAC} dev eth0',
                              f'route replace default via link {MAC} dev eth0',
                              f'{ROUTE} nexthop via 192.0.2.1 dev eth0 '
                              f'nexthop via link {MAC} dev eth0'], NO_LINK)


# --- routes ---

NEIGH = 'neigh via 192.0.2.9 preserve fallback counters'
NEIGH_JSON = {**VIA4, 'preserve': True, 'fallback': True, 'counters': True}
OBJECTS = (f'nexthop add id 1 via 192.0.2.1 dev eth0 {NEIGH}',
           f'nexthop add id 2 dev eth0 neigh lladdr {MAC}',
           'nexthop add id 3 group 1/2,3')


def route_of_object():
    """route by nexthop object: show, get and fibmatch have the override"""
    with state(*OBJECTS, 'route add 203.0.113.0/24 nhid 1'):
        line = f'203.0.113.0/24 nhid 1 via 192.0.2.1 dev eth0 {NEIGH}'
        expect('show', line, shown('route show 203.0.113.0/24'))
        expect('fibmatch', line, shown('route get fibmatch 203.0.113.1'))
        expect('get', f'203.0.113.1 via 192.0.2.1 dev eth0 {NEIGH} src 192.0.2.2 uid 0\n    cache',
               shown('route get 203.0.113.1'))
        for words in 'show 203.0.113.0/24', 'get 203.0.113.1', 'get fibmatch 203.0.113.1':
            expect(f'-json {words}', [NEIGH_JSON],
                   [route.get('neigh') for route in as_json(f'route {words}')])
        expect('-details', f'id 1 via 192.0.2.1 dev eth0 {NEIGH} scope link proto unspec',
               shown('-details route show 203.0.113.0/24').partition('nh_info ')[2])
        expect('-details -json', NEIGH_JSON,
               as_json('-details route show 203.0.113.0/24')[0]['nh_info']['neigh'])


def link_layer_object():
    """route by nexthop object: what RTA_VIA can say is shown so"""
    with state(*OBJECTS, 'route add 203.0.113.0/24 nhid 2'):
        for words in '', ' counters':
            ip(f'{OBJECTS[1].replace("add", "replace", 1)}{words}')
            expect(f'show{words}', f'203.0.113.0/24 nhid 2 via link {MAC} dev eth0',
                   shown('route show 203.0.113.0/24'))
        expect('get', f'203.0.113.1 via link {MAC} dev eth0 src 192.0.2.2 uid 0\n    cache',
               shown('route get 203.0.113.1'))


def legs_of_group():
    """route by group: each leg has its override"""
    with state(*OBJECTS, 'route add 203.0.113.0/24 nhid 3'):
        expect('show', f'203.0.113.0/24 nhid 3\n'
               f'\tnexthop via 192.0.2.1 dev eth0 {NEIGH} weight 1\n'
               f'\tnexthop via link {MAC} dev eth0 weight 3', shown('route show 203.0.113.0/24'))
        expect('-json', [
            {'gateway': '192.0.2.1', 'dev': 'eth0', 'neigh': NEIGH_JSON, 'weight': 1, 'flags': []},
            {'via': {'family': 'link', 'host': MAC}, 'dev': 'eth0', 'weight': 3, 'flags': []}],
               as_json('route show 203.0.113.0/24')[0]['nexthops'])


VIA_LINK = f'203.0.113.0/25 via link {MAC} dev eth0'
LEGS = (f'203.0.113.128/25 metric 7 nexthop via link {MAC} dev eth0 '
        f'nexthop via link {OTHER} dev eth0 weight 2 nexthop via 192.0.2.1 dev eth0')
LEGS_SHOWN = (f'203.0.113.128/25 metric 7\n\tnexthop via link {MAC} dev eth0 weight 1\n'
              f'\tnexthop via link {OTHER} dev eth0 weight 2\n'
              '\tnexthop via 192.0.2.1 dev eth0 weight 1')


def via_link():
    """via link: set, shown and pasted"""
    with state(f'route add {VIA_LINK}', f'route add {LEGS}'):
        expect('show', f'{VIA_LINK}\n{LEGS_SHOWN}', shown('route show root 203.0.113.0/24'))
        expect('get', f'203.0.113.1 via link {MAC} dev eth0 src 192.0.2.2 uid 0\n    cache',
               shown('route get 203.0.113.1'))
        expect('-json', [{'dst': '203.0.113.0/25', 'via': {'family': 'link', 'host': MAC},
                          'dev': 'eth0', 'flags': []}], as_json('route show 203.0.113.0/25'))
        expect('-json', [{'family': 'link', 'host': MAC}, {'family': 'link', 'host': OTHER}, None],
               [leg.get('via') for leg in as_json('route show 203.0.113.128/25')[0]['nexthops']])
        for prefix in '203.0.113.0/25', '203.0.113.128/25':
            words = shown(f'route show {prefix}').split()
            ip(f'route delete {" ".join(words)}')
            expect('deleted', '', shown(f'route show {prefix}'))
            ip(f'route add {" ".join(words)}')
        expect('pasted', f'{VIA_LINK}\n{LEGS_SHOWN}', shown('route show root 203.0.113.0/24'))
        ip(f'route replace 203.0.113.0/25 via link {OTHER} dev eth0')
        expect('replaced', f'203.0.113.0/25 via link {OTHER} dev eth0',
               shown('route show 203.0.113.0/25'))


def via_link_delete():
    """via link: deleted by its address, and not by another"""
    with state(f'route add {VIA_LINK}', f'route add {LEGS}'):
        for line in (f'203.0.113.0/25 via link {OTHER}', '203.0.113.0/25 via 192.0.2.1',
                     LEGS.replace(OTHER, '02:00:00:00:00:0b')):
            status, _, complaint = run('route', 'delete', *line.split())
            expect(f'delete {line}', (2, 'RTNETLINK answers: No such process'),
                   (status, complaint))
        ip(f'route delete 203.0.113.0/25 via link {MAC}')
        ip(f'route delete {LEGS}')
        expect('show', '', shown('route show root 203.0.113.0/24'))
        ip(f'route add {VIA_LINK}')
        ip('route delete 203.0.113.0/25')
        expect('show', '', shown('route show root 203.0.113.0/24'))


def via_link6():
    """via link: IPv6 routes, where the kernel takes them"""
    if not takes_ipv6():
        expect('-6', (2, 'Error: IPv6 does not support RTA_VIA attribute.'),
               run('-6', 'route', 'add', *LINK6.split())[::2])
        return 'refused'
    ip(f'-6 route add {LINK6}')
    ip(f'-6 route append {LINK6.replace(MAC, OTHER)}')
    expect('both', [f'{line} metric 1024 pref medium'
                    for line in (LINK6, LINK6.replace(MAC, OTHER))],
           shown('-6 route show 2001:db8:9::/48').splitlines())
    ip(f'-6 route delete {LINK6.replace(MAC, OTHER)}')
    expect('JSON', [{'family': 'link', 'host': MAC}],
           [route['via'] for route in as_json('-6 route show 2001:db8:9::/48')])
    ip(f'-6 route delete {LINK6}')
    expect('deleted', '', shown('-6 route show 2001:db8:9::/48'))
    return 'taken'


def via4_of_ipv6():
    """refused: an IPv4 neighbour of an IPv6 nexthop"""
    text = ('IPv6 nexthop can not have an IPv4 neighbour' if takes_ipv6() else
            'Neighbour override needs an IPv4 nexthop')
    expect('nexthop', (2, f'Error: {text}.'),
           run(*'nexthop add id 1 via 2001:db8::1 dev eth0 neigh via 192.0.2.9'.split())[::2])


def via_link_default():
    """via link: default routes, IPv4 without saying so"""
    for words in (f'via link {MAC} dev eth0',
                  f'nexthop via link {MAC} dev eth0 nexthop via link {OTHER} dev eth0'):
        ip(f'route add default {words}')
        seen = shown('route show default')
        ip(f'route delete default {words}')
        expect(f'default {words}', words, ' '.join(seen.replace('weight 1', '').split()[1:]))
        expect('deleted', '', shown('route show default'))


def via_link_filter():
    """via link: show, flush and save select by it"""
    other = f'203.0.113.128/26 via link {OTHER} dev eth0'
    plain = '203.0.113.192/26 via 192.0.2.1 dev eth0'
    with state(*(f'route add {line}' for line in (VIA_LINK, other, plain))):
        expect('show', VIA_LINK, shown(f'route show via link {MAC}'))
        expect('-json', ['203.0.113.128/26'],
               [route['dst'] for route in as_json(f'route show via link {OTHER}')])
        for part in f'{MAC}:00', MAC[:-3], '02:00:00:00:00:0b':
            expect(f'show via link {part}', '', shown(f'route show via link {part}'))
        expect('show via', plain.replace(' via 192.0.2.1', ''),
               shown('route show root 203.0.113.0/24 via 192.0.2.1'))
        ip(f'route flush via link {MAC}')
        expect('flush', f'{other}\n{plain}', shown('route show root 203.0.113.0/24'))


def save_and_restore(*selector):
    """Save routes, flush them, restore them."""
    before = ip('route show ' + ' '.join(selector))
    with tempfile.TemporaryFile() as file:
        subprocess.run([IP, 'route', 'save', *selector], stdout=file, check=True)
        ip('route flush ' + ' '.join(selector))
        expect('flush', '', ip('route show ' + ' '.join(selector)))
        file.seek(0)
        done = subprocess.run([IP, 'route', 'restore'], stdin=file, capture_output=True,
                              text=True, check=False)
    expect('restore', (0, ''), (done.returncode, done.stderr))
    expect('show', before, ip('route show ' + ' '.join(selector)))


def save_via_link():
    """via link: saved and restored"""
    with state(f'route add {VIA_LINK}', f'route add {LEGS}'):
        save_and_restore('root', '203.0.113.0/24')


def save_objects():
    """route by nexthop object: saved and restored, without nexthop_compat_mode"""
    compat = pathlib.Path('/proc/sys/net/ipv4/nexthop_compat_mode')
    with state(*OBJECTS, 'route add 203.0.113.0/25 nhid 1', 'route add 203.0.113.128/25 nhid 3'):
        before = ip('route show root 203.0.113.0/24')
        compat.write_text('0', encoding='ascii')
        try:
            save_and_restore('root', '203.0.113.0/24')
        finally:
            compat.write_text('1', encoding='ascii')
        expect('show', before, ip('route show root 203.0.113.0/24'))


# --- monitor ---

def monitored(steps):
    """The lines that 'ip monitor' prints of some steps."""
    output, deadline = '', time.monotonic() + DEADLINE

    def read(seconds):
        if time.monotonic() > deadline:
            raise Failure(f'the monitor prints no more than {output!r}')
        ready = select.select([process.stdout], [], [], seconds)[0]
        return os.read(process.stdout.fileno(), 1 << 16).decode() if ready else ''

    with subprocess.Popen([IP, 'monitor', 'nexthop', 'route'], stdout=subprocess.PIPE) as process:
        try:
            # It takes a moment until it listens.
            while 'id 98' not in output:
                ip('nexthop replace id 98 dev eth0')
                output += read(0.1)
            for step in steps:
                ip(step)
            ip('nexthop delete id 98')
            while 'Deleted id 98' not in output:
                output += read(1)
        finally:
            process.terminate()
    return [line.rstrip() for line in output.splitlines() if 'id 98' not in line]


STEPS = (*OBJECTS[:2], 'route add 203.0.113.0/25 nhid 1', f'route add 203.0.113.128/25 via link '
         f'{MAC} dev eth0', 'route delete 203.0.113.128/25', 'route delete 203.0.113.0/25',
         'nexthop delete id 1')


def monitor():
    """monitor: overrides of nexthops and routes"""
    with state():
        lines = monitored(STEPS)
    object_line = f'id 1 via 192.0.2.1 dev eth0 {NEIGH} scope link'
    expect('monitor', [
        object_line, f'id 2 dev eth0 neigh lladdr {MAC} scope link',
        f'203.0.113.0/25 nhid 1 via 192.0.2.1 dev eth0 {NEIGH}',
        f'203.0.113.128/25 via link {MAC} dev eth0',
        f'Deleted 203.0.113.128/25 via link {MAC} dev eth0',
        f'Deleted 203.0.113.0/25 nhid 1 via 192.0.2.1 dev eth0 {NEIGH}',
        f'Deleted {object_line}'], lines)


# --- counters ---

def send(address, number, size, source=None):
    """Send datagrams; they may be dropped."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if source:
            sock.setsockopt(socket.SOL_IP, 19, 1)       # IP_TRANSPARENT
            sock.bind((source, 0))
        for _ in range(number):
            with contextlib.suppress(OSError):
                sock.sendto(bytes(size), (address, 9))


def counted(**expected):
    """The counters of nexthop 1, plain and as JSON."""
    words = ['packets', 'bytes', 'fallback', 'unknown', 'failed', 'forwarded']
    # Only beside one
    counters = {word: expected.get(word, 0)
                for word in words + ['selector'] * ('selector' in expected)}
    line = '  neigh stats: ' + ' '.join(f'{word} {value}' for word, value in counters.items())
    for words in 'nexthop show id 1', 'nexthop get id 1':
        expect('-statistics', line, shown(f'-statistics {words}').partition('\n')[2])
        expect('-statistics -json', counters,
               as_json(f'-statistics {words}')[0].get('neigh_stats'))
    expect('-statistics', [line], [row for row in shown('-statistics nexthop show').splitlines()
                                   if row.startswith(' ')])
    expect('-statistics -json', [counters], [
        entry['neigh_stats'] for entry in as_json('-statistics nexthop show')
        if 'neigh_stats' in entry])


def counters_of(words, **expected):
    """A check of the counters of an override after three datagrams."""
    def test():
        with state(f'nexthop add id 1 via 192.0.2.1 dev eth0 neigh {words} counters',
                   f'nexthop add id 2 dev eth0 neigh lladdr {MAC}',
                   'route add 203.0.113.0/24 nhid 1'):
            counted()
            send('203.0.113.1', 3, 1, '198.51.100.7' if 'preserve' in words else None)
            counted(packets=3, bytes=3 * (20 + 8 + 1), **expected)
            ip(f'nexthop replace id 1 via 192.0.2.1 dev eth0 neigh {words}')
            expect('without counters', 1,
                   len(shown('-statistics nexthop show id 1').splitlines()))
    test.__doc__ = f'-statistics: neigh {words} counters'
    return test


def answer(peer, port):
    """A datagram comes in on eth0, and is answered."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        wire.bind(('peer0', 0))
        server.bind(('192.0.2.2', 0))
        server.settimeout(DEADLINE)
        header = struct.pack('!BxHxxxxBBxx4s4s', 0x45, 20 + 8 + 1, 64, socket.IPPROTO_UDP,
                             socket.inet_aton(peer), socket.inet_aton('192.0.2.2'))
        total = sum(struct.unpack('!10H', header))
        check = struct.pack('!H', 0xffff - (total + (total >> 16)) % 0x10000)
        wire.send(bytes.fromhex('020000000002') + bytes.fromhex(OTHER.replace(':', ''))
                  + b'\x08\0' + header[:10] + check + header[12:]
                  + struct.pack('!HHHxx', port, server.getsockname()[1], 8 + 1) + b'.')
        server.sendto(*server.recvfrom(1))


def counters_of_selector():
    """-statistics: neigh selector last-hop counters"""
    if not takes_selectors():
        return 'not taken'
    with state(f'nexthop add {SELECTOR} counters', 'route add 203.0.113.0/24 nhid 1'):
        counted(selector=0)
        send('203.0.113.1', 1, 1)
        answer('203.0.113.1', 9)
        counted(packets=2, bytes=2 * (20 + 8 + 1), selector=1)
    return 'taken'


def statistics_only():
    """counters are shown with -statistics only, and not by other objects"""
    with state(f'nexthop add id 1 dev eth0 neigh lladdr {MAC} counters',
               'nexthop add id 2 via 192.0.2.1 dev eth0', 'nexthop add id 3 group 1/2'):
        for line in ip('nexthop show').splitlines():
            number = line.split()[1]
            if 'stats' in line:
                raise Failure(f'nexthop show: {line}')
            expect(f'id {number}', int(number == '1'),
                   shown(f'-statistics nexthop show id {number}').count('\n  neigh stats:'))
        expect('-json', [], [entry for entry in as_json('nexthop show') if 'neigh_stats' in entry])
        expect('-oneline', 1, len(shown('-statistics -oneline nexthop show id 1').splitlines()))


def statistics_of_nothing():
    """-statistics: a nexthop that is not there is said so"""
    for options in [], ['-statistics']:
        expect(' '.join(options), (2, '', 'RTNETLINK answers: No such file or directory'),
               run(*options, 'nexthop', 'show', 'id', '77'))


# --- iproute2's own tests ---

def own_testsuite():
    """iproute2's own testsuite"""
    expected = [('ip/nexthop/neigh_override.t', 'SKIPPED' if WITHOUT else 'PASS'),
                ('ip/route/add_default_route.t', 'PASS')]
    top = pathlib.Path(IP).resolve().parents[1]
    with tempfile.TemporaryDirectory() as path:
        for name in 'testsuite', 'config.mk':
            subprocess.run(['cp', '-r', top / name, path], check=True)
        suite = pathlib.Path(path, 'testsuite')
        # What its makefile wants: sudo, and a program that writes input for other tests.
        for name, text in ('bin/sudo', 'exec "$@"'), ('tools/generate_nlmsg', ''):
            file = suite / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f'#!/bin/sh\n{text}\n', encoding='ascii')
            file.chmod(0o755)
        this = suite / 'iproute2/iproute2-this'
        this.unlink(missing_ok=True)
        this.symlink_to(top)
        done = subprocess.run(
            ['make', '-C', suite, '-o', 'generate_nlmsg', 'PREFIX=unshare -n',
             *dict(expected)],
            text=True, capture_output=True, check=False,
            env={**os.environ, 'PATH': f'{suite}/bin:{os.environ["PATH"]}'})
        errors = ''.join(file.read_text() for file in sorted(suite.glob('results/**/*.err')))
    results = re.findall(r'^Running (\S+) .*(PASS|FAILED|SKIPPED)', done.stdout, re.MULTILINE)
    if (done.returncode, results) != (0, expected):
        raise Failure(f'{done.stdout}{done.stderr}{errors}'.strip())


CHECKS = (every_override, listed, word_order, replaced,
          batch, usage, *(refusal(*case) for case in REFUSALS), selectors,
          route_of_object, link_layer_object, legs_of_group, via_link, via_link_delete,
          via_link6, via4_of_ipv6, via_link_default, via_link_filter, save_via_link,
          save_objects, monitor,
          counters_of(f'lladdr {MAC}'), counters_of('via 192.0.2.9 fallback', fallback=3),
          counters_of('preserve', unknown=3), counters_of('preserve strict', unknown=3, failed=3),
          counters_of_selector, statistics_only, statistics_of_nothing, own_testsuite)
CHECKS_WITHOUT = without_overrides, without_replacement, without_link, usage, own_testsuite


def main():
    """Print a line for each check; return the exit status."""
    failed = 0
    checks = CHECKS_WITHOUT if WITHOUT else CHECKS
    if not os.access(IP, os.X_OK):
        print(f'iproute2.py: there is no {IP}: run scripts/iproute2 first', file=sys.stderr)
        return 1
    status, _, complaint = run('-batch', '-', text=SETUP)
    if status:
        print(f'iproute2.py: {complaint}', file=sys.stderr)
        return 1
    for check in checks:
        try:
            done = check()
            print(f'ok    {check.__doc__}{f" ({done})" if done else ""}')
        except (Failure, KeyError, ValueError, OSError, subprocess.SubprocessError) as error:
            print(f'FAIL  {check.__doc__}: {error}')
            failed += 1
        sys.stdout.flush()
    print(f'{len(checks) - failed} ok, {failed} FAIL')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
