#!/usr/bin/env python3
"""machine_code.py FUNCTION KEY BEFORE OFF ON: compare three builds of a function

BEFORE is the object without the series, OFF with it and without its option, ON
with the option.  BEFORE and OFF have to be the same machine code.  In ON, one
jump label of a key whose name contains KEY has to be a NOP, and what is executed
while nobody switches it on is compared with OFF instruction by instruction, in
the order of execution; differences are printed.  Lines that begin with '!' are
findings.
"""
import difflib
import re
import subprocess
import sys

LABEL = re.compile(r"^([0-9a-f]+) <(\S+)>:$")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(.*?)\s*$")
RELOCATION = re.compile(r"^\s*([0-9a-f]+): (R_\S+)\t(.*)$")
BRANCH = re.compile(r"^(j\w+)\s+([0-9a-f]+) <")
ENDS = ("ret", "ud2", "jmp", "int3")


def objdump(*arguments):
    done = subprocess.run(("objdump",) + arguments, check=True, text=True, capture_output=True)
    return done.stdout.splitlines()


class Code:
    """The instructions of one function: address, text, relocations."""

    def __init__(self, path, function):
        self.path = path
        self.section = None
        self.instructions = {}
        self.relocations = {}
        inside = False
        for line in objdump("-dr", "--no-show-raw-insn", path):
            if line.startswith("Disassembly of section "):
                section = line.split()[-1].rstrip(":")
            label = LABEL.match(line)
            if label:
                inside = label.group(2) == function
                if inside:
                    self.start = int(label.group(1), 16)
                    self.section = section
                continue
            if not inside:
                continue
            relocation = RELOCATION.match(line)
            if relocation:
                self.relocations.setdefault(self.order[-1], []).append(relocation.group(2, 3))
                continue
            instruction = INSTRUCTION.match(line)
            if instruction:
                self.instructions[int(instruction.group(1), 16)] = instruction.group(2)
        if not self.instructions:
            sys.exit(f"! no {function} in {path}: not compiled, or inlined")
        self.end = max(self.instructions)

    @property
    def order(self):
        return list(self.instructions)

    def target(self, address):
        """Where a branch goes within the function, else None."""
        branch = BRANCH.match(self.instructions[address])
        if not branch or address in self.relocations:
            return None
        target = int(branch.group(2), 16)
        return target if target in self.instructions else None

    def text(self, address, names):
        """An instruction without what moves when code is put before it."""
        said = self.instructions[address]
        target = self.target(address)
        if target is not None:
            said = f"{said.split()[0]} {names.get(target, '?')}"
        said = re.sub(r"\b[0-9a-f]+ <([^>+]*)[^>]*>", r"<\1>", said)
        said = re.sub(r"0x0\(%rip\)\s*#.*", "(%rip)", said)
        kinds = [f"{kind} {value}" for kind, value in self.relocations.get(address, [])
                 if not value.startswith((".text", ".rodata"))]
        return " ".join([re.sub(r"\s+", " ", said)] + kinds)

    def listing(self):
        """The whole function, with relative addresses."""
        lines = []
        for address, said in self.instructions.items():
            lines.append(re.sub(r"\b([0-9a-f]+) <([^>]*)>", r"<\2>", said))
            for kind, value in self.relocations.get(address, []):
                lines.append(f"    {kind} {value}")
        return lines

    def executed(self, dropped=()):
        """Reachable code in the order of execution, branch targets numbered as met,
        and the addresses of it; no jump label is taken."""
        names, visited, waiting, lines = {}, set(), [self.start], []
        while waiting:
            at = waiting.pop(0)
            if at in visited:
                continue
            names.setdefault(at, f"L{len(names)}")
            lines.append(f"{names[at]}:")
            while at is not None and at not in visited:
                visited.add(at)
                target = self.target(at)
                if target is not None and target not in names:
                    names[target] = f"L{len(names)}"
                    waiting.append(target)
                if at not in dropped:
                    lines.append("    " + self.text(at, names))
                if self.instructions[at].split()[0] in ENDS:
                    at = target if target not in visited else None
                else:
                    at = min((a for a in self.instructions if a > at), default=None)
            if at is not None and at in visited:
                lines.append(f"    continues at {names.setdefault(at, f'L{len(names)}')}")
        return lines, visited

    def jump_labels(self, key):
        """Addresses of the jump labels of a key: (code, target, key) of the table."""
        entries, symbols = [], symbol_table(self.path)
        for line in objdump("-r", "-j", "__jump_table", self.path):
            fields = line.split()
            if len(fields) == 3 and re.fullmatch(r"[0-9a-f]+", fields[0]):
                entries.append(fields[2])
        found = []
        for code, _, name in zip(entries[0::3], entries[1::3], entries[2::3]):
            place = resolve(code, symbols)
            if key in name and place and place[0] == self.section and \
               self.start <= place[1] <= self.end:
                found.append(place[1])
        return found


def symbol_table(path):
    """Symbol to (section, address)."""
    table = {}
    for line in objdump("-t", path):
        fields = line.split()
        if len(fields) >= 4 and re.fullmatch(r"[0-9a-f]{16}", fields[0]):
            table[fields[-1]] = (fields[-3], int(fields[0], 16))
    return table


def resolve(value, symbols):
    name, _, offset = value.partition("+")
    if name in symbols:
        section, address = symbols[name]
    elif name.startswith("."):
        section, address = name, 0
    else:
        return None
    return section, address + int(offset or "0", 16)


def show(difference):
    for line in difference:
        print(line)


def main():
    function, key, *paths = sys.argv[1:]
    before, off, on = (Code(path, function) for path in paths)
    difference = list(difflib.unified_diff(before.listing(), off.listing(), "base", "off",
                                           lineterm=""))
    show(difference)
    same = not difference
    if difference:
        print(f"! {function} is not the same without the option: {len(difference)} lines differ")
    labels = on.jump_labels(key)
    _, reached = on.executed()
    on_the_way = [at for at in labels if at in reached]
    for at in labels:
        print(f"jump label at +{at - on.start:#x}: {on.instructions[at]}" +
              ("" if at in reached else " (only behind the other one)"))
        if not on.instructions[at].startswith(("nop", "xchg   %ax,%ax")):
            print(f"! the jump label at +{at - on.start:#x} is not a NOP")
    if off.jump_labels(key):
        print("! the build without the option has a jump label of ours")
    if len(on_the_way) != 1:
        print(f"! {len(on_the_way)} jump labels of ours are on the way, wanted one")
    way_off, way_on = off.executed()[0], on.executed(on_the_way)[0]
    difference = list(difflib.unified_diff(way_off, way_on, "off", "on, without the NOP",
                                           lineterm=""))
    show(difference)
    print(f"off: {len(off.instructions)} instructions, "
          f"{'the same as' if same else 'others than'} in the base; on: "
          f"{len(on_the_way)} NOP on the way, " + ("nothing else" if not difference else
          f"and {len(way_on) - len(way_off):+} lines of code, see the log"))


if __name__ == "__main__":
    main()
