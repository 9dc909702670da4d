# shellcheck shell=bash disable=SC2034
# Shared by every script in this folder: sourced, never run.

REPO=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
BUILD=$REPO/build
BRANCH=neigh-override
VERB=$(basename "$(readlink -f "$0")")
CALLED="$VERB $*"
# Every kernel, newest first; the last is the default.
mapfile -t ALL_BASES < <(sed -n 's/ .*linux-source.*//p' "$REPO/configs/bases")
DEFAULT_BASE=${ALL_BASES[-1]}
# What the build of a User-mode Linux needs, for need.
KERNEL_TOOLS=(make:make gcc:gcc ld:binutils flex:flex bison:bison bc:bc perl:perl
	python3:python3 /usr/include/stdio.h:libc6-dev)
# That of iproute2's ip.
IPROUTE2_TOOLS=(git:git make:make gcc:gcc ld:binutils /usr/include/stdio.h:libc6-dev
	pkg-config:pkg-config /usr/include/libmnl/libmnl.h:libmnl-dev)
# What the series' selftests and the demonstration run.
TEST_TOOLS=(ip:iproute2 nft:nftables ethtool:ethtool tcpdump:tcpdump ebtables:ebtables
	conntrack:conntrack ipvsadm:ipvsadm /usr/bin/python3:python3
	/usr/lib/python3/dist-packages/yaml/__init__.py:python3-yaml
	/usr/lib/python3/dist-packages/jsonschema/__init__.py:python3-jsonschema)

die() {
	printf '%s: %s\n' "$VERB" "$*" >&2
	exit 1
}

say() {
	printf '%s: %s\n' "$VERB" "$*"
}

# No git variable of the caller's reaches the kernel trees.
unset "${!GIT_@}"

# The comment block at the top of a script is its help text; BASES are the kernels, and
# NEWEST is one of them.
usage() {
	sed -n '2,/^[^#]/{/^# \{0,1\}/s///p}' "$0" |
		sed "s/BASES/$(IFS='|'; echo "${ALL_BASES[*]}")/; s/NEWEST/${ALL_BASES[0]}/"
}

# What configs/bases says of a base.
select_base() {
	BASE=$1
	TREE=$BUILD/linux-$BASE
	SUBJECT_PREFIX='PATCH net-next'
	if [ "$BASE" = iproute2 ]; then
		TREE=$BUILD/iproute2
		SUBJECT_PREFIX='PATCH iproute2-next'
	fi
	read -r PACKAGE VERSION LABEL SUITE LAST_POSTING < \
		<(awk -v base="$BASE" '!/^#/ && $1 == base { $1 = ""; print }' "$REPO/configs/bases") ||
		die "unknown base '$BASE' (known: ${ALL_BASES[*]})"
	PATCHES=$REPO/patches/$BASE
	LOGS=$BUILD/log/$BASE
	[[ $REPO != *[[:space:]:]* ]] ||
		die "a kernel cannot be built below a path with a space or a colon: $REPO"
	{ mkdir -p "$LOGS" 2>/dev/null && [ -w "$BUILD" ] && [ -w "$LOGS" ]; } ||
		die "cannot write to $BUILD"
	runs_from "$BUILD" ||
		die "nothing can be run from $BUILD: is it mounted noexec?"
}

# runs_from FOLDER: a program.
runs_from() {
	local probe=$1/.runs-$$ status=0
	{ printf '#!/bin/sh\n' >"$probe" && chmod +x "$probe" && "$probe"; } 2>/dev/null || status=1
	rm -f "$probe"
	return $status
}

# git on the kernel tree, the same on every machine: no configuration, hooks
# or attributes of the user or the system.
tree_git() {
	LC_ALL=C GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null \
	GIT_ATTR_NOSYSTEM=1 GIT_OPTIONAL_LOCKS=0 \
	git -C "$TREE" -c safe.directory='*' -c core.hooksPath=/dev/null \
		-c core.attributesFile=/dev/null -c core.excludesFile=/dev/null \
		-c advice.detachedHead=false -c gc.auto=0 "$@"
}

require_tree() {
	{ [ -e "$TREE/.git" ] && tree_git rev-parse -q --verify base >/dev/null; } ||
		die "no source tree for $BASE: run scripts/fetch --base $BASE first"
}

