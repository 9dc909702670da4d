"""Answers by the last hop: they go to where a flow comes from, not to the gateway.

On host, the route back has the selector.  The transparent proxy of proxy.py has it on its route
to client: what answers client comes from the address that client sent to, server's or router's,
from the SYN-ACK on.  Its routes to the servers have preserve: the connections that haproxy opens
to them are no answers.  preserve looks for client's neighbour entry, which answers by the last
hop do not make.
"""

import socket

from lab import (DEADLINE, GW, HOST, IPV6, PORT, Row, both, family, flow, inside, ip, ip_batch,
                 ip_in, run, run_in, write)
from flowtable import established, flowtable, gw_nexthop, tunnel
from forwarding import balanced
from proxy import (CLIENT, NEAR, NEIGHBOURS, PROXY, PROXY_PORT, ROUTER, add_overrides, namespace,
                   proxied)
from proxy import expect as expect_packets
from traffic import expect_frames, frames_to


@both
def balanced_answers(wire, prefix):
    """last hop: IPVS"""
    fam = family(prefix)
    nexthop = f'id {fam.first + 398}'
    ip(f'nexthop add {nexthop} via {fam.mbox} dev eth0 neigh selector last-hop')
    ip(f'route add {prefix[1]} nhid {fam.first + 398}')
    ip_batch('mbox', f'route add {prefix[1]} via {fam.host}')
    with balanced(fam.host, fam.mbox, 'masquerading'):
        with inside('host'):
            write('/proc/sys/net/ipv4/vs/conntrack', 1)
        with inside('mbox'):
            near = socket.socket(fam.number, socket.SOCK_DGRAM)
        with near, flow(fam.host, 'server', source=str(prefix[1])) as far:
            near.bind((fam.mbox, PORT))
            for sock in near, far:
                sock.settimeout(DEADLINE)
            far.send(b'question')
            _, asker = near.recvfrom(100)
            wire.forget()
            near.sendto(b'answer', asker)
            far.recv(100)
            yield expect_frames(frames_to(wire, prefix[1]), (GW, HOST))
    ip(f'nexthop delete {nexthop}')


@both
def flow_in_tunnel(wire, prefix):
    """tunnel flow"""
    outer = f'{family(prefix).beyond}2'
    with flowtable(family(prefix)), tunnel(prefix):
        for number, note, neigh, status in (
                (357, ': plain', '', 'offloaded'),
                (358, ': last hop', 'neigh selector last-hop', 'not offloaded')):
            with gw_nexthop(number, f'dev eth1 {neigh}', outer), \
                    established(wire, prefix[1]) as datagrams:
                yield from datagrams.observe(note, status)


# --- a transparent proxy ---

# Frames keep the addresses of client and server when the proxy takes them.
BROUTE = 'ebtables-legacy -t broute -A BROUTING -p {ip} --{table}-proto tcp --{table}-{port} ' \
         f'{PORT} -j DROP'
RULES = '''
table netdev proxy {{
	chain ingress {{
		type filter hook ingress devices = {{ {ports} }} priority 0;
		tcp dport {port} meta pkttype set host
		tcp sport {port} meta pkttype set host
	}}
}}
table {table} proxy {{
	chain prerouting {{
		type filter hook prerouting priority mangle;
		meta l4proto tcp socket transparent 1 meta mark set 1 accept
		tcp dport {port} tproxy to :{proxy_port} meta mark set 1 accept
	}}
}}
table bridge security {{
	counter wrong {{ }}
	chain postrouting {{
		type filter hook postrouting priority 0;
		{table} saddr . ether saddr . oifname {{ {owners} }} accept
		meta l4proto {{ tcp, udp }} counter name wrong drop
	}}
}}
'''


def take_frames(ips, fam):
    """The proxy takes packets as they are, and its bridge drops frames from the wrong owner."""
    homes = {'client': (CLIENT, 'client'), 'near': (NEAR, 'near'), 'router': (ROUTER, 'router'),
             'far': (ROUTER, 'router'), 'proxy': (PROXY, None)}
    owners = ', '.join(f'{ips[name]} . {mac} . "{port}"' for name, (mac, home) in homes.items()
                       for port in NEIGHBOURS if port != home)
    layer, table = ('IPv6', 'ip6') if fam is IPV6 else ('IPv4', 'ip')
    for port in 'sport', 'dport':
        run_in(namespace('proxy'), BROUTE.format(ip=layer, table=table, port=port))
    with inside(namespace('proxy')):
        run('nft', 'flush ruleset')
        run('nft', RULES.format(ports=', '.join(NEIGHBOURS), port=PORT, proxy_port=PROXY_PORT,
                         table=table, owners=owners))


def wrong_frames():
    """How many frames from the wrong owner the bridge has dropped."""
    listed = run_in(namespace('proxy'), 'nft list counter bridge security wrong')
    return int(listed.partition('packets ')[2].split()[0])


@both
def proxied_answers(_, prefix):
    """proxied"""
    with proxied(prefix) as watch:
        ips = watch.ips
        take_frames(ips, watch.fam)
        # The rule drops what comes from the proxy's own address.  emit() meets client.
        yield expect_packets(': without override',
                             watch.emit(ips['near'], ips['client'], 'client'), None, None)
        before = wrong_frames()
        add_overrides(watch.fam, 'preserve')
        with inside(namespace('proxy')):
            ip_in(None, f'{watch.fam.option} nexthop add id 302 dev br0 '
                               'neigh selector last-hop')
        ip_batch(namespace('proxy'), f'route add {ips["client"]} nhid 302 src {ips["proxy"]}')
        for server, mac in ('near', NEAR), ('far', ROUTER):
            moved = watch.transfer(server)
            yield expect_packets(f': {server} to client', moved.to_client, CLIENT, mac,
                                 moved.problem)
            yield expect_packets(f': client to {server}', moved.to_server, mac, CLIENT)
        yield Row(': wrong frames', '1, then 0',
                  f'{before}, then {wrong_frames() - before}', None)


CASES = (balanced_answers, flow_in_tunnel, proxied_answers)
