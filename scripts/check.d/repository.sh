# shellcheck shell=bash disable=SC2034,SC2153
# What concerns this repository: sourced by check.

REPOSITORY_CHECKS=(
"scripts          shellcheck -x on every shell script"
"python           pylint on every Python script"
"spelling         codespell on scripts, configurations and documents"
"links            links in Markdown lead somewhere"
"snippet          MAINTAINERS.snippet is what the series puts into MAINTAINERS"
"regen            the branch makes patches/BASE, byte for byte"
)

# repository_files PATTERN...: what git has, or would take.
repository_files() {
	git -C "$REPO" -c safe.directory='*' ls-files -co --exclude-standard -- "$@" |
		while IFS= read -r file; do
			[ ! -f "$REPO/$file" ] || echo "$file"
		done | sort -u
}

# first_line_has WORD <FILES
first_line_has() {
	local file
	while IFS= read -r file; do
		! head -n 1 "$REPO/$file" | tr -d '\0' | grep -E "^(#!|# shellcheck shell).*\<$1\>" >/dev/null ||
			echo "$file"
	done
}

check_scripts() {
	local files
	want shellcheck:shellcheck
	mapfile -t files < <(repository_files ':!patches' | first_line_has '(ba|da)?sh(=bash)?')
	(cd "$REPO" && shellcheck -x -f gcc "${files[@]}") | findings "" || true
	echo "${#files[@]} scripts"
}

# Several of them are small on purpose, and some import what only the guest has.
check_python() {
	local files
	want /usr/bin/pylint:pylint
	mapfile -t files < <(repository_files ':!patches' | first_line_has python3)
	mapfile -O ${#files[@]} -t files < <(repository_files 'scripts/*.py' 'tests/*.py')
	mapfile -t files < <(printf '%s\n' "${files[@]}" | sort -u)
	(cd "$REPO" && PYTHONPATH=tests /usr/bin/python3 -m pylint --rcfile=/dev/null \
		--score=n --persistent=n --max-line-length=100 --good-names-rgxs='^[a-z][a-z0-9]?$' \
		--disable=missing-function-docstring,missing-class-docstring \
		--msg-template='{path}:{line}: {msg_id} {symbol}: {msg}' "${files[@]}") |
		grep -v '^\*\*\*' | findings "" || true
	echo "${#files[@]} scripts"
}

check_spelling() {
	local files
	want codespell:codespell
	mapfile -t files < <(repository_files ':!patches/[0-9]*' ':!patches/iproute2/0*' ':!COPYING')
	(cd "$REPO" && codespell -L iif "${files[@]}") | findings "" || true
	echo "${#files[@]} files"
}

# Relative ones; an anchor has to be a heading.
check_links() {
	local file link target count=0
	while IFS=: read -r file link; do
		count=$((count + 1))
		target=$(dirname "$file")/${link%%#*}
		[[ $link != '#'* ]] || target=$file
		if [ ! -e "$REPO/$target" ]; then
			finding "$file: $link does not exist"
		elif [[ $link = *'#'* ]]; then
			sed -n 's/^##* //p' "$REPO/$target" | tr '[:upper:]' '[:lower:]' |
				sed 's/[^a-z0-9_ -]//g; s/ /-/g' | grep -xF -- "${link#*#}" >/dev/null ||
				finding "$file: $link: no such heading"
		fi
	done < <(cd "$REPO" && repository_files '*.md' | xargs grep -oHP '\]\(\K(?![a-z]+:)[^) ]+')
	echo "$count links"
}

check_snippet() {
	[ "$BASE" = "${ALL_BASES[0]}" ] || nothing "an older base has other files"
	tree_git show "$BRANCH:MAINTAINERS" |
		awk -v name="$(head -n 1 "$REPO/MAINTAINERS.snippet")" '$0 == name { on = 1 } /^$/ { on = 0 } on' |
		diff "$REPO/MAINTAINERS.snippet" - | findings "" || true
	echo "the same section"
}

check_regen() {
	same_patches
}
