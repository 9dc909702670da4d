"""Routes and nexthops that name a link-layer address, a neighbour, or a source."""

from lab import GW, HOST, IPV6, MBOX, VMAC, add_override, both, expect, family, ip, without_inet6


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


@both
def neigh(wire, prefix):
    """neigh"""
    fam = family(prefix)
    for number, (note, words, dst, src) in enumerate(without_inet6(fam, (
            (' lladdr', f'lladdr {MBOX}', MBOX, HOST),
            (' via', f'via {fam.mbox}', MBOX, HOST),
            (' via inet6', f'via inet6 {IPV6.mbox}', MBOX, HOST),
            (' src-lladdr', f'src-lladdr {VMAC}', GW, VMAC),
            (' lladdr src-lladdr', f'lladdr {MBOX} src-lladdr {VMAC}', MBOX, VMAC))), 1):
        add_override(prefix, number, words)
        yield expect(wire.send(prefix[1]), dst, src, note)
        ip(f'nexthop delete id {fam.first + number}')


CASES = (plain, via_link, neigh)