require_series() {
	require_tree
	tree_git rev-parse -q --verify "refs/heads/$BRANCH" >/dev/null ||
		die "the series is not applied to $BASE: run scripts/apply --base $BASE first"
}

require_clean_tree() {
	local changed
	changed=$(tree_git status --porcelain --untracked-files=no | head -n 1)
	[ -z "$changed" ] ||
		die "$TREE has uncommitted changes (${changed:3}): commit or discard them first"
}

require_branch() {
	[ "$(tree_git symbolic-ref -q HEAD)" = "refs/heads/$BRANCH" ] ||
		die "branch $BRANCH is not checked out in $TREE: run scripts/apply --base $BASE"
}

# The postings of the branch, in order: each ends with branch posting/NAME.  A series
# without such branches is one posting, '.'.
postings() {
	local names
	names=$(tree_git for-each-ref --format='%(refname:lstrip=3)' refs/heads/posting/)
	echo "${names:-.}"
}

posting_end() {
	[ "$1" = . ] && echo "$BRANCH" || echo "posting/$1"
}

# The patches in patches/BASE without the cover letters, in order: POSTING/FILE or FILE.
patch_files() {
	find "$PATCHES" -maxdepth 2 -name '[0-9]*.patch' ! -name '0000-*' -printf '%P\n' \
		2>/dev/null | LC_ALL=C sort
}

# One checksum over the patches of the base.
patches_sum() {
	(cd "$PATCHES" && find . -name '*.patch' | LC_ALL=C sort | xargs sha256sum) |
		sha256sum | cut -d' ' -f1
}

# begin_aside DIR: a work tree at base, without files.
begin_aside() {
	discard_aside "$1"
	tree_git worktree add -q -f --no-checkout --detach "$1" base
	tree_git -C "$1" read-tree base
}

# am_aside DIR OPTION FILE...: make the commits of patches there, the same ones on every
# machine.  git am checks out what a patch touches.
am_aside() {
	GIT_COMMITTER_NAME=neigh-override GIT_COMMITTER_EMAIL=neigh-override@localhost \
	tree_git -C "$1" -c core.autocrlf=false -c apply.whitespace=nowarn \
		-c commit.gpgSign=false -c am.keepcr=false -c merge.directoryRenames=false \
		am "$2" --no-signoff --no-scissors --committer-date-is-author-date -- "${@:3}"
}

discard_aside() {
	[ -e "$1" ] || return 0
	tree_git worktree remove --force --force "$1" >/dev/null 2>&1 || true
	rm -rf "$1"
}

# Where the branch and its postings end.
branch_state() {
	{
		tree_git rev-parse "$BRANCH"
		tree_git for-each-ref --format='%(refname:lstrip=2)=%(objectname)' refs/heads/posting/
	} | paste -sd' '
}

# Remember that the branch and patches/ say the same.
record_series() {
	tree_git config neigh-override.commit "$(branch_state)"
	tree_git config neigh-override.patches "$(patches_sum)"
}

# install_packages PACKAGE...: without starting the services that some bring.  One
# script at a time, and apt's lists may be in use by another program for a while.
install_packages() (
	policy=/usr/sbin/policy-rc.d
	deadline=$((SECONDS + 300))
	exec 7>"$BUILD/.lock-install"
	flock 7
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
	fi
	until said=$(apt-get update 2>&1); do
		echo "$said"
		[[ $said == *"Could not get lock"* && $SECONDS -lt $deadline ]] || exit 1
		sleep 5
	done
	DEBIAN_FRONTEND=noninteractive apt-get install -y \
		-o DPkg::Lock::Timeout=300 --no-install-recommends "$@"
)

# mirror_of LABEL: the mirror is whichever the system itself uses for Debian.
mirror_of() {
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(REPO_URI) $(LABEL)' \
		'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
		awk -v label="$1" '$2 == label { print $1; exit }'
}

# private_apt NAME TOOL...: with its whole state below build/apt/NAME.
private_apt() {
	local apt=$BUILD/apt/$1
	"$2" -o Dir::State="$apt/state" -o Dir::Cache="$apt/cache" \
		-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Status=/dev/null \
		-o APT::Get::List-Cleanup=false -o APT::Sandbox::User=root "${@:3}"
}

