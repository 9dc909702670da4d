"""A transparent proxy on a bridge, haproxy, and whom its neighbours take it for."""
#
#   client              proxy                      router                      far
#   192.0.2.2           192.0.2.9                  192.0.2.1
#     | eth0       client | br0 | router        eth0 |   | eth1            eth0 |
#     +-------------------+--+--+--------------------+   +----------------------+
#                            | near                  198.51.100.1    198.51.100.2
#                       eth0 |
#                          near, 192.0.2.5
#
# The IPv6 addresses are those of lab, with the same last number.
#
# near and far are servers.  client talks TCP to their addresses; proxy takes the
# frames of PORT out of the bridge, in both directions, and haproxy answers with
# the addresses of the servers and asks the servers with that of client.  Frames
# are captured where they arrive: on eth0 of client, near and router.

import collections
import contextlib
import errno
import json
import os
import socket
import struct
import subprocess
import tempfile

from lab import (DEADLINE, GW, HOST, IPV4, IPV6, MBOX, PORT, TRANSPARENT, Failure, Row, both,
                 capture, family, inside, ip_batch, ip_in, passed, run, run_in, write)
from traffic import past_ip

# client, router and proxy have the addresses of host, gw and mbox.
CLIENT, ROUTER, PROXY, NEAR = HOST, GW, MBOX, '02:00:00:00:00:05'
ANY = {IPV4: '0.0.0.0', IPV6: '::'}
NEIGHBOURS = {'client': CLIENT, 'router': ROUTER, 'near': NEAR}

PROXY_PORT, CLOSED_PORT = 7008, 7009
CONTENT = b''.join(b'line %d\n' % number for number in range(3000))

RULES = '''
table bridge proxy {{
	chain prerouting {{
		type filter hook prerouting priority dstnat;
		tcp dport {port} ether daddr set {mac} meta pkttype set host
		tcp sport {port} ether daddr set {mac} meta pkttype set host
	}}
}}
table {table} proxy {{
	chain prerouting {{
		type filter hook prerouting priority mangle;
		meta l4proto tcp socket transparent 1 meta mark set 1 accept
		iifname br0 tcp dport {port} tproxy to :{proxy_port} meta mark set 1 accept
	}}
}}
'''
HAPROXY = '''
global
	log {log} format raw local0
defaults
	mode tcp
	log global
	log-format "%ci to %fi as %bi: %B bytes, %ts"
	timeout connect {seconds}s
	timeout client {seconds}s
	timeout server {seconds}s
listen proxy
	bind {any}:{port} transparent
	source {any} usesrc clientip
	server original {any}
'''

# ports: of source and destination; data: from them on
Packet = collections.namedtuple('Packet', 'dst src ports data')
# to_*: the packets that arrived there; log: what haproxy says about the connection
Transfer = collections.namedtuple('Transfer', 'to_client to_server log problem')


# --- the hosts ---

def namespace(name):
    """The namespace of a host: lab has hosts as well."""
    return f'proxy-{name}'


def addresses(fam):
    """The addresses of all, by name."""
    return {'client': fam.host, 'router': fam.gw, 'proxy': fam.mbox, 'near': f'{fam.lan}5',
            'far': f'{fam.beyond}2'}


@contextlib.contextmanager
def hosts(fam):
    """The topology at the top of this file, new each time: nobody knows anybody."""
    names = ['proxy', 'far', *NEIGHBOURS]
    ips = addresses(fam)
    default = f'route add default via {ips["router"]}'
    try:
        ip_batch(None, *(f'netns add {namespace(name)}' for name in names))
        for name in names:
            with inside(namespace(name)):
                # No duplicate address detection: it takes a second.
                write('/proc/sys/net/ipv6/conf/all/accept_dad', 0)
                write('/proc/sys/net/ipv6/conf/default/accept_dad', 0)
        ip_batch(None, *(f'link add eth0 netns {namespace(name)} address {mac} type veth '
                         f'peer name {name} netns {namespace("proxy")}'
                         for name, mac in NEIGHBOURS.items()),
                 f'link add eth1 netns {namespace("router")} type veth '
                 f'peer name eth0 netns {namespace("far")}')
        for name in NEIGHBOURS:
            ip_batch(namespace(name), f'address add {ips[name]}/{fam.length} dev eth0',
                     'link set eth0 up')
        ip_batch(namespace('client'), default)
        ip_batch(namespace('near'), default)
        ip_batch(namespace('router'), f'address add {fam.beyond}1/{fam.length} dev eth1',
                 'link set eth1 up')
        ip_batch(namespace('far'), f'address add {ips["far"]}/{fam.length} dev eth0',
                 'link set eth0 up', f'route add default via {fam.beyond}1')
        with inside(namespace('router')):
            write('/proc/sys/net/ipv4/ip_forward', 1)
            write('/proc/sys/net/ipv6/conf/all/forwarding', 1)
        set_up_proxy(fam)
        yield
    finally:
        ip_batch(None, *(f'netns delete {namespace(name)}' for name in names))


