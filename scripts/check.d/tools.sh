# shellcheck shell=bash disable=SC2034,SC2153
# Tools that the checks need and that not every system has: sourced by check.

TOOLS=$BUILD/tools

# want COMMAND:PACKAGE...: install what is missing, else the check is skipped.
want() {
	local why
	# shellcheck disable=SC2015  # the skip is for either failure
	why=$(need "$@" 2>&1) || skip "${why##*$'\n'}"
}

# newer_package PACKAGE [source]: download it into the current directory from
# Debian's unstable suite, with an apt state of its own.
newer_package() {
	local uri
	command -v apt-get >/dev/null || return 1
	uri=$(mirror_of Debian)
	[ -n "$uri" ] || return 1
	private_source tools "$uri" sid deb deb-src
	[ -n "$(find "$BUILD/apt/tools/state/lists" -name '*Packages*' -mmin -1440 -print -quit)" ] ||
		private_apt tools apt-get -q update || return 1
	if [ "${2:-}" = source ]; then
		private_apt tools apt-get -q source --only-source --download-only "$1"
	else
		private_apt tools apt-get -q download "$1"
	fi
}

# sparse_works SPARSE: as the kernel's own test of 7.3 has it, on every base.
sparse_works() {
	local probe=$WORK/sparse-probe.c said
	printf 'static int f(const int *p)\n{\n\t__typeof_unqual__(*p) v = *p;\n\treturn v;\n}\n' \
		>"$probe"
	command -v "$1" >/dev/null || return 1
	said=$("$1" "$probe" 2>&1) || true
	[[ $said != *error* ]]
}

build_sparse() {
	local work=$TOOLS/.sparse-$BASE
	rm -rf "$work"
	mkdir -p "$work"
	(
		cd "$work" && newer_package sparse source &&
			dpkg-source --skip-patches -x ./*.dsc source &&
			make -C source -j"$(nproc)" sparse && mv source/sparse "$TOOLS/sparse"
	) || return 1
	rm -rf "$work"
}

# The system's, if it is new enough, else one made from Debian's unstable source.
find_sparse() {
	local sparse
	for sparse in sparse "$TOOLS/sparse"; do
		! sparse_works "$sparse" || { SPARSE=$sparse; return 0; }
	done
	(need sparse:sparse dpkg-source:dpkg-dev) && sparse_works sparse && SPARSE=sparse && return 0
	build_sparse && sparse_works "$TOOLS/sparse" && SPARSE=$TOOLS/sparse
}

# 7.3 wants LLVM 17 or newer.
find_clang() {
	local version
	for version in 22 21 20 19 18 17; do
		! command -v clang-$version >/dev/null || { CLANG=clang-$version; return 0; }
	done
	(need clang-19:clang-19) && CLANG=clang-19
}

# Debian 12 has none: that of the unstable suite, with the C library it wants.
find_ruff() {
	local work=$TOOLS/.ruff-$BASE package
	if command -v ruff >/dev/null; then
		RUFF=(ruff)
		return 0
	fi
	if [ ! -d "$TOOLS/ruff" ]; then
		rm -rf "$work"
		mkdir -p "$work/packages"
		(
			cd "$work/packages" && newer_package ruff && newer_package libc6 &&
				newer_package libgcc-s1 || exit 1
			for package in ./*.deb; do
				dpkg-deb -x "$package" "$work/root" || exit 1
			done
		) || return 1
		[ -d "$TOOLS/ruff" ] || mv "$work/root" "$TOOLS/ruff"
		rm -rf "$work"
	fi
	RUFF=("$(find "$TOOLS/ruff" -name 'ld-linux-x86-64.so.2' -print -quit)"
		--library-path "$(find "$TOOLS/ruff" -name libc.so.6 -printf '%h' -quit)"
		"$TOOLS/ruff/usr/bin/ruff")
	"${RUFF[@]}" --version >/dev/null
}