# private_source NAME URI SUITE TYPE...: what it reads, deb or deb-src.
private_source() {
	local type
	mkdir -p "$BUILD/apt/$1"/{state/lists,cache/archives}/partial
	for type in "${@:4}"; do
		echo "$type [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $2 $3 main"
	done >"$BUILD/apt/$1/sources.list"
}

# need COMMAND:PACKAGE ... : install what is missing, or name it.
need() {
	local pair missing=() commands=()
	for pair; do
		if [[ ${pair%%:*} == */* ]]; then
			compgen -G "${pair%%:*}" >/dev/null && continue
		else
			command -v "${pair%%:*}" >/dev/null && continue
		fi
		commands+=("${pair%%:*}")
		missing+=("${pair#*:}")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		die "missing: ${commands[*]} (Debian packages: ${missing[*]})"
	fi
	say "installing ${missing[*]}"
	mkdir -p "$BUILD/log"
	install_packages "${missing[@]}" >"$BUILD/log/install-$VERB.log" 2>&1 ||
		die "cannot install ${missing[*]}: $(grep -m1 '^E:' "$BUILD/log/install-$VERB.log" ||
			echo "see $BUILD/log/install-$VERB.log")"
}

# need_space GIGABYTES
need_space() {
	local free
	mkdir -p "$BUILD"
	free=$(df -Pk "$BUILD" | awk 'NR == 2 { print int($4 / 1048576) }')
	[ "$free" -ge "$1" ] ||
		die "$BUILD has $free GB free, this needs $1 GB"
}

# watched NAME COMMAND...: run it with its output in $LOGS/NAME.log and say
# every ten seconds that it is alive.  Its status is in STATUS, not returned:
# behind '||' a function would lose set -e.  It has a process group of its own,
# which ends with the script.
watched() {
	local name=$1 log=$LOGS/$1.log started=$SECONDS job beat=0
	shift
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	job=$!
	set +m
	trap 'kill -- -$job 2>/dev/null; exit 130' INT TERM HUP
	while kill -0 "$job" 2>/dev/null; do
		sleep 0.1
		if [ $((SECONDS - started)) -ge $((beat + 10)) ]; then
			beat=$((SECONDS - started))
			printf '%s:   %s %s: %d s, %d lines of output\n' "$VERB" "$BASE" \
				"$name" "$beat" "$(wc -l <"$log")"
		fi
	done
	STATUS=0
	wait "$job" || STATUS=$?
	trap - INT TERM HUP
}

# logged NAME COMMAND...: the same for a command that has to work: on failure
# name its first errors and its log, and exit.
logged() {
	local name=$1 log=$LOGS/$1.log
	watched "$@"
	[ "$STATUS" != 0 ] || return 0
	grep -nE 'error|Error|ERROR|FAILED|No space left' "$log" | head -n 5 >&2 || true
	if grep -q 'No space left' "$log" ||
	   [ "$(df -Pk "$BUILD" | awk 'NR == 2 { print $4 }')" -lt 1024 ]; then
		die "$name: the disk is full ($BUILD)"
	fi
	die "$name failed with status $STATUS: see $log"
}

# Common options: --base B and -h.  What is left is in ARGS; nothing behind
# '--' is looked at.  A script whose help says NEWEST is for that base by default.
parse_options() {
	local base=$DEFAULT_BASE
	! sed -n '2,3p' "$0" | grep -qF -- '[--base NEWEST]' || base=${ALL_BASES[0]}
	ARGS=()
	while [ $# -gt 0 ]; do
		case $1 in
		-h|--help) usage; exit 0 ;;
		--base) [ $# -ge 2 ] || die "--base wants a value (${ALL_BASES[*]})"
			base=$2; shift ;;
		--) ARGS+=("$@"); break ;;
		*) ARGS+=("$1") ;;
		esac
		shift
	done
	# Not a kernel: what its verb runs knows it as a base.
	[[ $base != iproute2 || $VERB == @(fetch|apply|regen) ]] ||
		die "unknown base '$base' (known: ${ALL_BASES[*]})"
	select_base "$base"
}

# take SPEC...: the options of one script, from ARGS.  'variable=--option' is set to 1, with
# WHAT behind it to a value, which is 'a number', 'this|that' or anything; 'array+=--option'
# collects.  What is no option stays in ARGS; it has to be like WORDS, a pattern.  '--' and
# what follows stays there as it is.
take() {
	local specs=("$@") spec what value
	set -- "${ARGS[@]}"
	ARGS=()
	while [ $# -gt 0 ]; do
		case $1 in
		--*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
		-[a-z]?*) set -- "${1:0:2}" "${1:2}" "${@:2}" ;;
		esac
		for spec in "${specs[@]}" ''; do
			[[ "${spec#*=} " != "$1 "* ]] || break
		done
		what=${spec#*"$1"} value=1
		if [ -z "$spec" ]; then
			# shellcheck disable=SC2053  # a pattern
			[[ -n $1 && $1 == @(${WORDS:-}) ]] || die "unknown argument '$1' (see -h)"
			[ "$1" != -- ] || { ARGS+=("$@"); break; }
			ARGS+=("$1")
		elif [ -n "$what" ]; then
			what=${what# } value=${2-}
			[[ -n $value && ($what != 'a number'* || $value =~ ^(0|[1-9][0-9]{0,5})$) &&
			   $what$value != *'above 00' && ($what != *'|'* || "|$what|" == *"|$value|"*) ]] ||
				die "$1 wants ${what//|/ or }"
			shift
		fi
		case $spec in
		*+=*) declare -n array=${spec%%+=*}; array+=("$value"); unset -n array ;;
		*=*) printf -v "${spec%%=*}" %s "$value" ;;
		esac
		shift
	done
}

# build_proof_kernel: get, patch and build what stress, fuzz and faults run on.
build_proof_kernel() {
	need ip:iproute2 nft:nftables /usr/bin/python3:python3
	[ -e "$TREE/.git" ] || verb fetch
	verb apply
	verb build uml --with debug --with proof
}

# lock_tree -x: no other script uses the base's tree; -s: none changes it.
lock_tree() {
	need flock:util-linux
	exec 9>"$BUILD/.lock-$BASE"
	# What an interrupted script began may take a moment to end.
	flock -n "$1" 9 || { say "waiting for another script" && flock -w 10 "$1" 9; } ||
		die "another script is working on $TREE"
}

# lock_output NAME [WHAT]: only one script at a time builds in build/NAME, or does
# what WHAT says.
lock_output() {
	need flock:util-linux
	exec 8>>"$BUILD/.lock-$1"
	flock -n 8 || die "another script is ${2:-working on $BUILD/$1}: $(<"$BUILD/.lock-$1")"
	echo "$CALLED (process $$)" >"$BUILD/.lock-$1"
}

# verb NAME ARGUMENT...: another script, for the same base.
verb() {
	"$REPO/scripts/$1" --base "$BASE" "${@:2}"
}

# check_out SOURCE COMMIT: a work tree of its own, and always the same files.
check_out() {
	# It may be that of a source tree that was removed.
	if ! tree_git -C "$1" rev-parse -q --git-dir >/dev/null 2>&1 || [ ! -e "$1/.git" ]; then
		rm -rf "$1"
		tree_git worktree prune
		tree_git worktree add -q -f --no-checkout --detach "$1" "$2"
		# Half a gigabyte that nothing here compiles
		tree_git -C "$1" sparse-checkout set --no-cone '/*' '!/drivers/gpu/drm/amd/include/'
	fi
	tree_git -C "$1" checkout -q -f --detach "$2"
}

# kernel_sum COMMIT WORD...: what a kernel is made of, told by one sum.
kernel_sum() {
	{
		echo "${@:2}"
		tree_git rev-parse "$1^{tree}"
		cat "$REPO"/configs/*.config
		gcc --version
	} | sha256sum
}

# The options that fragments ask for, one KEY=VALUE a line, n for "not set";
# the last fragment has the last word.
requested() {
	sed -n 's/^# \(CONFIG_[A-Za-z0-9_]*\) is not set$/\1=n/p; /^CONFIG_[A-Za-z0-9_]*=/p' "$1" |
		awk -F= '{ last[$1] = $0 } END { for (key in last) print last[key] }'
}

# refused WANTED CONFIG: what WANTED asks for and CONFIG does not have.
refused() {
	awk -F= 'NR == FNR { have[$1] = $0; next }
		($0 ~ /=n$/) ? ($1 in have && have[$1] !~ /=n$/) : (have[$1] != $0)' \
		<(requested "$2") <(requested "$1") | sort
}

# keep_config NEW CONFIG: the .config that is there keeps its time when it would
# be the same, and make has nothing to do.
keep_config() {
	if cmp -s "$1" "$2"; then
		rm "$1"
	else
		mv "$1" "$2"
	fi
}

# with_debug_info FOLDER OBJECT FILE: an object that a kernel's build made there,
# once more with debugging information, by the command that made it.
with_debug_info() {
	local command
	command=$(sed -n "s,^savedcmd_[^ ]*$2 := ,,p" "$1/${2%/*}/.${2##*/}.cmd")
	[ -n "$command" ] || die "it is not known how $2 was made"
	command=${command%%;*}
	command=${command/-Wp,-MMD,* -nostdinc/-nostdinc}
	command=${command/ -o $2 / -g -o $3 }
	(cd "$1" && sh -c "$command")
}

# The compiler's cache, when there is one; its usual folder may not be writable.
use_ccache() {
	local cache
	[ -d /usr/lib/ccache ] || return 0
	PATH=/usr/lib/ccache:$PATH
	if ! { cache=$(ccache --get-config cache_dir) && mkdir -p "$cache/tmp" &&
	       [ -w "$cache/tmp" ]; } 2>/dev/null; then
		export CCACHE_DIR=$BUILD/ccache
	fi
	# Another clone compiles the same.
	export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$BUILD} CCACHE_NOHASHDIR=1
}

