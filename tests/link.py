"""Routes and nexthops that name a link-layer address."""

from lab import GW, HOST, MBOX, Row, add_override, both, expect, expect_spread, family, flow, ip


@both
def plain(wire, prefix):
    """plain route"""
    ip(f'route add {prefix} via {family(prefix).gw}')
    yield expect(wire.send(prefix[1]), GW)


@both
def via_link(wire, prefix):
    """route via link"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    yield expect(wire.send(prefix[1]), MBOX)


def multipath(wire, prefix):
    """multipath via link"""
    # An IPv6 leg needs a gateway.
    ip(f'route add {prefix} nexthop via link {MBOX} dev eth0 nexthop via link {GW} dev eth0')
    yield from expect_spread(wire, prefix, ': leg', (MBOX, HOST), (GW, HOST))


@both
def neigh_lladdr(wire, prefix):
    """neigh lladdr"""
    add_override(prefix, 3, f'lladdr {MBOX}')
    yield expect(wire.send(prefix[1]), MBOX)


@both
def deleted(wire, prefix):
    """route"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    with flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, HOST, ': added')
        ip(f'route delete {prefix} via link {MBOX} dev eth0')
        yield expect(wire.send_on(sock), GW, HOST, ': deleted')


@both
def route_get(_, prefix):
    """ip route get"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    expected = f'{prefix[1]} via link {MBOX} dev eth0'
    # IPv6 says that the packet is from nobody yet.
    seen = ip(f'route get {prefix[1]}').replace(' from :: ', ' ')
    yield Row('', expected, seen.partition(' src ')[0].partition(' proto ')[0], None)


CASES = (plain, via_link, multipath, neigh_lladdr, deleted, route_get)