def set_up_proxy(fam):
    """The bridge, and the rules that take packets out of it."""
    ips = addresses(fam)
    ip_batch(namespace('proxy'), 'link set lo up', f'link add br0 address {PROXY} type bridge',
             *(f'link set {port} master br0 up' for port in NEIGHBOURS), 'link set br0 up',
             f'address add {ips["proxy"]}/{fam.length} dev br0',
             f'route add default via {ips["router"]}',
             f'route add local {ANY[fam]}/0 dev lo table 100')
    run_in(namespace('proxy'), f'ip {fam.option} rule add fwmark 1 lookup 100')
    table = 'ip6' if fam is IPV6 else 'ip'
    with inside(namespace('proxy')):
        write('/proc/sys/net/bridge/bridge-nf-call-iptables', 0)
        write('/proc/sys/net/bridge/bridge-nf-call-ip6tables', 0)
        run('nft', RULES.format(port=PORT, mac=PROXY, table=table, proxy_port=PROXY_PORT))


def add_overrides(fam, neigh):
    """Let all that proxy sends to its LAN and beyond go by an override."""
    ips = addresses(fam)
    # The kernel's own route for an IPv6 address stays.
    metric = ' metric 1' * (fam is IPV6)
    ip_in(namespace('proxy'), f'{fam.option} nexthop replace id 300 dev br0 neigh {neigh}')
    ip_batch(namespace('proxy'),
             f'nexthop replace id 301 via {ips["router"]} dev br0 neigh {neigh}',
             f'route replace {fam.lan}0/{fam.length} nhid 300 scope link '
             f'src {ips["proxy"]}{metric}',
             f'route replace {ANY[fam]}/0 nhid 301')


def learned(*lladdrs):
    """The ports of the bridge that it has learned link-layer addresses on."""
    entries = json.loads(run_in(namespace('proxy'), 'bridge -json fdb show br br0'))
    return ', '.join(sorted(f"{entry['mac']} on {entry['ifname']}" for entry in entries
                            if entry['mac'] in lladdrs))


def meet(*others):
    """Let proxy talk to others, as itself: it has valid neighbour entries then."""
    for address in others:
        with inside(namespace('proxy')):
            sock = socket.socket(family(address).number)
        with sock:
            sock.settimeout(DEADLINE)
            result = sock.connect_ex((address, CLOSED_PORT))
        if result != errno.ECONNREFUSED:
            raise Failure(f'proxy and {address}: {os.strerror(result)}')


# --- packets ---

def source_of(frame):
    """The IP source of a frame that carries TCP or UDP."""
    if frame[12:14] == b'\x08\x00' and frame[23] in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return socket.inet_ntop(socket.AF_INET, frame[26:30])
    if frame[12:14] == b'\x86\xdd' and frame[20] in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return socket.inet_ntop(socket.AF_INET6, frame[22:38])
    return None


def exchange(client, listener):
    """Let client fetch CONTENT; return what is wrong about it and the server's peer."""
    client.connect(listener.getsockname())
    # haproxy has accepted before it connects.
    connection, peer = listener.accept()
    with connection:
        connection.settimeout(DEADLINE)
        client.sendall(b'content, please')
        request = connection.recv(2048)
        connection.sendall(CONTENT)
    content = client.makefile('rb').read()
    wanted = client.getsockname()[0], b'content, please', CONTENT
    if (peer[0], request, content) == wanted:
        return None, peer
    return f'{peer[0]} asked for {request}, {len(content)} bytes arrived', peer


