#!/bin/sh
# Shows the whole story on one machine: an app is posted, named, balanced and scaled. Started by `./x demo`.
set -eu
program=$1
shift

dir=$(mktemp -d "${TMPDIR:-/tmp}/mesonet-demo.XXXXXX")
api=http://127.0.0.1:8080
dns=127.0.0.1:8053
previous=
for argument in "$@"; do
    case $previous in
        --http) api=http://$argument ;;
        --dns) dns=$argument ;;
    esac
    previous=$argument
done
export MESONET_API="$api"

mesonet() {
    "$program" "$@"
}

title() {
    printf '\n\033[1m%s\033[0m\n' "$*"
}

# Prints a command as a person would type it, then runs it.
show() {
    printf '\033[36m$ %s\033[0m\n' "$*"
    "$@"
}

# Repeats a command until it succeeds, 30 s at most.
wait_for() {
    what=$1
    shift
    tries=0
    until "$@"; do
        if ! kill -0 "$node" 2>/dev/null; then
            cat "$dir/out" "$dir/log" >&2
            exit 1
        fi
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || { echo "$what: not within 30 s" >&2; exit 1; }
        sleep 0.1
    done
}

# Its greeting says that the ports are its own: before it, another cluster may answer there.
is_ready() {
    [ -s "$dir/out" ] && curl -fsS "$api/v1/health/ready" >/dev/null 2>&1
}

is_deployed() {
    [ "$(curl -fsS "$api/v2/deployments")" = '[]' ]
}

title "A one-node cluster (its log: $dir/log)"
printf '\033[36m$ mesonet dev %s\033[0m\n' "$*"
"$program" dev "$@" >"$dir/out" 2>"$dir/log" &
node=$!
finish() {
    trap - INT TERM EXIT
    kill "$node" 2>/dev/null || true
    wait "$node" 2>/dev/null || true
    rm -rf "$dir"
}
trap finish EXIT
trap 'finish; exit 0' INT TERM
wait_for "mesonet dev ready" is_ready
cat "$dir/out"

title "An app: a small web server, its port named http, its VIP /web:8080"
show curl -fsS -o /dev/null -w 'HTTP %{http_code}\n' -X POST "$api/v2/apps" -d @deploy/examples/web.json
wait_for "deployment of the app" is_deployed
show mesonet app list

title "Its names"
if command -v dig >/dev/null 2>&1; then
    show dig @"${dns%:*}" -p "${dns##*:}" web.marathon.mesos +short
    show dig @"${dns%:*}" -p "${dns##*:}" _http._web._tcp.marathon.mesos SRV +short
else
    show mesonet dns query --server "$dns" web.marathon.mesos
    show mesonet dns query --server "$dns" _http._web._tcp.marathon.mesos SRV
fi

title "Its stable address"
show mesonet service list
vip=$(mesonet service list | awk 'NR == 2 { print $2 }')
show curl -fsS -o /dev/null -w 'HTTP %{http_code} from %{remote_ip}:%{remote_port}\n' "http://$vip/"

title "Five instances"
show mesonet app scale web 5
show mesonet task list

title "It stays up until Ctrl-C. In another terminal:"
cat <<TEXT
  export MESONET_API=$api
  $program app list
  $program task log web
  curl http://$vip/
TEXT
wait "$node"
