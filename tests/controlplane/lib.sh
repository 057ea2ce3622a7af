# shellcheck shell=bash
# Shared by build, supervise, up, down and restart: options, paths, and which processes are ours.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$here/../../target}")/controlplane
components=(etcd kube-apiserver kube-controller-manager kube-scheduler kwok)

say() { printf 'controlplane: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}
need() {
	local tool
	for tool; do command -v "$tool" > /dev/null || die "'$tool' not found: install it first"; done
}

version=v1.37 nodes=3 state=$target/state detached='' component=kube-apiserver
# options ALLOWED "$@": sets the variables above; ALLOWED is a list of the options that make sense here.
options() {
	local allowed=" $1 " name
	shift
	while [ $# -gt 0 ]; do
		name=${1#--}
		name=${name%%=*}
		case $1 in
		-h | --help) die "usage: ${0##*/} [options:$allowed]; see $here/README.md" ;;
		--*) ;;
		*) name=component ;;
		esac
		[[ $allowed == *" $name "* ]] || die "${0##*/}: unknown argument '$1' (known:$allowed)"
		case $1 in
		--detached) detached=1 ;;
		--*=*) printf -v "$name" %s "${1#*=}" ;;
		--*)
			[ $# -ge 2 ] || die "${0##*/}: $1 needs a value"
			printf -v "$name" %s "$2"
			shift
			;;
		*) component=$1 ;;
		esac
		shift
	done
	[ -f "$here/$version/go.mod" ] || die "no such version: $version (known: $(cd "$here" && echo v*))"
	[[ $nodes =~ ^[0-9]+$ ]] || die "--nodes: not a number: $nodes"
	[[ " ${components[*]} " == *" $component "* ]] || die "no such component: $component (known: ${components[*]})"
	state=$(realpath -m "$state")
}

# A process whose parent dies, even by kill -9, dies too (where setpriv is to be had).
has_pdeathsig() { setpriv --pdeathsig KILL true 2> /dev/null; }
pdeathsig() { # SIGNAL COMMAND...
	local signal=$1
	shift
	if has_pdeathsig; then exec setpriv --pdeathsig "$signal" -- "$@"; fi
	exec "$@"
}

# Prints the pid of a component of this state directory, if it runs. A pid file may be stale and its
# number taken by a stranger: ours all have a path inside the state directory on their command line.
pid_of() { # COMPONENT
	local pid='' args
	read -r pid 2> /dev/null < "$state/$1.pid" || return 1
	[[ $pid =~ ^[0-9]+$ ]] || return 1
	args=$(tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline") || return 1
	[[ $args == *"$state/"* ]] || return 1
	echo "$pid"
}

# The supervisor holds this lock as long as it lives; its children do not have it.
supervised() { [ -f "$state/lock" ] && ! flock -n "$state/lock" true; }

kill_leftovers() {
	local name pid
	for name in "${components[@]}"; do
		if pid=$(pid_of "$name"); then
			say "ending a left-over $name (pid $pid)"
			kill -KILL "$pid" 2> /dev/null || true
		fi
	done
}

ctl() { "$state/bin/kubectl" --cache-dir "$state/kubectl-cache" --kubeconfig "$state/admin.kubeconfig" "$@"; }