class Watch:
    """Makes traffic, and sees what arrives."""

    def __init__(self, stack, fam, log):
        self.fam, self.ips, self.log = fam, addresses(fam), log
        self.captures = {name: stack.enter_context(capture(namespace(name), 'eth0'))
                         for name in NEIGHBOURS}

    def arrived(self, name, source):
        """The packets of an IP source that have arrived at a neighbour since last time."""
        packets = []
        for frame, came_in in passed(self.captures[name]):
            if came_in and source_of(frame) == source:
                data = past_ip(frame)
                ports = struct.unpack_from('!HH', data)
                packets.append(Packet(frame[0:6].hex(':'), frame[6:12].hex(':'), ports, data))
        return packets

    def transfer(self, server):
        """client fetches CONTENT from a server."""
        with inside(namespace(server)):
            listener = socket.create_server((self.ips[server], PORT), family=self.fam.number)
        with inside(namespace('client')):
            client = socket.socket(self.fam.number)
        with listener, client:
            listener.settimeout(DEADLINE)
            client.settimeout(DEADLINE)
            problem, peer = exchange(client, listener)
            to_client, to_server = (PORT, client.getsockname()[1]), (peer[1], PORT)
        log = self.log.recv(2048).decode().strip()
        next_hop = server if server in NEIGHBOURS else 'router'
        return Transfer(
            [packet for packet in self.arrived('client', self.ips[server])
             if packet.ports == to_client],
            [packet for packet in self.arrived(next_hop, self.ips['client'])
             if packet.ports == to_server],
            log, problem)

    def emit(self, source, destination, neighbour):
        """proxy sends a datagram with a source of others; what of it arrived at a neighbour."""
        payload = f'{source} to {destination}'.encode()
        with inside(namespace('proxy')):
            foreign = socket.socket(self.fam.number, socket.SOCK_DGRAM)
        with foreign:
            foreign.setsockopt(*TRANSPARENT[self.fam], 1)
            foreign.bind((source, 0))
            # The sender hears of a drop, as when netfilter drops.
            with contextlib.suppress(PermissionError):
                foreign.sendto(payload, (destination, PORT))
        # What was sent before has arrived by then.
        meet(destination)
        return [packet for packet in self.arrived(neighbour, source)
                if packet.data.endswith(payload)]


@contextlib.contextmanager
def start_haproxy(fam):
    """Run haproxy; yield the socket that gets a line for each connection that is over."""
    with tempfile.TemporaryDirectory() as directory, \
         socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(f'{directory}/log')
        log.settimeout(DEADLINE)
        with open(f'{directory}/haproxy.cfg', 'w', encoding='ascii') as file:
            file.write(HAPROXY.format(log=f'{directory}/log', port=PROXY_PORT, seconds=DEADLINE,
                                      any='[::]' if fam is IPV6 else '0.0.0.0'))
        # It says when it is ready, as a service does.
        with subprocess.Popen(['nsenter', f'--net=/run/netns/{namespace("proxy")}', 'haproxy',
                               '-Ws', '-db', '-q', '-f', f'{directory}/haproxy.cfg'],
                              env={**os.environ, 'NOTIFY_SOCKET': f'{directory}/log'}) as process:
            try:
                while b'READY=1' not in log.recv(2048):
                    pass
                yield log
            finally:
                process.terminate()


# --- rows ---

def expect(note, packets, dst, src, problem=None):
    """The row of packets that have the same addresses all of them."""
    seen = {(packet.dst, packet.src) for packet in packets}
    others = seen - {(dst, src)}
    return Row(note, (dst, src), (others or seen or {(None, None)}).pop(), problem)


def expect_transfer(watch, server, to_client, to_server):
    """The rows of a transfer, for each direction and of what haproxy says."""
    moved = watch.transfer(server)
    yield expect(f': {server} to client', moved.to_client, *to_client, moved.problem)
    yield expect(f': client to {server}', moved.to_server, *to_server, moved.problem)
    client = watch.ips['client']
    expected = f'{client} to {watch.ips[server]} as {client}: {len(CONTENT)} bytes, --'
    yield Row(f': log of {server}', expected, moved.log, None)


@contextlib.contextmanager
def proxied(prefix):
    """New hosts, with haproxy."""
    fam = family(prefix)
    with hosts(fam), contextlib.ExitStack() as stack, start_haproxy(fam) as log:
        yield Watch(stack, fam, log)


@both
def proxy_plain(_, prefix):
    """plain proxy"""
    with proxied(prefix) as watch:
        yield from expect_transfer(watch, 'near', (CLIENT, PROXY), (NEAR, PROXY))
        yield from expect_transfer(watch, 'far', (CLIENT, PROXY), (ROUTER, PROXY))


@both
def proxy_preserve(_, prefix):
    """proxy"""
    with proxied(prefix) as watch:
        add_overrides(watch.fam, 'preserve')
        meet(watch.ips['near'], watch.ips['router'])
        yield from expect_transfer(watch, 'near', (CLIENT, NEAR), (NEAR, CLIENT))
        yield from expect_transfer(watch, 'far', (CLIENT, ROUTER), (ROUTER, CLIENT))
        yield Row(': fdb', f'{CLIENT} on client, {NEAR} on near', learned(CLIENT, NEAR), None)


@both
def owner_unknown(_, prefix):
    """server not known yet"""
    with proxied(prefix) as watch:
        add_overrides(watch.fam, 'preserve')
        moved = watch.transfer('near')
        # haproxy answers client first, and asks for near's address later.
        yield expect(': first', moved.to_client[:1], CLIENT, PROXY, moved.problem)
        yield expect(': then', moved.to_client[1:], CLIENT, NEAR)
        yield expect(': client', moved.to_server, NEAR, CLIENT)


CASES = (proxy_plain, proxy_preserve, owner_unknown)
