"""Overrides that outlive their nexthop, and what is left of them."""
#
# leaks looks at what every other case has left: it stays the last case, and
# this the last of the modules.

import os
import time

from lab import (GW, HOST, KMEMLEAK, MBOX, VMAC, Row, add_override, both, expect, family, flow, ip,
                 unreferenced)


@both
def outlived(wire, prefix):
    """outlived"""
    add_override(prefix, 266, f'lladdr {MBOX} src-lladdr {VMAC} counters')
    with flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, VMAC)
        ip(f'nexthop delete id {family(prefix).first + 266}')
        # IPv6 sockets find out after a grace period, for which a device that goes waits.
        ip('link add barrier type dummy')
        ip('link delete barrier')
        yield expect(wire.send_on(sock), GW, HOST, ', afterwards')


def leaks(_, __):
    """leaks"""
    if not os.path.exists(KMEMLEAK):
        yield Row('', None, 'not checked: the kernel has no kmemleak', None)
        return
    # Nothing younger is reported.
    time.sleep(5.5)
    ours = [text for text in unreferenced() if 'neigh_override' in text]
    yield Row('', '0 overrides', f'{len(ours)} overrides', ours[0] if ours else None)


CASES = (outlived, leaks)
