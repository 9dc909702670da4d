"""Kinds of devices, and those that can not have an override."""

import socket

from lab import GW, MBOX, VMAC, Row, both, family, flow, inside, ip_batch, refusal, run_in
from traffic import BOTH, NODE, another_host, connect_node, expect_delivery


@both
def vrf(wire, prefix):
    """VRF"""
    fam = family(prefix)
    with another_host(wire):
        ip_batch('node', 'link add red type vrf table 10', 'link set red up',
                 'link set eth0 master red')
        connect_node('eth0', fam=fam)
        ip_batch('node', f'nexthop add id 203 via {fam.gw} dev eth0 neigh {BOTH}')
        ip_batch('node', f'route add {prefix[1]} vrf red nhid 203',
                 f'route add {prefix[2]} nhid 203')
        # The VRF device transmits, and looks the route up again.
        run_in('node', 'tc qdisc add dev red root pfifo')
        with flow(prefix[1], 'node', 'red') as sock:
            yield expect_delivery(wire, sock, (MBOX, VMAC), ': through a qdisc', 'node')
        run_in('node', 'tc qdisc delete dev red root')
        with flow(prefix[2], 'node') as sock:
            yield expect_delivery(wire, sock, (MBOX, VMAC), ': leaked route', 'node')


def device_rows(wire, prefix, number, device, *commands, bridge_end='node'):
    """Rows for each kind of override on a device of node."""
    with another_host(wire, bridge_end):
        ip_batch('node', *commands)
        yield from override_rows(wire, prefix, number, device, bridge_end)


def override_rows(wire, prefix, number, device, bridge_end='node'):
    """Rows for each kind of override on a device of node that is there."""
    fam = family(prefix)
    connect_node(device, bridge_end, fam)
    ip_batch('node', f'nexthop add id {number} via {fam.gw} dev {device}',
             f'route add {prefix} nhid {number}')
    for neigh, lladdrs in ((f'lladdr {MBOX}', (MBOX, NODE)), (BOTH, (MBOX, VMAC)),
                           (f'src-lladdr {VMAC}', (GW, VMAC))):
        ip_batch('node', f'nexthop replace id {number} via {fam.gw} dev {device} neigh {neigh}')
        note = ' '.join(neigh.split()[::2])
        with flow(prefix[1], 'node') as sock:
            yield expect_delivery(wire, sock, lladdrs, f': {note}', 'node')


@both
def vlan_in_software(wire, prefix):
    """soft VLAN"""
    with another_host(wire, 'node.5') as bridge_end:
        run_in('node', 'ethtool -K eth0 tx-vlan-hw-insert off')
        ip_batch('node', f'link add link eth0 name vlan5 address {NODE} '
                         'type vlan id 5 reorder_hdr off')
        yield from override_rows(wire, prefix, 221, 'vlan5', bridge_end)


@both
def ipvlan(wire, prefix):
    """ipvlan"""
    # It has the address of what is below.
    yield from device_rows(wire, prefix, 223, 'ipvlan0', f'link set eth0 address {NODE}',
                           'link add link eth0 name ipvlan0 type ipvlan mode l2')


@both
def bond(wire, prefix):
    """bond"""
    yield from device_rows(wire, prefix, 225, 'bond0',
                           f'link add bond0 address {NODE} type bond mode active-backup',
                           'link set eth0 master bond0')


@both
def team(wire, prefix):
    """team"""
    with another_host(wire):
        ip_batch('node', f'link add team0 address {NODE} type team')
        run_in('node', 'teamnl team0 setoption mode activebackup')
        # Who makes a team is to give its ports the address.
        ip_batch('node', f'link set eth0 address {NODE} master team0')
        with inside('node'):
            port = socket.if_nametoindex('eth0')
        run_in('node', f'teamnl team0 setoption activeport {port}')
        yield from override_rows(wire, prefix, 226, 'team0')


OWN_SOURCE = 'Device can only send from its own address'


def refused_devices(wire, _):
    """device"""
    mac, source = f'neigh lladdr {MBOX}', f'neigh src-lladdr {VMAC}'
    # note, what to make on node, the last of them its device; override, refusal
    kinds = (
        ('ipvlan L3, arp on', ('link eth0 name dev0 type ipvlan mode l3',), mac,
         'Device ignores link-layer addresses'),
        ('ipvlan L3S, arp on', ('link eth0 name dev0 type ipvlan mode l3s',), mac,
         'Device ignores link-layer addresses'),
        ('ipvlan L2, arp off', ('link eth0 name dev0 type ipvlan mode l2',), mac, 'not refused'),
        ('macsec, destination', ('link eth0 name dev0 type macsec',), mac, 'not refused'),
        ('macsec, preserve', ('link eth0 name dev0 type macsec',), 'neigh preserve', OWN_SOURCE),
        ('VLAN on macsec, src', ('link eth0 name below0 type macsec',
                                    'link below0 name dev0 type vlan id 5'), source, OWN_SOURCE),
        ('station, destination', ('link eth0 name dev0 type virt_wifi',), mac, 'not refused'),
        ('station, source', ('link eth0 name dev0 type virt_wifi',), source, OWN_SOURCE),
        ('VLAN on station, src', ('link eth0 name below0 type virt_wifi',
                                       'link below0 name dev0 type vlan id 5'), source,
         OWN_SOURCE))
    for note, links, neigh, expected in kinds:
        with another_host(wire):
            ip_batch('node', 'link set eth0 up')
            made = [refusal('node', f'link add {link}') for link in links]
            if made[0] == 'Unknown device type':
                yield Row(f': {note}', None, 'not checked: the kernel has no such device', None)
                continue
            # Whether it resolves neighbours, in either case, does not matter.
            devices = ('below0', 'dev0')[-len(links):]
            ip_batch('node', *(f'link set {device} up' for device in devices),
                     *(f'link set dev0 {word}' for word in ('arp on', 'arp off') if word in note))
            yield Row(f': {note}', expected,
                      refusal('node', f'nexthop add id 234 dev dev0 {neigh}'), None)


CASES = (vrf, vlan_in_software, ipvlan, bond, team, refused_devices)
