#!/usr/bin/python3
"""Show the way of a packet through ip_finish_output2() in several kernels.

usage: bench_code.py NAME=FOLDER...

FOLDER is where a kernel was built.  The way is the shortest one from the entry of
the function to __dev_queue_xmit(), in instructions: that of a packet whose
neighbour is the first in its bucket and has a cached header.  Prints the ways side
by side; where they differ, the line is marked.  The last lines have the number of
instructions, and whether a kernel's function is that of the first.
"""

import difflib
import heapq
import itertools
import re
import subprocess
import sys

FUNCTION, TRANSMIT = 'ip_finish_output2', '__dev_queue_xmit'
INSTRUCTION = re.compile(r'^ *([0-9a-f]+):\t(.*)$')
RELOCATION = re.compile(r'^\t+([0-9a-f]+): (R_X86_64_\S+)\t(.*)$')
LONGEST = 15    # bytes of an instruction
WIDTH = 46


class Code:
    """A function of an object file."""

    def __init__(self, folder):
        listing = subprocess.run(
            ['objdump', '-dr', '--no-show-raw-insn', f'--disassemble={FUNCTION}',
             f'{folder}/net/ipv4/ip_output.o'],
            check=True, text=True, capture_output=True).stdout
        self.text, self.target, self.symbol, place = {}, {}, {}, None
        for line in listing.splitlines():
            if found := INSTRUCTION.match(line):
                place, words = int(found[1], 16), found[2].split('#')[0].strip()
                if jump := re.match(r'(j\w+|call\w*) +([0-9a-f]+) <', words):
                    self.target[place] = int(jump[2], 16)
                    words = jump[1]
                self.text[place] = ' '.join(re.sub(r'<.*>', '', words).split())
            elif ((found := RELOCATION.match(line)) and place is not None and
                  place < int(found[1], 16) < place + LONGEST):
                # Where in a section it is says nothing: other functions moved it.
                name = re.sub(r'[-+]0x[0-9a-f]+$', '', found[3])
                self.symbol[place] = name
                self.text[place] = f'{self.text[place]} {name}'
                self.target.pop(place, None)
        if not self.text:
            sys.exit(f'bench_code.py: {folder} has no {FUNCTION}')
        self.places = sorted(self.text)

    def following(self, place):
        """Where it may go on after an instruction."""
        word = self.text[place].split()[0]
        number = self.places.index(place)
        after = self.places[number + 1:number + 2]
        if word.startswith('ret') or word == 'ud2':
            return []
        if word.startswith('jmp'):
            after = []
        if word.startswith('j') and self.target.get(place) in self.text:
            after = [*after, self.target[place]]
        return after

    def way(self):
        """The shortest way, as texts."""
        first = self.places[0]
        came, heap = {first: None}, [(0, first)]
        while heap:
            length, place = heapq.heappop(heap)
            if self.symbol.get(place, '').startswith(TRANSMIT):
                steps = []
                while place is not None:
                    steps.append(self.text[place])
                    place = came[place]
                return steps[::-1]
            for target in self.following(place):
                if target not in came:
                    came[target] = place
                    heapq.heappush(heap, (length + 1, target))
        sys.exit(f'bench_code.py: no way from {FUNCTION} to {TRANSMIT}')


def align(left, right):
    """Pairs of lines, None where one has none."""
    for what, a, b, c, d in difflib.SequenceMatcher(None, left, right, False).get_opcodes():
        if what == 'equal':
            yield from zip(left[a:b], right[c:d])
        else:
            yield from itertools.zip_longest(left[a:b], right[c:d])


def side_by_side(ways):
    """Rows with a cell for each way, None where it has no such line."""
    rows = [(line,) for line in ways[0]]
    for way in ways[1:]:
        # Align with the first; lines of the ways between keep their places.
        base, merged, queue = ways[0], [], list(rows)
        for left, right in align(base, way):
            if left is None:
                merged.append((None,) * len(rows[0]) + (right,))
                continue
            while queue and queue[0][0] is None:
                merged.append(queue.pop(0) + (None,))
            merged.append(queue.pop(0) + (right,))
        rows = merged + [row + (None,) for row in queue]
    return rows


def main(arguments):
    """The command line."""
    names, codes = [], []
    for argument in arguments:
        name, _, folder = argument.partition('=')
        names.append(name)
        codes.append(Code(folder))
    ways = [code.way() for code in codes]
    print('  ' + ''.join(f'{name:{WIDTH}}' for name in names).rstrip())
    for row in side_by_side(ways):
        mark = ' ' if len(set(row)) == 1 else '*'
        print((f'{mark} ' + ''.join(f'{(cell or "")[:WIDTH - 2]:{WIDTH}}'
                                    for cell in row)).rstrip())
    print()
    for name, code, way in zip(names, codes, ways):
        same = [code.text[place] for place in code.places] == \
               [codes[0].text[place] for place in codes[0].places]
        print(f'{name}: {len(way)} instructions from entry to {TRANSMIT}, of {len(code.text)}'
              + ('' if code is codes[0] else ', the same function' if same
                 else ', another function'))


if __name__ == '__main__':
    if len(sys.argv) < 2 or '-h' in sys.argv:
        sys.exit(__doc__.strip())
    main(sys.argv[1:])
