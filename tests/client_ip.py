"""Stock 'ip' and neighbour overrides."""

import json
import os
import select
import subprocess
import tempfile
import time

from client_lab import (DEADLINE, LATER, PREFIX, ROUTES, WORDS, Row, add_route, client_command,
                        difference, host, ip, one_line, said, snapshot, without_compat)
from lab import GW, MBOX, Failure, ip_batch


def ip_show(_):
    """ip: what it shows"""
    for route in ROUTES[:3]:
        # It prints a leg's weight, and as it is set.
        yield Row(f'route show: {route.label}', f'{route.prefix} {route.words}',
                  said(f'route show {route.prefix}'))
    prefix = PREFIX['via link']
    via = {'family': 'link', 'host': MBOX}
    yield Row('-json route show: via link', str(via),
              str(json.loads(ip(f'-json route show {prefix}'))[0].get('via')))
    legs = json.loads(ip(f'-json route show {PREFIX["mixed"]}'))[0]['nexthops']
    yield Row('-json route show: mixed', f'None, {via}',
              ', '.join(str(leg.get('via')) for leg in legs))
    yield Row('-details route show: via link',
              f'unicast {prefix} via link {MBOX} dev eth0 proto boot scope global',
              said(f'-details route show {prefix}'))
    yield Row('route get: via link', f'{prefix[1]} via link {MBOX} dev eth0 src 192.0.2.2',
              said(f'route get {prefix[1]}'))
    yield Row('route get fibmatch: via link', f'{prefix} via link {MBOX} dev eth0',
              said(f'route get fibmatch {prefix[1]}'))


def ip_show_object(_):
    """ip: what it shows of an object"""
    prefix, bare = PREFIX['object'], PREFIX['no gateway']
    for words in 'show', 'get':
        yield Row(f'nexthop {words}: no override', 'id 1 via 192.0.2.1 dev eth0 scope link',
                  said(f'nexthop {words} id 1'))
    yield Row('route show: object', f'{prefix} nhid 1 via 192.0.2.1 dev eth0',
              said(f'route show {prefix}'))
    yield Row('route get: object', f'{prefix[1]} via 192.0.2.1 dev eth0 src 192.0.2.2',
              said(f'route get {prefix[1]}'))
    yield Row('route show: no gateway', f'{bare} nhid 2 via link {MBOX} dev eth0',
              said(f'route show {bare}'))
    yield Row('route get: no gateway', f'{bare[1]} via link {MBOX} dev eth0 src 192.0.2.2',
              said(f'route get {bare[1]}'))
    yield Row('route show: group', f'{PREFIX["group"]} nhid 9 nexthop via 192.0.2.1 dev eth0 '
              f'nexthop via link {MBOX} dev eth0', said(f'route show {PREFIX["group"]}'))


def ip_delete(_):
    """ip: route delete"""
    prefix, gone = PREFIX['via link'], 'RTNETLINK answers: No such process'
    for words, expected in ((f'via link {GW}', gone), ('via 192.0.2.1', gone), ('', '')):
        yield Row(f'route delete: via link, by "{words}"', expected,
                  said(f'route delete {prefix} {words}'))
        yield Row('route show: via link', '' if not words else f'{prefix} via link {MBOX} dev eth0',
                  said(f'route show {prefix}'))
    yield Row('route delete: legs', '', said(f'route delete {PREFIX["legs"]}'))
    yield Row('route delete: object', '', said(f'route delete {PREFIX["object"]}'))
    yield Row('they are', 'lost: via link, legs, object',
              difference(dict.fromkeys(PREFIX), dict.fromkeys(
                  label for label in snapshot() if label in PREFIX)))


def ip_paste(_):
    """ip: what it shows, given back"""
    before = snapshot()
    for label in 'via link', 'legs', 'mixed':
        host(f'route replace {one_line(ip(f"route show {PREFIX[label]}"))}')
    yield Row('route replace $(route show)', 'all kept', difference(before, snapshot()))
    exclusive = 'Error: Nexthop specification and nexthop id are mutually exclusive.'
    for label in 'object', 'plain object':
        yield Row(f'route replace $(route show): {label}', exclusive,
                  said(f'route replace {one_line(ip(f"route show {PREFIX[label]}"))}'))
    shown = one_line(ip('nexthop show id 1'))
    yield Row('nexthop replace $(nexthop show)', 'Error: argument "scope" is wrong:',
              said(f'nexthop replace {shown}'))
    ip(f'nexthop replace {shown.partition(" scope")[0]}')
    yield Row('the same without scope: no override left', 'id 1 via 192.0.2.1 dev eth0',
              snapshot().get('nexthop 1'))


