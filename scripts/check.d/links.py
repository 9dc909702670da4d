#!/usr/bin/env python3
"""links.py TOP FILE...: do the links of Markdown files lead somewhere?

Relative paths have to exist below TOP, '#anchors' have to be a heading of the
file that they are in; addresses with a scheme are not followed.  Lines that
begin with '!' are findings.
"""
import pathlib
import re
import sys
import urllib.parse

FENCE = re.compile(r"^\s*(```|~~~)")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
REFERENCE = re.compile(r"^\s*\[[^\]]+\]:\s+<?(\S+?)>?\s*$")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$")
SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:")


def text_lines(path):
    """Number and text of the lines outside of code."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced and not line.startswith(("\t", "    ")):
            yield number, re.sub(r"`[^`]*`", "", line), line


def anchors(path):
    """The anchors that a renderer makes of the headings."""
    found = set()
    for _, _, line in text_lines(path):
        heading = HEADING.match(line)
        if not heading:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1)).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        name, count = slug, 0
        while name in found:
            count += 1
            name = f"{slug}-{count}"
        found.add(name)
    return found


def wrong(top, path, target):
    """Why a link leads nowhere, or None."""
    name, _, anchor = urllib.parse.unquote(target).partition("#")
    place = path if not name else (path.parent / name).resolve()
    if name.startswith("/") or top not in (place, *place.parents):
        return "leads out of the repository"
    if not place.exists():
        return "does not exist"
    if anchor and place.suffix == ".md" and anchor not in anchors(place):
        return "has no such heading"
    return None


def main():
    top = pathlib.Path(sys.argv[1]).resolve()
    count = 0
    for file in sys.argv[2:]:
        path = (top / file).resolve()
        for number, line, _ in text_lines(path):
            for target in LINK.findall(line) + REFERENCE.findall(line):
                if SCHEME.match(target):
                    continue
                count += 1
                reason = wrong(top, path, target)
                if reason:
                    print(f"! {file}:{number}: {target} {reason}")
    print(f"{count} links in {len(sys.argv) - 2} files")


if __name__ == "__main__":
    main()