# Where User-mode Linux may put its memory file: 1.2 GB of room, not noexec.
use_uml_tmpdir() {
	local free
	free=$(df -Pm /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
	export TMPDIR=/dev/shm
	if [ "${free:-0}" -lt 1200 ] || ! runs_from /dev/shm; then
		TMPDIR=$BUILD/tmp
		mkdir -p "$TMPDIR"
	fi
}

# The selftests that the series adds; what they share is not executable.
series_tests() {
	tree_git diff --raw --diff-filter=A base "$BRANCH" -- tools/testing/selftests/net |
		sed -nE 's,^:000000 100755 .*\ttools/testing/selftests/net/(.*\.(sh|py))$,\1,p'
}

# Words for make: gcov of what the series changes, in User-mode Linux.  libgcov would write when
# the program ends, from .fini_array.*, which the linker script leaves out.
gcov_words() {
	local file
	while read -r file; do
		echo "CFLAGS_$(basename "$file" .c).o=--coverage"
	done < <(tree_git diff --name-only base "$BRANCH" -- 'net/*.c' 'drivers/*.c' ':!*/tests/*') |
		sort -u
	# It calls an inline function that the series changes.
	echo CFLAGS_ip6_fib.o=--coverage
	echo "LDFLAGS_EXECSTACK=-z noexecstack -u __gcov_init -u __gcov_exit -u __gcov_merge_add -u __gcov_dump \
		-fini=__gcov_dump $(gcc -print-file-name=libgcov.a)"
}

# Byte for byte against the source that the patches were made for, else
# patch by patch.
same_patches() {
	local again=$BUILD/tmp/regen-$BASE file
	rm -rf "$again"
	mkdir -p "$BUILD/tmp"
	"$REPO/scripts/regen" --base "$BASE" --output "$again"
	if [ "$(tree_git config neigh-override.source)" = "$PACKAGE" ] &&
	   [ "$(tree_git config neigh-override.version)" = "$VERSION" ]; then
		diff -r -x '[!0-9]*' "$PATCHES" "$again" || {
			echo "the branch makes other patches than patches/$BASE"
			return 1
		}
		echo "byte for byte the same"
		return 0
	fi
	for file in $(patch_files); do
		[ "$(git patch-id --stable <"$PATCHES/$file" | cut -d' ' -f1)" = \
		  "$(git patch-id --stable <"$again/$file" | cut -d' ' -f1)" ] || {
			echo "$file comes out as another patch"
			return 1
		}
	done
	echo "the same patch ids ($BASE is not the source of patches/$BASE: $(tree_git config neigh-override.version))"
}

# splats FILE: the lines of a kernel log that no test expects.  Of races, those of the feature:
# the base has its own.
splats() {
	grep -E 'WARNING: |BUG: |KASAN: |UBSAN: |INFO: |Oops|suspicious RCU|refcount_t: |general protection fault|Kernel panic|unregister_netdevice: waiting|leaked reference' "$1" |
		grep -vP 'KCSAN: (?!.*(neigh_override|last_hop))'
}
