"""systemd-networkd, NetworkManager and neighbour overrides."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import time

from client_lab import (LATER, NEXTHOPS, PREFIX, QUIET, ROUTES, WORDS, Daemon, Row, add_route,
                        add_routes, difference, host, ip, output, place, snapshot, version,
                        wait_until)
from lab import inside, ip_batch

OTHER_TABLE = 200


# --- D-Bus ---

DBUS = '''<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/>
    <allow send_destination="*"/> <allow eavesdrop="true"/>
  </policy>
</busconfig>
'''


@contextlib.contextmanager
def dbus():
    """A system bus for this guest."""
    path = pathlib.Path('/run/dbus/system_bus_socket')
    path.parent.mkdir(exist_ok=True)
    pathlib.Path('/run/dbus/clients.conf').write_text(DBUS, encoding='ascii')
    with Daemon('dbus-daemon', '--config-file=/run/dbus/clients.conf', '--nofork',
                '--nopidfile', name=None) as daemon:
        daemon.ready(path.exists)
        yield
    path.unlink(missing_ok=True)


# --- systemd-networkd ---

NETWORKD = '/lib/systemd/systemd-networkd'
NETWORK = '''[Match]
Name=eth0
[Link]
{link}
[Network]
Address=192.0.2.2/24
Gateway=192.0.2.1
LinkLocalAddressing=no
IPv6AcceptRA=no
{network}
'''


def write(path, text):
    """Write a configuration file below /run."""
    path = pathlib.Path('/run', path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='ascii')


def configured():
    """Whether networkd is ready with eth0."""
    return '(configured)' in output('networkctl', 'status', 'eth0')


@contextlib.contextmanager
def networkd(settings='', network='', link='', ready=configured):
    """Run networkd on eth0."""
    shutil.rmtree('/run/systemd', ignore_errors=True)
    write('systemd/networkd.conf.d/clients.conf', f'[Network]\n{settings}\n')
    write('systemd/network/10-eth0.network', NETWORK.format(link=link, network=network))
    # What udev would have left: networkd waits for it, except in a container.
    write('udev/control', '')
    with inside('host'):
        for number, _ in socket.if_nameindex():
            write(f'udev/data/n{number}', 'I:1\n')
    with dbus(), Daemon(NETWORKD, sysfs='rw', env={'SYSTEMD_LOG_TARGET': 'console'}) as daemon:
        daemon.ready(ready)
        yield daemon


def first_networkd():
    """Let networkd give eth0 its address, before there are routes; return what there is then."""
    for prefix in {str(route.prefix) for route in ROUTES if route.label in snapshot()}:
        host(f'route delete {prefix}')
    host('nexthop flush')
    with networkd() as daemon:
        daemon.stop()
    add_routes()
    return snapshot()


def networkd_default(_):
    """networkd: as it is"""
    before = first_networkd()
    with networkd() as daemon:
        # legs, mixed: it can not parse them, and so does not know them.
        yield Row('kernel, when it has started',
                  'lost: via link, object, no gateway, group, plain, plain legs, plain object, '
                  'all nexthops', difference(before, snapshot()))
        yield Row('daemon', 'runs, idle', daemon.state())
        complaint = 'rtnl: failed to parse RTA_MULTIPATH attribute, ignoring: Bad message'
        yield Row('daemon complains', complaint, complaint if complaint in daemon.text() else '')
        yield Row('daemon ends', 'status 0', daemon.stop())


def networkd_later(_):
    """networkd: routes that come while it runs"""
    with networkd() as daemon:
        ip_batch('host', f'nexthop {NEXTHOPS[0]}')
        for route in LATER:
            add_route(route)
        before = snapshot()
        time.sleep(QUIET)
        yield Row('kernel', 'all kept', difference(before, snapshot()))
        daemon.stop()
        yield Row('kernel, when it has ended', 'all kept', difference(before, snapshot()))
    with networkd():
        yield Row('kernel, when it has started again',
                  'lost: later via link, later object, nexthop 1', difference(before, snapshot()))


def networkd_with(*expected, **parts):
    """What becomes of the routes with some settings: at the start, and of 'networkctl
    reconfigure'."""
    what, before = ', '.join(' '.join(parts.values()).split()), first_networkd()
    with networkd(**parts):
        time.sleep(QUIET)
        yield Row(f'{what}: started', expected[0], difference(before, snapshot()))
        for _ in expected[1:]:
            output('networkctl', 'reconfigure', 'eth0')
            time.sleep(QUIET)
            wait_until(configured, 'reconfigure')
            yield Row('networkctl reconfigure eth0', expected[1], difference(before, snapshot()))


ALL_LOST = 'lost: all routes, all nexthops'
OBJECTS_LOST = 'lost: object, no gateway, group, plain object, all nexthops'


def networkd_routes(_):
    """networkd: ManageForeignRoutes="""
    yield from networkd_with(OBJECTS_LOST, settings='ManageForeignRoutes=no')


def recent_networkd():
    """Whether it knows ManageForeignNextHops=, and reconfigures without taking away the address
    that it gives back."""
    return version(NETWORKD, '--version') >= (256, 0)


def networkd_nexthops(_):
    """networkd: ManageForeignNextHops="""
    expected = ('all kept',) * 2 if recent_networkd() else (OBJECTS_LOST, ALL_LOST)
    yield from networkd_with(*expected, settings='ManageForeignRoutes=no\nManageForeignNextHops=no')


def networkd_keep(_):
    """networkd: KeepConfiguration="""
    reconfigured = ('all kept' if recent_networkd() else
                    'lost: via link, legs, mixed, plain, plain legs')
    yield from networkd_with('all kept', reconfigured, network='KeepConfiguration=yes')


