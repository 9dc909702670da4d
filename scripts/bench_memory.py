#!/usr/bin/python3
"""Compare the sizes of structures in several kernels.

usage: bench_memory.py FILE

A line of FILE is a kernel, a name and a number of bytes; 'rtable.MEMBER' is where a
member is, 'rtable-slab' the size of a slab object of struct rtable, 'flow' what conntrack
takes for a flow, 'flow-acct' the same with accounting, in an extension.  Exit status 1:
more memory than there is room for.
"""

import sys

CACHE_LINE = 64
KMALLOC = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024)
# Structures that kmalloc() gives memory for
KMALLOCED = ('neigh_override', 'nh_info', 'nexthop')
LIMITS = {'rtable': 184, 'fib_nh_common': 80}
# The first extension of a flow takes so much, and later ones go there too.
FLOW_LIMITS = {'flow': 128, 'flow-acct': 0}


def main(path):
    """The command line."""
    sizes, kernels, names = {}, [], []
    with open(path, encoding='ascii') as file:
        for line in file:
            kernel, name, number = line.split()
            sizes[kernel, name] = int(number)
            kernels += [kernel] if kernel not in kernels else []
            names += [name] if name not in names else []
    print(f'{"bytes":24}' + ''.join(f'{kernel:>16}' for kernel in kernels))
    for name in names:
        cells = []
        for kernel in kernels:
            size = sizes.get((kernel, name))
            text = '' if size is None else str(size)
            if size and name in KMALLOCED:
                text += f' (of {next(room for room in KMALLOC if room >= size)})'
            cells.append(f'{text:>16}')
        print(f'{name:24}' + ''.join(cells))

    problems = [f'{name}: {sizes["on", name]} bytes, budget {limit}'
                for name, limit in LIMITS.items() if sizes['on', name] > limit]
    problems += [f'{name}: last-hop takes more than {limit} bytes'
                 for name, limit in FLOW_LIMITS.items()
                 if sizes.get(('on', f'{name}.last-hop'), 0) > sizes['on', name] + limit]
    if sizes['on', 'rtable-slab'] != sizes['unpatched', 'rtable-slab']:
        problems.append('struct rtable takes a larger slab object')
    lines = {sizes['on', f'rtable.{member}'] // CACHE_LINE
             for member in ('rt_gw_family', 'rt_neigh_override')}
    if len(lines) > 1:
        problems.append('rt_neigh_override is not in the cache line of rt_gw_family')
    for problem in problems:
        print(f'problem: {problem}')
    return 1 if problems else 0


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    sys.exit(main(sys.argv[1]))
