# shellcheck shell=bash
# Shared by up, start, stop and down: where the programs are, and which processes are a server's.

missing() { echo "tests/postgres: $1" >&2; exit 1; }

# The folder of the server's programs; empty where there is none.
programs() {
	local bin
	bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
	if [ ! "$bin" ] && command -v pg_ctl >/dev/null && command -v initdb >/dev/null; then
		bin=$(dirname "$(command -v initdb)")
	fi
	echo "$bin"
}

# Runs a program in a server's folder, as its owner: the server refuses to run as root.
run() { # FOLDER COMMAND…
	local folder=$1
	shift
	if [ "$(id -u)" = 0 ]; then
		(cd "$folder" && exec runuser -u postgres -- "$@")
	else
		(cd "$folder" && exec "$@")
	fi
}

# The server's first process, if it lives.
postmaster() { # FOLDER
	local pid
	pid=$(head -1 "$1/data/postmaster.pid" 2>/dev/null) && [ "$pid" ] || return 1
	[[ $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == *"$1/data"* ]] && echo "$pid"
}

# Sends a signal to all processes of a server. The first one stands still meanwhile, so that it starts no more.
signal() { # SIGNAL POSTMASTER
	kill -STOP "$2" 2>/dev/null || return 0
	local children
	children=$(cat "/proc/$2/task"/*/children 2>/dev/null || ps -o pid= --ppid "$2" || true)
	# shellcheck disable=SC2086 # one word each
	[ ! "$children" ] || kill "-$1" $children 2>/dev/null || true
	kill "-$1" "$2" 2>/dev/null || true
}

start() { # FOLDER OPTIONS
	run "$1" "$(programs)/pg_ctl" --pgdata="$1/data" --log="$1/log" --wait --silent --options="$2" start >&2
}