def pull_cable():
    """Take the carrier of eth0 away for a while."""
    ip_batch('lan', 'link set host down')
    wait_until(lambda: 'NO-CARRIER' in ip('link show eth0'), 'no carrier')
    time.sleep(QUIET)
    ip_batch('lan', 'link set host up')
    time.sleep(QUIET)


def networkd_carrier(_):
    """networkd: a cable that is pulled"""
    before = first_networkd()
    pull_cable()
    # The kernel itself drops nexthop objects without carrier.
    yield Row('without networkd', OBJECTS_LOST, difference(before, snapshot()))
    for setting, expected in (('IgnoreCarrierLoss=yes', OBJECTS_LOST),
                              ('IgnoreCarrierLoss=no', ALL_LOST)):
        before = first_networkd()
        with networkd(network=f'KeepConfiguration=yes\n{setting}'):
            pull_cable()
            wait_until(configured, 'carrier')
            yield Row(f'KeepConfiguration=yes, {setting}', expected,
                      difference(before, snapshot()))


def networkd_unmanaged(_):
    """networkd: Unmanaged="""
    before = snapshot()
    with networkd(link='Unmanaged=yes',
                  ready=lambda: '(unmanaged)' in output('networkctl', 'status', 'eth0')):
        time.sleep(QUIET)
        yield Row('Unmanaged=yes: started', 'all kept', difference(before, snapshot()))


# --- NetworkManager ---

NM_CONFIG = '''[main]
plugins=keyfile
dns=none
auth-polkit=false
no-auto-default=*
[keyfile]
path=/run/nm/connections
{keyfile}
'''
NM_CONNECTION = '''[connection]
id=lan
uuid=11111111-1111-4111-8111-111111111111
type=ethernet
interface-name=eth0
[ipv4]
method=manual
address1=192.0.2.2/24,192.0.2.1
[ipv6]
method=disabled
'''


def nmcli(*words):
    return output('nmcli', '-t', *words)


@contextlib.contextmanager
def network_manager(keyfile=''):
    shutil.rmtree('/run/nm', ignore_errors=True)
    write('nm/nm.conf', NM_CONFIG.format(keyfile=keyfile))
    write('nm/connections/lan.nmconnection', NM_CONNECTION)
    os.chmod('/run/nm/connections/lan.nmconnection', 0o600)
    for name in 'conf.d', 'system.d':
        os.mkdir(f'/run/nm/{name}')
    with dbus(), Daemon(
            'NetworkManager', '--debug', '--config=/run/nm/nm.conf', '--config-dir=/run/nm/conf.d',
            '--system-config-dir=/run/nm/system.d', '--intern-config=/run/nm/intern',
            '--state-file=/run/nm/state', sysfs='ro') as daemon:
        daemon.ready(lambda: 'running' in nmcli('-f', 'STARTUP,RUNNING', 'general') and
                     'started' in nmcli('-f', 'STARTUP', 'general'))
        yield daemon


def nm_state():
    """What NetworkManager says of eth0."""
    return re.search(r'^eth0:(.*)$', nmcli('-f', 'DEVICE,STATE', 'device'), re.M)[1]


def nm_leave(_):
    """networkmanager: interfaces that it does not manage"""
    for keyfile, state in (('unmanaged-devices=interface-name:eth0', 'unmanaged'),
                           ('', 'connected (externally)')):
        before = snapshot()
        with network_manager(keyfile) as daemon:
            yield Row(f'eth0, {keyfile or "found with an address"}', state, nm_state())
            yield Row(f'{state}: daemon', 'runs, idle', daemon.state())
            yield Row(f'{state}: kernel', 'all kept', difference(before, snapshot()))
            yield Row(f'{state}: daemon ends', 'status 0', daemon.stop())
        yield Row(f'{state}: kernel, afterwards', 'all kept', difference(before, snapshot()))


def nm_manage(wire):
    """networkmanager: an interface that it manages"""
    before = snapshot()
    for route in ROUTES:
        add_route(route, OTHER_TABLE)
    before_other = snapshot(OTHER_TABLE)
    taken = 'lost: via link, legs, mixed, plain, plain legs'
    with network_manager() as daemon:
        nmcli('connection', 'up', 'lan')
        yield Row('eth0', 'connected', nm_state())
        yield Row('connection up: kernel', taken, difference(before, snapshot()))
        yield Row('connection up: another table', taken,
                  difference(before_other, snapshot(OTHER_TABLE)))
        for label in 'via link', 'legs', 'mixed', 'plain':
            host(f'route add {PREFIX[label]} {WORDS[label]}')
        time.sleep(QUIET)
        yield Row('added again: kernel', 'lost: plain legs', difference(before, snapshot()))
        yield Row('packet: via link', 'mbox', place(wire, PREFIX['via link'][1]))
        yield Row('daemon', 'runs, idle', daemon.state())
        nmcli('device', 'reapply', 'eth0')
        time.sleep(QUIET)
        yield Row('device reapply: kernel', taken, difference(before, snapshot()))
        yield Row('packet: object', 'mbox', place(wire, PREFIX['object'][1]))
        host(f'route add {PREFIX["via link"]} {WORDS["via link"]}')
        before = snapshot()
        yield Row('daemon ends', 'status 0', daemon.stop())
    yield Row('kernel, afterwards', 'all kept', difference(before, snapshot()))


NETWORKD_CASES = (networkd_default, networkd_later, networkd_routes, networkd_nexthops,
                  networkd_keep, networkd_carrier, networkd_unmanaged)
NM_CASES = (nm_leave, nm_manage)
