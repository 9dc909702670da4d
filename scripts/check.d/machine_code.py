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

LINE = re.compile(r"^\s*([0-9a-f]+):\s(?:(R_\S+)\t)?(.*?)\s*$")
BRANCH = re.compile(r"^(j\w+)\s+([0-9a-f]+) <")
LONGEST = 15    # bytes of an instruction
ENDS = ("ret", "ud2", "jmp", "int3")


def objdump(*arguments):
    done = subprocess.run(("objdump",) + arguments, check=True, text=True, capture_output=True)
    return done.stdout.splitlines()


class Code:
    """The instructions of one function by address, with their relocations."""

    def __init__(self, path, function, key):
        self.said, at = {}, 0
        for line in objdump("-dr", "--no-show-raw-insn", f"--disassemble={function}", path):
            if found := LINE.match(line):
                address, kind, text = int(found[1], 16), found[2], found[3]
                if not kind:
                    self.said[address], at = text, address
                # Of what is before the function, all relocations are listed, too.
                elif at < address < at + LONGEST:
                    self.said[at] += f"\n    {kind} {text}"
        if not self.said:
            sys.exit(f"! no {function} in {path}: not compiled, or inlined")
        self.following = dict(zip(self.said, [*self.said, None][1:]))
        # A triple of relocations an entry: code, target, key
        table = [line.split()[2] for line in objdump("-r", "-j", "__jump_table", path)
                 if re.match(r"[0-9a-f]{16} ", line)]
        labels = [int(code.partition("+")[2] or "0", 16)
                  for code, name in zip(table[0::3], table[2::3])
                  if key in name and code.startswith(".text")]
        self.labels = [at for at in labels if at in self.said]

    def target(self, at):
        """Where a branch goes within the function, else None."""
        branch = BRANCH.match(self.said[at])
        return int(branch[2], 16) if branch and int(branch[2], 16) in self.said else None

    def listing(self):
        """The whole function, with relative addresses."""
        return [re.sub(r"\b[0-9a-f]+ <", "<", said) for said in self.said.values()]

    def executed(self):
        """The addresses of reachable code in the order of execution; no jump label is taken."""
        order, waiting = [], [min(self.said)]
        for at in waiting:
            while at is not None and at not in order:
                order.append(at)
                target, word = self.target(at), self.said[at].split()[0]
                waiting += [target] * (target is not None)
                at = target if word == "jmp" else None if word in ENDS else self.following[at]
        return order

    def texts(self, order):
        """Instructions without what moves when code is put before them."""
        names = {}
        for at in order:
            said, *relocations = self.said[at].split("\n    ")
            if self.target(at) is not None:
                name = names.setdefault(self.target(at), f"L{len(names)}")
                said = f"{said.split()[0]} {name}"
            said = re.sub(r"\b[0-9a-f]+ <([^>+]*)[^>]*>|0x0\(%rip\)\s*#.*", r"\1", said)
            yield " ".join([*said.split(), *(text for text in relocations if " ." not in text)])


def compare(before, after, *names):
    """Print how two lists differ; return the lines that do."""
    lines = list(difflib.unified_diff(list(before), list(after), *names, lineterm=""))
    print("\n".join(lines))
    return [line for line in lines[2:] if line[0] in "-+"]


def main():
    function, key, *paths = sys.argv[1:]
    before, off, on = (Code(path, function, key) for path in paths)
    differ = compare(before.listing(), off.listing(), "base", "off")
    if differ:
        print(f"! {function} is not the same without the option: {len(differ)} lines differ")
    if off.labels:
        print("! the build without the option has a jump label of ours")
    reached = on.executed()
    for at in on.labels:
        print(f"jump label: {on.said[at]}{'' if at in reached else ' (only behind another)'}")
        if not on.said[at].startswith(("nop", "xchg   %ax,%ax")):
            print(f"! a jump label is not a NOP: {on.said[at]}")
    on_the_way = [at for at in on.labels if at in reached]
    if len(on_the_way) != 1:
        print(f"! {len(on_the_way)} jump labels of ours are on the way, wanted one")
    more = compare(off.texts(off.executed()),
                   on.texts([at for at in reached if at not in on_the_way]),
                   "off", "on, without the NOP")
    print(f"off: {len(off.said)} instructions, {'others than' if differ else 'the same as'} in the "
          f"base; on: {len(on_the_way)} NOP on the way, " +
          (f"and {len(more)} lines differ, see the log" if more else "nothing else"))


if __name__ == "__main__":
    main()