def restored(*labels):
    """Save routes, delete them, restore them; what is said, and what became of them."""
    before, complaint = snapshot(), ''
    for label in labels:
        with tempfile.TemporaryFile() as file:
            subprocess.run(client_command('ip', 'route', 'save', str(PREFIX[label]), name='host'),
                           stdout=file, check=True)
            host(f'route delete {PREFIX[label]}')
            file.seek(0)
            done = subprocess.run(client_command('ip', 'route', 'restore', name='host'),
                                  stdin=file, capture_output=True, check=False)
            complaint = complaint or one_line(done.stderr.decode())
    return complaint or 'done', before


def ip_restore(_):
    """ip: route save and restore"""
    complaint, before = restored('via link', 'legs', 'mixed')
    yield Row('save, restore: via link, legs, mixed', 'done', complaint)
    yield Row('kernel', 'all kept', difference(before, snapshot()))
    for label, text in (('object', 'Set the neighbour override on a nexthop object'),
                        ('plain object',
                         'Nexthop specification and nexthop id are mutually exclusive')):
        yield Row(f'save, restore: {label}', f'Error: {text}.', restored(label)[0])
        host(f'route add {PREFIX[label]} {WORDS[label]}')
    with without_compat():
        complaint, _ = restored('object', 'no gateway', 'group', 'plain object')
    yield Row('nexthop_compat_mode=0: save, restore: objects', 'done', complaint)
    yield Row('kernel', 'all kept', difference(before, snapshot()))


def ip_flush(_):
    """ip: flush"""
    refused = 'Failed to send flush request: Invalid argument'
    for label in 'plain object', 'object':
        yield Row(f'route flush: {label}', refused, said(f'route flush {PREFIX[label]}'))
    before = snapshot()
    for label in 'via link', 'legs', 'mixed':
        ip(f'route flush {PREFIX[label]}')
    yield Row('route flush: via link, legs, mixed', 'lost: via link, legs, mixed',
              difference(before, snapshot()))
    with without_compat():
        ip(f'route flush {PREFIX["object"]}')
    yield Row('nexthop_compat_mode=0: route flush: object', 'lost: via link, legs, mixed, object',
              difference(before, snapshot()))
    yield Row('nexthop flush', 'Flushed 4 nexthops', said('nexthop flush'))
    yield Row('what is left', 'plain, plain legs', ', '.join(snapshot()))


def monitored(steps):
    """The lines that 'ip monitor' prints of some steps."""
    printed, deadline = '', time.monotonic() + DEADLINE

    def read(seconds):
        if time.monotonic() > deadline:
            raise Failure(f'the monitor prints no more than {printed!r}')
        ready = select.select([process.stdout], [], [], seconds)[0]
        return os.read(process.stdout.fileno(), 1 << 16).decode() if ready else ''

    command = client_command('ip', 'monitor', 'nexthop', 'route', name='host')
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            # It takes a moment until it listens.
            while 'id 98' not in printed:
                host('nexthop replace id 98 dev eth0')
                printed += read(0.1)
            for step in steps:
                step()
            host('nexthop delete id 98')
            while 'Deleted id 98' not in printed:
                printed += read(1)
        finally:
            process.terminate()
    return [line.strip() for line in printed.splitlines() if 'id 98' not in line]


def ip_monitor(_):
    """ip: monitor"""
    def replace():
        ip_batch('host', f'nexthop replace id 1 via 192.0.2.1 dev eth0 neigh lladdr {GW}')
    lines = monitored([
        replace, *(lambda route=route: add_route(route) for route in LATER),
        lambda: host(f'route delete {LATER[0].prefix}'), lambda: host('nexthop delete id 2')])
    for what, line in (('nexthop replaced', 'id 1 via 192.0.2.1 dev eth0 scope link'),
                       ('via link', f'{LATER[0].prefix} via link {MBOX} dev eth0'),
                       ('object', f'{LATER[1].prefix} nhid 1 via 192.0.2.1 dev eth0'),
                       ('deleted', f'Deleted {LATER[0].prefix} via link {MBOX} dev eth0'),
                       ('nexthop deleted', 'Deleted id 2 dev eth0 scope link')):
        yield Row(f'monitor: {what}', line, line if line in lines else str(lines))


CASES = (ip_show, ip_show_object, ip_delete, ip_paste, ip_restore, ip_flush, ip_monitor)
